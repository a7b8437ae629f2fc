"""The server of inference streams in shared memory; `headrace.streams.inference.slots` says how requests are passed."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns

import numpy as np

from headrace.buffers.shared import shared
from headrace.errors import StreamError
from headrace.memory import WEAKLY_ORDERED, fence
from headrace.processes.handoff import Bell
from headrace.streams.connections import Listener
from headrace.streams.inference.endpoint import Clock
from headrace.streams.inference.server import InferenceBatch, InferenceServer
from headrace.streams.inference.shared_reception import Member, Reception, SlotRows
from headrace.streams.inference.slots import MAX_NAMES, build_table
from headrace.streams.inference.trees import Leaves
from headrace.streams.inference.waiting import polled
from headrace.types import Tree

__all__ = ["SharedMemoryServer"]

_TICK_MS = 50  # a sleeping server looks for requests this often in any case


@dataclass(eq=False)
class _Taken:
    """Where the answers of a batch go. numbers: of the requests in their slots; n_gone: clients that had gone before;
    answered: whether there were answers.
    """

    slots: np.ndarray
    numbers: np.ndarray
    owners: list[Member | None]
    n_gone: int
    answered: bool = False


class SharedMemoryServer(InferenceServer):
    """A server whose requests and results are in shared memory. Batches are gathered with one indexed read per array.

    Args:
        name: name of the stream.
        address: where clients find it, from `address_of`.
        capacity: slots: requests of all clients together that may be on their way at a time.
        example: an example of a request and of a result.
        clock: returns seconds.

    Raises:
        StreamError: if another server has the address.
    """

    def __init__(
        self,
        name: str,
        address: str,
        *,
        capacity: int,
        example: tuple[Tree, Tree] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(name, address, example=example, clock=clock)
        self._arena, self._table = shared(partial(build_table, capacity))
        assert self._arena.fd is not None
        self._bell_fds = Bell.pipe()
        self._bell = Bell(self._table.parked, read_fd=self._bell_fds[0])
        self._poll = select.poll()
        self._poll.register(self._bell_fds[0], select.POLLIN)
        self._fence = threading.Lock()
        self._policies: dict[str, int] = {}
        self._taken = np.zeros(capacity, np.int64)  # the last request of each slot that was taken, or dropped
        self._since = np.full(capacity, np.nan)  # when requests that wait for others, or for their turn, were seen
        self._ready = np.empty(0, np.int64)  # slots whose requests wait
        self._arrival = clock()  # of requests that are seen now
        self._last = -1  # the slot that was taken last; the next batch begins behind it
        self._reception = Reception(
            name,
            self._table,
            self._arena.fd,
            self._bell,
            self._bell_fds[1],
            SlotRows(self._requests, capacity),
            SlotRows(self._results, capacity),
            self._drop,
            self._count_rejected,
        )
        try:
            self._listener = Listener(address, self._reception.handle, self._reception.gone, self._count_rejected)
        except BaseException as error:
            self._closed = True
            self._close_fds()
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise StreamError(
                    f"stream {name!r} has a server on this machine already; close that one, or give the streams "
                    "different names, or each server a rank of its own"
                ) from None
            raise

    def set_constant(self, name: str, tree: Tree) -> None:
        """See `InferenceServer`."""
        self._check_open()
        self._reception.set_constant(name, tree)

    def _drop(self, slots: list[int]) -> None:
        """Drops the requests in slots of nobody, into which nobody writes any more."""
        self._taken[slots] = self._table.asked[slots]
        self._since[slots] = np.nan
        self._ready = self._ready[~np.isin(self._ready, slots)]

    def _count_rejected(self) -> None:
        self.counts.rejected += 1

    def _look(self, since: float, enough: Callable[[int], bool]) -> int:
        self._arrival = since
        with self._reception.lock:
            self._ready = ((self._table.asked != self._taken) & self._reception.owned).nonzero()[0]
            return len(self._ready)

    def _oldest(self) -> float:
        with self._reception.lock:
            return self._waiting_since(self._ready)

    def _waiting_since(self, slots: np.ndarray) -> float:
        """Returns when the first of these requests was seen; notes it for those that were not seen before."""
        since = self._since[slots]
        since[np.isnan(since)] = self._arrival
        self._since[slots] = since
        return float(since.min(initial=np.inf))

    def _take(self, n: int) -> InferenceBatch:
        table = self._table
        with self._reception.lock:
            slots = self._ready
            if len(slots) > n:
                begin = int(np.searchsorted(slots, self._last, side="right"))
                self._waiting_since(slots)
                slots = np.concatenate((slots[begin:], slots[:begin]))[:n]
            if not len(slots):
                return InferenceBatch(None, (), slots, slots)
            rows, owners_of_all = self._reception.requests, self._reception.owners
            assert rows.layout is not None
            self._last = int(slots[-1])
            numbers = table.asked.take(slots)
            owners = [owners_of_all[slot] for slot in slots.tolist()]
            if WEAKLY_ORDERED:
                fence(self._fence)
            self._taken[slots] = numbers
            self._since[slots] = np.nan
            return InferenceBatch(
                requests=rows.layout.tree([leaf.take(slots, 0) for leaf in rows.leaves]),
                clients=[b"" if owner is None else owner.id for owner in owners],
                agents=table.agents.take(slots),
                ids=table.ids.take(slots),
                places=_Taken(slots, numbers, owners, self._reception.n_gone),
            )

    def _sleep(self, seconds: float) -> None:
        self._reception.patience.decide()
        waiting, end = len(self._ready), perf_counter_ns() + int(seconds * 1e9)
        spin_ns = min(int(seconds * 1e9), self._table.spin_ns[0])
        if polled(lambda: self._n_waiting() != waiting, spin_ns) or perf_counter_ns() >= end:
            return
        parked = self._bell.parked
        parked[0] = 1
        fence(self._fence)  # a client increments its counter before it looks whether this process sleeps
        try:
            left_ms = (end - perf_counter_ns()) // 1_000_000
            if self._n_waiting() == waiting and self._poll.poll(min(_TICK_MS, max(1, left_ms))):
                self._bell.silence()
        finally:
            parked[0] = 0

    def _n_waiting(self) -> int:
        return int(np.count_nonzero((self._table.asked != self._taken) & self._reception.owned))

    def _answer(self, batch: InferenceBatch, leaves: Leaves, policy_name: str, policy_version: int) -> None:
        taken: _Taken = batch.places
        if taken.answered:
            self.counts.duplicates += len(batch)
            return
        table = self._table
        assert self._results is not None
        with self._reception.lock:
            self._reception.results.reserve(self._results)
            policy = self._policy(policy_name)
            taken.answered = True
            slots, numbers, owners = taken.slots, taken.numbers, taken.owners
            if taken.n_gone != self._reception.n_gone:  # a slot may have another owner
                rows = [row for row, slot in enumerate(slots.tolist()) if self._reception.owners[slot] is owners[row]]
                self.counts.lost += len(slots) - len(rows)
                slots, numbers, owners = slots[rows], numbers[rows], [owners[row] for row in rows]
                leaves = [leaf[rows] for leaf in leaves]
            self.counts.answered += len(slots)
            for to, leaf in zip(self._reception.results.leaves, leaves, strict=True):
                to[slots] = leaf
            table.policies[slots] = policy, policy_version
            if WEAKLY_ORDERED:
                fence(self._fence)
            table.answered[slots] = numbers
            for client in dict.fromkeys(owners):
                assert client is not None
                client.handoff.post()

    def _policy(self, name: str) -> int:
        """Returns the row of a policy's name in the table."""
        if name not in self._policies:
            number = len(self._policies)
            if number == MAX_NAMES:
                raise StreamError(f"a server answers with {MAX_NAMES} different policy names at most; number versions")
            encoded_name = np.frombuffer(name.encode(), np.uint8)
            self._table.names[number, : len(encoded_name)] = encoded_name
            self._policies[name] = number
        return self._policies[name]

    def _leave(self) -> None:
        self._listener.close()
        self._close_fds()
        # The memory is unmapped when nobody refers to it any more.
        del self._arena, self._table, self._bell, self._reception, self._listener

    def _close_fds(self) -> None:
        self._arena.close_fd()
        self._reception.requests.close()
        self._reception.results.close()
        for fd in self._bell_fds:
            os.close(fd)
