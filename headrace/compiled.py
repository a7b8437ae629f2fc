"""Chooses between the compiled parts of the library and their twins in pure Python, at import."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from headrace import numpy_acting

__all__ = ["acting", "batch", "implementation", "learning", "native", "note", "stepping", "waiting"]

_VERSION = 4  # of the interface of the compiled parts
_PARTS = ("acting", "batch", "learning", "stepping", "waiting")
_AGAIN = "install headrace again to build them"


def _loaded() -> tuple[Sequence[ModuleType | None], int, str]:
    """Returns the compiled parts or None for each, the logging level and the reason."""
    nothing = [None] * len(_PARTS)
    if os.environ.get("HEADRACE_PURE", "") not in ("", "0"):
        return nothing, logging.INFO, "HEADRACE_PURE is set"
    try:
        parts = [importlib.import_module(f"headrace._native.{name}") for name in _PARTS]
    except ModuleNotFoundError:
        return nothing, logging.INFO, "the compiled parts were not built, which needs a C compiler"
    except Exception as error:  # built for another NumPy or Python, or only half built
        why_not = f"the compiled parts cannot be loaded: {type(error).__name__}: {error}; {_AGAIN}"
        return nothing, logging.WARNING, why_not
    if {getattr(part, "VERSION", None) for part in parts} != {_VERSION}:
        return nothing, logging.WARNING, f"the compiled parts belong to another version of headrace; {_AGAIN}"
    return parts, logging.INFO, ""


_parts, _level, _why_not = _loaded()
#: Noise and the statistics of episodes; gradients of small networks, see `headrace.native_gradients`; the inner loop
#: of `ScalarEnvs`, see `headrace.envs.stepping`; waiting for a counter. None if pure Python runs.
_acting, batch, learning, stepping, waiting = _parts
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
