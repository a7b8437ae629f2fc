"""Checks shared by all algorithms: ranges of settings, and finite losses and gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from headrace.buffers.tree import tree_paths
from headrace.types import Tree

__all__ = ["finite", "require"]


def require(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError unless low ≤ value ≤ high."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low:g} and {high:g}, got {value!r}")


def finite(
    algo: str,
    where: str,
    scalars: Mapping[str, torch.Tensor],
    info: Mapping[str, torch.Tensor],
    batch: Tree,
    model: torch.nn.Module,
) -> dict[str, float]:
    """Returns the scalars of an update as numbers, by name; call it before the optimizer's step.

    All are read from the device at once.

    Args:
        algo: class name of the algorithm.
        where: itr and number of the update.
        scalars: loss, norm of the gradient and others that must be finite, by name.
        info: scalars that may be anything, by name.
        batch: the data of the update.
        model: the model being updated.

    Raises:
        FloatingPointError: if one of `scalars` is NaN or infinite; it names the tensors that are not finite.
    """
    both = {**scalars, **info}
    numbers = dict(zip(both, torch.stack([scalar.detach() for scalar in both.values()]).tolist(), strict=True))
    if all(math.isfinite(numbers[name]) for name in scalars):
        return numbers
    bad = [f"{name}={value}" for name, value in numbers.items() if not math.isfinite(value)]
    sources = [
        f"batch{path}"
        for path, leaf in tree_paths(batch)
        if leaf.is_floating_point() and not bool(leaf.isfinite().all())
    ]
    sources += [
        f"parameter {name}" for name, parameter in model.named_parameters() if not bool(parameter.isfinite().all())
    ]
    from_where = f"not finite: {', '.join(sources)}" if sources else "the batch and the parameters are finite"
    raise FloatingPointError(
        f"{algo}: {', '.join(bad)} in {where} ({from_where}); the step was not taken. "
        "Lower learning_rate, scale the rewards, or look for huge observations"
    )
