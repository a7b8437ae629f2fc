"""`headrace plot`: compares runs in one plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headrace.checkpoints.run_settings import flattened
from headrace.cli.errors import CommandFailed, UsageError, no_such_file, require_at_least, unknown
from headrace.cli.options import Positional, parse_options
from headrace.plotting import Curve, UnknownColumn, axis_label, plot_curves, read_columns, summary_of
from headrace.runners.run_folder import RunFolder
from headrace.text import significant

__all__ = ["PlotOptions", "names_of_lines", "run"]

#: Settings that do not distinguish runs, at every level of nesting.
_NOT_COMPARED = {"seed", "log_dir"}
_BANDS = {"range": "lowest to highest run", "std": "mean ± standard deviation of the runs"}


@dataclass(kw_only=True)
class PlotOptions:
    """Plots runs: for each setting, a line for the mean over the seeds, with a band if there are several.

    Runs whose settings (config.json) differ only in the seed share a line; the legend shows what else differs.
    """

    runs: Positional[tuple[Path, ...]] = ()
    """Folders of runs."""
    x: str = "CumSteps"
    """Column of progress.csv for the x axis: CumSteps, CumTime or any other."""
    y: str = "ReturnAverage"
    """Column of progress.csv for the y axis."""
    label: tuple[str, ...] = ()
    """A name for each line, in the order in which they are printed. Default: the settings in which they differ."""
    out: Path = Path("comparison.png")
    """File to write; its suffix determines the format: png, svg or pdf."""
    smooth: int = 1
    """Plot the mean of this many log rows: each row and those before it."""
    band: Literal["range", "std"] = "range"
    """range: from the lowest to the highest run; std: one standard deviation of the runs to either side."""


def run(args: Sequence[str]) -> int:
    """Plots as the options say; returns the exit status."""
    options = parse_options(PlotOptions(), "headrace plot", args)
    if not options.runs:
        raise UsageError("give the folders of one or more runs, for example: headrace plot runs/*")
    require_at_least(1, "smooth", options.smooth)
    settings = [_settings(path) for path in options.runs]
    curves = [_curve(path, options) for path in options.runs]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, compared in enumerate(settings):
        groups.setdefault(tuple(sorted(compared.items())), []).append(number)
    first_ones = [settings[members[0]] for members in groups.values()]
    labels, not_shown = names_of_lines(first_ones)
    if options.label and not len(labels) == len(options.label) == len(set(options.label)):
        raise UsageError(
            f"--label needs a different name for each line; there are {len(labels)} lines: {'; '.join(labels)}"
        )
    try:
        summaries = {
            label: summary_of([curves[number] for number in members], options.band)
            for label, members in zip(options.label or labels, groups.values(), strict=True)
        }
        several = any(len(members) > 1 for members in groups.values())
        plot_curves(
            summaries,
            options.out,
            x_label=axis_label(options.x),
            y_label=axis_label(options.y),
            title=_title(first_ones),
            note=f"band: {_BANDS[options.band]}" if several else "",
        )
    except (ImportError, ValueError) as error:
        raise CommandFailed(str(error)) from error
    for label, summary in summaries.items():
        runs = "1 run" if summary.n_runs == 1 else f"{summary.n_runs} runs"
        y, x = significant(summary.mean[-1]), significant(summary.x[-1])
        print(f"{label}: {runs}, {options.y} {y} at {options.x} {x}")
    if not_shown:
        print(f"  also differ     {', '.join(not_shown)}")
    print(f"  picture         {options.out}")
    return 0


def _curve(path: Path, options: PlotOptions) -> Curve:
    """Returns the two columns of a run, without rows that lack one of them."""
    csv_path = path / "progress.csv"
    try:
        columns = read_columns(csv_path, [options.x, options.y])
    except (FileNotFoundError, NotADirectoryError) as error:
        if not path.exists():
            raise no_such_file(path, "give folders of runs") from error
        what = "contains no progress.csv" if path.is_dir() else "is a file"
        raise UsageError(f"{path} {what}; give folders of runs") from error
    except UnknownColumn as error:
        raise unknown(f"column of {csv_path}", error.name, error.known) from error
    except ValueError as error:
        raise CommandFailed(str(error)) from error
    x, y = columns[options.x], columns[options.y]
    there = ~(np.isnan(x) | np.isnan(y))
    if not there.any():
        raise CommandFailed(
            f"{csv_path} has no row with both {options.x} and {options.y}; train longer, or choose other columns"
        )
    return Curve(x[there], y[there]).smoothed(options.smooth)


def _settings(path: Path) -> dict[str, Any]:
    """Returns what distinguishes a run from others: its settings, flat; without settings, the folder's name."""
    try:
        config = RunFolder.open(path).config()
    except (FileNotFoundError, NotADirectoryError):
        return {"folder": path.resolve().name}
    except ValueError as error:
        raise CommandFailed(str(error)) from error
    named = {
        # Runs of Python programs have "algo.class" in place of "algo", and the module before the value.
        name.removesuffix(".class"): str(value).rpartition(".")[2] if name.endswith(".class") else str(value)
        for name, value in flattened(config).items()
    }
    return {name: value for name, value in named.items() if name.rpartition(".")[2] not in _NOT_COMPARED}


def names_of_lines(settings: Sequence[Mapping[str, str]]) -> tuple[list[str], list[str]]:
    """Returns a name for each line, and the names of the other settings in which the lines differ.

    A name consists of as few settings as distinguish the lines: environment and algorithm first, then settings that
    every line has. Settings are called by the last part of their name if that is unique. A single line is "mean".
    """
    names = dict.fromkeys(["env", "algo", *(name for one in settings for name in one)])
    differing = [name for name in names if len({one.get(name) for one in settings}) > 1]
    differing.sort(key=lambda name: (name not in ("env", "algo"), any(name not in one for one in settings)))
    shown: list[str] = []
    for name in differing:
        if _n_apart(settings, [*shown, name]) > _n_apart(settings, shown):
            shown.append(name)
    besides = [name for name in differing if name not in shown and all(name in one for one in settings)]
    last = [name.rpartition(".")[2] for name in (*shown, *besides)]
    short = {name: one if last.count(one) == 1 else name for name, one in zip((*shown, *besides), last, strict=True)}
    labels = [", ".join(f"{short[name]}={one[name]}" for name in shown if name in one) or "mean" for one in settings]
    return labels, [short[name] for name in besides]


def _n_apart(settings: Sequence[Mapping[str, str]], names: Sequence[str]) -> int:
    """Returns how many lines these settings distinguish."""
    return len({tuple(one.get(name) for name in names) for one in settings})


def _title(settings: Sequence[Mapping[str, Any]]) -> str:
    """Returns the environment and the algorithm, each if it is the same for all lines."""
    shared = [{one.get(name) for one in settings} for name in ("env", "algo")]
    return " · ".join(str(*values) for values in shared if len(values) == 1 and values != {None})
