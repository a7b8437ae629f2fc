"""What kinds of runners differ in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.processes.affinity import Affinity, AffinityLike
from headrace.samplers.traj_info import TrajInfo

__all__ = ["RunnerHooks"]


class RunnerHooks(ABC):
    """The methods of `Runner` that its subclasses define."""

    _stopping = False  # whether `stop` was called

    @property
    def world_size(self) -> int:
        """Number of learners, each with a sampler of its own; 1 unless the runner is a `SyncRl`."""
        return 1

    #: Whether to log a row before the first batch.
    _log_at_start = False

    @abstractmethod
    def _on_episodes(self, traj_infos: Sequence[TrajInfo]) -> float:
        """Records the episodes of a batch; returns the mean return to display."""

    @abstractmethod
    def _episodes(self, itr: int) -> tuple[Sequence[TrajInfo], dict[str, float]]:
        """Returns the episodes of a log row, and the columns that only this runner has."""

    @abstractmethod
    def _own_state(self) -> dict[str, Any]:
        """Returns the state of this runner for a checkpoint: plain values only."""

    @abstractmethod
    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `_own_state` returned."""

    def _placed(self, affinity: AffinityLike) -> Affinity:
        """Returns where this process and its sampler run."""
        return Affinity.of(affinity)

    def _asked_to_stop(self) -> bool:
        """Returns whether training is to end after the current batch."""
        return self._stopping

    def _before_start(self) -> None:  # noqa: B027
        """Called before the sampler is initialized."""

    def _settle(self) -> None:  # noqa: B027
        """Writes the log row that waits for its episodes, if there is one."""
