"""Chooses between the compiled parts of the library and their twins in pure Python, at import."""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType
from typing import Any

from headrace import numpy_acting

__all__ = ["acting", "implementation", "native", "note", "stepping"]

_VERSIONS = {"acting": 2, "stepping": 1}  # of the interfaces of the compiled parts
_AGAIN = "install headrace again to build them"


def _loaded() -> tuple[ModuleType | None, ModuleType | None, int, str]:
    """Returns the compiled parts or None, the logging level and the reason."""
    if os.environ.get("HEADRACE_PURE", "") not in ("", "0"):
        return None, None, logging.INFO, "HEADRACE_PURE is set"
    try:
        acting, stepping = (importlib.import_module(f"headrace._native.{name}") for name in _VERSIONS)
    except ModuleNotFoundError:
        return None, None, logging.INFO, "the compiled parts were not built, which needs a C compiler"
    except Exception as error:  # built for another NumPy or Python, or only half built
        why_not = f"the compiled parts cannot be loaded: {type(error).__name__}: {error}; {_AGAIN}"
        return None, None, logging.WARNING, why_not
    if [getattr(module, "VERSION", None) for module in (acting, stepping)] != [*_VERSIONS.values()]:
        return None, None, logging.WARNING, f"the compiled parts belong to another version of headrace; {_AGAIN}"
    return acting, stepping, logging.INFO, ""


_acting, stepping, _level, _why_not = _loaded()
#: Inference of small networks: `headrace._native.acting`, or `headrace.numpy_acting`, which has the same classes.
acting: Any = numpy_acting if _acting is None else _acting
#: "native" or "pure Python".
implementation = "pure Python" if _why_not else "native"
#: (level, sentence) for the log if pure Python runs, else None.
note = (_level, f"headrace runs in pure Python: {_why_not}") if _why_not else None


def native() -> str:
    """Returns which implementation steps environments and infers actions of small networks.

    "native", or "pure Python: " and the reason. Set the environment variable HEADRACE_PURE=1 before the import to use
    pure Python. What environments return is recorded alike; network outputs may differ by rounding.
    """
    return f"{implementation}: {_why_not}" if _why_not else implementation
