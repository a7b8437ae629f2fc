"""Distributions over fixed, evenly spaced returns (atoms)."""

from __future__ import annotations

import torch

from headrace import numpy_acting
from headrace.numpy_inference import suits_numpy

__all__ = ["mean_of_atoms"]


def mean_of_atoms(logits: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """Returns the means of distributions over atoms, float `[...]`.

    Args:
        logits: unnormalised log-probabilities, float `[..., n_atoms]`.
        atoms: the atoms, float `[n_atoms]`.
    """
    rows = logits.flatten(1) if logits.ndim == 3 else logits
    if suits_numpy(rows, rows.shape[-1]):
        return torch.from_numpy(numpy_acting.mean_of_atoms(logits.numpy(), atoms.numpy()))
    return torch.softmax(logits, dim=-1) @ atoms
