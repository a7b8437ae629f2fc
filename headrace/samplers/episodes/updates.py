"""Environment updates: what an episode sampler may be given as `env_update`, and how a worker applies it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import gymnasium

from headrace.envs.factory import EnvFactory
from headrace.envs.legacy_gym import LegacyGym, is_legacy
from headrace.envs.spaces import described

__all__ = [
    "EnvUpdate",
    "ExistingEnvUpdate",
    "NewEnvUpdate",
    "SetTaskUpdate",
    "TaskEnv",
    "per_worker",
    "require_one_each",
    "updated",
]

_log = logging.getLogger("headrace.samplers")

_Env = gymnasium.Env[Any, Any]


@runtime_checkable
class TaskEnv(Protocol):
    """An environment with tasks."""

    def set_task(self, task: Any) -> None:
        """Sets the task of the next episodes."""


class EnvUpdate:
    """Base class of environment updates: callables that a worker applies to its environment between episodes.

    Subclasses override `__call__`. Updates are sent to workers by cloudpickle. A worker resets the environment after an
    update.
    """

    def __call__(self, old_env: Any = None) -> Any:
        """Returns the environment of the next episodes: `old_env`, changed or not, or another one.

        An update that replaces the environment closes the old one itself, because others wrap it.

        Args:
            old_env: the worker's environment; None if it has none yet.
        """
        return old_env


class NewEnvUpdate(EnvUpdate):
    """Closes the environment and makes a new one.

    Args:
        env_constructor: a Gymnasium id, an `EnvSpec`, or a callable that returns an environment.

    Raises:
        TypeError: if `env_constructor` is none of these.
        ValueError: if the id is not registered.
    """

    def __init__(self, env_constructor: Any) -> None:
        self._factory = EnvFactory.of(env_constructor, None, "env_constructor")

    def __call__(self, old_env: Any = None) -> Any:
        """See `EnvUpdate`. The old environment is closed first: some simulators cannot run twice in a process."""
        if old_env is not None:
            old_env.close()
        return self._factory()

    def __repr__(self) -> str:
        return f"NewEnvUpdate({self._factory.name})"


class SetTaskUpdate(EnvUpdate):
    """Sets the task of an environment, which has to be of one type.

    The innermost environment must be of exactly this type: a subclass may have other tasks. If it is of another one,
    the environment is closed, a new one is made, and a warning is logged.

    Args:
        env_type: class of the innermost environment; made without arguments.
        task: argument of its `set_task`.
        wrapper_constructor: makes the wrappers of a new environment, called as `wrapper_constructor(env, task)`; None:
            without wrappers. An environment that is kept keeps its wrappers.

    Raises:
        TypeError: if `env_type` is not a class with a method `set_task`, or `wrapper_constructor` cannot be called.
    """

    def __init__(
        self, env_type: type[Any], task: Any, wrapper_constructor: Callable[[Any, Any], Any] | None = None
    ) -> None:
        if not (isinstance(env_type, type) and issubclass(env_type, TaskEnv)):
            raise TypeError(f"env_type must be a class with a method set_task, got {described(env_type)}")
        if wrapper_constructor is not None and not callable(wrapper_constructor):
            raise TypeError(f"wrapper_constructor must be a callable or None, got {described(wrapper_constructor)}")
        self._env_type = env_type
        self._task = task
        self._wrapper_constructor = wrapper_constructor

    @property
    def task(self) -> Any:
        """The task."""
        return self._task

    def __call__(self, old_env: Any = None) -> Any:
        """See `EnvUpdate`."""
        if old_env is not None:
            innermost = _innermost(old_env)
            if type(innermost) is self._env_type:
                innermost.set_task(self._task)
                return old_env
            _log.warning(
                "SetTaskUpdate closes an environment of type %s and makes one of type %s, which takes longer than "
                "setting a task; give the worker an environment of that type",
                type(innermost).__name__,
                self._env_type.__name__,
            )
            old_env.close()
        env = self._env_type()
        env.set_task(self._task)
        return env if self._wrapper_constructor is None else self._wrapper_constructor(env, self._task)

    def __repr__(self) -> str:
        return f"SetTaskUpdate({self._env_type.__name__}, {self._task!r})"


class ExistingEnvUpdate(EnvUpdate):
    """Replaces the environment by another one that exists already, and closes the old one.

    A copy that is pickled for a worker has the state of its original, including its random generator. So a warning is
    logged when it is pickled.

    Args:
        env: the environment.

    Raises:
        TypeError: if it is not an environment.
    """

    def __init__(self, env: Any) -> None:
        if _environment(env) is None:
            raise TypeError(f"env must be an environment, got {described(env)}")
        self._env = env

    @property
    def env(self) -> Any:
        """The environment."""
        return self._env

    def __call__(self, old_env: Any = None) -> Any:
        """See `EnvUpdate`. An environment that is already the worker's is not closed."""
        if self._env is old_env or (isinstance(old_env, LegacyGym) and old_env.legacy is self._env):
            return old_env
        if old_env is not None:
            old_env.close()
        return self._env

    def __getstate__(self) -> dict[str, Any]:
        _log.warning(
            "an ExistingEnvUpdate is copied with its environment, a %s, and with the state of its random generator; "
            "NewEnvUpdate makes the environment in the worker",
            type(_innermost(self._env)).__name__,
        )
        return vars(self)

    def __repr__(self) -> str:
        return f"ExistingEnvUpdate({self._env!r})"


