"""Plots learning curves."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headrace.extras import extra
from headrace.storage import write_whole
from headrace.text import significant

__all__ = [
    "Curve",
    "Summary",
    "UnknownColumn",
    "axis_label",
    "plot_bars",
    "plot_curves",
    "plot_learning_curve",
    "read_columns",
    "summary_of",
]

#: Quantities and units of the columns of progress.csv, without their statistics.
_QUANTITIES = {
    "CumSteps": "environment steps",
    "CumTime": "time (s)",
    "CumSampleTime": "sampling time (s)",
    "CumOptimizeTime": "learning time (s)",
    "CumEvalTime": "evaluation time (s)",
    "Iteration": "batches",
    "StepsPerSecond": "environment steps per second",
    "Return": "return per episode",
    "DiscountedReturn": "discounted return per episode",
    "Length": "length of an episode (steps)",
    "entropy": "entropy (nats)",
    "approxKl": "approximate KL divergence (nats)",
    "learningRate": "learning rate",
    "epsilon": "ε",
    "actionStd": "standard deviation of actions (units of the action)",
}
_STATISTICS = {"Std": "standard deviation of ", "Median": "median of ", "Min": "minimum ", "Max": "maximum "}
#: Width of the legend in characters of its font, and width of a line sample in it.
_LEGEND_WIDTH, _LEGEND_HANDLE = 90, 8


class UnknownColumn(KeyError):
    """Raised for a column that a CSV file does not have.

    Args:
        name: name of the column.
        known: names of the columns in the file.
    """

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(name)
        self.name, self.known = name, known

    def __str__(self) -> str:
        return f"there is no column {self.name!r}; choose one of {', '.join(self.known)}"


@dataclass(frozen=True)
class Curve:
    """The points of one run.

    Args:
        x: float64 `[n]`, increasing.
        y: float64 `[n]`.
    """

    x: np.ndarray
    y: np.ndarray

    def smoothed(self, window: int) -> Curve:
        """Returns the curve with each y replaced by the mean of it and up to `window − 1` values before it."""
        sums = np.concatenate([[0.0], np.cumsum(self.y)])
        ends = np.arange(1, len(self.y) + 1)
        starts = np.maximum(ends - window, 0)
        return Curve(self.x, (sums[ends] - sums[starts]) / (ends - starts))


@dataclass(frozen=True)
class Summary:
    """Mean of several runs, with a band around it.

    Args:
        x: float64 `[n]`, increasing.
        mean: float64 `[n]`.
        low: float64 `[n]`, lower limit of the band.
        high: float64 `[n]`, upper limit of the band.
        n_runs: number of runs.
    """

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_runs: int


def read_columns(csv_path: str | Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads columns of a progress CSV.

    Args:
        csv_path: the file.
        names: names of columns.

    Returns:
        float64 `[rows]` for each name, NaN where a value is missing.

    Raises:
        UnknownColumn: for a name that is not a column.
        ValueError: for a value that is not a number.
    """
    with Path(csv_path).open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    known = reader.fieldnames or ()
    for name in names:
        if name not in known:
            raise UnknownColumn(name, known)
    try:
        return {name: np.array([float(row[name] or "nan") for row in rows], np.float64) for name in names}
    except ValueError as error:
        raise ValueError(f"{csv_path} is damaged: {error}") from error


def summary_of(curves: Sequence[Curve], band: Literal["range", "std"] = "range") -> Summary:
    """Averages runs over the range of x that all of them cover.

    The mean is computed at the x values of all runs, with linear interpolation between the points of each run.

    Args:
        curves: the runs.
        band: "range": from the lowest to the highest run; "std": one standard deviation to either side of the mean.

    Returns:
        The summary.

    Raises:
        ValueError: if there is no x that all runs cover.
    """
    first, last = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    x = np.unique(np.concatenate([curve.x for curve in curves]))
    x = x[(first <= x) & (x <= last)]
    if not len(x):
        raise ValueError(
            f"of {len(curves)} runs that differ only in the seed, one ends before another begins; plot them apart"
        )
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
    """Draws a line, and a band if there is one, for each summary into a file; the legend is outside the axes.

    Args:
        summaries: summaries by name.
        path: the file; its suffix determines the format.
        x_label: label of the x axis.
        y_label: label of the y axis.
        title: title of the plot.
        note: text below the x axis, e.g. what the band is.
        marks: heights of dashed horizontal lines by name.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: for a suffix that matplotlib does not support.
        OSError: if the file cannot be written.
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
    _save(figure, path)


def plot_bars(
    bars: Mapping[str, tuple[float, float, float]],
    path: str | Path,
    *,
    x_label: str,
    title: str = "",
    note: str = "",
    mark: float | None = None,
) -> None:
    """Draws a horizontal bar with an interval for each name into a file, on a logarithmic axis.

    Args:
        bars: length of the bar, lower and upper limit of its interval, by name; all greater than 0.
        path: the file; its suffix determines the format.
        x_label: label of the x axis.
        title: title of the plot.
        note: text below the x axis, e.g. what the intervals are.
        mark: place of a dashed vertical line.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: for a suffix that matplotlib does not support.
        OSError: if the file cannot be written.
    """
    figure = _figure(height=max(2.5, 0.9 + 0.22 * len(bars)))
    axes = figure.subplots()
    values, low, high = np.array([*bars.values()], np.float64).reshape(-1, 3).T
    axes.barh(list(bars), values, xerr=[values - low, high - values], alpha=0.6, capsize=2)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xscale("log")
    if mark is not None:
        axes.axvline(mark, linestyle="--", color="black")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(labelsize="x-small")
    axes.set_xlabel(f"{x_label}\n{note}" if note else x_label)
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    _save(figure, path)


def plot_learning_curve(csv_path: str | Path, png_path: str | Path, final_return: float | None = None) -> None:
    """Draws the mean return of a progress CSV over steps, with a band from the lowest to the highest return.

    Args:
        csv_path: the CSV file.
        png_path: the picture to write.
        final_return: mean return of a final evaluation, drawn as a dashed line.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the file has no row with a return.
    """
    names = ("CumSteps", "ReturnAverage", "ReturnMin", "ReturnMax")
    try:
        columns = read_columns(csv_path, names)
    except UnknownColumn as error:
        raise ValueError(
            f"{csv_path} has no row with a return, and no column {error.name}: no episode ended; train longer"
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
        note="band: lowest to highest episode",
        marks={} if final_return is None else {f"final evaluation: {significant(final_return)}": final_return},
    )


def axis_label(column: str) -> str:
    """Returns the quantity and unit of a column of progress.csv; the column's name if they are unknown."""
    parts = re.fullmatch(r"(.+?)(Average|Std|Median|Min|Max)?", column)
    if parts is None or parts[1] not in _QUANTITIES:
        return column
    return _STATISTICS.get(parts[2], "") + _QUANTITIES[parts[1]]


def _save(figure: Any, path: str | Path) -> None:
    """Writes a figure into a file whose suffix determines the format."""
    picture, path = io.BytesIO(), Path(path)
    figure.savefig(picture, dpi=150, format=path.suffix.lstrip(".") or "png")
    write_whole(path, [picture.getbuffer()])


def _figure(height: float = 4.0) -> Any:
    """Returns an empty figure; raises ImportError, which names the extra, if matplotlib is not installed.

    Args:
        height: height in inches.
    """
    with extra("plot", "learning curves need matplotlib"):
        # Use Figure, not pyplot: it has no global state and does not look for a display.
        from matplotlib.figure import Figure
    return Figure(figsize=(7, height), layout="constrained")
