"""Environments as bytes, with all they hold."""

from __future__ import annotations

import copyreg
import inspect
import io
import pickle
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import cloudpickle
import gymnasium

from headrace.errors import headline
from headrace.processes.status import Phase, Status
from headrace.types import Tree

__all__ = ["EnvState", "dumped", "dumps", "loads", "loads_apart", "not_pickled"]

#: An environment of more bytes would make every checkpoint slow and large.
_LARGEST = 64 * 2**20


@dataclass
class EnvState:
    """All there is of one environment between two batches.

    seed: of its first reset, if that is still to come; row: where the collection loop stands, running: the statistics
    of the running episode (both None for evaluation, which begins with resets).
    """

    env: gymnasium.Env[Any, Any]
    seed: int | None
    row: Tree = None
    running: Any = None


def dumped(env_ids: Sequence[int], states: Sequence[EnvState], status: Status) -> dict[int, bytes]:
    """Pickles states by env id; raises what pickling raises."""
    found = {}
    for env_id, state in zip(env_ids, states, strict=True):
        status.enter(Phase.SAVING, env_id)
        found[env_id] = dumps(state)
    return found


def not_pickled(name: str, error: BaseException) -> str:
    """The sentence for environments that cannot be saved. name: the factory's."""
    return f"{name} cannot be pickled ({headline(error)})".split("\n")[0]


def dumps(value: Any) -> bytes:
    """Pickles an environment, or what holds one, by cloudpickle, compressed; raises what its pickling raises.

    Classes that pickle the arguments of their constructor only (`EzPickle`: MuJoCo's, Box2D's) would come back as if
    new; theirs are pickled whole here. Raises ValueError for more than 64 MiB.
    """
    buffer = _Limited()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return zlib.compress(buffer.getvalue(), 1)  # a MuJoCo environment is 1.2 MB, mostly zeros: 4 ms, a 17th


def loads(content: bytes) -> Any:
    """The inverse of `dumps`. Runs code that the bytes name: for bytes of our own only.

    Classes that came whole, those of a script or a notebook, are new ones each time; see `loads_apart`.
    """
    return loads_apart(zlib.decompress(content))


def loads_apart(content: bytes) -> Any:
    """`pickle.loads` of what cloudpickle wrote, without a trace in the classes that are here already.

    cloudpickle numbers the classes that it writes whole. Where it reads a number that it knows, in the process that
    wrote it or for the second time, it sets all attributes of the class that it knows by that number, and every method
    of it then sees other globals: copies of the script's, as they were when it was written.
    """
    return _Unpickler(io.BytesIO(content)).load()


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


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """What makes classes makes them without their numbers."""
        found = super().find_class(module_name, global_name)
        if module_name.partition(".")[0] == "cloudpickle" and global_name.startswith("_make_"):
            return _unnumbered(found)
        return found


def _unnumbered(make: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(make)
    if "class_tracker_id" not in signature.parameters:
        return make

    @wraps(make)
    def made(*args: Any) -> Any:
        arguments = signature.bind(*args)
        arguments.arguments["class_tracker_id"] = None
        return make(*arguments.args)

    return made


def _set_dict(value: Any, content: dict[str, Any]) -> None:
    vars(value).update(content)
