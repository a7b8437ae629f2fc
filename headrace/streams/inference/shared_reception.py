"""What clients of a stream in shared memory ask its server on their connections: memory, slots, constants."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from headrace.buffers.shared import Arena, shared
from headrace.errors import FrameRejected
from headrace.processes.affinity import cpu_quota, usable_cores
from headrace.processes.handoff import Bell, Handoff
from headrace.processes.patience import Patience
from headrace.streams.codec import Frame, encoded
from headrace.streams.connections import Connection, Ended
from headrace.streams.inference.control import close_all, receive, send
from headrace.streams.inference.messages import content_of
from headrace.streams.inference.slots import Table, build_rows
from headrace.streams.inference.trees import Layout, Leaves, copied
from headrace.types import Tree

__all__ = ["Member", "Reception", "SlotRows"]

_MORE = "give a larger capacity to its InferenceStream, or close clients"


@dataclass(eq=False)
class Member:
    """A connected client. cell: its place in `Table.clients`; bell_fd: wakes it."""

    id: bytes
    pid: int
    cell: int
    handoff: Handoff
    bell_fd: int
    slots: list[int] = field(default_factory=list)


class SlotRows:
    """The requests, or the results, of all slots. Their memory is reserved when it is known what they are like.

    Args:
        layout: what they are like; None: not known yet.
        capacity: number of slots.
    """

    def __init__(self, layout: Layout | None, capacity: int) -> None:
        self.layout: Layout | None = None
        #: Arrays `[capacity, ...]`.
        self.leaves: Leaves = []
        self._capacity = capacity
        self._arena: Arena | None = None
        if layout is not None:
            self.reserve(layout)

    def reserve(self, layout: Layout) -> None:
        """Reserves the memory, unless that was done."""
        if self._arena is None:
            self._arena, self.leaves = shared(partial(build_rows, layout.row, self._capacity))
            self.layout = layout

    @property
    def fd(self) -> int:
        """The descriptor of the memory."""
        assert self._arena is not None
        assert self._arena.fd is not None
        return self._arena.fd

    def close(self) -> None:
        """Closes the descriptor, and forgets the arrays."""
        if self._arena is not None:
            self._arena.close_fd()
            self._arena = None
            self.leaves = []


class Reception:
    """Deals with what clients ask, in a `Listener`; says who has which slot.

    Args:
        stream: name of the stream.
        table: what is known of every slot.
        table_fd: descriptor of its memory.
        bell: wakes the server.
        bell_fd: the end of it that clients ring.
        requests: requests of all slots.
        results: results of all slots.
        drop: called under the lock with slots that get a client, or have lost theirs: no request waits in them.
        rejected: counts a client, or a message, that was not accepted.
    """

    def __init__(
        self,
        stream: str,
        table: Table,
        table_fd: int,
        bell: Bell,
        bell_fd: int,
        requests: SlotRows,
        results: SlotRows,
        drop: Callable[[list[int]], None],
        rejected: Callable[[], None],
    ) -> None:
        capacity = len(table.asked)
        #: Is held while anything is read or changed that this object and the server share.
        self.lock = threading.Lock()
        self.requests = requests
        self.results = results
        #: Who has each slot.
        self.owners: list[Member | None] = [None] * capacity
        #: Whether anybody has it, bool `[capacity]`. What else is written into the table means nothing.
        self.owned = np.zeros(capacity, np.bool_)
        #: How many clients have gone.
        self.n_gone = 0
        self._name = stream
        self._capacity = capacity
        self._table = table
        self._table_fd = table_fd
        self._bell = bell
        self._bell_fd = bell_fd
        self._drop = drop
        self._rejected = rejected
        self._free = [*range(capacity)][::-1]
        self._free_cells = [*range(capacity)][::-1]
        self._clients: dict[Connection, Member] = {}
        self._constants: dict[str, Tree] = {}
        self._askers: dict[str, list[tuple[Connection, int]]] = {}  # who waits for a constant that is not set
        self._set_patience()

    def handle(self, connection: Connection) -> None:
        """Deals with a message that has arrived. If it raises, the connection shall be closed."""
        fds: list[int] = []
        try:
            frame, fds = receive(connection)
            kind, content = content_of(frame)
            with self.lock:
                if kind == "hello":
                    self._welcome(connection, frame, fds)
                elif connection not in self._clients:
                    raise FrameRejected("a client has not said who it is")
                elif kind == "requests":
                    self._declare(connection, frame.sequence, content)
                elif kind == "results":
                    self._send_results(connection, frame.sequence)
                elif kind == "slots":
                    self._grant(connection, frame.sequence, content)
                elif kind == "constant":
                    self._ask_constant(connection, frame.sequence, content)
                else:
                    raise FrameRejected(f"a message is of the kind {kind!r}, which clients do not send")
        except FrameRejected:
            self._rejected()
            raise
        finally:
            close_all(fds)

    def _welcome(self, connection: Connection, frame: Frame, fds: Sequence[int]) -> None:
        if len(fds) != 1 or not frame.producer or connection in self._clients:
            raise FrameRejected("a client does not say who it is, or has no bell")
        reason = ""
        if any(client.id == frame.producer for client in self._clients.values()):
            reason = f"another client of stream {self._name!r} has the same client_id"
        elif not self._free_cells:
            reason = f"stream {self._name!r} has {self._capacity} clients already, {_MORE}"
        if reason:
            self._rejected()
            send(connection, {"error": reason}, number=frame.sequence)
            return
        cell = self._free_cells.pop()
        cells = self._table.clients[cell]
        cells.parked[0] = 0  # an earlier client may have been killed in its sleep
        bell_fd = os.dup(fds[0])
        bell = Bell(cells.parked, write_fd=bell_fd)
        handoff = Handoff(cells.answered, [cells.posted], self._bell, [bell], spin_ns=self._table.spin_ns)
        self._clients[connection] = Member(frame.producer, connection.pid_of_user(), cell, handoff, bell_fd)
        self._set_patience()
        fds_of_server = [self._table_fd, self._bell_fd]
        send(connection, {"cell": cell, "capacity": self._capacity}, fds_of_server, number=frame.sequence)

    def _declare(self, connection: Connection, number: int, content: Tree) -> None:
        """Checks the layout of a client's requests, or takes over that of the first one; passes their memory."""
        declared = content.get("layout")
        try:
            layout = self.requests.layout or Layout.of_batch(declared, "request")
            layout.leaves(declared, 0)
            self.requests.reserve(layout)
        except (TypeError, ValueError, MemoryError) as error:
            self._rejected()
            send(connection, {"error": str(error)}, number=number)
            return
        send(connection, {"ok": True}, [self.requests.fd], number=number)

    def _send_results(self, connection: Connection, number: int) -> None:
        if self.results.layout is None:
            raise FrameRejected("a client asks for results, and nothing was answered")
        send(connection, {"layout": self.results.layout.empty()}, [self.results.fd], number=number)

    def _grant(self, connection: Connection, number: int, content: Tree) -> None:
        n, client = content.get("n"), self._clients[connection]
        if type(n) is not int or n < 1:
            raise FrameRejected("a client asks for no number of slots")
        if n > len(self._free):
            taken = self._capacity - len(self._free)
            reason = f"stream {self._name!r} has {self._capacity} slots, {taken} are taken and {n} more are asked for, "
            send(connection, {"error": reason + _MORE}, number=number)
            return
        slots = [self._free.pop() for _ in range(n)]
        for slot in slots:
            self.owners[slot] = client
        client.slots += slots
        self._drop(slots)
        self.owned[slots] = True
        send(connection, {"slots": np.array(slots, np.int64)}, number=number)

    def _ask_constant(self, connection: Connection, number: int, content: Tree) -> None:
        name = content.get("name")
        if type(name) is not str:
            raise FrameRejected("a client asks for no constant")
        self._askers.setdefault(name, []).append((connection, number))
        if name in self._constants:
            self._send_constant(name)

    def _send_constant(self, name: str) -> None:
        """Sends a constant to all who wait for it."""
        for connection, number in self._askers.pop(name, []):
            with suppress(Ended, OSError):  # it has gone, or does not read
                send(connection, {"value": self._constants[name]}, number=number)

    def gone(self, connection: Connection) -> None:
        """Frees what a client had. Its requests that wait are dropped; it does not write any more."""
        with self.lock:
            client = self._clients.pop(connection, None)
            for name, askers in self._askers.items():
                self._askers[name] = [asker for asker in askers if asker[0] is not connection]
            if client is None:
                return
            self._drop(client.slots)
            self.n_gone += 1
            for slot in client.slots:
                self.owners[slot] = None
            self.owned[client.slots] = False
            self._free += client.slots
            self._free_cells.append(client.cell)
            os.close(client.bell_fd)
            self._set_patience()

    def _set_patience(self) -> None:
        pids = {os.getpid(), *(client.pid for client in self._clients.values())}
        self.patience = Patience(self._table.spin_ns, [*pids], usable_cores(), cpu_quota())

    def set_constant(self, name: str, tree: Tree) -> None:
        """Sets a constant, and sends it to who waits for it."""
        encoded(Frame(tree))  # raises TypeError here if it cannot be sent
        with self.lock:
            self._constants[name] = copied(tree)
            if name in self._askers:
                self._send_constant(name)
