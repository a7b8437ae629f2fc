"""The five numbers rlpyt logs of everything, and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

__all__ = ["significant", "statistics"]


def statistics(name: str, values: Iterable[float]) -> dict[str, float]:
    """`{nameAverage, nameStd, nameMedian, nameMin, nameMax}` of the values that are not NaN; all NaN if none are."""
    array = np.array([value for value in values if value == value], np.float64)
    if not len(array):
        return {name + kind: float("nan") for kind in ("Average", "Std", "Median", "Min", "Max")}
    return {
        name + "Average": float(array.mean()),
        name + "Std": float(array.std()),
        name + "Median": float(np.median(array)),
        name + "Min": float(array.min()),
        name + "Max": float(array.max()),
    }


def significant(value: float, digits: int = 4) -> str:
    """The number with so many significant digits, all of those before the point, and no zeros at the end: 0.05, 475.3,
    123457; with an exponent below 0.0001 and beyond a quadrillion.
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    magnitude = math.floor(math.log10(abs(value)))
    if not -5 < magnitude < 15:
        return f"{value:.{digits}g}"
    text = f"{value:.{max(0, digits - 1 - magnitude)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
