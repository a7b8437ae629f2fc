"""The client of inference streams in shared memory; `headrace.streams.inference.slots` says how requests are passed."""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from headrace.buffers.shared import shared
from headrace.errors import FrameRejected, StreamError, StreamTimeout
from headrace.memory import WEAKLY_ORDERED, fence
from headrace.processes.handoff import Bell, Handoff
from headrace.streams.codec import LIMITS, Frame
from headrace.streams.connections import Ended, connected
from headrace.streams.inference.client import InferenceClient
from headrace.streams.inference.control import close_all, receive, send
from headrace.streams.inference.endpoint import Clock
from headrace.streams.inference.requests import Answers, Requests
from headrace.streams.inference.slots import build_rows, build_table
from headrace.streams.inference.trees import Layout, Leaves, copied
from headrace.types import Tree

__all__ = ["SharedMemoryClient"]

_TICK = 0.05  # seconds between two looks at whether the server lives, and between two attempts to find a new one
_ANSWER = 1.0  # seconds in which a server that lives answers a new client, for calls that do not wait otherwise


class _Awake(Exception):
    """Ends a sleep."""


class _Connection:
    """The connection to one server, and the slots that it has granted.

    Args:
        address: from `address_of`.
        client_id: of the client.
        deadline: for everything that is asked of the server meanwhile, by `clock`.
        clock: returns seconds.

    Raises:
        OSError: if no server is there.
        Ended: if it goes away.
        StreamError: if it refuses the client.
        StreamTimeout: at the deadline.
    """

    def __init__(self, address: str, client_id: bytes, deadline: float, clock: Clock) -> None:
        self._clock = clock
        self._client_id = client_id
        self._number = 0
        self._free: list[int] = []
        self._fence = threading.Lock()
        self._bell_fd = self._server_bell_fd = -1
        seconds = max(0.001, deadline - clock())
        self._connection = connected(address, seconds, LIMITS.payload_bytes)
        try:
            self._bell_fd, write_fd = Bell.pipe()
            try:
                welcome, fds = self.ask("hello", {}, deadline, [write_fd])
            finally:
                os.close(write_fd)
            table_fd, self._server_bell_fd = fds
            self._capacity: int = welcome["capacity"]
            arena, self._table = shared(partial(build_table, self._capacity), table_fd)
            arena.close_fd()
        except BaseException:
            self.close()
            raise
        cells = self._table.clients[welcome["cell"]]
        self._n_answered = cells.answered
        self._seen = self._n_answered[0]  # the cell may have had another client
        self._handoff = Handoff(
            cells.posted,
            [cells.answered],
            Bell(cells.parked, read_fd=self._bell_fd),
            [Bell(self._table.parked, write_fd=self._server_bell_fd)],
            spin_ns=self._table.spin_ns,
        )
        self._poll = select.poll()
        self._poll.register(self._bell_fd, select.POLLIN)
        self._poll.register(self._connection, select.POLLIN)
        self._answered = self._table.answered.data
        self._policy_cells = self._table.policies.reshape(-1).data
        self._policies: dict[int, str] = {}
        self._requests: Leaves | None = None
        self._results: Leaves | None = None
        self._in_slot: dict[int, tuple[int, int]] = {}  # id of a request → its slot, and its number in `asked`

    def ask(
        self, kind: str, content: Tree, deadline: float, fds: Sequence[int] = ()
    ) -> tuple[dict[str, Any], list[int]]:
        """Asks the server; returns its answer, and descriptors that the caller closes."""
        self._number += 1
        connection = self._connection
        try:
            connection.wait_at_most(max(0.001, deadline - self._clock()))
            send(connection, {kind: content}, fds, number=self._number, producer=self._client_id)
            while True:
                connection.wait_at_most(max(0.001, deadline - self._clock()))
                frame, received = receive(connection)
                if frame.sequence == self._number:
                    break
                self._came_late(frame, received)
        except TimeoutError:
            raise StreamTimeout("the server's process is there, but does not answer; it may be stopped") from None
        answer: dict[str, Any] = frame.tree
        if "error" in answer:
            close_all(received)
            raise StreamError(answer["error"])
        return answer, received

    def _came_late(self, frame: Frame, fds: Sequence[int]) -> None:
        """Deals with the answer to an earlier question, for which nobody waits: slots are there to be used."""
        close_all(fds)
        if isinstance(frame.tree, dict) and "slots" in frame.tree:
            self._free += frame.tree["slots"].tolist()

    def prepare(self, layout: Layout, n: int, deadline: float) -> None:
        """Makes sure that n requests can be written."""
        if self._requests is None:
            _, fds = self.ask("requests", {"layout": layout.empty()}, deadline)
            arena, self._requests = shared(partial(build_rows, layout.row, self._capacity), fds[0])
            arena.close_fd()
        missing = n - len(self._free)
        if missing > 0:
            try:
                answer, _ = self.ask("slots", {"n": missing}, deadline)
                self._free += answer["slots"].tolist()[::-1]
            except StreamError:
                if len(self._free) < n:  # else the answer to an earlier question, which came late, had them
                    raise

    def write(self, requests: Requests) -> None:
        """Passes requests to the server, after `prepare`."""
        rows, table = self._requests, self._table
        assert rows is not None
        slots = [self._free.pop() for _ in requests.ids]
        for to, leaf in zip(rows, requests.leaves, strict=True):
            to[slots] = leaf
        table.agents[slots], table.ids[slots] = requests.agents, requests.ids
        numbers = table.asked[slots] + 1
        self._in_slot.update(zip(requests.ids, zip(slots, numbers.tolist(), strict=True), strict=True))
        if WEAKLY_ORDERED:
            fence(self._fence)
        table.asked[slots] = numbers
        self._handoff.post()

    def read(self, declare: Callable[[Tree], Layout]) -> list[Answers]:
        """Returns the answers that have arrived, one entry per version of the policy.

        Args:
            declare: is called once with arrays `[0, ...]` like the results; returns their layout.
        """
        n_answered = self._n_answered[0]
        if n_answered == self._seen:
            return []
        if WEAKLY_ORDERED:
            fence(self._fence)
        answered, policies = self._answered, self._policy_cells
        found: dict[tuple[int, int], list[int]] = {}
        for number, (slot, asked) in self._in_slot.items():
            if answered[slot] == asked:
                found.setdefault((policies[2 * slot], policies[2 * slot + 1]), []).append(number)
        if self._results is None and found:
            answer, fds = self.ask("results", {}, self._clock() + _ANSWER)
            arena, self._results = shared(partial(build_rows, declare(answer["layout"]).row, self._capacity), fds[0])
            arena.close_fd()
        self._seen = n_answered
        return [self._answers(ids, policy, version) for (policy, version), ids in found.items()]

    def _answers(self, ids: list[int], policy: int, version: int) -> Answers:
        assert self._results is not None
        slots = [self._in_slot.pop(number)[0] for number in ids]
        leaves = [leaf.take(slots, 0) for leaf in self._results]
        self._free += slots
        if policy not in self._policies:
            self._policies[policy] = self._table.name(policy)
        return Answers(ids, leaves, self._policies[policy], version)

    def unanswered(self, ids: Collection[int]) -> Requests | None:
        """Returns the requests in the slots, as far as they are among `ids`; None: there are none."""
        places = {number: slot for number, (slot, _) in self._in_slot.items() if number in ids}
        slots = [*places.values()]
        agents = self._table.agents[slots].tolist()
        return Requests([*places], agents, [leaf[slots] for leaf in self._requests or ()]) if slots else None

    def sleep(self, seconds: float) -> bool:
        """Waits until answers arrive, for `seconds` at most; returns False if the server is gone."""
        deadline = self._clock() + seconds
        gone = False

        def park(awaited: Sequence[int]) -> bool:
            nonlocal gone
            left = deadline - self._clock()
            ready = {fd for fd, _ in self._poll.poll(max(0, min(_TICK, left)) * 1000)}
            gone = self._connection.fileno() in ready and not self.lives()
            rang = self._bell_fd in ready
            if not rang and (gone or left <= 0):
                raise _Awake
            return rang

        with suppress(_Awake):
            self._handoff.wait_for(self._seen + 1, park)
        return not gone

    def lives(self) -> bool:
        """Returns whether the server is there. What it sends unasked is an answer that came too late, or its end."""
        while self._connection.fileno() in {fd for fd, _ in self._poll.poll(0)}:
            self._connection.wait_at_most(0.0)
            try:
                self._came_late(*receive(self._connection))
            except (Ended, FrameRejected, OSError):
                return False
        return True

    def close(self) -> None:
        """Leaves the server, which frees the slots."""
        self._connection.close()
        for fd in (self._bell_fd, self._server_bell_fd):
            if fd >= 0:
                os.close(fd)


