"""Normalization of observations by running statistics."""

from __future__ import annotations

import torch

from headrace.numpy_acting import normalized
from headrace.numpy_inference import NumpyViews, suits_numpy

__all__ = ["RunningNorm"]


class RunningNorm(torch.nn.Module):
    """Normalizes vectors `[..., size]` as `(x − mean) / std`, clipped to ±`clip`.

    Mean and variance are buffers, so they are published to other processes and saved in checkpoints with the weights.
    Only `update` changes them: a batch is collected and learned from with the same statistics, and recorded
    observations are not normalized. Until the first update, mean is 0 and std is 1.

    Args:
        size: length of a vector.
        clip: largest absolute value of the result.
    """

    def __init__(self, size: int, clip: float = 10.0) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("var", torch.ones(size, dtype=torch.float64))
        # `forward` uses these; each update computes them once.
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self._views = NumpyViews(self, ("shift", "scale"))

    count: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor
    shift: torch.Tensor
    scale: torch.Tensor

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Returns normalized vectors, float32 `[..., size]` as the input."""
        if suits_numpy(vectors):
            shift, scale = self._views()
            return torch.from_numpy(normalized(vectors.numpy(), shift, scale, self.clip))
        return ((vectors - self.shift) * self.scale).clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, vectors: torch.Tensor) -> None:
        """Updates the statistics with vectors `[N, size]`.

        Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
        """
        n = len(vectors)
        if not vectors.numel():
            return
        vectors = vectors.double()
        mean, var = vectors.mean(dim=0), vectors.var(dim=0, correction=0)
        total, delta = self.count + n, mean - self.mean
        share = n / total
        # The first batch has share 1 and replaces the initial mean 0 and variance 1.
        self.var.copy_((1 - share) * self.var + share * var + (1 - share) * share * delta.square())
        self.mean.add_(share * delta)
        self.count.copy_(total)
        self._apply_statistics()

    def statistics(self) -> torch.Tensor:
        """Returns the number of vectors so far (repeated), their mean and their variance, float64 `[3, size]`."""
        return torch.stack([self.count.expand_as(self.mean), self.mean, self.var])

    @torch.no_grad()
    def load_statistics(self, statistics: torch.Tensor) -> None:
        """Replaces the statistics by others in the form of `statistics`."""
        counts, mean, var = statistics
        self.count.copy_(counts[0])
        self.mean.copy_(mean)
        self.var.copy_(var)
        self._apply_statistics()

    def _apply_statistics(self) -> None:
        """Computes the tensors that `forward` uses."""
        self.shift.copy_(self.mean)
        self.scale.copy_((self.var + 1e-8).rsqrt())
