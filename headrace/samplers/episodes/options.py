"""The options of samplers of whole episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from headrace.envs.factory import EnvFactory
from headrace.envs.scalar import EnvInfoKeys
from headrace.processes.affinity import usable_cores
from headrace.processes.ray_session import RayActors, RayCluster, require_ray_options
from headrace.rng import draw_seed
from headrace.samplers.episodes.factory import WorkerFactory
from headrace.samplers.episodes.updates import EnvUpdate, per_worker
from headrace.samplers.episodes.worker import DefaultWorker, Worker
from headrace.samplers.validate import checked_arguments

__all__ = ["EpisodeOptions", "RayEpisodeOptions"]


@dataclass(frozen=True)
class EpisodeOptions:
    """What samplers of whole episodes take.

    An agent or environment is one for all workers, or a list of one for each.

    Args:
        agents: an agent of the library, or a policy with `get_action` or `get_actions`.
        envs: what `EnvCls` takes (see `SamplerOptions`), an environment, which every worker copies, or an `EnvUpdate`.
            In a list for each worker, an entry may be a list of one for each of the worker's environments.
        max_episode_length: time limit of an episode in steps. Default: that of the environment.
        n_workers: number of workers. Default: one per usable core.
        worker_class: class of the workers: `DefaultWorker`, `VecWorker`, `FragmentWorker`, or a subclass.
        worker_args: further arguments of the class.
        seed: seed of all randomness. Default: drawn from the operating system and kept in `sampler.seed`.
        worker_factory: makes the workers, in place of the five arguments before.
        deterministic: act in fixed blocks of environments, so that episodes are equal bit for bit in every sampler.
        env_info_keys: `{name: (dtype, shape)}`, the fields of info that are recorded in `env_infos`.
        by_arrival: whether `obtain_samples` counts episodes in the order in which they end, as garage does: it waits
            for no episode, but short ones are returned more often than long ones.
        on_policy: whether `obtain_samples` drops everything that an earlier call has begun.
        max_age: episodes are dropped if their oldest step was taken more than so many calls ago. Default: never.
        start_method: see `SamplerOptions`; for samplers with processes.
        timeout: see `SamplerOptions`; for samplers with processes.
        start_timeout: see `SamplerOptions`; for samplers with processes.
    """

    agents: Any
    envs: Any
    _: KW_ONLY
    max_episode_length: int | None = None
    n_workers: int | None = None
    worker_class: type[Worker] = DefaultWorker
    worker_args: Mapping[str, Any] | None = None
    seed: int | None = None
    worker_factory: WorkerFactory | None = None
    deterministic: bool = False
    env_info_keys: EnvInfoKeys | None = None
    by_arrival: bool = False
    on_policy: bool = False
    max_age: int | None = None
    start_method: str = "auto"
    timeout: float = 60.0
    start_timeout: float = 120.0

    def factory(self) -> WorkerFactory:
        """Returns the factory of the workers; raises TypeError and ValueError for wrong arguments."""
        checked_arguments(
            n_workers=self.n_workers,
            seed=self.seed,
            max_episode_length=self.max_episode_length,
            max_age=self.max_age,
            deterministic=self.deterministic,
            by_arrival=self.by_arrival,
            on_policy=self.on_policy,
            env_info_keys=self.env_info_keys,
            start_method=self.start_method,
            timeout=self.timeout,
            start_timeout=self.start_timeout,
        )
        if self.on_policy and self.max_age is not None:
            raise ValueError(
                f"max_age={self.max_age} has no effect with on_policy=True, which keeps nothing; leave it out"
            )
        own = {
            **({"deterministic": True} if self.deterministic else {}),
            **({"env_info_keys": dict(self.env_info_keys)} if self.env_info_keys else {}),
        }
        given = self.worker_factory
        if given is None:
            return WorkerFactory(
                max_episode_length=self.max_episode_length,
                seed=draw_seed() if self.seed is None else int(self.seed),
                n_workers=usable_cores() if self.n_workers is None else int(self.n_workers),
                worker_class=self.worker_class,
                worker_args={**(self.worker_args or {}), **own},
            )
        instead = {"max_episode_length": self.max_episode_length, "n_workers": self.n_workers, "seed": self.seed}
        twice = [name for name, value in instead.items() if value is not None]
        twice += ["worker_args"] * bool(self.worker_args) + ["worker_class"] * (self.worker_class is not DefaultWorker)
        if twice:
            raise TypeError(
                f"{', '.join(twice)} and worker_factory were given; the factory holds them, so leave them out"
            )
        return replace(given, worker_args={**given.worker_args, **own})

    def env_updates(self, n_workers: int) -> list[Any]:
        """Returns what each worker makes its first environments from."""
        return [
            [_first_update(env) for env in own] if isinstance(own, list) else _first_update(own)
            for own in per_worker(self.envs, n_workers, "envs")
        ]


@dataclass(frozen=True)
class RayEpisodeOptions(EpisodeOptions):
    """What a `RaySampler` takes: everything that `EpisodeOptions` lists, and

    Args:
        cluster: the Ray cluster, a `RayCluster`; a program that called `ray.init()` itself has chosen one.
        actors: what each actor asks of the cluster, and how often it is restarted, a `RayActors`. Default: one CPU, or
            an equal share where the cluster has fewer CPUs than there are workers.
    """

    _: KW_ONLY
    cluster: RayCluster = field(default_factory=RayCluster)
    actors: RayActors | None = None

    def __post_init__(self) -> None:
        require_ray_options(self.cluster, self.actors or RayActors())


def _first_update(env: Any) -> Any:
    """Returns an `EnvFactory` for what `EnvCls` takes; environments and updates as they are."""
    import gymnasium

    return env if isinstance(env, gymnasium.Env | EnvUpdate | EnvFactory) else EnvFactory.of(env, None, "envs")
