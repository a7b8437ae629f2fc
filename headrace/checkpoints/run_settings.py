"""The settings of a run as plain data, to be compared with those of a run that resumes it."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Protocol

import numpy as np

from headrace.agents.description import own_name
from headrace.envs.factory import name_to_import

__all__ = ["Run", "described", "differences", "flattened", "plain", "settings_of"]


class Run(Protocol):
    """The parts of a runner that determine its results."""

    agent: Any
    algo: Any
    sampler: Any
    config: Any
    seed: int | None

    @property
    def world_size(self) -> int:
        """Number of learners."""


def plain(value: Any) -> Any:
    """Converts a value to numbers, strings, lists and dicts.

    Configurations become dicts of their fields, classes and functions their names, other objects the name of their
    class.
    """
    if isinstance(value, np.generic | np.ndarray):  # check this first, because np.float64 is a float too
        return plain(value.tolist())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, type | types.FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return f"{type(value).__module__}.{type(value).__qualname__} object"


def settings_of(runner: Run) -> dict[str, Any]:
    """Returns the settings that a resumed run must share with the run that wrote the checkpoint.

    They are flat and plain: `{"algo.config.discount": 0.99, …}`.
    """
    return flattened(
        plain(
            {
                "runner": type(runner),
                "seed": runner.seed,
                "algo": {"class": type(runner.algo), "config": runner.algo.config},
                "agent": {"class": type(runner.agent), "settings": runner.agent.settings()},
                "sampler": runner.sampler.settings(),
                **({"world_size": runner.world_size} if runner.world_size > 1 else {}),
            }
        )
    )


def described(runner: Run) -> dict[str, Any]:
    """Returns all settings of a run, nested and plain, with the environment and model as the command line names them.

    The model is included only if it is the user's own.
    """
    model = runner.agent.settings().get("ModelCls")
    sampler = runner.sampler.settings()
    kwargs = sampler.pop("env_kwargs")
    try:
        json.dumps(kwargs)
    except (TypeError, ValueError):  # objects that a JSON file cannot contain
        name = None
    else:
        name = runner.sampler.env_name
    parts = {
        "env": name,
        "env_kwargs": kwargs,
        "runner": {"class": type(runner), **asdict(runner.config), "seed": runner.seed},
        "algo": {"class": type(runner.algo), "config": runner.algo.config},
        "agent": {"class": type(runner.agent), "settings": runner.agent.settings()},
        "model": None if not own_name(model) else name_to_import(model),
        "sampler": {"class": type(runner.sampler), **sampler},
    }
    return {name: plain(value) for name, value in parts.items()}


def flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Converts `{"ppo": {"epochs": 4}}` to `{"ppo.epochs": 4}`."""
    return dict(_flat("", settings))


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns `name: value then, value now` for each setting that differs."""
    nothing = "nothing"
    return [
        f"{name}: {_short(then.get(name, nothing))} then, {_short(now.get(name, nothing))} now"
        for name in sorted(then.keys() | now.keys())
        if then.get(name, nothing) != now.get(name, nothing)
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + " …"


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else name, item)
    else:
        yield prefix, value
