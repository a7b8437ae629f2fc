"""Normalization by running statistics."""

from __future__ import annotations

import numpy as np
import torch

from headrace.numpy_inference import NumpyViews, suits_numpy

__all__ = ["RunningNorm"]


class RunningNorm(torch.nn.Module):
    """`(x − mean) / std` over rows `[..., size]`, cut at ±`clip`.

    Mean and variance are buffers, so they reach other processes and checkpoints with the weights. They change in
    `update` only: a batch is collected and learned from with the same statistics, and rows stay as recorded. Until the
    first update, rows pass as they are.
    """

    def __init__(self, size: int, clip: float = 10.0) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("var", torch.ones(size, dtype=torch.float64))
        # What `forward` uses, worked out once an update.
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self._views = NumpyViews(self, ("shift", "scale"))

    count: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor
    shift: torch.Tensor
    scale: torch.Tensor

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Float32 `[..., size]` to the same."""
        if suits_numpy(rows):
            shift, scale = self._views()
            normal = rows.numpy() - shift
            normal *= scale
            np.minimum(normal, self.clip, out=normal)
            return torch.from_numpy(np.maximum(normal, -self.clip, out=normal))
        return ((rows - self.shift) * self.scale).clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, rows: torch.Tensor) -> None:
        """Takes rows `[N, size]` into the statistics.

        Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
        """
        n = len(rows)
        if not rows.numel():
            return
        rows = rows.double()
        mean, var = rows.mean(dim=0), rows.var(dim=0, correction=0)
        total, delta = self.count + n, mean - self.mean
        share = n / total
        # The first batch replaces mean 0 and variance 1, which stand for no rows.
        self.var.copy_((1 - share) * self.var + share * var + (1 - share) * share * delta.square())
        self.mean.add_(share * delta)
        self.count.copy_(total)
        self.shift.copy_(self.mean)
        self.scale.copy_((self.var + 1e-8).rsqrt())
