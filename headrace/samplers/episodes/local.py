"""`LocalSampler`: whole episodes, collected in this process."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from headrace.samplers.config import takes_options
from headrace.samplers.episodes.base import EpisodeSampler
from headrace.samplers.episodes.options import EpisodeOptions
from headrace.samplers.episodes.pools import LocalPool, Make, Pool

__all__ = ["LocalSampler"]


class LocalSampler(EpisodeSampler):
    """Runs the workers one after another in this process."""

    @takes_options(EpisodeOptions)
    def __init__(self, options: EpisodeOptions) -> None:
        super().__init__(options)

    @override
    def _made_pool(self, makers: Sequence[Make]) -> Pool:
        return LocalPool(makers, self._status)
