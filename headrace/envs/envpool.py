"""`make_envpool`: EnvPool's environments as a Gymnasium vector environment."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from headrace.extras import extra

__all__ = ["make_envpool"]


def make_envpool(num_envs: int, *, task_id: str, config: dict[str, Any] | None = None) -> VectorEnv[Any, Any, Any]:
    """Makes a vector environment of EnvPool, for `VectorEnvs(make_envpool)`::

        CpuSampler(VectorEnvs(make_envpool), {"task_id": "Pong-v5", "config": {"num_threads": 1}}, ...)

    EnvPool takes its seed at construction, so the pool is made in the first `reset(seed=...)`, with one seed for all of
    its environments. An environment whose episode ended is reset in the next step (NEXT_STEP).

    Args:
        num_envs: number of environments.
        task_id: EnvPool's id of the environment.
        config: arguments of `envpool.make`, except num_envs, batch_size, seed and env_type, which the sampler sets;
            give `num_threads` if several workers share a machine.

    Raises:
        ImportError: the package of the extra "envpool" is not installed.
        ValueError: `config` has an argument that the sampler sets.
    """
    return _Pool(task_id, num_envs, dict(config or {}))


class _Pool(VectorEnv[Any, Any, Any]):
    def __init__(self, task_id: str, num_envs: int, config: dict[str, Any]) -> None:
        with extra("envpool", "EnvPool is not installed"):
            import envpool
        taken = {"num_envs", "batch_size", "seed", "env_type"} & config.keys()
        if taken:
            raise ValueError(f"config has {sorted(taken)}, which the sampler sets; leave them out")
        self._make: Any = partial(envpool.make, task_id, env_type="gymnasium", num_envs=num_envs, **config)
        spec = envpool.make_spec(task_id, num_envs=num_envs, **config)
        self._pool: Any = None
        self.num_envs = num_envs
        self.single_observation_space = spec.gymnasium_observation_space
        self.single_action_space = spec.gymnasium_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Makes the pool at the first call; later resets continue with its generators."""
        if seed is not None and not isinstance(seed, int):
            raise TypeError(f"EnvPool takes one seed for all of its environments, got {type(seed).__name__}")
        if options:
            raise ValueError(f"EnvPool resets all environments at once and takes no options, got options={options!r}")
        if self._pool is None:
            self._pool = self._make(seed=0 if seed is None else seed)
        observation, info = self._pool.reset()
        return observation, _flat(info)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps all environments once."""
        if isinstance(self.single_action_space, spaces.Discrete):
            actions = actions.astype(np.int32)  # EnvPool's dtype of discrete actions
        observation, reward, terminated, truncated, info = self._pool.step(actions)
        return observation, reward, terminated, truncated, _flat(info)

    def close(self) -> None:  # type: ignore[override]  # Gymnasium's accepts any keywords; none are used here
        """Releases the pool, which ends its threads."""
        self._pool = None


def _flat(info: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of environments, without EnvPool's own numbers for players."""
    return {key: value for key, value in info.items() if isinstance(value, np.ndarray)}
