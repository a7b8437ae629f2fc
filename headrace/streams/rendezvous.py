"""Lets processes of one user on one machine find shared memory by name, and receive its descriptors.

Whoever has the memory answers on a Unix socket in the abstract namespace, which the kernel removes with the process:
no name outlives a crash. Linux only.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress

from headrace.errors import StreamError
from headrace.streams.sample import remaining

__all__ = ["Host", "Inquiry", "Watch"]

_MOST_BYTES = 4096  # of a request, and of an answer
_MOST_FDS = 16
_RETRY_SECONDS = 0.02  # between looks for a name that nobody has: its appearance is no event
_REQUEST_SECONDS = 2.0  # for connecting, and for a request once there is a connection
_WATCH = b"watch"  # the request of a process that only waits for the end of this one
_CREDENTIALS = struct.Struct("3i")

#: Returns what a request is answered with, bytes and descriptors; None: not yet.
Answer = Callable[[bytes], "tuple[bytes, Sequence[int]] | None"]


def _address(name: str) -> str:
    if sys.platform != "linux":
        raise StreamError("shared memory streams need Linux; use the type 'ip' on this system")
    address = f"\0headrace/{os.getuid()}/{name}"
    if not name or len(address.encode()) > 107:
        raise ValueError(f"the name of the stream is {name[:100]!r}, expected 1 to 80 characters: it names a socket")
    return address


def _connected(address: str, request: bytes) -> socket.socket | None:
    """Returns a connection to whoever has the name, on which the request was sent; None if nobody has it."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(_REQUEST_SECONDS)
        connection.connect(address)
        if not _neighbour(connection):
            raise StreamError(f"a process of another user, or container, has the name {address[1:]!r}; choose another")
        connection.send(request)
    except BaseException as error:
        connection.close()
        if isinstance(error, OSError):
            return None
        raise
    return connection


def _neighbour(connection: socket.socket) -> bool:
    """Returns whether the other end is a process of this user, whose pid can be seen from here."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return bool(pid and uid == os.getuid())


class Host:
    """Answers under a name, in a thread; while another process has the name, waits for its end and takes over.

    Args:
        name: the name.
        answer: called in the thread with a request. A request that gets None is asked again after the next request.
    """

    def __init__(self, name: str, answer: Answer) -> None:
        self._address = _address(name)
        self._answer = answer
        self._open: list[tuple[socket.socket, bytes]] = []  # connections that wait for an answer
        self._stop_read, self._stop_write = os.pipe()
        self._listener = self._bound()
        self._thread = threading.Thread(target=self._run, name="headrace-stream-host", daemon=True)
        self._thread.start()
        # A forked child that kept the sockets would keep the name after the death of this process, and answer nobody.
        reference = weakref.ref(self)

        def close_in_child() -> None:
            host = reference()
            if host is not None:
                host.close_sockets()

        os.register_at_fork(after_in_child=close_in_child)

    @property
    def hosting(self) -> bool:
        """Whether the name is this object's."""
        return self._listener is not None

    def close(self) -> None:
        """Gives the name back. Safe to call twice."""
        if self._stop_write >= 0:
            os.write(self._stop_write, b"!")  # to close it is not enough: a fork has it too
            self._thread.join(10.0)
            os.close(self._stop_write)
            os.close(self._stop_read)
            self._stop_write = -1

    def close_sockets(self) -> None:
        """Closes the sockets of this process, which the processes at the other ends notice."""
        if self._listener is not None:
            self._listener.close()
        for connection, _ in self._open:
            connection.close()
        self._open.clear()

    def _bound(self) -> socket.socket | None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.bind(self._address)
            listener.listen(128)
            listener.settimeout(_REQUEST_SECONDS)
        except OSError:
            listener.close()
            return None
        return listener

    def _run(self) -> None:
        try:
            while True:
                if self._listener is None:
                    self._listener = self._bound()
                stopped = self._wait_for_other() if self._listener is None else self._serve(self._listener)
                if stopped:
                    return
        finally:
            self.close_sockets()

    def _wait_for_other(self) -> bool:
        """Waits until the process that has the name ends, or until `close`; returns whether it is the latter."""
        poll = select.poll()
        poll.register(self._stop_read, select.POLLIN)
        connection = _connected(self._address, _WATCH)
        if connection is None:  # it has ended
            return bool(poll.poll(_RETRY_SECONDS * 1e3))
        with connection:
            poll.register(connection, select.POLLIN)
            while True:
                events = [fd for fd, _ in poll.poll(1000)]
                if events:
                    return self._stop_read in events

    def _serve(self, listener: socket.socket) -> bool:
        while True:
            poll = select.poll()
            poll.register(self._stop_read, select.POLLIN)
            poll.register(listener, select.POLLIN)
            for connection, _ in self._open:
                poll.register(connection, 0)  # only whether it hangs up
            events = {fd for fd, _ in poll.poll(1000)}
            if self._stop_read in events:
                return True
            for entry in [entry for entry in self._open if entry[0].fileno() in events]:
                self._open.remove(entry)
                entry[0].close()
            if listener.fileno() in events:
                with suppress(OSError):
                    self._accept(listener)

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        try:
            connection.settimeout(_REQUEST_SECONDS)
            request = connection.recv(_MOST_BYTES) if _neighbour(connection) else b""
        except OSError:
            request = b""
        if not request:
            connection.close()
            return
        self._open.append((connection, request))
        for entry in self._open[::-1]:  # the new one first: it may bring what the others wait for
            if entry[1] != _WATCH:
                found = self._answer(entry[1])
                if found is not None:
                    self._open.remove(entry)
                    with entry[0], suppress(OSError):  # it may have gone
                        socket.send_fds(entry[0], [found[0]], list(found[1]))


class Inquiry:
    """Asks whoever has a name, now or later.

    Args:
        name: the name.
        request: what to ask.
    """

    def __init__(self, name: str, request: bytes) -> None:
        self._address = _address(name)
        self._request = request
        self._connection: socket.socket | None = None

    def answer(self, deadline: float) -> tuple[bytes, list[int]] | None:
        """Returns the answer, bytes and descriptors; None if there is none until the deadline, so ask again.

        Raises:
            StreamError: if a process of another user has the name.
        """
        while True:
            if self._connection is None:
                self._connection = _connected(self._address, self._request)
            if self._connection is not None:
                found = self._received(self._connection, deadline)
                if found is not None:
                    return found
            left = remaining(deadline)
            if not left:
                return None
            if self._connection is None:
                time.sleep(min(_RETRY_SECONDS, left))

    def close(self) -> None:
        """Stops asking. Safe to call twice."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _received(self, connection: socket.socket, deadline: float) -> tuple[bytes, list[int]] | None:
        """Returns the answer; None if it has not come, or if the connection was closed, which is then forgotten."""
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        if not poll.poll(remaining(deadline) * 1e3):
            return None
        try:
            content, fds, _, _ = socket.recv_fds(connection, _MOST_BYTES, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            content, fds = b"", []
        self.close()
        return (content, fds) if content else None


class Watch:
    """Tells when the process that has a name ends, or gives it back.

    Args:
        name: the name.
    """

    def __init__(self, name: str) -> None:
        self._connection = _connected(_address(name), _WATCH)
        self._poll = select.poll()
        if self._connection is not None:
            self._poll.register(self._connection, select.POLLIN)

    def ended(self) -> bool:
        """Returns whether it has, without waiting."""
        return self._connection is None or bool(self._poll.poll(0))

    def close(self) -> None:
        """Stops watching. Safe to call twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
