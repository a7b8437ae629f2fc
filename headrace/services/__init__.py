"""Services of a distributed run: who is where, and which parameters are the latest."""

from headrace.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
