"""The memory of inference streams in shared memory: slots for requests and results, and counters that pass them on.

A slot belongs to one client, and holds one request until it is answered. Its two counters pass it to and fro: a
client writes a request and then increments `asked`; the server writes the result and then sets `answered` to the number
that it found in `asked`. Each counter is written by one side only, and never set back, so there is no flag to clear and
no lock: a request waits if `asked` differs from the number that the server took last, and an answer is there if
`answered` equals `asked`. The answer to an earlier request of the slot, or of an earlier owner, never does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headrace.buffers.shared import Allocate
from headrace.buffers.tree import tree_leaves
from headrace.processes.handoff import Cell, make_cell
from headrace.streams.inference.server import MAX_NAME_BYTES
from headrace.streams.inference.trees import Leaves
from headrace.types import Tree

__all__ = ["MAX_NAMES", "ClientCells", "Table", "build_rows", "build_table"]

#: Different names of policies, during the life of a server.
MAX_NAMES = 256


@dataclass(frozen=True)
class ClientCells:
    """Numbers of one client. posted: flushes; answered: batches with answers for it; parked: whether it sleeps."""

    posted: Cell
    answered: Cell
    parked: Cell


@dataclass(frozen=True)
class Table:
    """What is known of every slot, int64 `[capacity]` each.

    Args:
        parked: whether the server sleeps.
        spin_ns: nanoseconds to poll before sleeping; see `headrace.processes.patience`.
        clients: numbers of each client.
        asked: requests that were written into the slot so far.
        answered: the request, by its number in `asked`, whose result is in the slot.
        agents: index of the agent that asks.
        ids: id of the request.
        policies: of the policy that answered, the row of `names` with its name and its version, `[capacity, 2]`.
        names: of policies, uint8 `[MAX_NAMES, MAX_NAME_BYTES]`, filled with zeros.
    """

    parked: Cell
    spin_ns: Cell
    clients: list[ClientCells]
    asked: np.ndarray
    answered: np.ndarray
    agents: np.ndarray
    ids: np.ndarray
    policies: np.ndarray
    names: np.ndarray

    def name(self, policy: int) -> str:
        """Returns the name of a policy."""
        return bytes(self.names[policy]).rstrip(b"\0").decode()


def build_table(capacity: int, allocate: Allocate) -> Table:
    """Returns the table of `capacity` slots, and of as many clients."""

    def numbers() -> np.ndarray:
        return allocate((capacity,), np.dtype(np.int64))

    def cell() -> Cell:
        return make_cell(allocate)

    return Table(
        parked=cell(),
        spin_ns=cell(),
        clients=[ClientCells(cell(), cell(), cell()) for _ in range(capacity)],
        asked=numbers(),
        answered=numbers(),
        agents=numbers(),
        ids=numbers(),
        policies=allocate((capacity, 2), np.dtype(np.int64)),
        names=allocate((MAX_NAMES, MAX_NAME_BYTES), np.dtype(np.uint8)),
    )


def build_rows(row: Tree, capacity: int, allocate: Allocate) -> Leaves:
    """Returns arrays `[capacity, ...]` for the requests, or the results, of all slots."""
    return [allocate((capacity, *leaf.shape), leaf.dtype) for leaf in tree_leaves(row)]
