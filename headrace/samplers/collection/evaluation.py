"""Evaluation: the same loop with other environments, some rows at a time, until each has had its episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from headrace.buffers.samples import SlotSpec
from headrace.envs.copy_trial import CopyTrial
from headrace.envs.pickling import EnvState, dumped, not_pickled
from headrace.envs.scalar import ScalarEnvs
from headrace.errors import EnvContractError
from headrace.processes.status import Phase, Status
from headrace.samplers.collection.loop import CollectionLoop, SlotView
from headrace.samplers.collection.make_envs import SliceConfig, eval_envs
from headrace.samplers.collection.snapshot import NOT_ASKED, SliceState, not_saved, recorded
from headrace.samplers.traj_info import Episodes
from headrace.types import BatchSpec, EnvSpaces

__all__ = ["EvalReport", "EvalSlice", "evaluation_episodes", "evaluation_spec", "require_alike"]

#: Rows collected at a time, into a slot that is written again and again.
_ROWS = 32


@dataclass
class EvalReport:
    """What a slice tells after some rows of an evaluation: the episodes that ended in them, those that still run, and
    whether all of its environments have had theirs.
    """

    finished: Episodes
    unfinished: Episodes
    idle: bool


def evaluation_spec(spec: SlotSpec, widths: tuple[int, ...]) -> SlotSpec:
    """What the slot of an evaluation holds, for so many evaluation environments in each slice."""
    return replace(spec, batch=BatchSpec(_ROWS, sum(widths)), widths=widths, env_info=None, bootstrap=False)


def evaluation_episodes(collect: Callable[[int, int], Sequence[EvalReport]], max_T: int) -> list[Episodes]:
    """All episodes of an evaluation of `max_T` rows at most, unfinished ones last.

    collect: called with the number of a first row and how many to collect, until all slices say they are idle.
    """
    parts: list[Episodes] = []
    first_row = 0
    while True:
        n_rows = min(_ROWS, max_T - first_row)
        reports = collect(first_row, n_rows)
        parts += [report.finished for report in reports]
        first_row += n_rows
        if first_row >= max_T or all(report.idle for report in reports):
            return [*parts, *(report.unfinished for report in reports)]


class EvalSlice:
    """Makes its environments at once; `setup` gives it its columns of a slot; then `rows` collects.

    That is an iterator like `TrainSlice.batch`.
    """

    def __init__(self, config: SliceConfig, status: Status) -> None:
        self.config = replace(config, saved={}, eval_saved={})  # they are large, and needed once
        self.envs = eval_envs(config, status)
        self._status = status
        self._n_tried = len({*config.eval_env_ids} & {*config.eval_tried_ids})
        self._why_not = "" if config.resumable else NOT_ASKED
        if not isinstance(self.envs, ScalarEnvs):
            self._why_not = self._why_not or not_saved(config.eval_factory.name)
        self._trial = CopyTrial(config.eval_factory.name)  # in the first evaluation
        self._loading: CopyTrial | None = None  # before there was one

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
        if self._has_trial and self._trial.due:
            self._take(self._trial)
        self._loop.restart(Phase.RESETTING)
        self.envs.allow(self.config.eval_episodes - 1)

    def rows(self, n_rows: int, until_idle: bool) -> Iterator[int]:
        """The next rows of an evaluation; until_idle: stop when no environment has an episode left."""
        return self._loop.collect(self._view, n_rows, evaluating=True, until_idle=until_idle)

    def report(self, first_row: int, n_rows: int) -> EvalReport:
        """After rows of an evaluation, the first of them number `first_row`."""
        loop = self._loop
        if self._trial.taken:
            resets = self.config.eval_episodes - 1
            self._trial.play(recorded(self._view.slot, n_rows, begins=True, resets=resets))
        loop.finished.time += first_row
        return EvalReport(loop.finished, loop.episodes.unfinished(first_row + n_rows), bool(self.envs.waiting.all()))

    def state(self) -> SliceState:
        """Its pickled environments, or why there are none."""
        try:
            if self._why_not:
                return SliceState(why_not=self._why_not)
            if self._has_trial:
                why_not = self._verdict()
                if why_not:
                    return SliceState(why_not=why_not)
            env_ids = self.config.eval_env_ids
            return SliceState(evaluation=dumped(env_ids, self._env_states(len(env_ids)), self._status))
        except Exception as error:
            self._why_not = not_pickled(self.config.eval_factory.name, error)
            return SliceState(why_not=self._why_not)
        finally:
            self._status.enter(Phase.WAITING)

    @property
    def _has_trial(self) -> bool:
        return not self._why_not and self._n_tried > 0

    def _verdict(self) -> str:
        """Why the environments are not saved. Before the first evaluation it is only seen that copies can be loaded."""
        trial = self._trial
        if trial.due:
            if self._loading is None:
                self._loading = CopyTrial(self.config.eval_factory.name)
                self._take(self._loading)
                self._loading.play(None)
            trial = self._loading
        trial.decide(self._status)
        return trial.why_not

    def _take(self, trial: CopyTrial) -> None:
        n = self._n_tried
        trial.take(self.config.eval_env_ids[:n], self._env_states(n), self._status)

    def _env_states(self, n: int) -> list[EnvState]:
        """Of the first `n` environments, as they stand."""
        envs = self.envs
        assert isinstance(envs, ScalarEnvs)  # of others it was said why not
        return [EnvState(*envs.environment(row)) for row in range(n)]

    def notes(self) -> list[tuple[int, str]]:
        """What the environments have for the log since the last time."""
        notes, self.envs.notes = self.envs.notes, []
        return notes

    def close(self) -> None:
        """Closes the environments."""
        self._trial.close()
        if self._loading is not None:
            self._loading.close()
        self.envs.close()


def require_alike(evaluation: EnvSpaces, training: EnvSpaces) -> None:
    """Raises EnvContractError unless an agent made for the one can act in the other."""
    if evaluation != training:
        raise EnvContractError(
            f"evaluation environments have {evaluation}, training environments {training}; make eval_env_kwargs give "
            "the same spaces"
        )
