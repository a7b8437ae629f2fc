"""DDPG, TD3 and SAC, which learn action values and a policy from a replay buffer."""

from headrace.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
