"""Packages that not everybody needs: they are imported where they are used, and belong to the extras of headrace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["extra"]


@contextmanager
def extra(name: str, why: str) -> Iterator[None]:
    """Says in one sentence how to get a package whose import fails::

        with extra("zmq", "streams on sockets need pyzmq"):
            import zmq

    Args:
        name: the extra that has the package.
        why: the beginning of the sentence, which names what needs the package.

    Raises:
        ImportError: if the import fails.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f'{why} ({error}); pip install "headrace[{name}]"') from error
