"""NumPy implementations of layers for small tensors outside autograd.

Between two rows of environment steps, a torch operator takes several times its usual dispatch time, because the
environments have evicted its code from the CPU caches; a NumPy call has less code. See `docs/performance.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from headrace.numpy_acting import LARGEST_PRODUCT

__all__ = ["NumpyLinear", "NumpyViews", "suits_numpy"]


def suits_numpy(rows: torch.Tensor, per_row: int = 1) -> bool:
    """Returns whether to compute from this tensor in NumPy: it is small, on the CPU, and in inference mode.

    The answer is no while `torch.compile` traces, because it would trace NumPy's functions, too.

    Args:
        rows: input vectors, `[n]` or `[B, n]`.
        per_row: multiplications per input vector in the largest matrix product.
    """
    return (
        not torch.compiler.is_compiling()  # first: the other questions cannot be traced
        and torch.is_inference_mode_enabled()
        and rows.is_cpu
        and rows.dtype is torch.float32
        and rows.ndim <= 2
        and len(rows) * per_row <= LARGEST_PRODUCT
    )


class NumpyViews:
    """NumPy views of parameters and buffers of a module, which are updated when the tensors have moved.

    Args:
        module: the module.
        names: names of parameters and buffers of this module, not of its children.
    """

    def __init__(self, module: torch.nn.Module, names: Sequence[str]) -> None:
        self.module, self._names = module, tuple(names)
        self._owners: list[dict[str, Any]] = []
        self._at = [-1]  # no address: an empty tensor has address 0
        self._views: list[np.ndarray] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return NumpyViews, (self.module, self._names)  # views and addresses are invalid in a copy

    def __call__(self) -> list[np.ndarray]:
        """Returns the views in the order of the names."""
        if not self._owners:  # not in `__init__`: while a module that owns its views is copied, the copy is still empty
            module = self.module
            # `module.weight` calls a Python `__getattr__`; these dicts belong to the module for its whole life.
            self._owners = [
                module._parameters if name in module._parameters else module._buffers for name in self._names
            ]
        tensors = [owner[name] for owner, name in zip(self._owners, self._names, strict=True)]
        # The views keep their tensors' memory alive, so no other tensor can be allocated at these addresses.
        at = [tensor.data_ptr() for tensor in tensors if tensor is not None]
        if at != self._at:
            self._at, self._views = at, [tensor.detach().numpy() for tensor in tensors if tensor is not None]
        return self._views


class NumpyLinear:
    """Computes `rows @ weight.T + bias` of the linear layer that is child `name` of `parent` at the time of the call.

    Args:
        parent: module that has the layer.
        name: name of the child.
    """

    def __init__(self, parent: torch.nn.Module, name: str) -> None:
        self._parent, self._name = parent, name
        self._weight_at = self._bias_at = 0
        self._weight = self._bias = np.empty(0, np.float32)

    def __reduce__(self) -> tuple[Any, ...]:
        return NumpyLinear, (self._parent, self._name)  # views and addresses are invalid in a copy

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Returns the layer's output, float32 `[..., n_out]`, for inputs `[..., n_in]`."""
        # `parent.name.weight` calls two Python `__getattr__`; for three layers these took a quarter of the call.
        layer = self._parent._modules[self._name]
        assert isinstance(layer, torch.nn.Linear)
        weight, bias = layer._parameters["weight"], layer._parameters["bias"]
        assert weight is not None
        assert bias is not None
        # The views keep their tensors' memory alive, so no other tensor can be allocated at these addresses.
        if weight.data_ptr() != self._weight_at or bias.data_ptr() != self._bias_at:
            self._weight, self._bias = weight.detach().numpy().T, bias.detach().numpy()
            self._weight_at, self._bias_at = weight.data_ptr(), bias.data_ptr()
        product: np.ndarray = rows @ self._weight
        product += self._bias
        return product
