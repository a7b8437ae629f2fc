"""Which part runs where: the only thing in which the samplers differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Layout", "Slice", "slices_of", "spread", "spread_like"]


@dataclass(frozen=True)
class Layout:
    """processes: the environments step in worker processes (else in this one); served: actions come from an action
    server (else from an agent beside the environments); groups: of environments that are served in turn;
    asynchronous: all of it happens in a process of its own, ahead of the caller.
    """

    processes: bool
    served: bool = False
    groups: int = 1
    asynchronous: bool = False


@dataclass(frozen=True)
class Slice:
    """A run of columns: one worker's part of one group."""

    worker: int
    group: int
    env_ids: tuple[int, ...]


def slices_of(env_ids: Sequence[int], n_workers: int, n_groups: int) -> list[Slice]:
    """Splits environments into groups, and each group over the workers; in column order, group by group.

    At most as many workers as environments: then every worker has something, though not of every group. Later groups
    are dealt out from the last worker on, so that the larger parts do not all fall to the first.
    """
    slices = []
    for group, ids in enumerate(spread(env_ids, n_groups)):
        sizes = [len(part) for part in spread(ids, n_workers)]
        start = 0
        for worker, size in enumerate(sizes if group % 2 == 0 else reversed(sizes)):
            if size:
                slices.append(Slice(worker, group, tuple(ids[start : start + size])))
            start += size
    return slices


def spread_like(items: Sequence[int], slices: Sequence[Slice]) -> list[tuple[int, ...]]:
    """Splits `items` over slices that are there already: evenly over the groups, and over the slices of each."""
    groups = sorted({one.group for one in slices})
    parts: list[tuple[int, ...]] = []
    for group, own in zip(groups, spread(items, len(groups)), strict=True):
        parts += spread(own, sum(one.group == group for one in slices))
    return parts


def spread(items: Sequence[int], n_parts: int) -> list[tuple[int, ...]]:
    """Splits `items` into `n_parts` runs whose lengths differ by at most one, the longer ones first."""
    size, extra = divmod(len(items), n_parts)
    parts, start = [], 0
    for part in range(n_parts):
        stop = start + size + (part < extra)
        parts.append(tuple(items[start:stop]))
        start = stop
    return parts
