"""What a runner tells: rows of numbers, to the console and to files."""

from headrace.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
