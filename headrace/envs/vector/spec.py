"""`VectorEnvs`: requests vector environments from a sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from headrace.envs.registering import unregistered
from headrace.errors import EnvContractError

__all__ = ["VectorEnvs"]


class VectorEnvs:
    """Requests vector environments, one for each slice of columns; passed to a sampler as `EnvCls`.

    The autoreset mode is read from `metadata["autoreset_mode"]` of the environment::

        CpuSampler(VectorEnvs("CartPole-v1"), batch_T=64, batch_B=256)
        CpuSampler(VectorEnvs(AtariVectorEnv), {"game": "pong", "num_threads": 1}, batch_T=64, batch_B=64)

    SAME_STEP and DISABLED give exactly the batches that single environments give. NEXT_STEP spends a step on each
    reset: that time step of the column is padding (`valid=False`, reward 0) and is not counted as a step; the time step
    after it has `is_first`.

    Args:
        factory: a callable, called as `factory(num_envs=n, **env_kwargs)`, that returns a `gymnasium.vector.VectorEnv`;
            or a Gymnasium id with a vector entry point.

    Raises:
        TypeError: `factory` is neither an id nor callable.
        ValueError: the id is not registered or has no vector entry point.
    """

    def __init__(self, factory: Callable[..., VectorEnv[Any, Any, Any]] | str) -> None:
        if isinstance(factory, str):
            try:
                spec = gymnasium.spec(factory)
            except gymnasium.error.Error as error:
                what = unregistered(factory, gymnasium.registry, error)
                raise ValueError(f"{factory!r} is not a registered environment: {what}") from error
            if spec.vector_entry_point is None:
                raise ValueError(
                    f"{factory} has no vector entry point; pass a callable that returns a gymnasium.vector.VectorEnv, "
                    "or pass the id itself as EnvCls to step single environments"
                )
        elif not callable(factory):
            raise TypeError(f"VectorEnvs takes a Gymnasium id or a callable, got {type(factory).__name__} {factory!r}")
        self._factory = spec if isinstance(factory, str) else factory

    @property
    def name(self) -> str:
        """The id or the name of the callable, for messages."""
        if isinstance(self._factory, gymnasium.envs.registration.EnvSpec):
            return self._factory.id
        return str(getattr(self._factory, "__qualname__", repr(self._factory)))

    def make(self, num_envs: int, kwargs: Mapping[str, Any]) -> VectorEnv[Any, Any, Any]:
        """Makes a vector environment.

        Args:
            num_envs: number of environments in it.
            kwargs: arguments of the factory.

        Raises:
            EnvContractError: the factory returned something else than a `VectorEnv` of `num_envs` environments.
        """
        if isinstance(self._factory, gymnasium.envs.registration.EnvSpec):
            mode = gymnasium.VectorizeMode.VECTOR_ENTRY_POINT
            env: Any = gymnasium.make_vec(self._factory, num_envs=num_envs, vectorization_mode=mode, **kwargs)
        else:
            env = self._factory(num_envs=num_envs, **kwargs)
        if not isinstance(env, VectorEnv):
            raise EnvContractError(
                f"{self.name} returned a {type(env).__name__}, not a gymnasium.vector.VectorEnv; "
                "VectorEnvs is for vector environments; pass single environments directly as EnvCls"
            )
        if env.num_envs != num_envs:
            env.close()
            raise EnvContractError(
                f"{self.name} returned {env.num_envs} environments, expected {num_envs}; use its argument num_envs"
            )
        return env
