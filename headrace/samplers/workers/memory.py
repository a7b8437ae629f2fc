"""The slots of a sampler in shared memory, for the process that makes them and the processes that attach to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from headrace.buffers.samples import Final, Samples, Slot, SlotSpec, build_slots
from headrace.buffers.shared import shared
from headrace.buffers.tree import tree_map, tree_rows
from headrace.processes.child import Channel
from headrace.samplers.collection.slice import SliceReport

__all__ = ["SlotMemory", "Slots"]


@dataclass(frozen=True)
class SlotMemory:
    """What a worker needs to attach to the slots.

    Args:
        spec: the contents of a slot.
        n_slots: number of slots that batches are written into in turn.
    """

    spec: SlotSpec
    n_slots: int

    def attach(self, channel: Channel) -> list[Slot]:
        """Attaches to the memory whose descriptor arrives next on the channel; returns the slots."""
        arena, slots = shared(partial(build_slots, self.spec, self.n_slots), channel.receive_fd())
        arena.close_fd()
        return slots


class Slots:
    """The shared memory that batches are written into in turn: batch number i into slot i mod n.

    Args:
        spec: the contents of a slot.
        n: number of slots.
        fd: descriptor of another process's arena to attach to. None: allocates a new arena.
    """

    def __init__(self, spec: SlotSpec, n: int, fd: int | None = None) -> None:
        self.arena, self.all = shared(partial(build_slots, spec, n), fd)
        self._views = [Samples.of(slot) for slot in self.all]

    def samples(self, batch_index: int, reports: Sequence[SliceReport]) -> Samples:
        """Returns views of a batch, with its final entries."""
        place = batch_index % len(self.all)
        return self._views[place].with_final(_assembled(reports, self.all[place]))


def _assembled(reports: Sequence[SliceReport], slot: Slot) -> Final:
    """Joins the final entries of all slices into one tree of exactly N, in (time, column) order.

    This is the only copy of a batch, and it is small.
    """
    import torch  # imported here: served workers attach to slots without torch

    if len(reports) == 1 and reports[0].overflow is None:
        n = reports[0].n_final
        return Final(**vars(tree_map(lambda leaf: torch.from_numpy(leaf[:n].copy()), slot.final[0])))
    parts = []
    for report, region in zip(reports, slot.final, strict=True):
        parts.append(tree_rows(region, slice(0, report.n_final)))
        if report.overflow is not None:
            parts.append(report.overflow)
    order = np.lexsort((np.concatenate([part.column for part in parts]), np.concatenate([part.time for part in parts])))
    whole = tree_map(lambda *leaves: torch.from_numpy(np.concatenate(leaves)[order]), parts[0], *parts[1:])
    return Final(**vars(whole))
