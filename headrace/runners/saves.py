"""What the newest checkpoint of a run contains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from headrace.checkpoints.resume import Resumed
from headrace.runners.logging.logger import Logger
from headrace.runners.row import Counters
from headrace.samplers.base import BaseSampler
from headrace.samplers.collection.snapshot import SamplerState

__all__ = ["Saves"]


class Saves:
    """Remembers which checkpoint was written last, so that none is written twice."""

    def __init__(self) -> None:
        self._at = (-1, -1)  # batches and log rows of the newest checkpoint
        self._has_episodes = False
        self._why_not = ""  # the reason that was logged last

    def due(self, counters: Counters) -> bool:
        """Returns whether anything has changed since the newest checkpoint."""
        return self._at != (counters.itr, counters.rows)

    def sampler_state(self, sampler: BaseSampler, between: bool, logger: Logger) -> SamplerState:
        """Returns the sampler's state for a checkpoint; logs why it lacks the environments, each reason once.

        Args:
            sampler: the sampler.
            between: whether training is between two batches; only then environments can be saved.
            logger: receives the reason.
        """
        if not between:
            return replace(sampler.state(environments=False), why_not="training was interrupted within a batch")
        state = sampler.state()
        if state.why_not and state.why_not != self._why_not:
            self._why_not = state.why_not
            logger.message(
                f"checkpoints contain no environments, so a resumed run begins new episodes: {state.why_not}"
            )
        return state

    def note(self, counters: Counters, sampler: SamplerState) -> None:
        """Records the checkpoint that was written."""
        self._at, self._has_episodes = (counters.itr, counters.rows), bool(sampler.train)

    def restore(self, before: Resumed, counters: Counters) -> None:
        """Records the checkpoint from which the run was resumed."""
        self.note(counters, before.sampler)
        self._why_not = before.sampler.why_not

    def sentence(self, newest: Path) -> str:
        """Returns the end of a message about an interruption; empty if there is no checkpoint.

        Args:
            newest: file of the newest checkpoint.
        """
        if self._at[0] < 0:
            return ""
        return f"{'' if self._has_episodes else ' (a resumed run begins new episodes)'}; checkpoint: {newest}"
