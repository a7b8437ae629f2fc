"""Samplers collect batches `[batch_T, batch_B]` with an agent."""

from headrace.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
