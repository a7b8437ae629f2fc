"""Formats numbers for people."""

from __future__ import annotations

import math

__all__ = ["significant"]


def significant(value: float, digits: int = 4) -> str:
    """Formats a number with `digits` significant digits, all digits before the point, and no trailing zeros.

    Examples: 0.05, 475.3, 123457. Below 0.0001 and from a quadrillion (1e15) on, it uses an exponent.
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    magnitude = math.floor(math.log10(abs(value)))
    if not -5 < magnitude < 15:
        return f"{value:.{digits}g}"
    text = f"{value:.{max(0, digits - 1 - magnitude)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
