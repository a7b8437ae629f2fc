"""Whole episodes: batches of episodes of different lengths, and samplers and workers that collect them."""

from headrace.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
