"""Makes the model of an agent. Errors about a model of the user's own say what a model must look like."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from headrace.agents.description import own_name
from headrace.types import EnvSpaces

__all__ = ["made_model", "returned_text"]


def made_model(
    ModelCls: Any,
    spaces: EnvSpaces,
    sizes: Mapping[str, int],
    model_kwargs: Mapping[str, Any],
    inputs: Sequence[str],
    returns: str,
) -> torch.nn.Module:
    """Returns `ModelCls(spaces, **sizes, **model_kwargs)`.

    Args:
        ModelCls: class of a module, or a function that returns one.
        spaces: spaces of one environment, as the model sees them.
        sizes: sizes of the output, by the names of the arguments.
        model_kwargs: the user's arguments.
        inputs: names of the arguments with which the model will be called.
        returns: what it must return then, for messages.

    Raises:
        TypeError: if `ModelCls` or the model cannot be called like this, or the model is no module.
    """
    contract = (
        f"a model is made by Class(spaces, {', '.join(f'{name}=...' for name in sizes)}, **model_kwargs), and its "
        f'forward({", ".join(inputs)}) returns {returns}; the page "Your own model" of the documentation has an example'
    )
    if isinstance(ModelCls, torch.nn.Module):
        raise TypeError(f"the model is an object, {type(ModelCls).__name__}(...); give its class; {contract}")
    try:
        model = ModelCls(spaces, **sizes, **model_kwargs)
    except TypeError as error:
        why_not = _why_not(ModelCls, [spaces], {**sizes, **model_kwargs}) if own_name(ModelCls) else ""
        if not why_not:
            raise
        raise TypeError(
            f"{own_name(ModelCls)} does not take the arguments of a model: {why_not}; {contract}"
        ) from error
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{own_name(ModelCls)} returned {returned_text(model)}, not a torch.nn.Module; {contract}")
    if why_not := _why_not(model.forward, inputs, {}):
        raise TypeError(f"forward() of {type(model).__name__} does not take its inputs: {why_not}; {contract}")
    return model


def returned_text(value: Any) -> str:
    """Returns what a model returned, for messages: `a tuple of 3`, `Tensor [8, 2]`."""
    if isinstance(value, torch.Tensor):
        return f"Tensor {list(value.shape)}"
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__


def _why_not(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Returns why a function cannot be called with these arguments; empty if it can, or has no signature."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return ""
