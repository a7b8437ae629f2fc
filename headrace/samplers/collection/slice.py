"""The training environments of one slice, with their loop. The caller provides the actions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from headrace.buffers.samples import FinalRegion, SlotSpec
from headrace.envs.copy_trial import CopyTrial
from headrace.envs.global_rng import ISOLATE, GlobalRandomness
from headrace.envs.pickling import EnvState, dumped, not_pickled
from headrace.envs.scalar import ScalarEnvs
from headrace.errors import SamplerError
from headrace.processes.status import Phase, Status
from headrace.samplers.collection.evaluation import EvalSlice, require_alike
from headrace.samplers.collection.loop import CollectionLoop
from headrace.samplers.collection.make_envs import SliceConfig, train_envs
from headrace.samplers.collection.slot_view import SlotView
from headrace.samplers.collection.snapshot import NOT_ASKED, SliceState, not_saved, recorded
from headrace.samplers.traj_info import Episodes
from headrace.types import EnvSpaces, Timing

__all__ = ["SliceReport", "TrainSlice", "TrainSlices"]

_NOTICED = 32  # number of rows that are checked for draws from global generators, 0.3 ms each


@dataclass
class SliceReport:
    """Report of a slice to its sampler after a batch, in addition to what the slice wrote into the slot.

    Args:
        n_final: number of ended episodes.
        overflow: the entries that did not fit into the slot's final region, or None.
        episodes: statistics of the ended episodes.
        notes: log messages, (level, sentence).
        timing: counters since the start.
    """

    n_final: int
    overflow: FinalRegion | None
    episodes: Episodes
    notes: list[tuple[int, str]]
    timing: Timing


class TrainSlice:
    """The training environments of one slice.

    The constructor makes the environments, `setup` sets their columns of the slots, and `batch` collects. The result of
    `batch` is an iterator over rows: it yields t when row t is ready, and when it is resumed it reads the actions of
    row t from the slot. `evaluation` has this slice's share of the evaluation environments; None if it has none.
    """

    def __init__(self, config: SliceConfig, status: Status) -> None:
        # Saved environments are large and only needed below.
        self.config = replace(config, saved={}, eval_saved={})
        self._status = status
        self._trial: CopyTrial | None = None
        self._n_noticed = 0
        self._why_not = "" if config.resumable else NOT_ASKED
        self._envs, self._saved = train_envs(config, status)
        self.evaluation: EvalSlice | None = None
        try:
            if config.eval_env_ids:
                self.evaluation = EvalSlice(config, status)
                require_alike(self.evaluation.spaces, self.spaces)
        except BaseException:
            with suppress(SamplerError):
                self.close()
            raise

    @property
    def spaces(self) -> EnvSpaces:
        """The spaces of each environment in the slice."""
        return self._envs.spaces

    def setup(self, spec: SlotSpec, views: Sequence[SlotView]) -> None:
        """Sets the views of every slot; resets and decorrelates the environments, or restores saved ones."""
        config = self.config
        self._n_rows = spec.batch.T
        self._views = views
        self._loop = CollectionLoop(
            self._envs, spec, status=self._status, traj_info=config.traj_info, reset_mode=config.reset_mode
        )
        saved, self._saved = self._saved, []
        with self._noticing():
            if saved:
                self._loop.restore([state.row for state in saved], [state.running for state in saved])
                self._loop.reset_waiting()
            else:
                self._loop.start(config.seed, config.max_decorrelation_steps, config.incarnation)
        self._stepped = bool(saved or config.max_decorrelation_steps)
        self._n_tried = len({*config.env_ids} & {*config.tried_ids})
        if not isinstance(self._envs, ScalarEnvs):
            self._why_not = self._why_not or not_saved(config.factory.name)
        elif config.resumable and self._n_tried:
            self._trial = CopyTrial(config.factory.name)

    @property
    def timing(self) -> Timing:
        """Counters of the slice's batches."""
        return self._loop.timing

    def batch(self, batch_index: int, reads_previous: bool) -> Iterator[int]:
        """Returns an iterator over the rows of a batch; batches use the slots in turn.

        Args:
            batch_index: counts batches from 0.
            reads_previous: see `CollectionLoop.collect`.
        """
        self._view = self._views[batch_index % len(self._views)]
        self._loop.reset_waiting()
        # Environments that were just reset are not copied, because a reset sets the module globals that it needs.
        if self._trial is not None and self._trial.due and self._stepped:
            envs, n = self._scalar_envs, self._n_tried
            # Statistics are left out: their class may be in a program that is slow to import.
            states = [EnvState(*envs.environment(row)) for row in range(n)]
            self._trial.take(self.config.env_ids[:n], states, self._status)
        self._stepped = True
        rows = self._loop.collect(self._view, self._n_rows, reads_previous=reads_previous)
        return rows if self._n_noticed == _NOTICED else self._noticed(rows)

    def _noticed(self, rows: Iterator[int]) -> Iterator[int]:
        """Yields the same rows; in the first ones, checks whether environments draw from global generators."""
        end = False
        while not end and self._n_noticed < _NOTICED:
            self._n_noticed += 1
            with self._noticing():
                t = next(rows, None)
            end = t is None
            if t is not None:
                yield t
        yield from rows

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Returns a context manager that warns if environments draw from global generators inside it."""
        randomness = None if self.config.factory.isolation is not None else GlobalRandomness()
        yield
        if randomness is not None and randomness.touched():
            self._n_noticed = _NOTICED
            sentence = (
                f"{self.config.factory.name} draws from global generators (numpy.random, random or torch), so "
                f"its batches depend on the number of workers; {ISOLATE}"
            )
            self._envs.notes.append((logging.WARNING, sentence))

    def report(self) -> SliceReport:
        """Returns the report after the rows of a batch."""
        loop = self._loop
        if self._trial is not None and self._trial.taken:
            resets = self.config.reset_mode.resets
            self._trial.play(recorded(self._view.slot, self._n_rows, begins=False, resets=resets))
        return SliceReport(loop.n_final, loop.overflow, loop.finished, self._notes(), loop.timing)

    def prepare(self) -> None:
        """Resets the waiting environments ahead of the next batch."""
        self._loop.reset_waiting()

    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        """Calls a method of training environments, or reads an attribute; returns the results by env id."""
        envs = self._envs
        columns = [column for column, env_id in enumerate(envs.env_ids) if env_id in env_ids]
        answers = envs.call(columns, name, args) if columns else []
        self._status.enter(Phase.WAITING)
        return {envs.env_ids[column]: answer for column, answer in zip(columns, answers, strict=True)}

    def state(self) -> SliceState:
        """Returns the slice's state between batches, without recurrent states, which the actor holds."""
        try:
            if self._why_not:
                return SliceState(why_not=self._why_not)
            if self._trial is not None:
                self._trial.decide(self._status)
                if self._trial.why_not:
                    return SliceState(why_not=self._trial.why_not)
            evaluation = SliceState() if self.evaluation is None else self.evaluation.state()
            if evaluation.why_not:
                return evaluation
            envs, loop, env_ids = self._scalar_envs, self._loop, self.config.env_ids
            states = [EnvState(*envs.environment(row), *loop.row(row)) for row in range(len(env_ids))]
            train = dumped(env_ids, states, self._status)
            return replace(evaluation, train=train)
        except Exception as error:
            self._why_not = not_pickled(self.config.factory.name, error)
            return SliceState(why_not=self._why_not)
        finally:
            self._status.enter(Phase.WAITING)

    @property
    def _scalar_envs(self) -> ScalarEnvs:
        assert isinstance(self._envs, ScalarEnvs)  # other kinds already set `_why_not`
        return self._envs

    def _notes(self) -> list[tuple[int, str]]:
        """Returns and clears the environments' log messages."""
        notes, self._envs.notes = self._envs.notes, []
        return notes if self.evaluation is None else notes + self.evaluation.notes()

    def close(self) -> None:
        """Closes the environments; raises a failure after all are closed."""
        if self._trial is not None:
            self._trial.close()
        try:
            self._envs.close()
        finally:
            if self.evaluation is not None:
                self.evaluation.close()


class TrainSlices:
    """The `TrainSlice`s of one process. If making one fails, those made before it are closed."""

    def __init__(self, configs: Sequence[SliceConfig], status: Status) -> None:
        self.all: list[TrainSlice] = []
        try:
            for config in configs:
                self.all.append(TrainSlice(config, status))
        except BaseException:
            with suppress(SamplerError):
                self.close()
            raise

    @property
    def spaces(self) -> list[EnvSpaces]:
        """The spaces of each slice."""
        return [collector.spaces for collector in self.all]

    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        """Calls training environments; returns the results by env id."""
        return {
            env_id: value for collector in self.all for env_id, value in collector.call(name, args, env_ids).items()
        }

    def close(self) -> None:
        """Closes all slices; raises the first failure after the last is closed."""
        with ExitStack() as stack:
            for collector in reversed(self.all):
                stack.callback(collector.close)
