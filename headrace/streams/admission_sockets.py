"""Admission from other machines, on ZeroMQ: a small service beside the learner, and its clients."""

from __future__ import annotations

import threading
import time
from typing import Any

from headrace.errors import FrameRejected, StreamClosed, StreamTimeout
from headrace.streams.admission import Admission, Lease
from headrace.streams.closing import Closing
from headrace.streams.codec import Frame, Limits, decoded, encoded
from headrace.streams.sample import remaining
from headrace.streams.sockets import AllowList, Keys, bound, close, connected, load_zmq

__all__ = ["AdmissionClient", "AdmissionServer"]

_LIMITS = Limits(header_bytes=1024, payload_bytes=0, leaves=8, depth=2, text=32)
_HIGH_WATER = 1000
_TICK_MS = 100  # between looks whether the server was closed
_START, _RENEW, _FINISH, _ABANDON = "start", "renew", "finish", "abandon"


class AdmissionServer(Closing):
    """Answers producers for an `Admission`, in a thread.

    Args:
        admission: what is asked.
        address: where to listen, "host:port"; port 0: any free port.
        keys: of this server; None: plain text, only on this machine.
        allowed: the producers that may ask, with keys.

    Attributes:
        address: where it listens, "tcp://host:port".
        rejected: how many requests could not be read.

    Raises:
        StreamError: if the port is in use.
        ValueError: for plain text on an address that other machines can reach.
    """

    def __init__(
        self,
        admission: Admission,
        address: str = "127.0.0.1:0",
        *,
        keys: Keys | None = None,
        allowed: AllowList | None = None,
    ) -> None:
        self.rejected = 0
        self._admission = admission
        self._zmq = load_zmq()
        self._socket, self.address = bound(
            self._zmq.ROUTER, address, keys, allowed, high_water=_HIGH_WATER, most_bytes=_LIMITS.header_bytes * 2
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-admission", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the service. Safe to call twice."""
        self._stop.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if self._socket.poll(_TICK_MS):
                    sender, *parts = self._socket.recv_multipart(self._zmq.NOBLOCK)
                    try:
                        answer = self._answer(decoded(parts, _LIMITS).tree)
                    except FrameRejected:
                        self.rejected += 1
                        continue
                    try:
                        self._socket.send_multipart([sender, *encoded(Frame(answer))], self._zmq.NOBLOCK)
                    except self._zmq.ZMQError:  # it has gone, or does not read
                        self.rejected += 1
        finally:
            close(self._socket)

    def _answer(self, request: Any) -> tuple[Any, ...]:
        if not isinstance(request, tuple) or [type(entry) for entry in request] != [int, str, int]:
            raise FrameRejected("a request to an admission is not a number, a word and a number")
        number, what, of_lease = request
        lease = Lease(of_lease, 0.0)
        if what == _START:
            granted = self._admission.may_start()
            return (number, granted is not None, *((granted.number, granted.seconds) if granted else (0, 0.0)))
        if what == _RENEW:
            return (number, self._admission.renew(lease), 0, 0.0)
        if what == _FINISH:
            return (number, self._admission.finish(lease), 0, 0.0)
        if what == _ABANDON:
            self._admission.abandon(lease)
            return (number, True, 0, 0.0)
        raise FrameRejected(f"a request to an admission is {what!r}")


class AdmissionClient(Closing):
    """Asks an `AdmissionServer`. A lease whose grant does not arrive expires.

    Args:
        address: of the server, "host:port".
        keys: of this client, with the public key of the server; None: plain text, only on this machine.
        timeout: seconds to wait for an answer.

    Raises:
        ValueError: for plain text to another machine.
    """

    def __init__(self, address: str, *, keys: Keys | None = None, timeout: float = 10.0) -> None:
        self._address = address
        self._timeout = timeout
        self._zmq = load_zmq()
        self._socket = connected(self._zmq.DEALER, address, keys, high_water=_HIGH_WATER)
        self._lock = threading.Lock()
        self._number = 0

    def may_start(self) -> Lease | None:
        """See `Gate`; raises StreamTimeout if the server does not answer."""
        granted, number, seconds = self._asked(_START, 0)
        return Lease(number, seconds) if granted else None

    def renew(self, lease: Lease) -> bool:
        """See `Gate`; raises StreamTimeout if the server does not answer."""
        return self._asked(_RENEW, lease.number)[0]

    def finish(self, lease: Lease) -> bool:
        """See `Gate`; raises StreamTimeout if the server does not answer."""
        return self._asked(_FINISH, lease.number)[0]

    def abandon(self, lease: Lease) -> None:
        """See `Gate`; raises StreamTimeout if the server does not answer."""
        self._asked(_ABANDON, lease.number)

    def close(self) -> None:
        """Closes the connection. Safe to call twice."""
        close(self._socket)

    def _asked(self, what: str, of_lease: int) -> tuple[bool, int, float]:
        deadline = time.monotonic() + self._timeout
        with self._lock:
            if self._socket.closed:
                raise StreamClosed("a call of an AdmissionClient after close(); make another one")
            self._number += 1
            sent = False
            while True:
                try:
                    if not sent:
                        self._socket.send_multipart(encoded(Frame((self._number, what, of_lease))), self._zmq.NOBLOCK)
                        sent = True
                    answer = decoded(self._socket.recv_multipart(self._zmq.NOBLOCK), _LIMITS).tree
                except self._zmq.Again:
                    left = remaining(deadline)
                    if not left:
                        raise StreamTimeout(
                            f"the admission at {self._address} did not answer within {self._timeout:g} s"
                        ) from None
                    self._socket.poll(max(1, int(left * 1e3)), self._zmq.POLLIN if sent else self._zmq.POLLOUT)
                except FrameRejected:
                    continue
                else:
                    kinds = [type(entry) for entry in answer] if isinstance(answer, tuple) else []
                    if kinds == [int, bool, int, float] and answer[0] == self._number:  # not of an earlier request
                        return answer[1], answer[2], answer[3]
