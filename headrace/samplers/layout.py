"""Which part runs where: the only thing in which the samplers differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Layout", "spread"]


@dataclass(frozen=True)
class Layout:
    """processes: the environments step in worker processes (else in this one)."""

    processes: bool


def spread(items: Sequence[int], n_parts: int) -> list[tuple[int, ...]]:
    """Splits `items` into `n_parts` runs whose lengths differ by at most one, the longer ones first."""
    size, extra = divmod(len(items), n_parts)
    parts, start = [], 0
    for part in range(n_parts):
        stop = start + size + (part < extra)
        parts.append(tuple(items[start:stop]))
        start = stop
    return parts
