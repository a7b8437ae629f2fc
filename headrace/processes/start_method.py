"""How processes are started, and what that asks of what they are given."""

from __future__ import annotations

import sys
from typing import Any

import cloudpickle

from headrace.errors import SamplerError, headline

__all__ = ["choose_start_method", "pickled"]


def choose_start_method(asked: str) -> str:
    """The start method for `asked`: "auto" is fork on Linux while CUDA is not initialised, else forkserver.

    Raises ValueError for "fork" after CUDA was initialised: the children would hang or fail at their first CUDA call.
    """
    torch = sys.modules.get("torch")  # not loaded here: then it has not initialised CUDA either
    cuda = torch is not None and torch.cuda.is_initialized()
    if asked == "auto":
        return "fork" if sys.platform == "linux" and not cuda else "forkserver"
    if asked == "fork" and cuda:
        raise ValueError('start_method="fork" after CUDA was initialised does not work; use "forkserver" or "auto"')
    return asked


def pickled(argument: Any) -> bytes:
    """What a worker is given, for a start method that does not fork; raises SamplerError where it cannot be."""
    try:
        payload: bytes = cloudpickle.dumps(argument)
    except Exception as error:
        raise SamplerError(
            f'what workers need cannot be pickled: {headline(error)}. Under start_method "forkserver" and "spawn" '
            "EnvCls, env_kwargs and TrajInfoCls travel to the workers by cloudpickle; make EnvCls a function "
            'that opens its resources itself, or use start_method="fork"'
        ) from error
    return payload
