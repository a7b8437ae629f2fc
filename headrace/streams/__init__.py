"""Streams between processes and machines: samples to a learner, observations to a policy, actions back."""

from headrace.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
