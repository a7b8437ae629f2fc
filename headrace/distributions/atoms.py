"""Distributions over fixed, evenly spaced returns (atoms)."""

from __future__ import annotations

import numpy as np
import torch

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
        numbers = logits.numpy()
        weights = np.exp(numbers - numbers.max(axis=-1, keepdims=True))
        return torch.from_numpy(np.asarray(weights @ atoms.numpy() / weights.sum(axis=-1)))
    return torch.softmax(logits, dim=-1) @ atoms
