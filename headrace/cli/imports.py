"""Imports the user's code that a command line names as `module:name`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import torch

from headrace.cli.errors import CommandFailed, UsageError, unknown
from headrace.errors import headline

__all__ = ["imported_model", "imports_code", "look_here"]


def look_here() -> None:
    """Makes modules in the current folder importable; the installed program `headrace` does not look there."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)


def imports_code(name: str) -> bool:
    """Returns whether the name of an environment or a model imports a module; "gym:Id-v0" is only an id."""
    return ":" in name.removeprefix("gym:")


def imported_model(name: str) -> Any:
    """Returns the class or function that `--model module:name` names.

    Raises:
        UsageError: the text is not of this form, or the module has no such class or function.
        CommandFailed: the module cannot be imported.
    """
    module_name, _, model_name = name.partition(":")
    if not module_name or not model_name:
        raise UsageError(f"--model must be module:Class, got {name!r}")
    look_here()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise CommandFailed(f"--model {name} could not be imported: {headline(error)}") from error
    found = vars(module).get(model_name)
    if not callable(found):
        models = [one for one, value in vars(module).items() if _is_model(value)]
        raise unknown("model", name, {f"{module_name}:{one}" for one in models}, f"{module_name} has no {model_name}")
    return found


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, torch.nn.Module)
