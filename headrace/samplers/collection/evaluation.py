"""Evaluation: the same loop with other environments, some rows at a time, until each has had its episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from headrace.buffers.samples import SlotSpec
from headrace.samplers.traj_info import Episodes
from headrace.types import BatchSpec

__all__ = ["EvalReport", "evaluation_episodes", "evaluation_spec"]

#: Rows collected at a time, into a slot that is written again and again.
_ROWS = 32


@dataclass
class EvalReport:
    """What a slice tells after some rows of an evaluation: the episodes that ended in them, those that still run, and
    whether all of its environments have had theirs.
    """

    finished: Episodes
    unfinished: Episodes
    idle: bool


def evaluation_spec(spec: SlotSpec, widths: tuple[int, ...]) -> SlotSpec:
    """What the slot of an evaluation holds, for so many evaluation environments in each slice."""
    return replace(spec, batch=BatchSpec(_ROWS, sum(widths)), widths=widths, env_info=None, bootstrap=False)


def evaluation_episodes(collect: Callable[[int, int], Sequence[EvalReport]], max_T: int) -> list[Episodes]:
    """All episodes of an evaluation of `max_T` rows at most, unfinished ones last.

    collect: called with the number of a first row and how many to collect, until all slices say they are idle.
    """
    parts: list[Episodes] = []
    first_row = 0
    while True:
        n_rows = min(_ROWS, max_T - first_row)
        reports = collect(first_row, n_rows)
        parts += [report.finished for report in reports]
        first_row += n_rows
        if first_row >= max_T or all(report.idle for report in reports):
            return [*parts, *(report.unfinished for report in reports)]
