"""Environments as a command line names them: an id, `module:Id-v0`, `module:factory`, `gym:Id-v0`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium

from headrace.cli.child import in_child
from headrace.cli.errors import CommandFailed, UsageError, unknown
from headrace.cli.imports import look_here
from headrace.envs.factory import EnvFactory, close_quietly
from headrace.envs.registering import NotRegistered
from headrace.envs.spaces import action_decoder, null_value
from headrace.errors import SamplerError, headline
from headrace.types import EnvSpaces

__all__ = ["factory_of", "spaces_of"]

_LISTING = "gymnasium.pprint_registry() in Python lists all"


def factory_of(env: str, env_kwargs: Mapping[str, Any], pad: Mapping[str, int] | None = None) -> EnvFactory:
    """Returns the factory of an environment.

    Args:
        env: name of the environment; see `EnvFactory.of`.
        env_kwargs: arguments of the environment.
        pad: maximum lengths of texts and sequences; see `headrace.envs.Padded`.

    Raises:
        UsageError: there is no such environment; the text suggests the most similar name.
        CommandFailed: its module cannot be imported.
    """
    _refuse_file(env)
    if ":" in env:
        look_here()
    try:
        return EnvFactory.of(env, env_kwargs, "--env", pad)
    except ValueError as error:
        if isinstance(error.__cause__, ImportError):
            raise CommandFailed(str(error)) from error
        if isinstance(error.__cause__, NotRegistered):
            raise UsageError(f"unknown environment {env!r}; {error.__cause__}") from error
        module, _, name = env.rpartition(":")
        listing = f"{module} neither has nor registers {name}" if module in sys.modules else _LISTING
        raise unknown("environment", env, _names_like(env), listing) from error
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise CommandFailed(f"--env {env} could not be imported: {headline(error)}") from error


def _refuse_file(env: str) -> None:
    """Raises UsageError, which says what to write, for a file (`lane.py`), a module alone, and `module.Class`."""
    given, _, cls = env.partition(":")
    if cls and not given.endswith(".py"):
        return
    before, _, last = given.rpartition(".")
    for file, name in ((given, cls), (f"{given}.py", ""), (f"{before.replace('.', '/')}.py", last)):
        if file.endswith(".py") and (file == given or Path(file).is_file()):
            module = ".".join(part for part in Path(file).with_suffix("").parts if part not in ("..", "/"))
            raise UsageError(
                f"unknown environment {env!r}; for a class or a function in {file}, write {module}:{name or 'Class'}"
            )


def _names_like(env: str) -> set[str]:
    """Returns the names that could have been meant: those of the same module or registry, in the same form."""
    prefix = env[: env.rfind(":") + 1]
    if prefix == "gym:":
        return {prefix + env_id for env_id in sys.modules["gym"].envs.registration.registry}
    module = sys.modules.get(prefix[:-1])
    makers = [] if module is None else [name for name, value in vars(module).items() if callable(value)]
    return {prefix + name for name in (*makers, *gymnasium.registry)}


def spaces_of(factory: EnvFactory, start_method: str = "auto") -> EnvSpaces:
    """Returns the spaces of an environment, which is made in a child process.

    Args:
        factory: makes the environment.
        start_method: how the child process starts, as for a sampler.

    Raises:
        UsageError: the environment does not accept its arguments.
        CommandFailed: it cannot be made.
        EnvContractError: one of the spaces has no fixed shape.
    """
    spaces = in_child(_spaces, factory, start_method)
    action_decoder(spaces.action)
    null_value(spaces.observation, "observation")
    return spaces


def _spaces(factory: EnvFactory) -> EnvSpaces:
    try:
        env = factory()
    except SamplerError:
        raise
    except gymnasium.error.DependencyNotInstalled as error:
        raise CommandFailed(f"{factory.name} needs another package: {error}") from error
    except TypeError as error:
        raise UsageError(
            f"{factory.name} could not be made with {dict(factory.kwargs)}: {headline(error)}; its arguments go into "
            "--env-kwargs"
        ) from error
    except Exception as error:
        raise CommandFailed(f"{factory.name} could not be made: {headline(error)}") from error
    spaces = EnvSpaces(env.observation_space, env.action_space)
    close_quietly([env])
    return spaces
