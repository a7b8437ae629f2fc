"""The server of inference streams in shared memory; `headrace.streams.inference.slots` says how requests are passed."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter_ns

import numpy as np

from headrace.buffers.shared import Arena, shared
from headrace.errors import FrameRejected, StreamError
from headrace.memory import WEAKLY_ORDERED, anonymous_file, fence
from headrace.processes.affinity import cpu_quota, usable_cores
from headrace.processes.handoff import Bell, Handoff
from headrace.processes.patience import Patience
from headrace.streams.codec import Frame, encoded
from headrace.streams.inference.control import ControlThread, Conversation, Ended, joined
from headrace.streams.inference.endpoint import Clock
from headrace.streams.inference.messages import content_of
from headrace.streams.inference.server import InferenceBatch, InferenceServer
from headrace.streams.inference.slots import MAX_NAMES, build_rows, build_table
from headrace.streams.inference.trees import Layout, Leaves
from headrace.types import Tree

__all__ = ["SharedMemoryServer"]

_TICK_MS = 50  # a sleeping server looks for requests this often in any case


@dataclass(eq=False)
class _Client:
    """A connected client. cell: its place in `Table.clients`; bell_fd: wakes it."""

    id: bytes
    pid: int
    cell: int
    handoff: Handoff
    bell_fd: int
    slots: list[int] = field(default_factory=list)


@dataclass(eq=False)
class _Taken:
    """Where the answers of a batch go. numbers: of the requests in their slots; n_gone: clients that had gone before;
    answered: whether there were answers.
    """

    slots: np.ndarray
    numbers: np.ndarray
    owners: list[_Client | None]
    n_gone: int
    answered: bool = False


class _Rows:
    """The requests, or the results, of all slots, and the memory that they are in."""

    def __init__(self, layout: Layout, capacity: int) -> None:
        self._arena, self.leaves = shared(partial(build_rows, layout.row, capacity))

    @property
    def fd(self) -> int:
        """The descriptor of the memory."""
        return _fd(self._arena)

    def close(self) -> None:
        """Closes the descriptor."""
        self._arena.close_fd()


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
        self._capacity = capacity
        self._arena, self._table = shared(partial(build_table, capacity))
        self._request_rows = None if self._requests is None else _Rows(self._requests, capacity)
        self._result_rows = None if self._results is None else _Rows(self._results, capacity)
        self._bell_fds = Bell.pipe()
        self._bell = Bell(self._table.parked, read_fd=self._bell_fds[0])
        self._poll = select.poll()
        self._poll.register(self._bell_fds[0], select.POLLIN)
        self._fence = threading.Lock()
        # All below is shared with the control thread.
        self._lock = threading.Lock()
        self._taken = np.zeros(capacity, np.int64)  # the last request of each slot that was taken, or dropped
        self._since = np.full(capacity, np.nan)  # when requests that wait for others, or for their turn, were seen
        self._ready = np.empty(0, np.int64)  # slots whose requests wait
        self._n_gone = 0
        self._last = -1  # the slot that was taken last; the next batch begins behind it
        self._owners: list[_Client | None] = [None] * capacity
        self._free = [*range(capacity)][::-1]
        self._free_cells = [*range(capacity)][::-1]
        self._clients: dict[Conversation, _Client] = {}
        self._policies: dict[str, int] = {}
        self._constants: dict[str, bytes] = {}
        self._askers: dict[str, list[tuple[Conversation, int]]] = {}  # who waits for a constant that is not set
        self._set_patience()
        try:
            self._thread = ControlThread(address, name, self._handle, self._gone, self._count_rejected)
        except BaseException:
            self._closed = True
            self._close_fds()
            raise

    # ---- what clients ask the control thread ----

    def _handle(self, conversation: Conversation) -> None:
        fds: list[int] = []
        try:
            frame, fds = conversation.receive()
            kind, content = content_of(frame)
            with self._lock:
                if kind == "hello":
                    self._welcome(conversation, frame, fds)
                elif conversation not in self._clients:
                    raise FrameRejected("a client has not said who it is")
                elif kind == "requests":
                    self._declare(conversation, frame.sequence, content)
                elif kind == "results":
                    self._send_results(conversation, frame.sequence)
                elif kind == "slots":
                    self._grant(conversation, frame.sequence, content)
                elif kind == "constant":
                    self._ask_constant(conversation, frame.sequence, content)
                else:
                    raise FrameRejected(f"a message is of the kind {kind!r}, which clients do not send")
        except FrameRejected:
            self._count_rejected()
            raise
        finally:
            for fd in fds:
                os.close(fd)

    def _welcome(self, conversation: Conversation, frame: Frame, fds: Sequence[int]) -> None:
        if len(fds) != 1 or not frame.producer or conversation in self._clients:
            raise FrameRejected("a client does not say who it is, or has no bell")
        reason = ""
        if any(client.id == frame.producer for client in self._clients.values()):
            reason = f"another client of stream {self._name!r} has the same client_id"
        elif not self._free_cells:
            reason = f"stream {self._name!r} has {self._capacity} clients already, {_MORE}"
        if reason:
            self.counts.rejected += 1
            conversation.send({"error": reason}, number=frame.sequence)
            return
        cell = self._free_cells.pop()
        cells = self._table.clients[cell]
        cells.parked[0] = 0  # an earlier client may have been killed in its sleep
        bell_fd = os.dup(fds[0])
        bell = Bell(cells.parked, write_fd=bell_fd)
        handoff = Handoff(cells.answered, [cells.posted], self._bell, [bell], spin_ns=self._table.spin_ns)
        self._clients[conversation] = _Client(frame.producer, conversation.pid, cell, handoff, bell_fd)
        self._set_patience()
        fds_of_server = [_fd(self._arena), self._bell_fds[1]]
        conversation.send({"cell": cell, "capacity": self._capacity}, fds_of_server, number=frame.sequence)

    def _declare(self, conversation: Conversation, number: int, content: Tree) -> None:
        """Checks the layout of a client's requests, or takes over that of the first one; passes their memory."""
        declared = content.get("layout")
        try:
            layout = self._requests or Layout.of_batch(declared, "request")
            layout.leaves(declared, 0)
            if self._request_rows is None:
                self._request_rows = _Rows(layout, self._capacity)
            self._requests = layout
        except (TypeError, ValueError, MemoryError) as error:
            self.counts.rejected += 1
            conversation.send({"error": str(error)}, number=number)
            return
        conversation.send({"ok": True}, [self._request_rows.fd], number=number)

    def _send_results(self, conversation: Conversation, number: int) -> None:
        if self._results is None or self._result_rows is None:
            raise FrameRejected("a client asks for results, and nothing was answered")
        conversation.send({"layout": self._results.empty()}, [self._result_rows.fd], number=number)

    def _grant(self, conversation: Conversation, number: int, content: Tree) -> None:
        n, client = content.get("n"), self._clients[conversation]
        if type(n) is not int or n < 1:
            raise FrameRejected("a client asks for no number of slots")
        if n > len(self._free):
            taken = self._capacity - len(self._free)
            reason = f"stream {self._name!r} has {self._capacity} slots, {taken} are taken and {n} more are asked for, "
            conversation.send({"error": reason + _MORE}, number=number)
            return
        slots = [self._free.pop() for _ in range(n)]
        for slot in slots:
            self._owners[slot] = client
        client.slots += slots
        conversation.send({"slots": np.array(slots, np.int64)}, number=number)

    def _ask_constant(self, conversation: Conversation, number: int, content: Tree) -> None:
        name = content.get("name")
        if type(name) is not str:
            raise FrameRejected("a client asks for no constant")
        self._askers.setdefault(name, []).append((conversation, number))
        if name in self._constants:
            self._send_constant(name)

    def _send_constant(self, name: str) -> None:
        """Sends a constant to all who wait for it, in memory of its own, because it may be large."""
        data = self._constants[name]
        fd = anonymous_file(len(data))
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            for conversation, number in self._askers.pop(name, []):
                with suppress(Ended, OSError):  # it has gone, or does not read
                    conversation.send({"nbytes": len(data)}, [fd], number=number)
        finally:
            os.close(fd)

    def _gone(self, conversation: Conversation) -> None:
        """Frees what a client had. Its requests that wait are dropped; it does not write any more."""
        with self._lock:
            client = self._clients.pop(conversation, None)
            if client is None:
                return
            self._taken[client.slots] = self._table.asked[client.slots]
            self._since[client.slots] = np.nan
            self._ready = self._ready[~np.isin(self._ready, client.slots)]
            self._n_gone += 1
            for slot in client.slots:
                self._owners[slot] = None
            self._free += client.slots
            self._free_cells.append(client.cell)
            os.close(client.bell_fd)
            self._set_patience()

    def _count_rejected(self) -> None:
        self.counts.rejected += 1

    def _set_patience(self) -> None:
        pids = {os.getpid(), *(client.pid for client in self._clients.values())}
        self._patience = Patience(self._table.spin_ns, [*pids], usable_cores(), cpu_quota())

    # ---- batches ----

    def set_constant(self, name: str, tree: Tree) -> None:
        """See `InferenceServer`."""
        self._check_open()
        data = joined(encoded(Frame(tree)))
        with self._lock:
            self._constants[name] = data
            if name in self._askers:
                self._send_constant(name)

    def _look(self) -> int:
        with self._lock:
            self._ready = (self._table.asked != self._taken).nonzero()[0]
            return len(self._ready)

    def _oldest(self) -> float:
        with self._lock:
            return self._waiting_since(self._ready)

    def _waiting_since(self, slots: np.ndarray) -> float:
        """Returns when the first of these requests was seen; notes it for those that were not seen before."""
        since = self._since[slots]
        since[np.isnan(since)] = self._clock()
        self._since[slots] = since
        return float(since.min(initial=np.inf))

    def _take(self, n: int) -> InferenceBatch:
        table = self._table
        with self._lock:
            slots = self._ready
            if len(slots) > n:
                begin = int(np.searchsorted(slots, self._last, side="right"))
                self._waiting_since(slots)
                slots = np.concatenate((slots[begin:], slots[:begin]))[:n]
            if not len(slots):
                return InferenceBatch(None, (), slots, slots)
            assert self._requests is not None
            assert self._request_rows is not None
            self._last = int(slots[-1])
            numbers = table.asked.take(slots)
            owners = [self._owners[slot] for slot in slots.tolist()]
            if WEAKLY_ORDERED:
                fence(self._fence)
            self._taken[slots] = numbers
            self._since[slots] = np.nan
            return InferenceBatch(
                requests=self._requests.tree([leaf.take(slots, 0) for leaf in self._request_rows.leaves]),
                clients=[b"" if owner is None else owner.id for owner in owners],
                agents=table.agents.take(slots),
                ids=table.ids.take(slots),
                places=_Taken(slots, numbers, owners, self._n_gone),
            )

    def _sleep(self, seconds: float) -> None:
        self._patience.decide()
        waiting, now = len(self._ready), perf_counter_ns()
        end = now + int(seconds * 1e9)
        spin_end = min(end, now + self._table.spin_ns[0])
        while now < spin_end:
            if self._n_waiting() != waiting:
                return
            os.sched_yield()
            now = perf_counter_ns()
        if now >= end:
            return
        parked = self._bell.parked
        parked[0] = 1
        fence(self._fence)  # a client increments its counter before it looks whether this process sleeps
        try:
            left_ms = (end - now) // 1_000_000
            if self._n_waiting() == waiting and self._poll.poll(min(_TICK_MS, max(1, left_ms))):
                self._bell.silence()
        finally:
            parked[0] = 0

    def _n_waiting(self) -> int:
        return int(np.count_nonzero(self._table.asked != self._taken))

    def _answer(self, batch: InferenceBatch, leaves: Leaves, policy_name: str, policy_version: int) -> None:
        taken: _Taken = batch.places
        if taken.answered:
            self.counts.duplicates += len(batch)
            return
        table = self._table
        with self._lock:
            if self._result_rows is None:
                assert self._results is not None
                self._result_rows = _Rows(self._results, self._capacity)
            policy = self._policy(policy_name)
            taken.answered = True
            slots, numbers, owners = taken.slots, taken.numbers, taken.owners
            if taken.n_gone != self._n_gone:  # a slot may have another owner
                rows = [row for row, slot in enumerate(slots.tolist()) if self._owners[slot] is owners[row]]
                self.counts.lost += len(slots) - len(rows)
                slots, numbers, owners = slots[rows], numbers[rows], [owners[row] for row in rows]
                leaves = [leaf[rows] for leaf in leaves]
            self.counts.answered += len(slots)
            for to, leaf in zip(self._result_rows.leaves, leaves, strict=True):
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

    # ---- the end ----

    def _leave(self) -> None:
        self._thread.close()
        self._close_fds()
        # The memory is unmapped when nobody refers to it any more.
        self._request_rows = self._result_rows = None
        del self._arena, self._table, self._bell, self._patience

    def _close_fds(self) -> None:
        self._arena.close_fd()
        for rows in (self._request_rows, self._result_rows):
            if rows is not None:
                rows.close()
        for fd in self._bell_fds:
            os.close(fd)


_MORE = "give a larger capacity to its InferenceStream, or close clients"


def _fd(arena: Arena) -> int:
    assert arena.fd is not None
    return arena.fd
