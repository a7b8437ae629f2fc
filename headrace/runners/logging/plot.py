"""Learning curves as pictures."""

from __future__ import annotations

import csv
from pathlib import Path

__all__ = ["plot_learning_curve"]


def plot_learning_curve(csv_path: str | Path, png_path: str | Path, final_return: float | None = None) -> None:
    """Draws the mean return of a progress CSV over steps, with a band from least to greatest, into a PNG file.

    final_return: the mean return of a final evaluation, a dashed line. Raises ImportError where matplotlib is missing,
    ValueError where the file has no row with a return.
    """
    try:
        # The figure itself, not pyplot: no global state, and no display is looked for.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('learning curves need matplotlib; pip install "headrace[plot]"') from error
    with Path(csv_path).open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("ReturnAverage", "nan") not in ("", "nan")]
    if not rows:
        raise ValueError(f"{csv_path} has no row with a return: no episode ended; train longer, or log less often")

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in rows]

    steps = column("CumSteps")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(steps, column("ReturnMin"), column("ReturnMax"), alpha=0.2, label="least to greatest")
    axes.plot(steps, column("ReturnAverage"), label="mean")
    if final_return is not None:
        axes.axhline(final_return, linestyle="--", color="black", label=f"final evaluation: {final_return:.1f}")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(png_path, dpi=150, format="png")
