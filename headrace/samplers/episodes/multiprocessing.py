"""`MultiprocessingSampler`: whole episodes, collected in worker processes."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from headrace.samplers.config import takes_options
from headrace.samplers.episodes.base import EpisodeSampler
from headrace.samplers.episodes.options import EpisodeOptions
from headrace.samplers.episodes.pools import Make, Pool, ProcessPool

__all__ = ["MultiprocessingSampler"]


class MultiprocessingSampler(EpisodeSampler):
    """Runs each worker in a process of its own."""

    @takes_options(EpisodeOptions)
    def __init__(self, options: EpisodeOptions) -> None:
        super().__init__(options)

    @override
    def _made_pool(self, makers: Sequence[Make]) -> Pool:
        options = self._options
        return ProcessPool(
            makers,
            self._status,
            name=type(self).__name__,
            seed=self.seed,
            start_method=options.start_method,
            timeout=options.timeout,
            start_timeout=options.start_timeout,
        )
