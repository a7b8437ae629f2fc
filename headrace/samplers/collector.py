"""The environments of one slice with an agent beside them: `SerialSampler`'s work, or one `CpuSampler` worker's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from headrace.buffers.samples import FinalRegion, Slot, SlotSpec, build_slot
from headrace.envs.factory import EnvFactory, close_quietly, make_envs, user_code_failed
from headrace.envs.pickling import loads
from headrace.envs.scalar import EnvInfoKeys, ScalarEnvs
from headrace.errors import EnvContractError, SamplerError, headline
from headrace.processes.status import Phase, Status
from headrace.rng import Stream, env_seeds
from headrace.samplers.loop import CollectionLoop, SlotView, private_array
from headrace.samplers.snapshot import EnvState, Rehearsal, SliceState, dumped
from headrace.samplers.traj_info import Episodes, TrajInfo
from headrace.types import BatchSpec, EnvSpaces, Timing, Tree

if TYPE_CHECKING:
    from headrace.agents.base import Agent
    from headrace.samplers.drive import Actor

__all__ = ["Collector", "CollectorConfig", "SliceReport"]

_EVAL_ROWS = 32


@dataclass(frozen=True)
class CollectorConfig:
    """What a slice of environments needs to know before its first step; travels to workers by cloudpickle.

    env_ids, eval_env_ids: global numbers of this slice's environments (evaluation's are counted on their own);
    eval_episodes: episodes each evaluation environment starts; eval_max_T: rows of an evaluation at most;
    wait_reset: environments that end wait for the end of the batch; incarnation: see `env_seeds`; resumable: `state()`
    will be asked for; saved, eval_saved: pickled `EnvState`s by env id, to go on from instead of new environments.
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
    """Makes its environments at once; `setup` gives it an agent and a slot; then `collect` and `evaluate`."""

    def __init__(self, config: CollectorConfig, status: Status) -> None:
        # Without the saved environments: they are large, and needed once.
        self._config = replace(config, saved={}, eval_saved={})
        self._status = status
        self._rehearsal: Rehearsal | None = None
        self._why_not = "it was not asked for: initialize(resumable=True)"
        self._saved = self._unpickled(config.factory, config.env_ids, config.saved)
        self._train_envs = self._make(config.factory, config.env_ids, None, config.env_info_keys, self._saved)
        self._eval_envs: ScalarEnvs | None = None
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

    def setup(self, agent: Agent, spec: SlotSpec, slot: Slot, first_column: int) -> None:
        """Takes the agent and this slice of a slot; resets and decorrelates the environments, or goes on with saved
        ones.
        """
        config = self._config
        self._agent = agent
        self._n_rows = spec.batch.T
        self._view = SlotView(slot, first_column)
        self._loop, self._actor = self._station(self._train_envs, self._view, spec, Stream.ACTION, config.wait_reset)
        saved, self._saved = self._saved, []
        if saved:
            self._loop.go_on([state.row for state in saved], [state.running for state in saved])
            self._actor.go_on([state.state for state in saved])
            self._loop.revive()
        else:
            self._loop.start(config.seed, config.max_decorrelation_steps, config.incarnation)
        if config.resumable:
            self._rehearse(spec.observation)
        if self._eval_envs is not None:
            n_eval = len(config.eval_env_ids)
            eval_spec = replace(
                spec, batch=BatchSpec(_EVAL_ROWS, n_eval), widths=(n_eval,), env_info=None, bootstrap=False
            )
            self._eval_view = SlotView(build_slot(eval_spec, private_array), 0)
            self._eval_loop, self._eval_actor = self._station(
                self._eval_envs, self._eval_view, eval_spec, Stream.EVAL_ACTION, False
            )

    def collect(self, itr: int, version: int, batch_index: int) -> SliceReport:
        """Fills this slice of the slot. batch_index counts batches from 0: the address of the batch's randomness."""
        loop, actor = self._loop, self._actor
        loop.revive()
        self._agent.sample_mode(itr)
        actor.begin(version, batch_index * self._n_rows)
        for t in loop.collect(self._view, self._n_rows):
            actor.act(t)
        actor.finish()
        if self._rehearsal is not None:
            rehearsal, self._rehearsal = self._rehearsal, None
            self._why_not = rehearsal.difference(self._view, self._config.wait_reset)
        if loop.overflow is not None:
            loop.overflow.state = actor.overflow
        return SliceReport(loop.n_final, loop.overflow, loop.finished, self._notes(), loop.timing)

    def prepare(self, batch_index: int) -> None:
        """What the next batch needs and can have before its command comes: resets of waiting rows, and noise."""
        self._loop.revive()
        self._actor.draw(batch_index * self._n_rows)

    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        """Runs each evaluation environment for its number of episodes, greedily; unfinished ones come last."""
        if self._eval_envs is None:
            return []
        envs, loop, actor, config = self._eval_envs, self._eval_loop, self._eval_actor, self._config
        self._agent.eval_mode(itr)
        loop.restart(Phase.RESETTING)
        envs.allow(config.eval_episodes - 1)
        actor.restart()
        parts: list[Episodes] = []
        done_rows = 0
        while done_rows < config.eval_max_T and not envs.waiting.all():
            actor.begin(version, (evaluation_index << 32) + done_rows)
            n_rows = min(_EVAL_ROWS, config.eval_max_T - done_rows)
            for t in loop.collect(self._eval_view, n_rows, Phase.EVALUATING, until_idle=True):
                actor.act(t)
            loop.finished.time += done_rows
            parts.append(loop.finished)
            done_rows += n_rows
        parts.append(loop.episodes.unfinished(done_rows))
        return parts

    def state(self) -> SliceState:
        """Where everything of this slice stands, between batches."""
        if self._why_not:
            return SliceState(why_not=self._why_not)
        try:
            train = [
                EnvState(*self._train_envs.environment(row), *self._loop.row(row), self._actor.state_of(row))
                for row in range(len(self._config.env_ids))
            ]
            eval_envs = self._eval_envs
            evaluation = (
                []
                if eval_envs is None
                else [EnvState(*eval_envs.environment(k)) for k in range(len(eval_envs.env_ids))]
            )
            return SliceState(
                dumped(self._config.env_ids, train, self._status),
                dumped(self._config.eval_env_ids, evaluation, self._status),
            )
        except Exception as error:
            self._why_not = _not_pickled(self._config.factory, error)
            return SliceState(why_not=self._why_not)
        finally:
            self._status.enter(Phase.WAITING)

    def _rehearse(self, observation: Tree) -> None:
        """Copies environments, to see in the first batch whether the copies do what the originals do."""
        self._why_not = "no batch was collected yet"
        try:
            self._rehearsal = Rehearsal(self._train_envs, observation, self._config.factory.name, self._status)
        except Exception as error:
            self._why_not = _not_pickled(self._config.factory, error)
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
    ) -> ScalarEnvs:
        config = self._config
        seeds: list[tuple[int | None, int | None]]
        if saved:
            envs, seeds = [state.env for state in saved], [(state.seed, None) for state in saved]
        else:
            envs = make_envs(factory, env_ids, self._status)
            seeds = [env_seeds(config.seed, env_id, stream, config.incarnation) for env_id in env_ids]
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

    def _station(
        self, envs: ScalarEnvs, view: SlotView, spec: SlotSpec, stream: Stream, wait_reset: bool
    ) -> tuple[CollectionLoop, Actor]:
        """A loop over some environments and the actor that acts for them."""
        from headrace.samplers.drive import Actor  # loads torch; served slices do without

        config = self._config
        loop = CollectionLoop(envs, spec, status=self._status, traj_info=config.traj_info, wait_reset=wait_reset)
        actor = Actor(
            self._agent,
            view,
            envs.env_ids,
            seed=config.seed,
            stream=stream,
            status=self._status,
            deterministic=config.deterministic,
        )
        return loop, actor


def _not_pickled(factory: EnvFactory, error: Exception) -> str:
    return f"{factory.name} cannot be pickled ({headline(error)})".split("\n")[0]
