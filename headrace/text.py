"""Numbers as people read them."""

from __future__ import annotations

import math

__all__ = ["significant"]


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
