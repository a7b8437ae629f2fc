"""Construction of environments from an id, an `EnvSpec` or any callable."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium

from headrace.envs.global_rng import Isolation, isolated
from headrace.envs.legacy_gym import LegacyGym, LegacySpec, import_gym, is_legacy
from headrace.envs.padded import Padded
from headrace.envs.registering import unregistered
from headrace.envs.vector.spec import VectorEnvs
from headrace.errors import EnvContractError, EnvFailed, SamplerError, headline, traceback_of
from headrace.extras import extra
from headrace.processes.status import Phase, Status

__all__ = ["EnvFactory", "close_quietly", "make_envs", "name_to_import", "user_code_failed"]

_log = logging.getLogger("headrace.envs")

#: Namespaces of ids whose packages Gymnasium does not import by itself: the module that registers them, and our extra.
_NAMESPACES = {"ALE": ("ale_py", "atari")}

#: Gymnasium's extras, and ours that install the same packages.
_EXTRAS = {"atari": "atari", "box2d": "box2d", "classic-control": "video", "mujoco": "mujoco", "toy-text": "video"}


@dataclass(frozen=True)
class EnvFactory:
    """Makes environments; sent to workers by cloudpickle.

    Ids are resolved to specs in the process where the user registered them, so that an id known only there works in
    workers under every start method.

    Args:
        make: an `EnvSpec`, a spec of old gym, a callable that returns an `Env`, or `VectorEnvs`.
        kwargs: arguments of the environment.
        isolation: seeds of each environment's own copy of the global generators; None if environments share the
            process's.
        given: the string that named the environment, empty if it was not named by one.
        pad: maximum lengths of texts and sequences, see `Padded`.
    """

    make: gymnasium.envs.registration.EnvSpec | LegacySpec | VectorEnvs | Callable[..., Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    isolation: Isolation | None = None
    given: str = ""
    pad: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of(
        env_cls: Any,
        env_kwargs: Mapping[str, Any] | None,
        argument: str = "EnvCls",
        pad: Mapping[str, int] | None = None,
    ) -> EnvFactory:
        """Returns the factory for what a user passes as `EnvCls`.

        "module:Id-v0" imports the module first, as `gymnasium.make` does; "module:name" is a callable of a module;
        "gym:Id-v0" is an id of old gym.

        Args:
            env_cls: the value of `EnvCls`.
            env_kwargs: arguments of the environment.
            argument: name of the argument for error messages.
            pad: maximum lengths of texts and sequences, see `Padded`.

        Raises:
            TypeError: `env_cls` has none of the accepted types.
            ValueError: the id is not registered.
        """
        given = env_cls if isinstance(env_cls, str) else ""
        if isinstance(env_cls, str):
            try:
                env_cls = _resolved(env_cls)
            except (ImportError, AttributeError) as error:
                raise ValueError(f"{argument}={env_cls!r} cannot be imported: {error}") from error
            except (gymnasium.error.Error, LookupError) as error:
                raise ValueError(f"{argument}={env_cls!r} is not a registered environment: {error}") from error
        elif isinstance(env_cls, gymnasium.Env):
            raise TypeError(
                f"{argument} is an environment, {env_cls!r}; samplers make their own, so give a callable that "
                "returns one: its class, or a function"
            )
        elif not isinstance(env_cls, gymnasium.envs.registration.EnvSpec | VectorEnvs) and not callable(env_cls):
            raise TypeError(
                f"{argument} must be a Gymnasium id, an EnvSpec, a callable returning an Env, or VectorEnvs, "
                f"got {type(env_cls).__name__} {env_cls!r}"
            )
        return EnvFactory(env_cls, dict(env_kwargs or {}), given=given, pad=dict(pad or {}))

    @property
    def name(self) -> str:
        """The id or the name of the callable, for messages."""
        if isinstance(self.make, gymnasium.envs.registration.EnvSpec | LegacySpec):
            return self.make.id
        if isinstance(self.make, VectorEnvs):
            return self.make.name
        name = getattr(self.make, "__qualname__", None)
        return str(name) if name else repr(self.make)

    @property
    def importable(self) -> str | None:
        """The string from which `of` makes the same environment in another program; None if there is none."""
        if self.given:
            return self.given
        if isinstance(self.make, gymnasium.envs.registration.EnvSpec):
            return self.make.id
        return name_to_import(self.make)

    def __call__(self) -> gymnasium.Env[Any, Any]:
        """Makes an environment.

        Raises:
            EnvContractError: the result is not an environment or has no spaces.
        """
        env = self.made()
        for name in ("observation_space", "action_space"):
            space = getattr(env, name, None)
            if not isinstance(space, gymnasium.Space):
                raise EnvContractError(
                    f"{self.name}: {name} is {type(space).__name__} {space!r}, not a gymnasium.Space; "
                    "set it in the environment's constructor"
                )
        return env

    def made_for(self, env_id: int) -> gymnasium.Env[Any, Any]:
        """Makes the environment with this env id."""
        return self() if self.isolation is None else isolated(self, self.isolation.seeds(env_id))

    def made(self) -> gymnasium.Env[Any, Any]:
        """Makes an environment without checking its spaces; adapts environments of old gym and pads as declared."""
        env = self._adapted()
        return Padded(env, self.pad) if self.pad else env

    def _adapted(self) -> gymnasium.Env[Any, Any]:
        if isinstance(self.make, gymnasium.envs.registration.EnvSpec):
            try:
                env: Any = gymnasium.make(self.make, **self.kwargs)
            except gymnasium.error.DependencyNotInstalled as error:
                raise gymnasium.error.DependencyNotInstalled(_how_to_install(str(error))) from error.__cause__
        elif isinstance(self.make, LegacySpec):
            env = self.make.make(self.kwargs)
        elif isinstance(self.make, VectorEnvs):
            raise EnvContractError(
                f"{self.name} makes vector environments, but this call needs a single one; samplers take both"
            )
        else:
            env = self.make(**self.kwargs)
        if isinstance(env, gymnasium.Env):
            return env
        if is_legacy(env):
            return LegacyGym(env)
        raise EnvContractError(
            f"{self.name} returned a {type(env).__name__}, not a gymnasium.Env; "
            "subclass gymnasium.Env and implement reset() and step(), or, for an environment of the old gym API, "
            "return headrace.envs.LegacyGym(env)"
        )


def _how_to_install(text: str) -> str:
    """Returns Gymnasium's message about a missing package with our extra in place of its own, if there is one."""
    extra = re.search(r"gymnasium\[([\w-]+)\]", text)
    ours = None if extra is None else _EXTRAS.get(extra[1].replace("_", "-"))
    return text if ours is None else f'{text.partition(",")[0]}; pip install "headrace[{ours}]"'


