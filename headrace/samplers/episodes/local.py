"""`LocalSampler`: whole episodes, collected in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from typing_extensions import override

from headrace.processes.status import Status
from headrace.samplers.config import takes_options
from headrace.samplers.episodes.base import EpisodeSampler
from headrace.samplers.episodes.driver import WorkerDriver
from headrace.samplers.episodes.options import EpisodeOptions
from headrace.samplers.episodes.pools import LocalPool, Pool

__all__ = ["LocalSampler"]


class LocalSampler(EpisodeSampler):
    """Runs the workers one after another in this process."""

    @takes_options(EpisodeOptions)
    def __init__(self, options: EpisodeOptions) -> None:
        super().__init__(options)

    @override
    def _made_pool(self, makers: Sequence[Callable[[Status], WorkerDriver]]) -> Pool:
        return LocalPool(makers, self._status)
