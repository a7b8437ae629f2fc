"""The evaluation environments of one slice, with their loop. Whoever acts drives it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from headrace.buffers.samples import SlotSpec
from headrace.envs.scalar import ScalarEnvs
from headrace.errors import EnvContractError
from headrace.processes.status import Phase, Status
from headrace.samplers.evaluation import EvalReport
from headrace.samplers.loop import CollectionLoop, SlotView
from headrace.samplers.slice_envs import CollectorConfig, eval_envs
from headrace.samplers.snapshot import EnvState, dumped
from headrace.types import EnvSpaces

__all__ = ["EvalCollector", "require_alike"]


class EvalCollector:
    """Makes its environments at once; `setup` gives it its columns of a slot; then `rows` collects.

    That is an iterator like `Collector.batch`.
    """

    def __init__(self, config: CollectorConfig, status: Status) -> None:
        self.config = replace(config, saved={}, eval_saved={})  # they are large, and needed once
        self.envs = eval_envs(config, status)
        self._status = status

    @property
    def spaces(self) -> EnvSpaces:
        """Those of every environment here."""
        return self.envs.spaces

    def setup(self, spec: SlotSpec, view: SlotView) -> None:
        """Takes its columns of the slot that evaluations write again and again."""
        self._view = view
        self._loop = CollectionLoop(
            self.envs, spec, status=self._status, traj_info=self.config.traj_info, wait_reset=False
        )

    def begin(self) -> None:
        """Resets the environments, each for its number of episodes."""
        self._loop.restart(Phase.RESETTING)
        self.envs.allow(self.config.eval_episodes - 1)

    def rows(self, n_rows: int, until_idle: bool) -> Iterator[int]:
        """The next rows of an evaluation; until_idle: stop when no environment has an episode left."""
        return self._loop.collect(self._view, n_rows, evaluating=True, until_idle=until_idle)

    def report(self, first_row: int, n_rows: int) -> EvalReport:
        """After rows of an evaluation, the first of them number `first_row`."""
        loop = self._loop
        loop.finished.time += first_row
        return EvalReport(loop.finished, loop.episodes.unfinished(first_row + n_rows), bool(self.envs.waiting.all()))

    def state(self) -> dict[int, bytes]:
        """Its pickled environments by env id; none if they cannot be taken apart. Raises what pickling raises."""
        envs = self.envs
        if not isinstance(envs, ScalarEnvs):
            return {}
        states = [EnvState(*envs.environment(row)) for row in range(len(envs.env_ids))]
        return dumped(self.config.eval_env_ids, states, self._status)

    def notes(self) -> list[tuple[int, str]]:
        """What the environments have for the log since the last time."""
        notes, self.envs.notes = self.envs.notes, []
        return notes

    def close(self) -> None:
        """Closes the environments."""
        self.envs.close()


def require_alike(evaluation: EnvSpaces, training: EnvSpaces) -> None:
    """Raises EnvContractError unless an agent made for the one can act in the other."""
    if evaluation != training:
        raise EnvContractError(
            f"evaluation environments have {evaluation}, training environments {training}; make eval_env_kwargs give "
            "the same spaces"
        )
