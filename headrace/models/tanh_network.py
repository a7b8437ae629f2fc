"""A network of tanh layers as one operation of autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from headrace import compiled
from headrace.native_gradients import differentiable_gradients, suits_native

__all__ = ["tanh_network"]


def tanh_network(rows: torch.Tensor, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Computes linear layers with tanh between them.

    With gradients, on the CPU and where the native part is built, this is one operation of autograd, whose tanh is five
    times as fast as PyTorch's and whose sums of gradients need no pass of their own. It agrees with PyTorch's operators
    up to rounding.

    Args:
        rows: float `[..., n]`.
        layers: weight `[m, n]` and bias `[m]` of each layer.
    """
    parameters = [part for layer in layers for part in layer]
    if not suits_native(rows, *parameters):
        return _by_operators(rows, *parameters)
    flat = rows.reshape(-1, rows.shape[-1])
    outputs: torch.Tensor = _TanhNetwork.apply(flat, *parameters)  # type: ignore[no-untyped-call]
    return outputs.reshape(*rows.shape[:-1], outputs.shape[-1])


def _by_operators(rows: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    last = len(parameters) - 2
    for index in range(0, last, 2):
        rows = torch.tanh(functional.linear(rows, parameters[index], parameters[index + 1]))
    return functional.linear(rows, parameters[last], parameters[last + 1])


class _TanhNetwork(torch.autograd.Function):
    """Takes rows `[n, m]`, then weight and bias of each layer in turn."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        assert compiled.learning is not None
        inputs = [rows]  # of each layer
        for index in range(0, len(parameters) - 2, 2):
            weight, bias = parameters[index : index + 2]
            rows = rows.mm(weight.t())
            compiled.learning.tanh_layer(rows.numpy(), bias.detach().contiguous().numpy())
            inputs.append(rows)
        weight, bias = parameters[-2:]
        ctx.save_for_backward(*parameters, *inputs)
        return torch.addmm(bias, rows, weight.t())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        assert compiled.learning is not None
        n_layers = len(ctx.saved_tensors) // 3
        parameters, inputs = ctx.saved_tensors[: 2 * n_layers], ctx.saved_tensors[2 * n_layers :]
        if torch.is_grad_enabled():
            return differentiable_gradients(_by_operators, (inputs[0], *parameters), gradient, ctx.needs_input_grad)
        gradients: list[torch.Tensor | None] = [None] * len(ctx.needs_input_grad)
        bias_gradient = gradient.sum(0)
        for index in reversed(range(n_layers)):
            gradients[1 + 2 * index] = gradient.t().mm(inputs[index])
            gradients[2 + 2 * index] = bias_gradient
            if index == 0 and not ctx.needs_input_grad[0]:
                break
            gradient = gradient.mm(parameters[2 * index])
            if index:
                bias_gradient = torch.empty(gradient.shape[1])
                compiled.learning.tanh_gradient(gradient.numpy(), inputs[index].numpy(), bias_gradient.numpy())
            else:
                gradients[0] = gradient
        return tuple(gradients)
