"""`make_envpool`: EnvPool's environments as a Gymnasium vector environment."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

__all__ = ["make_envpool"]


def make_envpool(num_envs: int, *, task_id: str, config: dict[str, Any] | None = None) -> VectorEnv[Any, Any, Any]:
    """`num_envs` environments of EnvPool, for `VectorEnvs(make_envpool)`::

        CpuSampler(VectorEnvs(make_envpool), {"task_id": "Pong-v5", "config": {"num_threads": 1}}, ...)

    EnvPool takes its seed when it is made, so it is made in the first `reset(seed=...)`: one seed for all of its
    environments. An ended environment is reset in the step after (NEXT_STEP). config: of `envpool.make`, but for
    num_envs, batch_size and seed; give `num_threads` where several workers share a machine.

    Raises ImportError without the package of the extra "envpool".
    """
    return _Pool(task_id, num_envs, dict(config or {}))


class _Pool(VectorEnv[Any, Any, Any]):
    def __init__(self, task_id: str, num_envs: int, config: dict[str, Any]) -> None:
        try:
            import envpool
        except ImportError as error:
            raise ImportError(f'EnvPool is not installed ({error}); pip install "headrace[envpool]"') from error
        taken = {"num_envs", "batch_size", "seed", "env_type"} & config.keys()
        if taken:
            raise ValueError(f"config has {sorted(taken)}, which the sampler decides; leave them out")
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
        """Makes the pool at first; later resets go on with its generators."""
        if seed is not None and not isinstance(seed, int):
            raise TypeError(f"EnvPool takes one seed for all of its environments, got {type(seed).__name__}")
        if options:
            raise ValueError(f"EnvPool resets all of its environments at once, got options={options!r}")
        if self._pool is None:
            self._pool = self._make(seed=0 if seed is None else seed)
        observation, info = self._pool.reset()
        return observation, _flat(info)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One step of all of them."""
        if isinstance(self.single_action_space, spaces.Discrete):
            actions = actions.astype(np.int32)  # EnvPool's own type of discrete actions
        observation, reward, terminated, truncated, info = self._pool.step(actions)
        return observation, reward, terminated, truncated, _flat(info)

    def close(self) -> None:  # type: ignore[override]  # Gymnasium's takes any keywords, and has a use for none
        """Lets go of the pool, whose threads end with it."""
        self._pool = None


def _flat(info: dict[str, Any]) -> dict[str, Any]:
    """The fields of environments, without EnvPool's own numbers for players."""
    return {key: value for key, value in info.items() if isinstance(value, np.ndarray)}
