"""Distributions over fixed numbers, the atoms: of returns, evenly spaced."""

from __future__ import annotations

import numpy as np
import torch

from headrace.numpy_inference import suits_numpy

__all__ = ["mean_of_atoms"]


def mean_of_atoms(logits: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """The means `[...]` of distributions with unnormalised log-probabilities `[..., n_atoms]` of atoms `[n_atoms]`."""
    rows = logits.flatten(1) if logits.ndim == 3 else logits
    if suits_numpy(rows, rows.shape[-1]):
        numbers = logits.numpy()
        weights = np.exp(numbers - numbers.max(axis=-1, keepdims=True))
        return torch.from_numpy(np.asarray(weights @ atoms.numpy() / weights.sum(axis=-1)))
    return torch.softmax(logits, dim=-1) @ atoms
