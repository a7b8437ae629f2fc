"""Output of commands that step environments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headrace.cli.errors import CommandFailed
from headrace.errors import SamplerError
from headrace.samplers.traj_info import TrajInfo
from headrace.storage import write_whole
from headrace.text import significant

__all__ = ["failed", "summary_line"]


def summary_line(episodes: Sequence[TrajInfo]) -> str:
    """Returns the returns of an evaluation in one line."""
    returns = np.array([episode.Return for episode in episodes])
    return (
        f"mean return {significant(returns.mean())} over {len(returns)} episodes "
        f"(std {significant(returns.std())}, min {significant(returns.min())}, max {significant(returns.max())})"
    )


def failed(error: SamplerError, folder: Path | None) -> CommandFailed:
    """Returns the error of a sampler as one line.

    Args:
        error: the error.
        folder: folder for `error.txt`, the traceback of the environment's code; None: it is not written.
    """
    where = f" (at: {error.where})" if error.where is not None else ""
    if error.traceback_text and folder is not None:
        write_whole(folder / "error.txt", [f"{error}\n".encode(errors="replace")])
        where += f"; its traceback is in {folder / 'error.txt'}"
    return CommandFailed(f"{type(error).__name__}: {error.message}{where}")