def updated(update: Any, old_env: _Env | None) -> _Env:
    """Returns a worker's environment after an `env_update`.

    Args:
        update: None keeps the environment. An environment replaces it: the old one is closed, unless it is the same
            object. Anything else is called with the old one, and must return an environment; it closes the old one
            itself.
        old_env: the worker's environment; None if it has none yet.

    Raises:
        TypeError: if `update` is none of these, or what it returned is not an environment.
        ValueError: if there is no environment, neither an old nor a new one.
    """
    if update is None:
        if old_env is None:
            raise ValueError("env_update is None, but the worker has no environment yet; give it one")
        return old_env
    if _environment(update) is not None:
        update = ExistingEnvUpdate(update)
    if isinstance(update, type) or not callable(update):
        # A class can be called, but it would take the old environment for its first argument.
        raise TypeError(
            f"env_update must be None, an environment, or a callable that takes the old environment and returns one, "
            f"got {described(update)}; NewEnvUpdate makes an environment of a class or an id"
        )
    answer = update(old_env)
    env = _environment(answer)
    if env is None:
        raise TypeError(
            f"env_update {described(update)} returned {described(answer)}, expected an environment; return the one "
            "that it was given if nothing changes"
        )
    return env


def per_worker(value: Any, n_workers: int, what: str) -> list[Any]:
    """Returns an entry for each worker.

    Args:
        value: a list has one entry for each worker; anything else goes to every worker, the same object.
        n_workers: number of workers.
        what: name of the argument for the error message.

    Raises:
        ValueError: if a list has another length.
    """
    if not isinstance(value, list):
        return [value] * n_workers
    if len(value) != n_workers:
        raise ValueError(
            f"{what} is a list of {len(value)}, but there are {n_workers} workers; a list has one entry per worker, "
            "anything else goes to every worker"
        )
    return list(value)


def require_one_each(update: Any, n_envs: int, worker_number: int) -> None:
    """Raises ValueError if `update` is a list for the environments of a worker that does not have as many.

    Args:
        update: an update for all environments of the worker, or a list of one for each.
        n_envs: number of environments of the worker.
        worker_number: number of the worker.
    """
    if isinstance(update, list) and len(update) != n_envs:
        raise ValueError(
            f"worker {worker_number} got a list of {len(update)} environments or updates, but it has {n_envs}; give "
            "one for each, or one for all"
        )


def _environment(value: Any) -> _Env | None:
    """Returns an environment, one of old gym adapted; None for anything else."""
    if isinstance(value, gymnasium.Env):
        return value
    return LegacyGym(value) if is_legacy(value) else None


def _innermost(env: Any) -> Any:
    """Returns the environment inside of all wrappers and of the adapter for old gym."""
    inner = env.unwrapped
    return inner.legacy.unwrapped if isinstance(inner, LegacyGym) else inner
