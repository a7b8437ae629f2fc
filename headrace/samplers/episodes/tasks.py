"""Task samplers: draw environment updates, one for each worker, from a set or a distribution of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np

from headrace.envs.factory import EnvFactory
from headrace.envs.global_rng import isolated
from headrace.envs.spaces import described
from headrace.rng import draw_seed
from headrace.samplers.episodes.updates import EnvUpdate, ExistingEnvUpdate, NewEnvUpdate, SetTaskUpdate, TaskEnv

__all__ = ["ConstructEnvsSampler", "EnvPoolSampler", "SetTaskSampler", "TaskSampler"]


@runtime_checkable
class _SamplesTasks(TaskEnv, Protocol):
    def sample_tasks(self, n_tasks: int) -> Sequence[Any]: ...


class TaskSampler(ABC):
    """Base class of task samplers.

    Each has a random generator of its own; the same seed gives the same tasks.
    """

    @property
    @abstractmethod
    def n_tasks(self) -> int | None:
        """Number of different tasks; None if it is not known."""

    @abstractmethod
    def sample(self, n_tasks: int, with_replacement: bool = False) -> list[EnvUpdate]:
        """Draws tasks.

        Args:
            n_tasks: number of updates.
            with_replacement: whether draws are independent. Otherwise a task is repeated only after all were drawn.

        Returns:
            An `EnvUpdate` for each task.

        Raises:
            ValueError: if so many tasks cannot be drawn.
        """


class ConstructEnvsSampler(TaskSampler):
    """Draws from a list of environments, which are made anew each time.

    Args:
        env_constructors: for each task, a Gymnasium id, an `EnvSpec`, or a callable that returns an environment.
        seed: seed of the draws; None: from the operating system.

    Raises:
        TypeError: if one of them is none of these.
        ValueError: if there are none.
    """

    def __init__(self, env_constructors: Sequence[Any], seed: int | None = None) -> None:
        if not env_constructors:
            raise ValueError("env_constructors is empty; give at least one")
        self._updates = [NewEnvUpdate(constructor) for constructor in env_constructors]
        self._rng = np.random.default_rng(seed)

    @property
    def n_tasks(self) -> int:
        """Number of different tasks."""
        return len(self._updates)

    def sample(self, n_tasks: int, with_replacement: bool = False) -> list[EnvUpdate]:
        """See `TaskSampler`."""
        return [self._updates[index] for index in _indices(self._rng, n_tasks, self.n_tasks, with_replacement)]


class SetTaskSampler(TaskSampler):
    """Draws tasks with an environment's `sample_tasks`, for environments with `set_task`.

    The environment that draws is made here, once. It is seeded, has its own copy of the global generators, and decides
    alone whether tasks are repeated.

    Args:
        env_type: class of the environment, made without arguments; its `sample_tasks(n)` returns n tasks.
        wrapper_constructor: see `SetTaskUpdate`.
        seed: seed of the draws; None: from the operating system.
        n_tasks: number of different tasks, if it is known.

    Raises:
        TypeError: if `env_type` is not a class with the methods `set_task` and `sample_tasks`.
    """

    def __init__(
        self,
        env_type: type[Any],
        wrapper_constructor: Callable[[Any, Any], Any] | None = None,
        seed: int | None = None,
        n_tasks: int | None = None,
    ) -> None:
        if not (isinstance(env_type, type) and issubclass(env_type, _SamplesTasks)):
            raise TypeError(
                f"env_type must be a class with the methods set_task and sample_tasks, got {described(env_type)}"
            )
        self._env_type, self._wrapper_constructor, self._n_tasks = env_type, wrapper_constructor, n_tasks
        seeds = np.random.SeedSequence(draw_seed() if seed is None else seed).generate_state(4)
        env_seed, *generators = (int(part) & 0x7FFFFFFF for part in seeds)
        self._env = isolated(EnvFactory.of(env_type, None, "env_type"), (generators[0], generators[1], generators[2]))
        self._env.reset(seed=env_seed)

    @property
    def n_tasks(self) -> int | None:
        """Number of different tasks; None if it is not known."""
        return self._n_tasks

    def sample(self, n_tasks: int, with_replacement: bool = False) -> list[EnvUpdate]:
        """See `TaskSampler`; `with_replacement` has no effect."""
        tasks = list(self._env.get_wrapper_attr("sample_tasks")(n_tasks))
        if len(tasks) != n_tasks:
            raise ValueError(f"{self._env_type.__name__}.sample_tasks({n_tasks}) returned {len(tasks)} tasks")
        return [SetTaskUpdate(self._env_type, task, self._wrapper_constructor) for task in tasks]


class EnvPoolSampler(TaskSampler):
    """Draws from environments that exist already. No two workers may step the same one, so none is drawn twice.

    Args:
        envs: the environments.
        seed: seed of the draws; None: from the operating system.

    Raises:
        TypeError: if one of them is not an environment.
    """

    def __init__(self, envs: Sequence[gymnasium.Env[Any, Any]], seed: int | None = None) -> None:
        self._updates = [ExistingEnvUpdate(env) for env in envs]
        self._rng = np.random.default_rng(seed)

    @property
    def n_tasks(self) -> int:
        """Number of environments in the pool."""
        return len(self._updates)

    def sample(self, n_tasks: int, with_replacement: bool = False) -> list[EnvUpdate]:
        """See `TaskSampler`.

        Raises:
            ValueError: if `with_replacement` is true, or the pool has fewer environments.
        """
        if with_replacement:
            raise ValueError("with_replacement=True would draw an environment twice; leave it out")
        if n_tasks > self.n_tasks:
            raise ValueError(
                f"n_tasks is {n_tasks}, but the pool has {self.n_tasks} environments; call grow_pool({n_tasks}) first"
            )
        return [self._updates[index] for index in _indices(self._rng, n_tasks, self.n_tasks, False)]

    def grow_pool(self, new_size: int) -> None:
        """Adds copies of environments of the pool, all equally often, each reset with a seed of its own.

        Args:
            new_size: number of environments that the pool is to have.

        Raises:
            ValueError: if the pool is empty.
        """
        missing = new_size - self.n_tasks
        if missing > 0:
            if not self._updates:
                raise ValueError("the pool is empty; give EnvPoolSampler at least one environment")
            for index in _indices(self._rng, missing, self.n_tasks, False):
                env = deepcopy(self._updates[index].env)
                # Otherwise the copy would continue the random numbers of its original.
                env.reset(seed=int(self._rng.integers(2**31)))
                self._updates.append(ExistingEnvUpdate(env))


def _indices(rng: np.random.Generator, n: int, n_available: int, with_replacement: bool) -> list[int]:
    """Draws indices below `n_available`; without replacement, in rounds each of which has every index once."""
    if n < 0:
        raise ValueError(f"n_tasks must be at least 0, got {n}")
    if with_replacement:
        return [int(index) for index in rng.integers(n_available, size=n)]
    rounds = [rng.permutation(n_available) for _ in range(-(-n // n_available))]
    return [int(index) for one in rounds for index in one][:n]