class SharedMemoryClient(InferenceClient):
    """A client whose requests and results are in shared memory.

    When the server ends, the client waits for another one, and asks it what was not answered.

    Args:
        name: name of the stream.
        address: of the server, from `address_of`.
        example: an example of a request and of a result.
        timeout: seconds that a call waits which is given no timeout.
        client_id: for tests; None: random.
        clock: returns seconds.
    """

    def __init__(
        self,
        name: str,
        address: str,
        *,
        example: tuple[Tree, Tree] | None = None,
        timeout: float = 60.0,
        client_id: bytes | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(name, example=example, timeout=timeout, clock=clock)
        self.client_id = client_id or self.client_id
        self._address = address
        self._connection: _Connection | None = None
        self._unanswered: Requests | None = None  # what the server that has gone did not answer
        self._looked_at = -math.inf

    def _send(self, requests: Requests, deadline: float) -> None:
        assert self._requests is not None
        while True:
            connection = self._connected(deadline)
            try:
                connection.prepare(self._requests, len(requests.ids), deadline)
                connection.write(requests)
                return
            except Ended:
                self._disconnect()

    def _connected(self, deadline: float) -> _Connection:
        """Returns the connection; waits for a server if there is none."""
        while self._connection is None:
            try:
                self._connection = self._new_connection(deadline)
            except (OSError, Ended) as error:
                if isinstance(error, StreamTimeout):
                    raise
                left = deadline - self._clock()
                if left <= 0:
                    raise StreamTimeout(
                        f"no server of stream {self._name!r} is there; start one (make_server) on this machine, with "
                        "the same name, as the same user"
                    ) from None
                time.sleep(min(_TICK, left))  # nobody says when a name comes into being
        return self._connection

    def _new_connection(self, deadline: float) -> _Connection:
        connection = _Connection(self._address, self.client_id, deadline, self._clock)
        try:
            if self._unanswered is not None:
                assert self._requests is not None
                connection.prepare(self._requests, len(self._unanswered.ids), deadline)
                connection.write(self._unanswered)
                self.counts.resent += len(self._unanswered.ids)
                self._unanswered = None
        except BaseException:
            connection.close()
            raise
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._unanswered = self._connection.unanswered(self._awaited)
            self._connection.close()
            self._connection = None

    def _receive(self) -> Iterable[Answers]:
        if self._connection is not None:
            try:
                answers = self._connection.read(self._declared)
            except Ended:
                answers = []
                self._disconnect()
            if answers:
                return answers
        now = self._clock()
        if now >= self._looked_at + _TICK:
            self._looked_at = now
            if self._connection is not None and not self._connection.lives():
                self._disconnect()
            if self._connection is None and self._unanswered is not None:
                with suppress(OSError, Ended):  # `wait` says so at its deadline
                    self._connection = self._new_connection(now + _ANSWER)
        return ()

    def _declared(self, results: Tree) -> Layout:
        """Returns the layout of results; takes it over from the server, if there was none."""
        try:
            self._result_leaves(results, 0)
        except ValueError as error:
            raise StreamError(f"the server of stream {self._name!r} answers with other results: {error}") from None
        assert self._results is not None
        return self._results

    def _sleep(self, seconds: float) -> None:
        if self._connection is None:
            time.sleep(min(_TICK, seconds))  # `poll_responses` looks for a new server
        elif not self._connection.sleep(seconds):
            self._looked_at = -math.inf  # it reads what the server answered last, then finds that it is gone

    def _constant(self, name: str, deadline: float) -> Tree:
        while True:
            connection = self._connected(deadline)
            try:
                answer, fds = connection.ask("constant", {"name": name}, deadline)
            except Ended:
                self._disconnect()
                continue
            except StreamTimeout:
                raise StreamTimeout(
                    f"no server of stream {self._name!r} has set the constant {name!r} in time"
                ) from None
            close_all(fds)
            return copied(answer["value"])

    def _state(self) -> str:
        return "its server is gone" if self._connection is None else "its server is there, but slow"

    def _leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
