"""A network of tanh layers as one operation of autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from headrace import compiled
from headrace.native_gradients import as_rows, differentiable_gradients, suits_native

__all__ = ["tanh_network"]


#: Largest layer, and largest product (rows times weights), that compiled code computes; beyond them BLAS and threads
#: are faster.
_LARGEST_LAYER, _LARGEST_PRODUCT = 1 << 16, 1 << 26


def tanh_network(rows: torch.Tensor, layers: Sequence[tuple[torch.Tensor, torch.Tensor | None]]) -> torch.Tensor:
    """Computes linear layers with tanh between them.

    With gradients, on the CPU and where the native part is built, a small network is one operation of autograd. It
    agrees with PyTorch's operators up to rounding.

    Args:
        rows: float `[..., n]`.
        layers: weight `[m, n]` and bias `[m]`, or None, of each layer.
    """
    parameters = [part for layer in layers for part in layer if part is not None]
    if len(parameters) < 2 * len(layers) or not suits_native(rows, *parameters) or not _is_small(rows, parameters):
        return _by_operators(rows, *(part for layer in layers for part in layer))
    outputs: torch.Tensor = _TanhNetwork.apply(as_rows(rows, 2), *parameters)  # type: ignore[no-untyped-call]
    return outputs if rows.ndim == 2 else outputs.reshape(*rows.shape[:-1], outputs.shape[-1])


def _is_small(rows: torch.Tensor, parameters: Sequence[torch.Tensor]) -> bool:
    largest = max(parameter.numel() for parameter in parameters)
    return largest <= _LARGEST_LAYER and 0 < rows.shape[:-1].numel() * largest <= _LARGEST_PRODUCT


def _by_operators(rows: torch.Tensor, *parameters: torch.Tensor | None) -> torch.Tensor:
    weights, biases = parameters[::2], parameters[1::2]
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        assert weight is not None
        rows = functional.linear(rows if index == 0 else torch.tanh(rows), weight, bias)
    return rows


class _TanhNetwork(torch.autograd.Function):
    """Takes rows `[n, m]`, then weight and bias of each layer in turn."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        assert compiled.learning is not None
        outputs = [torch.empty(len(rows), len(bias)) for bias in parameters[1::2]]
        arrays = [_array(parameter) for parameter in parameters]
        compiled.learning.network(_array(rows), arrays[::2], arrays[1::2], [one.numpy() for one in outputs])
        ctx.save_for_backward(*parameters, rows, *outputs[:-1])
        return outputs[-1]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        assert compiled.learning is not None
        n_layers = len(ctx.saved_tensors) // 3
        parameters, inputs = ctx.saved_tensors[: 2 * n_layers], ctx.saved_tensors[2 * n_layers :]
        if torch.is_grad_enabled():
            return differentiable_gradients(_by_operators, (inputs[0], *parameters), gradient, ctx.needs_input_grad)
        gradients = [torch.empty(parameter.shape) for parameter in parameters]
        arrays = [one.numpy() for one in gradients]
        of_rows = torch.empty(inputs[0].shape) if ctx.needs_input_grad[0] else None
        compiled.learning.network_gradient(
            _array(gradient),
            [_array(weight) for weight in parameters[::2]],
            [_array(one) for one in inputs],
            arrays[::2],
            arrays[1::2],
            None if of_rows is None else of_rows.numpy(),
        )
        return of_rows, *gradients


def _array(tensor: torch.Tensor) -> np.ndarray:
    """Returns a tensor's numbers, in order, without its gradient."""
    return tensor.detach().contiguous().numpy()
