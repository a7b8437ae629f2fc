"""Chooses between the compiled parts of the library and their twins in pure Python, at import."""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType

__all__ = ["native", "note", "stepping"]

_VERSION = 1  # of the interface of the compiled part
_AGAIN = "install headrace again to build it"


def _loaded() -> tuple[ModuleType | None, int, str]:
    """Returns the compiled part, or None, the logging level and the reason."""
    if os.environ.get("HEADRACE_PURE", "") not in ("", "0"):
        return None, logging.INFO, "HEADRACE_PURE is set"
    try:
        module = importlib.import_module("headrace._native.stepping")
    except ModuleNotFoundError:
        return None, logging.INFO, "the compiled part was not built, which needs a C compiler"
    except Exception as error:  # built for another NumPy or Python, or only half built
        return None, logging.WARNING, f"the compiled part cannot be loaded: {type(error).__name__}: {error}; {_AGAIN}"
    if getattr(module, "VERSION", None) != _VERSION:
        return None, logging.WARNING, f"the compiled part belongs to another version of headrace; {_AGAIN}"
    return module, logging.INFO, ""


#: The compiled inner loop of `ScalarEnvs`; None if pure Python runs.
stepping, _level, _why_not = _loaded()
#: (level, sentence) for the log if pure Python runs, else None.
note = (_level, f"environments are stepped in pure Python: {_why_not}") if _why_not else None


def native() -> str:
    """Returns which implementation steps environments: "native", or "pure Python: " and the reason.

    Batches are the same. Set the environment variable HEADRACE_PURE=1 before the import to use pure Python.
    """
    return f"pure Python: {_why_not}" if _why_not else "native"
