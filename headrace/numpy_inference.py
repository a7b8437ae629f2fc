"""Small tensors outside autograd are computed in NumPy.

Between two rows of environment steps a torch operator costs its dispatch several times over, because the
environments have turned its code out of the caches; a NumPy call has less of it. See `docs/performance.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["NumpyLinear", "NumpyViews", "suits_numpy"]

#: Multiplications of one matrix product. OpenBLAS starts threads above this, which workers have no cores for.
_LARGEST_PRODUCT = 1 << 18


def suits_numpy(rows: torch.Tensor, per_row: int = 1) -> bool:
    """Whether to compute from `rows` `[n]` or `[B, n]` in NumPy: under inference mode, in host memory, few.

    per_row: multiplications for each row in the largest matrix product.
    """
    return (
        torch.is_inference_mode_enabled()
        and rows.is_cpu
        and rows.dtype is torch.float32
        and rows.ndim <= 2
        and len(rows) * per_row <= _LARGEST_PRODUCT
    )


class NumpyViews:
    """NumPy views of some parameters and buffers of one module, renewed when these have moved."""

    def __init__(self, module: torch.nn.Module, names: Sequence[str]) -> None:
        self.module, self._names = module, tuple(names)
        self._owners: list[dict[str, Any]] = []
        self._at = [-1]  # nowhere: an empty tensor is at 0
        self._views: list[np.ndarray] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return NumpyViews, (self.module, self._names)  # views and addresses mean nothing in a copy

    def __call__(self) -> list[np.ndarray]:
        """The views, in the order of the names."""
        if not self._owners:  # not in `__init__`: the copy of a module that holds its own views is empty at that time
            module = self.module
            # `module.weight` goes through a Python `__getattr__`; these dicts stay the module's own.
            self._owners = [
                module._parameters if name in module._parameters else module._buffers for name in self._names
            ]
        tensors = [owner[name] for owner, name in zip(self._owners, self._names, strict=True)]
        # The views keep what they show alive, so no other tensor can come to lie at these addresses meanwhile.
        at = [tensor.data_ptr() for tensor in tensors if tensor is not None]
        if at != self._at:
            self._at, self._views = at, [tensor.detach().numpy() for tensor in tensors if tensor is not None]
        return self._views


class NumpyLinear:
    """`rows @ weight.T + bias` of the linear layer that is `parent`'s child `name` at the time of the call."""

    def __init__(self, parent: torch.nn.Module, name: str) -> None:
        self._parent, self._name = parent, name
        self._weight_at = self._bias_at = 0
        self._weight = self._bias = np.empty(0, np.float32)

    def __reduce__(self) -> tuple[Any, ...]:
        return NumpyLinear, (self._parent, self._name)  # views and addresses mean nothing in a copy

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Float32 `[..., n_in]` to `[..., n_out]`."""
        # `parent.name.weight` goes through two Python `__getattr__`; three layers of that cost a quarter of the call.
        layer = self._parent._modules[self._name]
        assert isinstance(layer, torch.nn.Linear)
        weight, bias = layer._parameters["weight"], layer._parameters["bias"]
        assert weight is not None
        assert bias is not None
        # The views keep what they show alive, so no other tensor can come to lie at these addresses meanwhile.
        if weight.data_ptr() != self._weight_at or bias.data_ptr() != self._bias_at:
            self._weight, self._bias = weight.detach().numpy().T, bias.detach().numpy()
            self._weight_at, self._bias_at = weight.data_ptr(), bias.data_ptr()
        product: np.ndarray = rows @ self._weight
        product += self._bias
        return product
