"""The environments of one worker, which may be updated or replaced between episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import gymnasium
from gymnasium.wrappers import TimeLimit
from typing_extensions import override

from headrace.envs.factory import EnvFactory, make_envs, user_code_failed
from headrace.envs.infos import info_copy
from headrace.envs.scalar import EnvInfoKeys, ScalarEnvs
from headrace.envs.vector.spec import VectorEnvs
from headrace.errors import EnvContractError
from headrace.processes.status import Phase, Status
from headrace.rng import env_seeds
from headrace.samplers.collection.make_envs import Envs, vector_batch
from headrace.samplers.episodes.updates import updated

__all__ = ["WorkerEnvs"]


class WorkerEnvs:
    """The environments of one worker.

    Args:
        env_ids: their global numbers.
        seed: seed of all randomness.
        max_episode_length: time limit in steps, in addition to that of each environment; None: none.
        restarts: how many times the worker was started again; its environments then get other seeds.
    """

    batch: Envs

    def __init__(self, env_ids: Sequence[int], seed: int, max_episode_length: int | None, restarts: int = 0) -> None:
        self._env_ids = tuple(env_ids)
        self._seed = seed
        self._limit = max_episode_length
        self._n_updates = restarts << 16
        #: Greatest time limit of the environments; None if they state none.
        self.limit = max_episode_length
        #: The environments as the caller made them; empty for a vector environment.
        self.own: list[gymnasium.Env[Any, Any]] = []
        #: For each environment, the infos of resets whose episodes have not ended; empty for a vector environment.
        self.new_infos: list[list[dict[str, Any]]] = []

    def update(self, updates: Sequence[Any], status: Status, env_info_keys: EnvInfoKeys) -> None:
        """Makes, updates or replaces the environments.

        An environment that stays the same object goes on with its own generator; a new one gets a new seed.

        Args:
            updates: one per environment: an `EnvFactory`, an environment, an update of it, or None. A factory of vector
                environments makes all of them at once.
            status: marks the environment being made.
            env_info_keys: the fields of info that are recorded.
        """
        factory = updates[0]
        if isinstance(factory, EnvFactory) and isinstance(factory.make, VectorEnvs):
            if self._limit is not None:
                raise EnvContractError(
                    f"{factory.name} resets its environments by itself, so max_episode_length={self._limit} cannot cut "
                    "their episodes; give the vector environment a time limit and leave max_episode_length out"
                )
            seeds = [env_seeds(self._seed, env_id, None, self._n_updates) for env_id in self._env_ids]
            self.batch = vector_batch(factory.make, factory, self._env_ids, seeds, env_info_keys, status)
            self._n_updates += 1
            return
        before: list[gymnasium.Env[Any, Any] | None] = [*self.own] or [None] * len(self._env_ids)
        self.own = [
            self._updated(update, env, env_id, status)
            for update, env, env_id in zip(updates, before, self._env_ids, strict=True)
        ]
        new_seeds: list[tuple[int | None, int | None]] = [
            (self._first_seed(index), None) if now is env else env_seeds(self._seed, env_id, None, self._n_updates)
            for index, (now, env, env_id) in enumerate(zip(self.own, before, self._env_ids, strict=True))
        ]
        self._n_updates += 1
        wrapped = [_KeepsInfos(self._limited(env)) for env in self.own]
        limits = [env.spec.max_episode_steps for env in wrapped if env.spec is not None]
        self.limit = max((limit for limit in limits if limit is not None), default=self._limit)
        self.new_infos = [env.infos for env in wrapped]
        name = getattr(self.own[0].spec, "id", None) or type(self.own[0].unwrapped).__name__
        self.batch = ScalarEnvs(
            wrapped, self._env_ids, new_seeds, name=name, status=status, env_info_keys=env_info_keys
        )

    def _first_seed(self, index: int) -> int | None:
        """Returns the seed of the first reset of an environment that was not reset yet; None if it was."""
        assert isinstance(self.batch, ScalarEnvs)
        return self.batch.environment(index)[1]

    def _updated(self, update: Any, env: Any, env_id: int, status: Status) -> gymnasium.Env[Any, Any]:
        if isinstance(update, EnvFactory):
            if env is not None:
                env.close()
            (made,) = make_envs(update, [env_id], status)
            return made
        status.enter(Phase.CONSTRUCTING, env_id)
        if callable(update) and not isinstance(update, type):
            update = self._guarded(update, env_id, status)
        return updated(update, env)

    @staticmethod
    def _guarded(update: Callable[..., Any], env_id: int, status: Status) -> Callable[..., Any]:
        """Returns the same update, whose exceptions are `EnvFailed`."""

        @wraps(update)
        def guarded(old_env: Any) -> Any:
            try:
                return update(old_env)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise user_code_failed(error, f"the update of env {env_id}", status) from error

        return guarded

    def _limited(self, env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        """Returns the environment with the time limit, unless it has one that is not longer."""
        own = (None if env.spec is None else env.spec.max_episode_steps) or -1
        if self._limit is None and own < 0:
            raise EnvContractError(
                f"{type(env.unwrapped).__name__} states no time limit (spec.max_episode_steps), so its episodes may "
                "never end; pass max_episode_length"
            )
        return env if self._limit is None or 0 < own <= self._limit else TimeLimit(env, self._limit)


class _KeepsInfos(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps the info of every reset. Steps go to the environment directly, so they cost nothing."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.infos: list[dict[str, Any]] = []
        self.step = env.step  # type: ignore[method-assign]

    @override
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        answer = self.env.reset(seed=seed, options=options)
        info = answer[1] if isinstance(answer, tuple) and len(answer) == 2 else {}
        self.infos.append(info_copy(info) if isinstance(info, dict) else {})
        return answer
