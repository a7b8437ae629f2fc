"""What a run was made with, as plain data: to be compared with what a resumed one is made with."""

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
    """The parts of a runner that decide what it does."""

    agent: Any
    algo: Any
    sampler: Any
    config: Any
    seed: int | None


def plain(value: Any) -> Any:
    """`value` as numbers, strings, lists and dicts: configurations by their fields, classes and functions by name, and
    other objects by their class.
    """
    if isinstance(value, np.generic | np.ndarray):  # first, because np.float64 is a float too
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
    """What a run that goes on from a checkpoint must have in common with the one that wrote it: flat and plain,
    `{"algo.config.discount": 0.99, …}`.
    """
    return flattened(
        plain(
            {
                "runner": type(runner),
                "seed": runner.seed,
                "algo": {"class": type(runner.algo), "config": runner.algo.config},
                "agent": {"class": type(runner.agent), "settings": runner.agent.settings()},
                "sampler": runner.sampler.settings(),
            }
        )
    )


def described(runner: Run) -> dict[str, Any]:
    """All settings of a run, nested and plain, with the environment, and a model that is the user's own, as the command
    line names them.
    """
    model = runner.agent.settings().get("ModelCls")
    sampler = runner.sampler.settings()
    kwargs = sampler.pop("env_kwargs")
    try:
        json.dumps(kwargs)
    except (TypeError, ValueError):  # of objects, which a file cannot hold
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
    """`{"ppo": {"epochs": 4}}` as `{"ppo.epochs": 4}`."""
    return dict(_flat("", settings))


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`name: value then, value now` of every setting that is not the same."""
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
