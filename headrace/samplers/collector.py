"""The environments of one slice, for training and evaluation, with their loops. Whoever acts drives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from headrace.buffers.samples import FinalRegion, SlotSpec
from headrace.envs.factory import EnvFactory, close_quietly, make_envs, user_code_failed
from headrace.envs.pickling import loads
from headrace.envs.scalar import EnvInfoKeys, ScalarEnvs
from headrace.envs.vector import VectorBatch
from headrace.envs.vector_envs import VectorEnvs
from headrace.errors import EnvContractError, SamplerError, headline
from headrace.processes.status import Phase, Status
from headrace.rng import Stream, env_seeds
from headrace.samplers.evaluation import EvalReport
from headrace.samplers.loop import CollectionLoop, SlotView
from headrace.samplers.snapshot import EnvState, Rehearsal, SliceState, dumped
from headrace.samplers.traj_info import Episodes, TrajInfo
from headrace.types import EnvBatch, EnvSpaces, Timing, Tree

__all__ = ["Collector", "CollectorConfig", "Collectors", "SliceReport"]


@dataclass(frozen=True)
class CollectorConfig:
    """What a slice of environments needs to know before its first step; travels to workers by cloudpickle.

    env_ids, eval_env_ids: global numbers of this slice's environments (evaluation's are counted on their own);
    eval_episodes: episodes each evaluation environment starts; eval_max_T: rows of an evaluation at most;
    wait_reset: environments that end wait for the end of the batch; incarnation: see `env_seeds`; resumable: `state()`
    will be asked for; saved, eval_saved: pickled `EnvState`s by env id, to go on from instead of new environments;
    memory: the recurrent states of their rows by env id, for who acts.
    """

    factory: EnvFactory
    env_ids: tuple[int, ...]
    seed: int
    traj_info: tuple[type[TrajInfo], Mapping[str, Any]]
    wait_reset: bool
    max_decorrelation_steps: int
    env_info_keys: EnvInfoKeys
    deterministic: bool
    eval_factory: EnvFactory
    eval_env_ids: tuple[int, ...]
    eval_episodes: int
    eval_max_T: int
    incarnation: int = 0
    resumable: bool = False
    saved: Mapping[int, bytes] = field(default_factory=dict)
    eval_saved: Mapping[int, bytes] = field(default_factory=dict)
    memory: Mapping[int, Tree] = field(default_factory=dict)


@dataclass
class SliceReport:
    """What a slice tells its sampler after a batch, besides what it wrote into the slot.

    n_final: ended episodes; overflow: the entries that did not fit into the slot's final region, or None;
    episodes: statistics; notes: (level, sentence) for the log; timing: counters since the start.
    """

    n_final: int
    overflow: FinalRegion | None
    episodes: Episodes
    notes: list[tuple[int, str]]
    timing: Timing


class Collector:
    """Makes its environments at once; `setup` gives it its columns of a slot; then `batch` and `evaluation` collect.

    Both are iterators over rows: each number says that this row is ready, and what comes after it takes the actions of
    that row from the slot.
    """

    def __init__(self, config: CollectorConfig, status: Status) -> None:
        # Without the saved environments: they are large, and needed once.
        self.config = replace(config, saved={}, eval_saved={})
        self._status = status
        self._rehearsal: Rehearsal | None = None
        self._why_not = "it was not asked for: initialize(resumable=True)"
        self._saved = self._unpickled(config.factory, config.env_ids, config.saved)
        self._train_envs = self._make(config.factory, config.env_ids, None, config.env_info_keys, self._saved)
        self._eval_envs: ScalarEnvs | VectorBatch | None = None
        try:
            if config.eval_env_ids:
                saved = self._unpickled(config.eval_factory, config.eval_env_ids, config.eval_saved)
                self._eval_envs = self._make(config.eval_factory, config.eval_env_ids, Stream.EVAL_ENV, {}, saved)
            if self._eval_envs is not None and self._eval_envs.spaces != self._train_envs.spaces:
                raise EnvContractError(
                    f"evaluation environments have {self._eval_envs.spaces}, training environments "
                    f"{self._train_envs.spaces}; make eval_env_kwargs give the same spaces"
                )
        except BaseException:
            with suppress(SamplerError):
                self.close()
            raise

    @property
    def spaces(self) -> EnvSpaces:
        """Those of every environment here."""
        return self._train_envs.spaces

    def setup(self, spec: SlotSpec, views: Sequence[SlotView], evaluation: tuple[SlotSpec, SlotView] | None) -> None:
        """Takes its columns of every slot, and of that of evaluations if it has environments for them; resets and
        decorrelates the environments, or goes on with saved ones.
        """
        config = self.config
        self._n_rows = spec.batch.T
        self._views = views
        self._loop = self._new_loop(self._train_envs, spec, config.wait_reset)
        saved, self._saved = self._saved, []
        if saved:
            self._loop.go_on([state.row for state in saved], [state.running for state in saved])
            self._loop.revive()
        else:
            self._loop.start(config.seed, config.max_decorrelation_steps, config.incarnation)
        if config.resumable:
            self._rehearse(spec.observation)
        if self._eval_envs is not None and evaluation is not None:
            eval_spec, self._eval_view = evaluation
            self._eval_loop = self._new_loop(self._eval_envs, eval_spec, False)

    @property
    def timing(self) -> Timing:
        """Counters of its batches."""
        return self._loop.timing

    @property
    def evaluates(self) -> bool:
        """Whether it has evaluation environments."""
        return self._eval_envs is not None

    def batch(self, batch_index: int) -> Iterator[int]:
        """The rows of a batch, which lies in the slots in turn."""
        self._view = self._views[batch_index % len(self._views)]
        self._loop.revive()
        return self._loop.collect(self._view, self._n_rows)

    def report(self) -> SliceReport:
        """After the rows of a batch."""
        loop = self._loop
        if self._rehearsal is not None:
            rehearsal, self._rehearsal = self._rehearsal, None
            self._why_not = rehearsal.difference(self._view, self.config.wait_reset)
        return SliceReport(loop.n_final, loop.overflow, loop.finished, self._notes(), loop.timing)

    def prepare(self) -> None:
        """Resets the rows that wait, ahead of the next batch."""
        self._loop.revive()

    def begin_evaluation(self) -> None:
        """Resets the evaluation environments, each for its number of episodes."""
        assert self._eval_envs is not None
        self._eval_loop.restart(Phase.RESETTING)
        self._eval_envs.allow(self.config.eval_episodes - 1)

    def evaluation(self, n_rows: int, until_idle: bool) -> Iterator[int]:
        """The next rows of an evaluation; until_idle: stop when no environment has an episode left."""
        return self._eval_loop.collect(self._eval_view, n_rows, evaluating=True, until_idle=until_idle)

    def evaluated(self, first_row: int, n_rows: int) -> EvalReport:
        """After rows of an evaluation, the first of them number `first_row`."""
        assert self._eval_envs is not None
        loop = self._eval_loop
        loop.finished.time += first_row
        return EvalReport(
            loop.finished, loop.episodes.unfinished(first_row + n_rows), bool(self._eval_envs.waiting.all())
        )

    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        """Calls a method of training environments, or reads an attribute; answers by env id."""
        envs = self._train_envs
        rows = [row for row, env_id in enumerate(envs.env_ids) if env_id in env_ids]
        answers = envs.call(rows, name, args) if rows else []
        self._status.enter(Phase.WAITING)
        return {envs.env_ids[row]: answer for row, answer in zip(rows, answers, strict=True)}

    def state(self) -> SliceState:
        """Where this slice stands, between batches; without recurrent states, which belong to who acts."""
        if self._why_not:
            return SliceState(why_not=self._why_not)
        try:
            train_envs, eval_envs = self._train_envs, self._eval_envs
            assert isinstance(train_envs, ScalarEnvs)  # of others it was said why not
            train = [
                EnvState(*train_envs.environment(row), *self._loop.row(row)) for row in range(len(train_envs.env_ids))
            ]
            evaluation = []
            if isinstance(eval_envs, ScalarEnvs):
                evaluation = [EnvState(*eval_envs.environment(row)) for row in range(len(eval_envs.env_ids))]
            return SliceState(
                dumped(self.config.env_ids, train, self._status),
                dumped(self.config.eval_env_ids, evaluation, self._status),
            )
        except Exception as error:
            self._why_not = _not_pickled(self.config.factory, error)
            return SliceState(why_not=self._why_not)
        finally:
            self._status.enter(Phase.WAITING)

    def _rehearse(self, observation: Tree) -> None:
        """Copies environments, to see in the first batch whether the copies do what the originals do."""
        if not isinstance(self._train_envs, ScalarEnvs):
            self._why_not = f"{self.config.factory.name} makes vector environments, which are not saved"
            return
        self._why_not = "no batch was collected yet"
        try:
            self._rehearsal = Rehearsal(self._train_envs, observation, self.config.factory.name, self._status)
        except Exception as error:
            self._why_not = _not_pickled(self.config.factory, error)
        self._status.enter(Phase.WAITING)

    def _notes(self) -> list[tuple[int, str]]:
        """What the environments have for the log since the last time."""
        notes: list[tuple[int, str]] = []
        for envs in (self._train_envs, self._eval_envs):
            if envs is not None:
                notes += envs.notes
                envs.notes = []
        return notes

    def close(self) -> None:
        """Closes the environments; a failure is raised after all are closed."""
        if self._rehearsal is not None:
            self._rehearsal.close()
        try:
            self._train_envs.close()
        finally:
            if self._eval_envs is not None:
                self._eval_envs.close()

    def _make(
        self,
        factory: EnvFactory,
        env_ids: tuple[int, ...],
        stream: Stream | None,
        env_info_keys: EnvInfoKeys,
        saved: Sequence[EnvState],
    ) -> ScalarEnvs | VectorBatch:
        config = self.config
        new_seeds = [env_seeds(config.seed, env_id, stream, config.incarnation) for env_id in env_ids]
        if isinstance(factory.make, VectorEnvs):
            return self._make_vector(factory.make, factory, env_ids, new_seeds, env_info_keys)
        seeds: Sequence[tuple[int | None, int | None]] = new_seeds
        if saved:
            envs, seeds = [state.env for state in saved], [(state.seed, None) for state in saved]
        else:
            envs = make_envs(factory, env_ids, self._status)
        try:
            return ScalarEnvs(
                envs,
                env_ids,
                seeds,
                name=factory.name,
                status=self._status,
                env_info_keys=env_info_keys,
            )
        except BaseException:
            close_quietly(envs)
            raise

    def _make_vector(
        self,
        vector_envs: VectorEnvs,
        factory: EnvFactory,
        env_ids: tuple[int, ...],
        seeds: Sequence[tuple[int, int]],
        env_info_keys: EnvInfoKeys,
    ) -> VectorBatch:
        self._status.enter(Phase.CONSTRUCTING, env_ids[0])
        try:
            env = vector_envs.make(len(env_ids), factory.kwargs)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise user_code_failed(error, f"{factory.name}: the constructor", self._status) from error
        try:
            batch = VectorBatch(
                env, env_ids, seeds, name=factory.name, status=self._status, env_info_keys=env_info_keys
            )
            if self.config.wait_reset and not batch.holds:
                raise EnvContractError(
                    f"{factory.name} resets its environments by itself, so they cannot wait for the end of a batch: "
                    'reset_mode="wait" needs a vector environment with AutoresetMode.DISABLED; use "mid_batch"',
                    self._status.where(),
                )
        except BaseException:
            env.close()
            raise
        return batch

    def _unpickled(self, factory: EnvFactory, env_ids: tuple[int, ...], saved: Mapping[int, bytes]) -> list[EnvState]:
        states: list[EnvState] = []
        for env_id in env_ids if saved else ():
            self._status.enter(Phase.CONSTRUCTING, env_id)
            try:
                states.append(loads(saved[env_id]))
            except Exception as error:
                close_quietly([state.env for state in states])
                raise user_code_failed(error, f"{factory.name}: unpickling the saved environment", self._status) from (
                    error
                )
        return states

    def _new_loop(self, envs: EnvBatch, spec: SlotSpec, wait_reset: bool) -> CollectionLoop:
        return CollectionLoop(envs, spec, status=self._status, traj_info=self.config.traj_info, wait_reset=wait_reset)


class Collectors:
    """Those of one process, one for each of its slices; if one fails, those made before it are closed."""

    def __init__(self, configs: Sequence[CollectorConfig], status: Status) -> None:
        self.all: list[Collector] = []
        try:
            for config in configs:
                self.all.append(Collector(config, status))
        except BaseException:
            with suppress(SamplerError):
                self.close()
            raise

    @property
    def spaces(self) -> list[EnvSpaces]:
        """One for each slice."""
        return [collector.spaces for collector in self.all]

    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        """Calls training environments; answers by env id."""
        return {
            env_id: value for collector in self.all for env_id, value in collector.call(name, args, env_ids).items()
        }

    def close(self) -> None:
        """Closes them; the first failure is raised after the last is closed."""
        with ExitStack() as stack:
            for collector in reversed(self.all):
                stack.callback(collector.close)


def _not_pickled(factory: EnvFactory, error: Exception) -> str:
    return f"{factory.name} cannot be pickled ({headline(error)})".split("\n")[0]
