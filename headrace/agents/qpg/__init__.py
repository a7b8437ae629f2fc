"""Agents for Box actions whose policies follow the gradient of learned action values."""

from headrace.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
