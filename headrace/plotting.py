"""Learning curves as pictures."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headrace.storage import write_whole
from headrace.text import significant

__all__ = ["Curve", "Summary", "axis_label", "plot_curves", "plot_learning_curve", "read_columns", "summary_of"]

#: What is in the columns of progress.csv, and in which unit, without their statistics.
_QUANTITIES = {
    "CumSteps": "environment steps",
    "CumTime": "time (s)",
    "CumSampleTime": "time of sampling (s)",
    "CumOptimizeTime": "time of learning (s)",
    "CumEvalTime": "time of evaluating (s)",
    "Iteration": "batches",
    "StepsPerSecond": "environment steps per second",
    "Return": "return per episode",
    "DiscountedReturn": "discounted return per episode",
    "Length": "length of an episode (steps)",
    "entropy": "entropy (nats)",
    "approxKl": "approximate KL divergence (nats)",
    "learningRate": "learning rate",
    "epsilon": "ε",
    "actionStd": "deviation of actions (units of the action)",
}
_STATISTICS = {"Std": "standard deviation of ", "Median": "median of ", "Min": "least ", "Max": "greatest "}
#: Characters of the legend's font beside each other, and those that a line's sample takes.
_LEGEND_WIDTH, _LEGEND_HANDLE = 90, 8


@dataclass(frozen=True)
class Curve:
    """The points of one run, float64 `[n]` each, x rising."""

    x: np.ndarray
    y: np.ndarray

    def smoothed(self, window: int) -> Curve:
        """Each y the mean of itself and the up to `window − 1` before it."""
        sums = np.concatenate([[0.0], np.cumsum(self.y)])
        ends = np.arange(1, len(self.y) + 1)
        starts = np.maximum(ends - window, 0)
        return Curve(self.x, (sums[ends] - sums[starts]) / (ends - starts))


@dataclass(frozen=True)
class Summary:
    """What several runs are together, float64 `[n]` each: the mean, and a band from `low` to `high`."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_runs: int


def read_columns(csv_path: str | Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of a progress CSV, float64 `[rows]`, NaN where a row has no value.

    Raises KeyError for a name that is no column (its argument is the name), ValueError for what is not a number.
    """
    with Path(csv_path).open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    missing = [name for name in names if name not in (reader.fieldnames or ())]
    if missing:
        raise KeyError(missing[0])
    try:
        return {name: np.array([float(row[name] or "nan") for row in rows], np.float64) for name in names}
    except ValueError as error:
        raise ValueError(f"{csv_path} is damaged: {error}") from error


def summary_of(curves: Sequence[Curve], band: Literal["range", "std"] = "range") -> Summary:
    """The mean of runs where all of them have been, at every x of any of them, linearly between their points.

    band: "range" from the least to the greatest run, "std" one standard deviation to either side. Raises ValueError
    where there is no x that all of them have been at.
    """
    first, last = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    x = np.unique(np.concatenate([curve.x for curve in curves]))
    x = x[(first <= x) & (x <= last)]
    if not len(x):
        raise ValueError(f"of {len(curves)} runs that differ in the seed only, one ends before another begins")
    y = np.stack([np.interp(x, curve.x, curve.y) for curve in curves])
    mean, std = y.mean(0), y.std(0)
    low, high = (y.min(0), y.max(0)) if band == "range" else (mean - std, mean + std)
    return Summary(x, mean, low, high, len(curves))


def plot_curves(
    summaries: Mapping[str, Summary],
    path: str | Path,
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    note: str = "",
    marks: Mapping[str, float] | None = None,
) -> None:
    """Draws a line and, where there is one, a band for each summary, named by its key, into a file whose suffix says
    the format; the names stand beside the axes, not over the curves.

    note: below the x axis, for what the band is; marks: dashed lines across, by name. Raises ImportError where
    matplotlib is missing, ValueError for a suffix it does not know, OSError where the disk does not take the file.
    """
    figure = _figure()
    axes = figure.subplots()
    for name, summary in summaries.items():
        (line,) = axes.plot(summary.x, summary.mean, label=name)
        if (summary.low < summary.high).any():
            axes.fill_between(summary.x, summary.low, summary.high, alpha=0.2, color=line.get_color(), linewidth=0)
    for name, height in (marks or {}).items():
        axes.axhline(height, linestyle="--", color="black", label=name)
    axes.set_xlabel(f"{x_label}\n{note}" if note else x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    n_names = len(summaries) + len(marks or {})
    if n_names > 1:
        longest = max(len(name) for name in (*summaries, *(marks or {})))
        n_columns = max(1, min(n_names, _LEGEND_WIDTH // (longest + _LEGEND_HANDLE)))
        figure.legend(loc="outside lower center", ncols=n_columns, fontsize="small")
    picture, path = io.BytesIO(), Path(path)
    figure.savefig(picture, dpi=150, format=path.suffix.lstrip(".") or "png")
    write_whole(path, [picture.getbuffer()])


def plot_learning_curve(csv_path: str | Path, png_path: str | Path, final_return: float | None = None) -> None:
    """Draws the mean return of a progress CSV over steps, with a band from least to greatest, into a picture.

    final_return: the mean return of a final evaluation, a dashed line. Raises ImportError where matplotlib is missing,
    ValueError where the file has no row with a return.
    """
    names = ("CumSteps", "ReturnAverage", "ReturnMin", "ReturnMax")
    try:
        columns = read_columns(csv_path, names)
    except KeyError as error:
        raise ValueError(
            f"{csv_path} has no row with a return, and no column {error.args[0]}: no episode ended; train longer"
        ) from error
    there = ~np.isnan(columns["ReturnAverage"])
    if not there.any():
        raise ValueError(f"{csv_path} has no row with a return: no episode ended; train longer, or log less often")
    steps, mean, low, high = (columns[name][there] for name in names)
    plot_curves(
        {"mean of the episodes of a row": Summary(steps, mean, low, high, n_runs=1)},
        png_path,
        x_label=axis_label("CumSteps"),
        y_label=axis_label("ReturnAverage"),
        note="band: least to greatest episode",
        marks={} if final_return is None else {f"final evaluation: {significant(final_return)}": final_return},
    )


def axis_label(column: str) -> str:
    """The quantity in a column of progress.csv, with its unit; the name of a column without one here."""
    parts = re.fullmatch(r"(.+?)(Average|Std|Median|Min|Max)?", column)
    if parts is None or parts[1] not in _QUANTITIES:
        return column
    return _STATISTICS.get(parts[2], "") + _QUANTITIES[parts[1]]


def _figure() -> Any:
    """An empty figure; raises ImportError, naming the extra, where matplotlib is missing."""
    try:
        # The figure itself, not pyplot: no global state, and no display is looked for.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('learning curves need matplotlib; pip install "headrace[plot]"') from error
    return Figure(figsize=(7, 4), layout="constrained")
