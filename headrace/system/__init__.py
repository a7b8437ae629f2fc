"""Decoupled training: actor, policy, trainer and evaluation workers, and the controller that watches them."""

from headrace.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
