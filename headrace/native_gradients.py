"""When autograd uses compiled operations, and their gradients where those shall have gradients themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from headrace import compiled

__all__ = ["as_rows", "differentiable_gradients", "suits_native"]


def as_rows(tensor: torch.Tensor, n_dims: int) -> torch.Tensor:
    """Returns a tensor of `n_dims` dimensions: its leading ones become one.

    A tensor that has no more stays itself: a view would be one more operation of autograd.
    """
    if tensor.ndim == n_dims:
        return tensor
    return tensor.reshape(-1, *tensor.shape[tensor.ndim - n_dims + 1 :])


def suits_native(*tensors: torch.Tensor) -> bool:
    """Returns whether compiled operations can compute from these tensors, with gradients.

    They are for small tensors, of which PyTorch's operators take as much time to call as to compute: on the CPU, of
    float32, outside `torch.compile`, `torch.jit.trace` and autocast.
    """
    return (
        not torch.compiler.is_compiling()  # first: the other questions cannot be traced
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and torch.is_grad_enabled()
        and compiled.learning is not None
        and not torch.is_autocast_enabled("cpu")
        and all(tensor.is_cpu and tensor.dtype is torch.float32 for tensor in tensors)
    )


def differentiable_gradients(
    operators: Callable[..., torch.Tensor],
    arguments: Sequence[torch.Tensor],
    gradient: torch.Tensor,
    needed: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    """Returns the gradients of arguments by PyTorch's operators, which have gradients themselves.

    Args:
        operators: computes from the arguments, by PyTorch's operators, what the compiled operation does.
        arguments: arguments of the operation.
        gradient: gradient of its result.
        needed: which arguments need a gradient.
    """
    wanted = [one for one, wants in zip(arguments, needed, strict=True) if wants]
    found = iter(torch.autograd.grad(operators(*arguments), wanted, gradient, create_graph=True))
    return tuple(next(found) if wants else None for wants in needed)
