"""Random numbers of updates."""

from __future__ import annotations

import torch

from headrace.distributions.gaussian import Gaussian, standard_normal
from headrace.rng import Stream, env_keys, uniforms

__all__ = ["LearnerNoise"]


class LearnerNoise:
    """Standard normal numbers that depend on seed, update and purpose alone, so a resumed run draws the same.

    Args:
        seed: seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self._keys = env_keys(seed, Stream.UPDATE, range(2))

    def normal(self, update: int, n: int, d: int, purpose: int) -> torch.Tensor:
        """Returns numbers, float32 `[n, d]`.

        Args:
            update: number of the update.
            n: number of rows, the same in every update.
            d: numbers per row.
            purpose: 0 or 1, to distinguish draws of the same update.
        """
        size = Gaussian.noise_size(d)
        drawn = uniforms(self._keys[purpose : purpose + 1], update * n, n, size)
        return standard_normal(torch.from_numpy(drawn[:, 0]), d)
