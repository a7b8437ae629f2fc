"""What a run consists of, as plain values: which workers there are, and what each of them does."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from headrace.agents.base import Agent
from headrace.algos.base import Algo
from headrace.envs.scalar import EnvInfoKeys
from headrace.system.worker import Worker

__all__ = [
    "ActorConfig",
    "EvaluationConfig",
    "Experiment",
    "ExperimentConfig",
    "PolicyConfig",
    "TrainerConfig",
    "WorkerConfig",
    "make_experiment",
    "register_experiment",
    "registered_experiments",
]

DEFAULT = "default"  # name of the policy and of the streams, where there is only one


@dataclass(frozen=True, kw_only=True)
class ActorConfig:
    """An actor worker: a ring of slices of environments.

    Args:
        env: a Gymnasium id, an `EnvSpec`, a callable that returns an `Env`, or `VectorEnvs`.
        env_kwargs: arguments of the environment.
        n_envs: environments of a slice, which are stepped together, and whose actions are one request.
        ring_size: number of slices: while one waits for its actions, another is stepped.
        sample_steps: time steps T of a chunk.
        inference_stream: where actions come from; None: from an agent in the actor's own process (inline).
        sample_streams: where chunks go; each of several streams gets all chunks.
        policy: name of the policy that acts.
        env_info_keys: see `SamplerOptions`.
        max_decorrelation_steps: see `SamplerOptions`.
        pull_interval: inline: seconds between two looks for newer parameters.
        node: number of the machine.
    """

    env: Any = "CartPole-v1"
    env_kwargs: Mapping[str, Any] | None = None
    n_envs: int = 8
    ring_size: int = 2
    sample_steps: int = 32
    inference_stream: str | None = DEFAULT
    sample_streams: Sequence[str] = (DEFAULT,)
    policy: str = DEFAULT
    env_info_keys: EnvInfoKeys | None = None
    max_decorrelation_steps: int = 100
    pull_interval: float = 0.0
    node: int = 0


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """A policy worker: answers requests of actors.

    Args:
        inference_stream: whose requests it answers; several workers share a stream.
        policy: name of the policy.
        max_batch: requests (slices) that are answered together at most; None: all that have arrived.
        max_wait: seconds that the first request of a batch waits for others.
        pull_interval: seconds between two looks for newer parameters.
        device: where the agent acts.
        node: number of the machine.
    """

    inference_stream: str = DEFAULT
    policy: str = DEFAULT
    max_batch: int | None = None
    max_wait: float = 0.0
    pull_interval: float = 0.0
    device: str = "cpu"
    node: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """A trainer worker: learns from chunks, and pushes parameters.

    Args:
        agent: not initialized.
        algo: not initialized.
        n_steps: environment steps to learn from.
        batch_B: columns of a batch; a multiple of the actors' `n_envs`.
        policy: name of the policy that it trains.
        sample_stream: whose chunks it consumes.
        max_staleness: versions that a chunk may be old when it is learned from; see `Admission`.
        lease_seconds: time after which an actor that says nothing counts as dead, and others take its turn.
        push_interval: updates between two pushes of parameters.
        keep: versions that the database keeps.
        checkpoint_interval: seconds between two checkpoints of the algorithm.
        device: where it learns.
        torch_threads: threads of torch.
        node: number of the machine.
    """

    agent: Agent
    algo: Algo
    n_steps: int
    batch_B: int = 64
    policy: str = DEFAULT
    sample_stream: str = DEFAULT
    max_staleness: int = 2
    lease_seconds: float = 30.0
    push_interval: int = 1
    keep: int = 5
    checkpoint_interval: float = 60.0
    device: str = "cpu"
    torch_threads: int = 1
    node: int = 0


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """An evaluation worker: measures how good the newest parameters are.

    Args:
        policy: name of the policy.
        env: see `ActorConfig`; None: that of the first actor of this policy.
        env_kwargs: arguments of the environment; None: those of the first actor of this policy.
        n_envs: environments.
        n_episodes: episodes of an evaluation.
        interval: seconds between the beginnings of two evaluations.
        node: number of the machine.
    """

    policy: str = DEFAULT
    env: Any = None
    env_kwargs: Mapping[str, Any] | None = None
    n_envs: int = 10
    n_episodes: int = 20
    interval: float = 5.0
    node: int = 0


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """A worker of the user's own.

    Args:
        worker: its class.
        config: what its `_configure` is given.
        kind: what messages call it.
        restart: whether it is started anew when it dies.
        node: number of the machine.
    """

    worker: type[Worker]
    config: Any = None
    kind: str = "worker"
    restart: bool = False
    node: int = 0


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """The workers of a run.

    Args:
        actors, policies, trainers, eval_managers: one entry for each worker.
        workers: workers of the user's own.
        seed: of all randomness; None: drawn.
        timeout: seconds without progress after which a worker counts as hung.
        start_timeout: the same while workers are configured.
        final_episodes: episodes of the evaluation at the end, 0: none.
    """

    actors: Sequence[ActorConfig]
    policies: Sequence[PolicyConfig] = ()
    trainers: Sequence[TrainerConfig] = ()
    eval_managers: Sequence[EvaluationConfig] = ()
    workers: Sequence[WorkerConfig] = ()
    seed: int | None = None
    timeout: float = 60.0
    start_timeout: float = 120.0
    final_episodes: int = 100

    def trainer_of(self, policy: str) -> TrainerConfig:
        """Returns the trainer of a policy."""
        return next(one for one in self.trainers if one.policy == policy)

    def checked(self) -> ExperimentConfig:
        """Returns this configuration with plain sequences and every default filled in.

        Raises:
            TypeError, ValueError: for the first field that is wrong, by its name.
        """
        kinds = {
            "actors": ActorConfig,
            "policies": PolicyConfig,
            "trainers": TrainerConfig,
            "eval_managers": EvaluationConfig,
            "workers": WorkerConfig,
        }
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise TypeError(f"{name} is a {type(value).__name__}, expected a list of {kind.__name__}")
            for index, one in enumerate(value):
                if not isinstance(one, kind):
                    raise TypeError(f"{name}[{index}] is a {type(one).__name__}, expected {kind.__name__}")
        if not self.actors and not self.workers:
            raise ValueError("actors is empty, expected at least one ActorConfig")
        for name, least in (("timeout", 0.0), ("start_timeout", 0.0)):
            if not getattr(self, name) > least:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected seconds above 0")
        for index, actor in enumerate(self.actors):
            for name, least in (("n_envs", 1), ("ring_size", 1), ("sample_steps", 1), ("max_decorrelation_steps", 0)):
                _at_least(f"actors[{index}].{name}", getattr(actor, name), least)
            if isinstance(actor.sample_streams, str) or not actor.sample_streams:
                raise ValueError(
                    f"actors[{index}].sample_streams is {actor.sample_streams!r}, expected a list of names"
                )
        policies = [one.policy for one in self.trainers]
        for index, trainer in enumerate(self.trainers):
            self._check_trainer(f"trainers[{index}]", trainer, policies)
        for index, policy in enumerate(self.policies):
            where = f"policies[{index}]"
            _known(f"{where}.policy", policy.policy, policies, "trainers")
            _at_least(f"{where}.max_batch", policy.max_batch, 1)
            _at_least(f"{where}.max_wait", policy.max_wait, 0)
            _at_least(f"{where}.pull_interval", policy.pull_interval, 0)
            others = {one.policy for one in self.policies if one.inference_stream == policy.inference_stream}
            if len(others) > 1:
                raise ValueError(
                    f"{where}.inference_stream is {policy.inference_stream!r}, whose workers have the policies "
                    f"{sorted(others)}; give each policy a stream of its own"
                )
        for index, actor in enumerate(self.actors):
            self._check_actor(f"actors[{index}]", actor, policies)
        for index, one in enumerate(self.eval_managers):
            where = f"eval_managers[{index}]"
            _known(f"{where}.policy", one.policy, policies, "trainers")
            for name in ("n_envs", "n_episodes"):
                _at_least(f"{where}.{name}", getattr(one, name), 1)
        plain: dict[str, Any] = {name: tuple(getattr(self, name)) for name in kinds}
        plain["eval_managers"] = tuple(map(self._filled, self.eval_managers))
        return replace(self, **plain)

    def _filled(self, one: EvaluationConfig) -> EvaluationConfig:
        if one.env is not None:
            return one
        actor = next(actor for actor in self.actors if actor.policy == one.policy)
        return replace(
            one, env=actor.env, env_kwargs=one.env_kwargs if one.env_kwargs is not None else actor.env_kwargs
        )

    def _check_trainer(self, where: str, trainer: TrainerConfig, policies: Sequence[str]) -> None:
        if not isinstance(trainer.agent, Agent):
            raise TypeError(f"{where}.agent is a {type(trainer.agent).__name__}, expected an Agent object")
        if not isinstance(trainer.algo, Algo):
            raise TypeError(f"{where}.algo is a {type(trainer.algo).__name__}, expected an Algo object")
        try:
            trainer.algo.require_agent(trainer.agent)
        except TypeError as error:
            raise TypeError(f"{where}.agent: {error}") from None
        for name in ("n_steps", "batch_B", "push_interval", "keep", "torch_threads"):
            _at_least(f"{where}.{name}", getattr(trainer, name), 1)
        _at_least(f"{where}.max_staleness", trainer.max_staleness, 0)
        if policies.count(trainer.policy) > 1:
            raise ValueError(f"{where}.policy is {trainer.policy!r}, which another trainer has; give it another name")
        actors = [one for one in self.actors if trainer.sample_stream in one.sample_streams]
        if not actors:
            raise ValueError(
                f"{where}.sample_stream is {trainer.sample_stream!r}, to which no actor posts; the actors' "
                f"sample_streams are {sorted({name for one in self.actors for name in one.sample_streams})}"
            )
        if len({(one.n_envs, one.sample_steps) for one in actors}) > 1:
            raise ValueError(
                f"{where}.sample_stream is {trainer.sample_stream!r}, whose actors have different n_envs or "
                "sample_steps; chunks of a stream are of one size"
            )
        if trainer.batch_B % actors[0].n_envs:
            raise ValueError(
                f"{where}.batch_B is {trainer.batch_B}, expected a multiple of the actors' n_envs, {actors[0].n_envs}"
            )

    def _check_actor(self, where: str, actor: ActorConfig, policies: Sequence[str]) -> None:
        _known(f"{where}.policy", actor.policy, policies, "trainers")
        for name in actor.sample_streams:
            _known(f"{where}.sample_streams", name, [one.sample_stream for one in self.trainers], "trainers")
        if actor.inference_stream is not None:
            streams = {one.inference_stream: one.policy for one in self.policies}
            _known(f"{where}.inference_stream", actor.inference_stream, [*streams], "policies")
            if streams[actor.inference_stream] != actor.policy:
                raise ValueError(
                    f"{where}.policy is {actor.policy!r}, but the workers of its inference stream have the policy "
                    f"{streams[actor.inference_stream]!r}"
                )

    def n_chunks(self, trainer: TrainerConfig) -> int:
        """Returns how many chunks an update of this trainer learns from."""
        return trainer.batch_B // self._first_actor(trainer).n_envs

    def n_itr(self, trainer: TrainerConfig) -> int:
        """Returns the number of updates of this trainer."""
        return math.ceil(trainer.n_steps / (trainer.batch_B * self._first_actor(trainer).sample_steps))

    def _first_actor(self, trainer: TrainerConfig) -> ActorConfig:
        return next(one for one in self.actors if trainer.sample_stream in one.sample_streams)


class Experiment(ABC):
    """Base class of experiments: says which workers a run has."""

    @abstractmethod
    def initial_setup(self) -> ExperimentConfig:
        """Returns the workers of a run."""


@dataclass
class _Registry:
    """Experiments by name. One for the program, because files register their experiments when they are imported."""

    made: dict[str, Callable[[], Experiment]] = field(default_factory=dict)


_REGISTRY = _Registry()


def register_experiment(name: str, make: Callable[[], Experiment]) -> None:
    """Makes an experiment known by a name, for `headrace launch NAME`.

    Args:
        name: the name.
        make: returns the experiment, such as its class.

    Raises:
        ValueError: if another experiment has the name.
    """
    if _REGISTRY.made.get(name, make) is not make:
        raise ValueError(f"there is an experiment {name!r} already")
    _REGISTRY.made[name] = make


def registered_experiments() -> list[str]:
    """Returns the names of all experiments."""
    return sorted(_REGISTRY.made)


def make_experiment(name: str) -> Experiment:
    """Returns the experiment of a name. Raises ValueError for an unknown one."""
    if name not in _REGISTRY.made:
        raise ValueError(f"there is no experiment {name!r}; registered are {registered_experiments()}")
    return _REGISTRY.made[name]()


def _at_least(name: str, value: Any, least: float) -> None:
    if value is not None and not (isinstance(value, int | float) and value >= least):
        raise ValueError(f"{name} is {value!r}, expected at least {least}")


def _known(name: str, value: str, known: Sequence[str], where: str) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}, and {where} has {sorted({*known})}")
