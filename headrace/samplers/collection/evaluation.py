"""Evaluation: runs the collection loop on evaluation environments, some rows at a time, until all have finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from headrace.buffers.samples import SlotSpec
from headrace.envs.copy_trial import CopyTrial
from headrace.envs.pickling import EnvState, dumped, not_pickled
from headrace.envs.scalar import ScalarEnvs
from headrace.errors import EnvContractError
from headrace.processes.status import Phase, Status
from headrace.samplers.collection.loop import CollectionLoop
from headrace.samplers.collection.make_envs import SliceConfig, eval_envs
from headrace.samplers.collection.resets import ResetMode
from headrace.samplers.collection.slot_view import SlotView
from headrace.samplers.collection.snapshot import NOT_ASKED, SliceState, not_saved, recorded
from headrace.samplers.traj_info import Episodes
from headrace.types import BatchSpec, EnvSpaces

__all__ = ["EvalReport", "EvalSlice", "evaluation_episodes", "evaluation_spec", "require_alike"]

#: Number of rows collected at a time, into a slot that is overwritten repeatedly.
_ROWS = 32


@dataclass
class EvalReport:
    """Report of a slice after some rows of an evaluation.

    Args:
        finished: the episodes that ended in these rows.
        unfinished: the episodes that are still running.
        idle: whether all environments of the slice have finished their episodes.
    """

    finished: Episodes
    unfinished: Episodes
    idle: bool


def evaluation_spec(spec: SlotSpec, widths: tuple[int, ...]) -> SlotSpec:
    """Returns the contents of the slot of an evaluation.

    Args:
        spec: the contents of a training slot.
        widths: number of evaluation environments in each slice.
    """
    return replace(spec, batch=BatchSpec(_ROWS, sum(widths)), widths=widths, env_info=None, bootstrap=False)


def evaluation_episodes(collect: Callable[[int, int], Sequence[EvalReport]], max_T: int) -> list[Episodes]:
    """Runs an evaluation and returns its episodes, unfinished ones last.

    Args:
        collect: collects rows, given the number of the first row and the number of rows; called until all slices are
            idle.
        max_T: maximum number of rows.
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
    """The evaluation environments of one slice, with their loop.

    The constructor makes the environments, `setup` sets their columns of a slot, and `rows` collects; its result is an
    iterator like that of `TrainSlice.batch`.
    """

    def __init__(self, config: SliceConfig, status: Status) -> None:
        self.config = replace(config, saved={}, eval_saved={})  # saved environments are large and only needed below
        self.envs = eval_envs(config, status)
        self._status = status
        self._reset_mode = ResetMode.episodes(config.eval_episodes)
        self._n_tried = len({*config.eval_env_ids} & {*config.eval_tried_ids})
        self._why_not = "" if config.resumable else NOT_ASKED
        if not isinstance(self.envs, ScalarEnvs):
            self._why_not = self._why_not or not_saved(config.eval_factory.name)
        self._trial = CopyTrial(config.eval_factory.name)  # runs in the first evaluation
        self._loading: CopyTrial | None = None  # used before the first evaluation

    @property
    def spaces(self) -> EnvSpaces:
        """The spaces of each environment in the slice."""
        return self.envs.spaces

    def setup(self, spec: SlotSpec, view: SlotView) -> None:
        """Sets the view of the slot that evaluations overwrite repeatedly."""
        self._view = view
        self._loop = CollectionLoop(
            self.envs,
            spec,
            status=self._status,
            traj_info=self.config.traj_info,
            reset_mode=self._reset_mode,
            phase=Phase.EVALUATING,
        )

    def begin(self) -> None:
        """Resets the environments and sets the number of episodes that each runs."""
        if self._has_trial and self._trial.due:
            self._take(self._trial)
        self._loop.restart()

    def rows(self, n_rows: int, until_idle: bool) -> Iterator[int]:
        """Returns an iterator that collects the next rows of an evaluation.

        Args:
            n_rows: number of rows.
            until_idle: whether to stop when no environment has an episode left.
        """
        return self._loop.collect(self._view, n_rows, until_idle=until_idle)

    def report(self, first_row: int, n_rows: int) -> EvalReport:
        """Returns the report after rows of an evaluation.

        Args:
            first_row: number of the first of these rows.
            n_rows: number of rows.
        """
        loop = self._loop
        if self._trial.taken:
            self._trial.play(recorded(self._view.slot, n_rows, begins=True, resets=self._reset_mode.resets))
        loop.finished.time += first_row
        return EvalReport(loop.finished, loop.episodes.unfinished(first_row + n_rows), bool(self.envs.waiting.all()))

    def state(self) -> SliceState:
        """Returns the pickled environments, or the reason why they are missing."""
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
        """Returns why the environments are not saved, or "".

        Before the first evaluation this only checks that copies can be loaded.
        """
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
        """Returns the current state of the first `n` environments."""
        envs = self.envs
        assert isinstance(envs, ScalarEnvs)  # other kinds already set `_why_not`
        return [EnvState(*envs.environment(row)) for row in range(n)]

    def notes(self) -> list[tuple[int, str]]:
        """Returns and clears the environments' log messages."""
        notes, self.envs.notes = self.envs.notes, []
        return notes

    def close(self) -> None:
        """Closes the environments."""
        self._trial.close()
        if self._loading is not None:
            self._loading.close()
        self.envs.close()


def require_alike(evaluation: EnvSpaces, training: EnvSpaces) -> None:
    """Raises EnvContractError if evaluation and training environments have different spaces.

    An agent made for one could not act in the other.
    """
    if evaluation != training:
        raise EnvContractError(
            f"evaluation environments have {evaluation}, but training environments {training}; change eval_env_kwargs "
            "so that they have the same spaces"
        )
