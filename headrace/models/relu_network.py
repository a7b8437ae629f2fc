"""Several networks of ReLU layers over the same rows as one operation of autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from headrace.native_gradients import differentiable_gradients, suits_own_gradients

__all__ = ["relu_networks"]


def relu_networks(rows: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]) -> torch.Tensor:
    """Computes linear layers with ReLU between them, for `e` networks at once.

    With gradients, this is one operation of autograd: it keeps one tensor per layer instead of two, and it computes
    layers of one output, whose matrix products are slow, by other means. It agrees with PyTorch's operators up to
    rounding.

    Args:
        rows: inputs of all networks, float `[n, m]`.
        weights: of each layer, float `[e, inputs, outputs]`.
        biases: of each layer, float `[e, 1, outputs]`.

    Returns:
        The outputs, float `[e, n, outputs of the last layer]`.
    """
    if not suits_own_gradients(rows):
        return _by_operators(rows, *weights, *biases)
    outputs: torch.Tensor = _ReluNetworks.apply(rows, *weights, *biases)  # type: ignore[no-untyped-call]
    return outputs


def _by_operators(rows: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    n_layers = len(parameters) // 2
    hidden = rows.expand(len(parameters[0]), *rows.shape)
    for index, (weight, bias) in enumerate(zip(parameters[:n_layers], parameters[n_layers:], strict=True)):
        hidden = _layer(hidden if index == 0 else torch.relu(hidden), weight, bias)
    return hidden


def _layer(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Returns `rows @ weight + bias`, `[e, n, outputs]`, for rows `[e, n, inputs]`."""
    if weight.shape[2] > 1:
        return torch.baddbmm(bias, rows, weight)
    return (rows * weight.transpose(1, 2)).sum(dim=2, keepdim=True) + bias  # in a third of the time


class _ReluNetworks(torch.autograd.Function):
    """Takes rows `[n, m]`, the weights of all layers, then their biases."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        n_layers = len(parameters) // 2
        inputs = [rows.expand(len(parameters[0]), *rows.shape)]
        for weight, bias in zip(parameters[: n_layers - 1], parameters[n_layers:], strict=False):
            inputs.append(_layer(inputs[-1], weight, bias).relu_())
        ctx.save_for_backward(*parameters, rows, *inputs[1:])
        return _layer(inputs[-1], parameters[n_layers - 1], parameters[-1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        n_layers = len(ctx.saved_tensors) // 3
        parameters, (rows, *hidden) = ctx.saved_tensors[: 2 * n_layers], ctx.saved_tensors[2 * n_layers :]
        if torch.is_grad_enabled():
            return differentiable_gradients(_by_operators, (rows, *parameters), gradient, ctx.needs_input_grad)
        inputs = [rows.expand(len(gradient), *rows.shape), *hidden]
        found: list[torch.Tensor | None] = [None] * (2 * n_layers)
        for index in reversed(range(n_layers)):
            if ctx.needs_input_grad[1 + index]:
                found[index] = _weight_gradient(inputs[index], gradient)
            if ctx.needs_input_grad[1 + n_layers + index]:
                found[n_layers + index] = gradient.sum(dim=1, keepdim=True)
            if index:
                gradient = _input_gradient(gradient, parameters[index])
                torch.ops.aten.threshold_backward.grad_input(gradient, inputs[index], 0, grad_input=gradient)
        rows_gradient = _input_gradient(gradient, parameters[0]).sum(dim=0) if ctx.needs_input_grad[0] else None
        return rows_gradient, *found


def _weight_gradient(inputs: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of a layer's weights, `[e, inputs, outputs]`, from that of its outputs `[e, n, outputs]`."""
    if gradient.shape[2] > 1:
        return inputs.transpose(1, 2) @ gradient
    return (inputs * gradient).sum(dim=1).unsqueeze(2)


def _input_gradient(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of a layer's inputs, `[e, n, inputs]`, from that of its outputs `[e, n, outputs]`."""
    if gradient.shape[2] > 1:
        return gradient @ weight.transpose(1, 2)
    return gradient * weight.transpose(1, 2)
