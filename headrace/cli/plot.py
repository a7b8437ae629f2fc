"""`headrace plot`: compares runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headrace.checkpoints.run_settings import flattened
from headrace.cli.errors import CommandFailed, UsageError, unknown
from headrace.cli.options import Positional, parse_options
from headrace.plotting import Curve, axis_label, plot_curves, read_columns, summary_of
from headrace.runners.run_folder import RunFolder
from headrace.text import significant

__all__ = ["PlotOptions", "names_of_lines", "run"]

#: Settings that do not tell runs apart, wherever they are nested.
_NOT_COMPARED = {"seed", "log_dir"}
_BANDS = {"range": "least to greatest run", "std": "mean ± standard deviation of the runs"}


@dataclass(kw_only=True)
class PlotOptions:
    """Draws runs into one picture: a line for each setting, the mean over seeds, with a band where there are several.

    Runs whose settings (config.json) differ in the seed only are one line; the legend says what else differs.
    """

    runs: Positional[tuple[Path, ...]] = ()
    """Folders of runs, as headrace train leaves them."""
    x: str = "CumSteps"
    """Column along the bottom: CumSteps, CumTime or any other of progress.csv."""
    y: str = "ReturnAverage"
    """Column to draw: any of progress.csv."""
    label: tuple[str, ...] = ()
    """A name for each line, in the order in which they are printed; what differs between their settings if not
    given."""
    out: Path = Path("comparison.png")
    """The picture; its suffix says the format: png, svg or pdf."""
    smooth: int = 1
    """Draw the mean of so many rows of the log, the last ones."""
    band: Literal["range", "std"] = "range"
    """range: from the least to the greatest run; std: one standard deviation of the runs to either side."""


def run(args: Sequence[str]) -> int:
    """Draws what the options say; returns the exit status."""
    options = parse_options(PlotOptions(), "headrace plot", args)
    if not options.runs:
        raise UsageError("give the folders of one or more runs, for example: headrace plot runs/*")
    if options.smooth < 1:
        raise UsageError(f"--smooth must be at least 1, got {options.smooth}")
    settings = [_settings(path) for path in options.runs]
    curves = [_curve(path, options) for path in options.runs]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, compared in enumerate(settings):
        groups.setdefault(tuple(sorted(compared.items())), []).append(number)
    first_ones = [settings[members[0]] for members in groups.values()]
    labels, not_shown = names_of_lines(first_ones)
    if options.label and not len(labels) == len(options.label) == len(set(options.label)):
        raise UsageError(f"--label needs a name of its own for each line, {len(labels)} of them: {'; '.join(labels)}")
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
    """The two columns of a run, without rows that lack one of them."""
    csv_path = path / "progress.csv"
    try:
        columns = read_columns(csv_path, [options.x, options.y])
    except FileNotFoundError as error:
        raise UsageError(f"{path} holds no progress.csv; give folders that headrace train has written") from error
    except KeyError as error:
        with csv_path.open() as file:
            known = file.readline().strip().split(",")
        raise unknown(f"column of {csv_path}", str(error.args[0]), known) from error
    except ValueError as error:
        raise CommandFailed(str(error)) from error
    x, y = columns[options.x], columns[options.y]
    there = ~(np.isnan(x) | np.isnan(y))
    if not there.any():
        raise CommandFailed(f"{csv_path} has no row with both {options.x} and {options.y}; train longer")
    return Curve(x[there], y[there]).smoothed(options.smooth)


def _settings(path: Path) -> dict[str, Any]:
    """What tells a run from others: its settings, flat; the folder's name for a run that has left none."""
    try:
        config = RunFolder.open(path).config()
    except FileNotFoundError:
        return {"folder": path.resolve().name}
    except ValueError as error:
        raise CommandFailed(str(error)) from error
    named = {
        # "algo.class", as a program of one's own leaves it, is "algo" here, and its value without the module.
        name.removesuffix(".class"): str(value).rpartition(".")[2] if name.endswith(".class") else str(value)
        for name, value in flattened(config).items()
    }
    return {name: value for name, value in named.items() if name.rpartition(".")[2] not in _NOT_COMPARED}


def names_of_lines(settings: Sequence[Mapping[str, str]]) -> tuple[list[str], list[str]]:
    """A name for each line, of as few settings as tell them apart, and the settings of all that differ besides.

    Environment and algorithm go first, then what every line has; the last part of a name stands for it where that is
    enough. With one line, "mean".
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
    """How many lines these settings tell apart."""
    return len({tuple(one.get(name) for name in names) for one in settings})


def _title(settings: Sequence[Mapping[str, Any]]) -> str:
    """The environment and the algorithm, where they are the same for all."""
    shared = [{one.get(name) for one in settings} for name in ("env", "algo")]
    return " · ".join(str(*values) for values in shared if len(values) == 1 and values != {None})
