"""The slots of a sampler in shared memory, in the process that makes them and in those that attach to them."""

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
    """What a worker needs to attach to the slots that batches are written into in turn."""

    spec: SlotSpec
    n_slots: int

    def attach(self, channel: Channel) -> list[Slot]:
        """Attaches to the memory whose descriptor comes next."""
        arena, slots = shared(partial(build_slots, self.spec, self.n_slots), channel.receive_fd())
        arena.close_fd()
        return slots


class Slots:
    """The shared memory that batches are written into in turn: batch number i into slot i mod n."""

    def __init__(self, spec: SlotSpec, n: int, fd: int | None = None) -> None:
        """fd: of the arena of another process, to attach to."""
        self.arena, self.all = shared(partial(build_slots, spec, n), fd)
        self._views = [Samples.of(slot) for slot in self.all]

    def samples(self, batch_index: int, reports: Sequence[SliceReport]) -> Samples:
        """Views of a batch, with its final entries."""
        place = batch_index % len(self.all)
        return self._views[place].with_final(_assembled(reports, self.all[place]))


def _assembled(reports: Sequence[SliceReport], slot: Slot) -> Final:
    """The final entries of all slices as one tree of exactly N, in (time, column) order: the one small copy."""
    import torch  # served workers attach to slots without it

    parts = []
    for report, region in zip(reports, slot.final, strict=True):
        parts.append(tree_rows(region, slice(0, report.n_final)))
        if report.overflow is not None:
            parts.append(report.overflow)
    order = np.lexsort((np.concatenate([part.column for part in parts]), np.concatenate([part.time for part in parts])))
    whole = tree_map(lambda *leaves: torch.from_numpy(np.concatenate(leaves)[order]), parts[0], *parts[1:])
    return Final(**vars(whole))
