"""Environments as bytes, with all they hold."""

from __future__ import annotations

import copyreg
import io
import pickle
import zlib
from typing import Any

import cloudpickle

__all__ = ["dumps", "loads"]

#: An environment of more bytes would make every checkpoint slow and large.
_LARGEST = 64 * 2**20


def dumps(value: Any) -> bytes:
    """Pickles an environment, or what holds one, by cloudpickle, compressed; raises what its pickling raises.

    Classes that pickle the arguments of their constructor only (`EzPickle`: MuJoCo's, Box2D's) would come back as if
    new; theirs are pickled whole here. Raises ValueError for more than 64 MiB.
    """
    buffer = _Limited()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return zlib.compress(buffer.getvalue(), 1)  # a MuJoCo environment is 1.2 MB, mostly zeros: 4 ms, a 17th


def loads(content: bytes) -> Any:
    """The inverse of `dumps`. Runs code that the bytes name: for bytes of our own only."""
    return pickle.loads(zlib.decompress(content))


class _Limited(io.BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() + memoryview(data).nbytes > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST >> 20} MiB")
        return super().write(data)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, value: Any) -> Any:
        """What `EzPickle` instances hold, and not what they were made with. (Gymnasium's and old gym's are alike.)"""
        if "_ezpickle_args" in getattr(value, "__dict__", ()):
            # The setter, because EzPickle's own `__setstate__` calls the constructor.
            return copyreg.__newobj__, (type(value),), vars(value), None, None, _set_dict  # type: ignore[attr-defined]
        return super().reducer_override(value)


def _set_dict(value: Any, content: dict[str, Any]) -> None:
    vars(value).update(content)
