"""Choice of the start method of processes, and pickling of what they are given."""

from __future__ import annotations

import multiprocessing
import os
import sys
from typing import Any

import cloudpickle

from headrace.errors import SamplerError, headline

__all__ = ["UNGUARDED", "choose_start_method", "end_if_imported", "pickled"]

#: Exit code of a worker that found that its program starts workers when it is imported.
UNGUARDED = 78


def choose_start_method(asked: str) -> str:
    """Returns the start method to use.

    "auto" is fork on Linux while CUDA is not initialised, otherwise forkserver.

    Args:
        asked: "fork", "forkserver", "spawn" or "auto".

    Raises:
        ValueError: "fork" after CUDA was initialised: the children would hang or fail at their first CUDA call.
    """
    torch = sys.modules.get("torch")  # if torch is not imported, it has not initialised CUDA either
    cuda = torch is not None and torch.cuda.is_initialized()
    if asked == "auto":
        return "fork" if sys.platform == "linux" and not cuda else "forkserver"
    if asked == "fork" and cuda:
        raise ValueError('start_method="fork" does not work after CUDA was initialised; use "forkserver" or "auto"')
    return asked


def pickled(argument: Any) -> bytes:
    """Pickles a worker's argument, for start methods other than fork; raises SamplerError if it cannot be pickled."""
    try:
        payload: bytes = cloudpickle.dumps(argument)
    except Exception as error:
        raise SamplerError(
            f'the arguments of workers cannot be pickled: {headline(error)}; start_method "forkserver" and "spawn" '
            "send EnvCls, env_kwargs and TrajInfoCls to the workers by cloudpickle; make EnvCls a function "
            'that opens its resources itself, or use start_method="fork"'
        ) from error
    return payload


def end_if_imported() -> None:
    """Ends this process if it is a worker that is still importing the program, and the program calls this.

    With "spawn" and "forkserver", a worker first imports the program under the name `__mp_main__`. A program without
    `if __name__ == "__main__":` would start its workers there, too. The process ends without a word and without the
    program's exit handlers: its parent says what to do, see `cause_of_death`.
    """
    # What Python itself asks before it starts a process. A look at `__main__` does not do: IPython's `%run` and `runpy`
    # replace it in the user's own process.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(UNGUARDED)
