"""Replay buffers: batches are appended to a ring in shared memory, and transitions or sequences are sampled."""

from headrace.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
