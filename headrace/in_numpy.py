"""Small tensors outside autograd are computed in NumPy.

Between two rows of environment steps a torch operator costs its dispatch several times over, because the
environments have turned its code out of the caches; a NumPy one costs a fifth. See `docs/performance.md`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["NumpyLinear", "suits_numpy"]

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


class NumpyLinear:
    """`rows @ weight.T + bias` of a linear layer, over NumPy views of its parameters, renewed when these have moved."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        self._layer = layer
        self._parameters = layer._parameters  # `layer.weight` goes through a Python `__getattr__`
        self._weight_at = self._bias_at = 0
        self._weight = self._bias = np.empty(0, np.float32)

    def __reduce__(self) -> tuple[Any, ...]:
        return NumpyLinear, (self._layer,)  # views and addresses mean nothing in a copy

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Float32 `[..., n_in]` to `[..., n_out]`."""
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        assert weight is not None
        assert bias is not None
        # The views keep what they show alive, so no other tensor can come to lie at these addresses meanwhile.
        if weight.data_ptr() != self._weight_at or bias.data_ptr() != self._bias_at:
            self._weight, self._bias = weight.detach().numpy().T, bias.detach().numpy()
            self._weight_at, self._bias_at = weight.data_ptr(), bias.data_ptr()
        product: np.ndarray = rows @ self._weight
        product += self._bias
        return product
