"""Descriptions of agents in files, from which an agent can be rebuilt without other information.

Class names in a file are resolved only to agents and models of this package; nothing else is imported or called. For a
user-defined model the file holds its name, for display only, and the caller who loads the file passes the model.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from headrace.agents.base import Agent
from headrace.envs.plain_spaces import plain_space, space_of
from headrace.errors import CheckpointError, one_line
from headrace.schema import each, shown, whole
from headrace.types import EnvSpaces

__all__ = ["agent_of", "described", "own_name", "spaces_of"]

_MODULE = re.compile(r"headrace(\.[a-z_][a-z0-9_]*)+")
#: The name that every agent uses for the setting with the class of its model.
_MODEL = "ModelCls"
_LARGEST = 2**30


def described(agent: Agent) -> dict[str, Any]:
    """Returns the class, settings and spaces of an initialized agent, as tensors and plain values.

    `why_not` is the reason why the agent cannot be rebuilt, or empty if it can. `own_model` is the name of a
    user-defined model; the agent can be rebuilt if that model is passed to `agent_of`.
    """
    assert agent.spaces is not None
    about = {
        "observation": _as_tensors(plain_space(agent.spaces.observation)),
        "action": _as_tensors(plain_space(agent.spaces.action)),
        "why_not": "",
    }
    settings = dict(agent.settings())
    own_model = own_name(settings.get(_MODEL))
    if own_model:
        del settings[_MODEL]
        about |= {"own_model": own_model, "why_not": f"{own_model} is a model of your own"}
    try:
        return {**about, "class": _name(type(agent)), "settings": _encoded(settings)}
    except TypeError as error:
        about.pop("own_model", None)
        return {**about, "why_not": str(error)}


def own_name(value: Any) -> str:
    """Returns the name of a class or function from outside headrace; empty for everything else."""
    if not callable(value):
        return ""
    module = getattr(value, "__module__", type(value).__module__)  # a callable object may have no name of its own
    return "" if _MODULE.fullmatch(module) else f"{module}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def spaces_of(about: Mapping[str, Any]) -> EnvSpaces:
    """Returns the spaces of a description. Raises ValueError if they are missing or invalid."""
    try:
        for name in ("observation", "action"):
            _require_small(about[name])
        return EnvSpaces(space_of(about["observation"]), space_of(about["action"]))
    except Exception as error:  # forged values may raise anything in the constructors of spaces
        raise ValueError(f"the spaces of the agent are missing or wrong ({one_line(error)})") from error


def agent_of(about: Mapping[str, Any], ModelCls: Any = None) -> Agent:
    """Returns a new agent built from a description, not initialized.

    Args:
        about: a description from `described`.
        ModelCls: model that replaces the described one; None: the described one.

    Raises:
        CheckpointError: if the class is not one of this package, or does not accept the settings.
    """
    try:
        cls = _class(about["class"], Agent)
        settings = _decoded(about["settings"])
        agent: Agent = cls(**settings if ModelCls is None else {**settings, _MODEL: ModelCls})
    except CheckpointError:
        raise
    except Exception as error:  # forged values may raise anything in a constructor
        raise CheckpointError(
            f"{shown(about.get('class'))} of this version of headrace does not accept the settings in the checkpoint: "
            f"{one_line(error)}"
        ) from error
    return agent


def _name(cls: type) -> str:
    if not _MODULE.fullmatch(cls.__module__):
        raise TypeError(f"{cls.__module__}.{cls.__qualname__} is a class of your own")
    return f"{cls.__module__}:{cls.__qualname__}"


def _require_small(plain: Mapping[str, Any]) -> None:
    """Raises ValueError for a space whose bounds may not fit in memory: a few bytes in a file can state any shape."""
    for child in plain.get("spaces", ()):
        _require_small(child[1] if isinstance(child, list) else child)
    shape = plain.get("shape", [])
    each(whole(0, _LARGEST))(shape, "the shape of a space")
    if "dtype" in plain and math.prod(shape) * np.dtype(plain["dtype"]).itemsize > _LARGEST:
        raise ValueError(f"the bounds of a space of shape {shape} have more than {_LARGEST} bytes")


def _class(name: str, base: type) -> Any:
    module_name, _, class_name = str(name).partition(":")
    if not _MODULE.fullmatch(module_name):
        raise CheckpointError(f"the checkpoint names the class {name!r}, which is not a class of headrace")
    try:
        cls = vars(importlib.import_module(module_name)).get(class_name)
    except ImportError:
        cls = None
    if not (isinstance(cls, type) and issubclass(cls, base) and cls.__module__ == module_name):
        raise CheckpointError(
            f"the checkpoint names {name!r}, but this version of headrace has no such {base.__name__}"
        )
    return cls


def _encoded(value: Any) -> Any:
    """Encodes containers as `[kind, content]`, models as `["class", name]`; keeps plain values, else TypeError."""
    if isinstance(value, np.generic):  # checked first, because np.float64 is also a float
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return ["tuple" if isinstance(value, tuple) else "list", [_encoded(item) for item in value]]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return ["dict", {key: _encoded(item) for key, item in value.items()}]
    if isinstance(value, type) and issubclass(value, torch.nn.Module):
        return ["class", _name(value)]
    raise TypeError(f"a setting of the agent is not a plain value: {value!r}"[:200])


def _decoded(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    kind, content = value
    match kind:
        case "dict":
            return {key: _decoded(item) for key, item in content.items()}
        case "list":
            return [_decoded(item) for item in content]
        case "tuple":
            return tuple(_decoded(item) for item in content)
    return _class(content, torch.nn.Module)


def _as_tensors(value: Any) -> Any:
    """Converts arrays to tensors, because checkpoints may hold tensors but not arrays."""
    if isinstance(value, dict):
        return {key: _as_tensors(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_tensors(item) for item in value]
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
