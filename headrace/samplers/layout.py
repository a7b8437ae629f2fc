"""Which part runs where: the only thing in which the samplers differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["Layout", "Slice", "slices_of", "spread", "spread_like"]


@dataclass(frozen=True)
class Layout:
    """Where environments step, and where actions come from.

    Args:
        processes: environments step in worker processes, else in the process of the sampler.
        served: actions come from an action server, else from an agent beside the environments.
        groups: number of groups of environments that are served in turn.
        overlap: whether one group may step while another does.
        asynchronous: the sampler runs in a process of its own, ahead of the caller.
    """

    processes: bool
    served: bool = False
    groups: int = 1
    overlap: bool = True
    asynchronous: bool = False

    @property
    def ahead(self) -> Layout:
        """The same layout in a process of its own."""
        return replace(self, asynchronous=True)

    @property
    def inner(self) -> Layout:
        """The layout of the sampler that the sampler process runs."""
        return replace(self, asynchronous=False)

    @property
    def acts_in_workers(self) -> bool:
        """Whether agents act in processes of their own, on the CPU."""
        return not self.served and (self.processes or self.asynchronous)


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
