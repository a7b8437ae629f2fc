"""Where autograd may use operations of our own, and how their gradients are computed if those need gradients, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from headrace import compiled

__all__ = ["as_rows", "differentiable_gradients", "suits_native", "suits_own_gradients"]


def as_rows(tensor: torch.Tensor, n_dims: int) -> torch.Tensor:
    """Merges the leading dimensions of a tensor into one, so that it has `n_dims`.

    A tensor that already has `n_dims` is returned as it is, because a view would be one more operation of autograd.
    """
    if tensor.ndim == n_dims:
        return tensor
    return tensor.reshape(-1, *tensor.shape[tensor.ndim - n_dims + 1 :])


def suits_native(*tensors: torch.Tensor) -> bool:
    """Returns whether compiled operations can compute from these tensors, with gradients.

    The tensors must be float32 and on the CPU, and neither `torch.compile`, `torch.jit.trace` nor autocast active.
    """
    return (
        compiled.learning is not None
        and suits_own_gradients(tensors[0])
        and all(tensor.is_cpu and tensor.dtype is torch.float32 for tensor in tensors)
    )


def suits_own_gradients(tensor: torch.Tensor) -> bool:
    """Returns whether an operation may compute its gradients itself, on the device of a tensor.

    Gradients must be wanted, and neither `torch.compile`, `torch.jit.trace` nor autocast active.
    """
    return (
        not torch.compiler.is_compiling()  # first: the other questions cannot be traced
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled(tensor.device.type)
    )


def differentiable_gradients(
    operators: Callable[..., torch.Tensor],
    arguments: Sequence[torch.Tensor],
    gradient: torch.Tensor,
    needed: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    """Computes the gradients of a compiled operation by PyTorch's operators, so that they have gradients, too.

    Args:
        operators: computes the same result from the same arguments by PyTorch's operators.
        arguments: arguments of the operation.
        gradient: gradient of its result.
        needed: which arguments need a gradient.

    Returns:
        The gradient of each argument; None for those that need none.
    """
    wanted = [one for one, wants in zip(arguments, needed, strict=True) if wants]
    found = iter(torch.autograd.grad(operators(*arguments), wanted, gradient, create_graph=True))
    return tuple(next(found) if wants else None for wants in needed)
