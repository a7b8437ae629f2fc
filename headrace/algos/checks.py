"""Checks shared by all algorithms: ranges of settings, and finite losses and gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from headrace.buffers.tree import tree_paths
from headrace.types import Tree

__all__ = ["not_finite", "require"]


def require(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError unless low ≤ value ≤ high."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low:g} and {high:g}, got {value!r}")


def not_finite(
    algo: str, where: str, info: Mapping[str, float], batch: Tree, model: torch.nn.Module
) -> FloatingPointError:
    """Returns the error for a NaN or infinite loss or gradient; it names the tensors that are not finite.

    Args:
        algo: class name of the algorithm.
        where: itr and number of the update.
        info: scalars of the update, by name.
        batch: the data of the update.
        model: the model being updated.
    """
    bad = [f"{name}={value}" for name, value in info.items() if not math.isfinite(value)]
    sources = [
        f"batch{path}"
        for path, leaf in tree_paths(batch)
        if leaf.is_floating_point() and not bool(leaf.isfinite().all())
    ]
    sources += [
        f"parameter {name}" for name, parameter in model.named_parameters() if not bool(parameter.isfinite().all())
    ]
    from_where = f"not finite: {', '.join(sources)}" if sources else "the batch and the parameters are finite"
    return FloatingPointError(
        f"{algo}: {', '.join(bad)} in {where} ({from_where}); the step was not taken. "
        "Lower learning_rate, scale the rewards, or look for huge observations"
    )
