"""`Layout`: which part runs in which process. The samplers differ only in this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["Layout", "Slice", "slices_of", "spread", "spread_like"]


@dataclass(frozen=True)
class Layout:
    """Where environments step and where actions are computed.

    Args:
        processes: whether environments step in worker processes, instead of the sampler's process.
        served: whether an action server computes the actions, instead of an agent in the environments' process.
        groups: number of groups of environments that are served in turn.
        overlap: whether one group may step while another does.
        asynchronous: whether the sampler runs in a separate process, ahead of the caller.
    """

    processes: bool
    served: bool = False
    groups: int = 1
    overlap: bool = True
    asynchronous: bool = False

    @property
    def ahead(self) -> Layout:
        """The same layout in a separate process."""
        return replace(self, asynchronous=True)

    @property
    def inner(self) -> Layout:
        """The layout of the sampler inside the sampler process."""
        return replace(self, asynchronous=False)

    @property
    def acts_in_workers(self) -> bool:
        """Whether agents act on the CPU in processes other than the caller's."""
        return not self.served and (self.processes or self.asynchronous)


@dataclass(frozen=True)
class Slice:
    """The columns of one worker in one group: a contiguous range.

    Args:
        worker: index of the worker.
        group: index of the group.
        env_ids: global numbers of the environments.
    """

    worker: int
    group: int
    env_ids: tuple[int, ...]


def slices_of(env_ids: Sequence[int], n_workers: int, n_groups: int) -> list[Slice]:
    """Splits environments into groups and each group over the workers.

    `n_workers` must not exceed the number of environments; then every worker has at least one environment, though not
    necessarily one of every group. Every second group is distributed starting from the last worker, so that the larger
    parts do not all go to the first workers.

    Args:
        env_ids: global numbers of the environments.
        n_workers: number of workers.
        n_groups: number of groups.

    Returns:
        The slices in column order, group by group.
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
    """Splits `items` over existing slices: evenly over the groups, then evenly over the slices of each group."""
    groups = sorted({one.group for one in slices})
    parts: list[tuple[int, ...]] = []
    for group, own in zip(groups, spread(items, len(groups)), strict=True):
        parts += spread(own, sum(one.group == group for one in slices))
    return parts


def spread(items: Sequence[int], n_parts: int) -> list[tuple[int, ...]]:
    """Splits `items` into `n_parts` contiguous parts whose lengths differ by at most one, longer parts first."""
    size, extra = divmod(len(items), n_parts)
    parts, start = [], 0
    for part in range(n_parts):
        stop = start + size + (part < extra)
        parts.append(tuple(items[start:stop]))
        start = stop
    return parts
