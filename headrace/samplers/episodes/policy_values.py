"""The parameters of a policy of any kind: packed for other processes, saved in checkpoints; and copies of a policy."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import cloudpickle
import numpy as np
import torch

from headrace.errors import headline

__all__ = ["HasValues", "Packed", "ValueBuffer", "copied", "restored", "saved", "unpacked"]

#: Pickled parameters.
Packed = bytes

_Copied = TypeVar("_Copied")

_LENGTH_BYTES = 8


class HasValues(Protocol):
    """Something with parameters."""

    def get_param_values(self) -> Any:
        """Returns the parameters: anything that can be pickled."""

    def set_param_values(self, params: Any) -> None:
        """Sets the parameters that `get_param_values` returned."""


class ValueBuffer(torch.nn.Module):
    """Memory in which the pickled parameters of a policy travel between processes, as the bytes of one tensor.

    `exchange` makes memory and policy agree. Other processes may overwrite the memory between two calls.

    Args:
        policy: the policy, whose parameters set the size of the memory.
    """

    memory: torch.Tensor

    def __init__(self, policy: HasValues) -> None:
        super().__init__()
        values = _packed(policy.get_param_values())
        # Room to grow: the same numbers have not always the same length when they are pickled.
        self._room = len(values) + len(values) // 4 + 4096
        self.register_buffer("memory", torch.zeros(_LENGTH_BYTES + self._room, dtype=torch.uint8))
        self._values = b""
        self._write(values)

    def exchange(self, policy: HasValues) -> Packed:
        """Gives the policy the parameters in memory if they were overwritten, else writes the policy's into memory.

        Returns:
            The parameters, the same object for as long as they do not change.

        Raises:
            ValueError: if the parameters no longer fit.
        """
        memory = self.memory.numpy()
        n = int(memory[:_LENGTH_BYTES].view(np.int64)[0])
        came = memory[_LENGTH_BYTES : _LENGTH_BYTES + n].tobytes()
        if came != self._values:
            policy.set_param_values(unpacked(came))
            self._values = came
        else:
            own = _packed(policy.get_param_values())
            if own != self._values:
                self._write(own)
        return self._values

    def _write(self, values: Packed) -> None:
        n = len(values)
        if n > self._room:
            raise ValueError(
                f"the policy's parameters have grown to {n} bytes, but the memory in which they travel was made for "
                f"{self._room}; make a new PolicyAgent when their number changes"
            )
        memory = self.memory.numpy()
        memory[:_LENGTH_BYTES].view(np.int64)[0] = n
        memory[_LENGTH_BYTES : _LENGTH_BYTES + n] = np.frombuffer(values, np.uint8)
        self._values = values


def unpacked(values: Packed) -> Any:
    """Returns the parameters, in memory of their own."""
    return pickle.loads(values)


def _packed(values: Any) -> Packed:
    file = io.BytesIO()
    try:
        _ValuePickler(file, pickle.HIGHEST_PROTOCOL).dump(values)
    except Exception as error:
        raise TypeError(
            f"the policy's parameters cannot be pickled: {headline(error)}; get_param_values has to return "
            "arrays, tensors or other values that can"
        ) from error
    return file.getvalue()


class _ValuePickler(pickle.Pickler):
    """Pickles tensors as arrays: 20 times as fast, and no other process touches the GPU to read them."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        plain = value.detach().cpu().contiguous()
        return _tensor, (plain.reshape(-1).view(torch.uint8).numpy(), plain.dtype, tuple(plain.shape))


def _tensor(raw: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(raw).view(dtype).reshape(shape)


# ---- checkpoints ----


def saved(values: Any, path: str = "the policy's parameters") -> Any:
    """Returns a copy of parameters for a checkpoint, with tensors in place of arrays.

    Args:
        values: arrays, tensors and plain values in dicts, lists and tuples.
        path: their name for the error message.

    Raises:
        TypeError: if there is something else in them: a checkpoint is read without running code, so without pickle.
    """
    match values:
        case torch.Tensor():
            return values.detach().clone()
        case np.ndarray() if values.dtype.kind in "biufc":
            return torch.from_numpy(values.copy())
        case np.generic():
            return values.item()
        case dict():
            return {key: saved(value, f"{path}[{key!r}]") for key, value in values.items()}
        case list() | tuple():
            parts = [saved(value, f"{path}[{index}]") for index, value in enumerate(values)]
            return parts if isinstance(values, list) else tuple(parts)
        case None | bool() | int() | float() | str():
            return values
    raise TypeError(
        f"{path}: a checkpoint cannot hold a {type(values).__name__}; return arrays, tensors, numbers and strings in "
        "dicts, lists and tuples from get_param_values"
    )


def restored(own: Any, came: Any, path: str = "the policy's parameters") -> Any:
    """Returns parameters that `saved` returned, with arrays where the policy has arrays.

    Args:
        own: the policy's present parameters.
        came: what `saved` returned.
        path: their name for the error message.

    Raises:
        RuntimeError: if names, numbers of entries, shapes or dtypes differ.
    """
    match own:
        case torch.Tensor() | np.ndarray():
            like = own if isinstance(own, torch.Tensor) else torch.from_numpy(own.copy())
            if not isinstance(came, torch.Tensor) or (came.dtype, came.shape) != (like.dtype, like.shape):
                raise RuntimeError(f"{path} is {_kind(came)} in the checkpoint, expected {_kind(like)}")
            return came.clone() if isinstance(own, torch.Tensor) else came.numpy(force=True).copy()
        case dict():
            if not isinstance(came, dict) or came.keys() != own.keys():
                raise RuntimeError(f"{path} is {_kind(came)} in the checkpoint, expected {_kind(own)}")
            return {key: restored(value, came[key], f"{path}[{key!r}]") for key, value in own.items()}
        case list() | tuple():
            if not isinstance(came, type(own)) or len(came) != len(own):
                raise RuntimeError(f"{path} is {_kind(came)} in the checkpoint, expected {_kind(own)}")
            pairs = enumerate(zip(own, came, strict=True))
            parts = [restored(value, other, f"{path}[{index}]") for index, (value, other) in pairs]
            return parts if isinstance(own, list) else tuple(parts)
    return came


def _kind(value: Any) -> str:
    match value:
        case torch.Tensor():
            return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        case dict():
            return f"a dict with the keys {sorted(map(str, value))}"
        case list() | tuple():
            return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


# ---- copies ----


def copied(value: _Copied, seed: np.random.SeedSequence) -> _Copied:
    """Returns a copy of an object, made by cloudpickle, in which random generators are seeded anew.

    Without that, all copies would draw the same numbers. Generators of NumPy, Python and torch are found wherever
    pickle finds them; objects that share one share the new one.

    Args:
        value: the object.
        seed: determines the seeds.
    """
    file = io.BytesIO()
    _Copier(file, seed).dump(value)
    copy: _Copied = pickle.loads(file.getvalue())
    return copy


class _Copier(cloudpickle.Pickler):  # type: ignore[misc]
    """A pickler that seeds random generators. seed: where their seeds come from."""

    def __init__(self, file: io.BytesIO, seed: np.random.SeedSequence) -> None:
        super().__init__(file)
        self._seed = seed

    def reducer_override(self, value: Any) -> Any:
        make: Callable[[int], Any]
        match value:
            case np.random.Generator():
                make = np.random.default_rng
            case np.random.RandomState():
                make = np.random.RandomState
            case random.Random():
                make = random.Random
            case torch.Generator():
                make = _torch_generator
            case _:
                return super().reducer_override(value)
        return make, (int(self._seed.spawn(1)[0].generate_state(1)[0]),)


def _torch_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