def _resolved(name: str) -> Any:
    """Returns the `EnvSpec`, `LegacySpec` or callable that a string names."""
    if name.startswith("gym:"):
        return _legacy(name.removeprefix("gym:"))
    module_name, _, env_id = name.rpartition(":")
    if module_name:
        module = importlib.import_module(module_name)
        found = getattr(module, env_id, None)  # not `vars`: packages may define a module-level `__getattr__`
        if callable(found) or isinstance(found, VectorEnvs):
            return found
    registered_by, name_of_extra = _NAMESPACES.get(env_id.partition("/")[0], (None, ""))
    if registered_by is not None:
        with extra(name_of_extra, f"{env_id} needs {registered_by}"):
            importlib.import_module(registered_by)
    try:
        return gymnasium.spec(env_id)
    except (gymnasium.error.NameNotFound, gymnasium.error.NamespaceNotFound) as error:
        raise unregistered(name, gymnasium.registry, error) from error


def _legacy(name: str) -> LegacySpec:
    try:
        return LegacySpec.of(name)
    except LookupError as error:
        raise unregistered(name, import_gym().envs.registration.registry, error, "gym:") from error


def name_to_import(value: Any) -> str | None:
    """Returns `module:name` of a class or function that another program can import; None for everything else."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if module == "__main__" or module not in sys.modules or vars(sys.modules[module]).get(name) is not value:
        return None
    return f"{module}:{name}"


def make_envs(factory: EnvFactory, env_ids: Sequence[int], status: Status) -> list[gymnasium.Env[Any, Any]]:
    """Makes one environment per env id.

    Args:
        factory: makes them.
        env_ids: env ids, in order.
        status: marks the environment under construction.

    Raises:
        EnvFailed: a constructor raised; the environments made before it are closed.
    """
    envs: list[gymnasium.Env[Any, Any]] = []
    for env_id in env_ids:
        status.enter(Phase.CONSTRUCTING, env_id)
        try:
            envs.append(factory.made_for(env_id))
        except BaseException as error:
            close_quietly(envs)
            if isinstance(error, KeyboardInterrupt):
                raise
            what = f"{factory.name}: the constructor"
            raise user_code_failed(error, what, status, _constructor_remedy(error, len(envs))) from error
    return envs


def _constructor_remedy(error: BaseException, n_made: int) -> str:
    """Returns the remedy for a constructor that raised. n_made: environments this process made before it."""
    if isinstance(error, TypeError) and re.search(r"missing \d+ required|unexpected keyword argument", str(error)):
        return "; pass its arguments as env_kwargs (command line: --env-kwargs)"
    if n_made == 1:
        return (
            "; this process has made one already: if it cannot hold two, use a sampler with workers and "
            "n_workers=batch_B, which gives each environment its own process"
        )
    return ""


def close_quietly(envs: Sequence[gymnasium.Env[Any, Any]]) -> None:
    """Closes environments while another error is being raised; failures to close are logged and do not replace it."""
    for env in envs:
        try:
            env.close()
        except Exception as error:
            _log.warning("closing an environment after an error also failed: %s", headline(error))


def user_code_failed(error: BaseException, what: str, status: Status, remedy: str = "") -> SamplerError:
    """Returns the `EnvFailed` for an exception raised by an environment's code.

    Do not use it for KeyboardInterrupt: the user stopped the program and the environment did nothing wrong. SystemExit
    is a failure: an environment must not end the program that steps it.

    Args:
        error: the exception; a `SamplerError` is returned with its place filled in.
        what: the environment and the call, for the message.
        status: where the process is.
        remedy: appended to the message.
    """
    if isinstance(error, SamplerError):
        return error.at(status.where())
    return EnvFailed(f"{what} raised {headline(error)}{remedy}", status.where(), traceback_of(error))
