"""The five numbers rlpyt logs of everything."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

__all__ = ["statistics"]


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
