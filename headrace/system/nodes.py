"""Workers on other machines: a node starts and watches those of its machine, and obeys the controller of the run.

Every machine reads the same experiment, so a command is the name of a worker and a verb: no code travels, and nothing
is pickled. A node publishes its address in the name service. It ends its workers when the controller says nothing for a
while: then it is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from headrace.errors import (
    FrameRejected,
    SamplerError,
    StreamTimeout,
    WorkerCrashed,
    WorkerFailed,
    WorkerHung,
    headline,
)
from headrace.processes.status import ProgressWatch
from headrace.streams.codec import Frame, Limits, decoded, encoded
from headrace.streams.sockets import bound, close, connected, load_zmq
from headrace.system.connections import Connections
from headrace.system.members import Group, Member, MemberSpec
from headrace.system.worker import TICK, Command, Episode, WorkerReport, WorkerState

__all__ = ["NodeClient", "RemoteGroup", "serve_node"]

_LIMITS = Limits(header_bytes=2**20, payload_bytes=0, leaves=2**16, text=2**16)
_HIGH_WATER = 64
_TTL = 10.0  # seconds after which the address of a dead node is forgotten
_END_SECONDS = 5.0  # for a node to hear that the run has ended
_MOST_TEXT = 2**15  # characters of a message or a traceback that travel
_KINDS = {kind.__name__: kind for kind in SamplerError.__subclasses__()}
_VERBS = {"begin", "ask", "look", "stop", "kill"}


def node_name(connections: Connections, node: int) -> str:
    """Returns the name under which a node publishes its address."""
    return connections.full_name(f"node/{node}")


def serve_node(
    connections: Connections,
    node: int,
    specs: Sequence[MemberSpec],
    make_group: Callable[[MemberSpec], Group],
    *,
    start_timeout: float,
    timeout: float = 600.0,
    silence: float = 20.0,
) -> None:
    """Runs the workers of one machine until the controller ends the run.

    Args:
        connections: of the run.
        node: number of this machine, from 1.
        specs: all workers of the run; those of this node are started when the controller says so.
        make_group: starts a process.
        start_timeout: seconds without progress after which a worker that is being configured counts as hung.
        timeout: seconds to wait for the controller's first command.
        silence: seconds without a command after which the controller counts as gone.

    Raises:
        StreamTimeout: if the controller does not come, or goes away.
    """
    zmq = load_zmq()
    members = {spec.name: Member(spec, make_group) for spec in specs if spec.node == node}
    socket, address = bound(
        zmq.ROUTER,
        f"{connections.host}:0",
        connections.keys,
        connections.allowed(),
        high_water=_HIGH_WATER,
        most_bytes=_LIMITS.header_bytes,
    )
    try:
        with connections.repository() as names:
            names.add(node_name(connections, node), address, keepalive_ttl=_TTL, replace=True)
            deadline = time.monotonic() + timeout
            while True:
                if not socket.poll(int(TICK * 1e3)):
                    if time.monotonic() > deadline:
                        raise StreamTimeout(
                            f"node {node} has heard nothing from the controller for too long; it has ended its workers"
                        )
                    continue
                deadline = time.monotonic() + silence
                sender, *parts = socket.recv_multipart(zmq.NOBLOCK)
                try:
                    number, verb, name, argument = _request(decoded(parts, _LIMITS).tree)
                except FrameRejected:
                    continue
                ends = verb == "end"
                answer = () if ends else _obeyed(members, verb, name, argument, start_timeout)
                socket.send_multipart([sender, *encoded(Frame((number, answer)))], zmq.NOBLOCK)
                deadline = time.monotonic() + silence  # a command may take long
                if ends:
                    return
    finally:
        for member in members.values():
            member.kill()
        close(socket, time.monotonic() + 1.0)


def _request(tree: Any) -> tuple[int, str, str, Any]:
    if not isinstance(tree, tuple) or len(tree) != 4 or [type(entry) for entry in tree[:3]] != [int, str, str]:
        raise FrameRejected("a command to a node is not a number, a verb, a name and an argument")
    number, verb, name, argument = tree
    return number, verb, name, argument


def _obeyed(members: dict[str, Member], verb: str, name: str, argument: Any, start_timeout: float) -> Any:
    """Does what a command says; returns the answers of a worker, or its failure."""
    if verb not in _VERBS or name not in members:
        return ("failure", SamplerError.__name__, f"this node has no worker {name!r}, or cannot {verb!r}", "")
    member = members[name]
    try:
        match verb:
            case "begin":
                member.begin()
            case "ask":
                what, seconds = argument
                member.ask(what, seconds, start_timeout if what == "configure" else None)
            case "look":
                return ("answers", member.pid or 0, tuple(_plain(report) for _, report in member.look()))
            case "stop":
                member.stop()
            case "kill":
                member.kill()
    except SamplerError as error:
        return ("failure", type(error).__name__, error.message[:_MOST_TEXT], error.traceback_text[-_MOST_TEXT:])
    except Exception as error:
        return ("failure", WorkerFailed.__name__, f"{name}: {headline(error)}", "")
    return ()


def _plain(report: WorkerReport) -> dict[str, Any]:
    return {
        "state": str(report.state),
        "samples": report.samples,
        "batches": report.batches,
        "figures": {name: float(value) for name, value in report.figures.items()},
        "episodes": tuple((float(one.Return), one.Length, one.version) for one in report.episodes),
        "notes": tuple(note[:1000] for note in report.notes),
    }


def _report(plain: Any) -> WorkerReport:
    return WorkerReport(
        WorkerState(plain["state"]),
        plain["samples"],
        plain["batches"],
        plain["figures"],
        [Episode(*one) for one in plain["episodes"]],
        plain["notes"],
    )


class NodeClient:
    """The controller's connection to a node.

    Args:
        connections: of the run.
        node: number of the machine.
        timeout: seconds to wait for the node, and for each answer.

    Raises:
        TimeoutError: if the node does not publish its address in time.
    """

    def __init__(self, connections: Connections, node: int, timeout: float) -> None:
        self.node = node
        self._timeout = timeout
        self._zmq = load_zmq()
        with connections.repository() as names:
            address = names.wait(node_name(connections, node), timeout=timeout)
        self._socket = connected(self._zmq.DEALER, address, connections.client_keys(), high_water=_HIGH_WATER)
        self._number = 0
        self._lost = False

    def ask(self, verb: str, name: str, argument: Any = None, timeout: float | None = None) -> Any:
        """Sends a command, and returns its answer.

        Args:
            verb: what to do.
            name: of the worker.
            argument: belongs to the verb.
            timeout: seconds to wait; None: the connection's.

        Raises:
            WorkerHung: if the node does not answer in time.
        """
        deadline = time.monotonic() + (0.0 if self._lost else self._timeout if timeout is None else timeout)
        self._number += 1
        parts = encoded(Frame((self._number, verb, name, argument)))
        while not self._socket.poll(50, self._zmq.POLLOUT):
            self._require_time(deadline, name)
        self._socket.send_multipart(parts, self._zmq.NOBLOCK)
        while True:
            if not self._socket.poll(50):
                self._require_time(deadline, name)
                continue
            number, answer = decoded(self._socket.recv_multipart(self._zmq.NOBLOCK), _LIMITS).tree
            if number == self._number:
                return answer

    def close(self) -> None:
        """Tells the node that the run has ended."""
        with suppress(SamplerError):  # it may be gone
            self.ask("end", "", timeout=_END_SECONDS)
        close(self._socket)

    def _require_time(self, deadline: float, name: str) -> None:
        if time.monotonic() > deadline:
            self._lost = True  # the other workers of this node need not be waited for
            raise WorkerHung(
                f"{name}: node {self.node} did not answer for {self._timeout:g} s; is headrace launch --node-rank "
                f"{self.node} running there, and the network up?"
            )


class RemoteGroup:
    """The process of a worker on another machine; see `Group`. The node watches its progress.

    Args:
        node: the connection to its machine.
        spec: the worker.
    """

    def __init__(self, node: NodeClient, spec: MemberSpec) -> None:
        self._node, self._name = node, spec.name
        self._reports: list[WorkerReport] = []
        self._pid = 0
        self._ended = False
        self._asked("begin")

    def send_to(self, rank: int, message: Command) -> None:
        """See `Group`."""
        self._asked("ask", (message.verb, 0.0 if message.argument is None else float(message.argument)))

    def look(self) -> None:
        """See `Group`."""
        answer = self._asked("look")
        _, self._pid, reports = answer
        self._reports += map(_report, reports)

    def replied(self, rank: int) -> bool:
        """See `Group`."""
        return bool(self._reports)

    def replies(self, timeout: float | None = None, ranks: Sequence[int] | None = None) -> list[Any]:
        """See `Group`."""
        return [self._reports.pop(0)]

    def watch(self, timeout: float | None = None) -> ProgressWatch:
        """See `Group`."""
        return ProgressWatch([], 0.0)

    def require_progress(self, watch: ProgressWatch, ranks: Sequence[int]) -> None:
        """See `Group`."""

    def stop(self) -> None:
        """See `Group`."""
        self._asked("stop")
        self._ended = True

    def kill(self) -> None:
        """See `Group`."""
        if not self._ended:
            self._ended = True
            with suppress(SamplerError):  # a node that does not answer ends its workers by itself
                self._asked("kill")

    @property
    def pids(self) -> list[int]:
        """See `Group`."""
        return [self._pid] if self._pid else []

    @property
    def sources(self) -> list[tuple[int, int]]:
        """See `Group`: there are none here."""
        return []

    def _asked(self, verb: str, argument: Any = None) -> Any:
        answer = self._node.ask(verb, self._name, argument)
        if answer and answer[0] == "failure":
            _, kind, message, traceback_text = answer
            raise _KINDS.get(kind, WorkerCrashed)(message, traceback_text=traceback_text)
        return answer
