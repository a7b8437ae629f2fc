"""Environments as bytes, with everything they hold."""

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

__all__ = ["EnvState", "dumped", "dumps", "loads", "loads_untracked", "not_pickled"]

#: A larger environment, in bytes, would make every checkpoint slow and large.
_LARGEST = 64 * 2**20


@dataclass
class EnvState:
    """The complete state of one environment between two batches.

    Args:
        env: the environment.
        seed: seed of its first reset; None if it was reset before.
        row: what the collection loop carries over for it; None for evaluation, which begins with resets.
        running: statistics of the running episode; None for evaluation.
    """

    env: gymnasium.Env[Any, Any]
    seed: int | None
    row: Tree = None
    running: Any = None


def dumped(env_ids: Sequence[int], states: Sequence[EnvState], status: Status) -> dict[int, bytes]:
    """Pickles states by env id; raises whatever pickling raises."""
    found = {}
    for env_id, state in zip(env_ids, states, strict=True):
        status.enter(Phase.SAVING, env_id)
        found[env_id] = dumps(state)
    return found


def not_pickled(name: str, error: BaseException) -> str:
    """Returns the message for environments that cannot be saved. name: name of the factory."""
    return f"{name} cannot be pickled ({headline(error)})".split("\n")[0]


def dumps(value: Any) -> bytes:
    """Pickles an environment, or an object that holds one, by cloudpickle, and compresses it.

    Classes that pickle only the arguments of their constructor (`EzPickle`: MuJoCo's, Box2D's) would be restored as if
    new; their full state is pickled here.

    Args:
        value: the environment.

    Raises:
        ValueError: the pickle is larger than 64 MiB.
        Exception: whatever the pickling of the environment raises.
    """
    buffer = _Limited()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return zlib.compress(buffer.getvalue(), 1)  # a MuJoCo environment, 1.2 MB, mostly zeros: to 1/17 in 4 ms


def loads(content: bytes) -> Any:
    """Returns the object that `dumps` pickled. It executes code named in the bytes: use it for trusted bytes only.

    Classes pickled by value (those of a script or a notebook) are created anew at each call; see `loads_untracked`.
    """
    return loads_untracked(zlib.decompress(content))


def loads_untracked(content: bytes) -> Any:
    """Unpickles what cloudpickle wrote, like `pickle.loads`, without modifying classes that already exist here.

    cloudpickle assigns an id to each class that it pickles by value. If it reads an id that it has seen, in the process
    that wrote it or on a second load, it overwrites all attributes of the class with that id, and every method of the
    class then uses other globals: copies of the script's globals at the time of pickling.
    """
    return _Unpickler(io.BytesIO(content)).load()


class _Limited(io.BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() + memoryview(data).nbytes > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST >> 20} MiB")
        return super().write(data)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, value: Any) -> Any:
        """Pickles the state of `EzPickle` instances instead of their constructor arguments; Gymnasium's and old gym's
        alike.
        """
        if "_ezpickle_args" in getattr(value, "__dict__", ()):
            # A state setter is given because EzPickle's own `__setstate__` calls the constructor.
            return copyreg.__newobj__, (type(value),), vars(value), None, None, _set_dict  # type: ignore[attr-defined]
        return super().reducer_override(value)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Makes the functions that create classes ignore cloudpickle's class ids."""
        found = super().find_class(module_name, global_name)
        if module_name.partition(".")[0] == "cloudpickle" and global_name.startswith("_make_"):
            return _untracked(found)
        return found


def _untracked(make: Callable[..., Any]) -> Callable[..., Any]:
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
