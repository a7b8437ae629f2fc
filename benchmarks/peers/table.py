"""The table of `compare.py`, from its JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.insight.turns import Interval, Turn, ratio_of


@dataclass(frozen=True)
class Figure:
    """One row. steps_per_second, cpu_us: medians; ratio, cpu_ratio: of the sampler of the same kind to it, in steps per
    second, and of it to that sampler in CPU time: above 1, headrace is better. None for that sampler itself.
    """

    contender: str
    steps_per_second: float
    cpu_us: float
    beside: str
    ratio: Interval | None
    cpu_ratio: Interval | None


def figures_of(cells: Sequence[dict[str, Any]], world: str, B: int) -> list[Figure]:
    """Returns the rows of one environment and number of environments."""
    here = [cell for cell in cells if (cell["world"], cell["B"]) == (world, B)]
    turns = {cell["contender"]: [Turn(**turn) for turn in cell["turns"]] for cell in here}
    figures = []
    for cell in here:
        name, beside = cell["contender"], cell["beside"]
        own, ours = turns[name], turns.get(beside)
        compared = ours is not None and beside != name
        figures.append(
            Figure(
                name,
                statistics.median(turn.steps_per_second for turn in own),
                statistics.median(turn.cpu_us for turn in own),
                beside,
                _ratio(ours, own, "steps_per_second") if compared else None,
                _ratio(own, ours, "cpu_us") if compared else None,
            )
        )
    return figures


def _ratio(above: Sequence[Turn] | None, below: Sequence[Turn] | None, name: str) -> Interval:
    return ratio_of([getattr(turn, name) for turn in above or ()], [getattr(turn, name) for turn in below or ()])


def markdown(figures: Sequence[Figure]) -> str:
    """Returns the rows as a table."""
    lines = [
        "| | steps/s | CPU µs per step | compared with | which is … times as fast | and takes … times less CPU |",
        "|---|---|---|---|---|---|",
    ]
    for one in figures:
        compared = (one.beside, str(one.ratio), str(one.cpu_ratio)) if one.ratio is not None else ("", "", "")
        lines.append(f"| {one.contender} | {one.steps_per_second:,.0f} | {one.cpu_us:.1f} | {' | '.join(compared)} |")
    return "\n".join(lines)
