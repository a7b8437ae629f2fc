"""Connections between processes of one user on one machine: messages and descriptors of memory, on Unix sockets.

Whoever has a name listens on a socket in the abstract namespace, which is no file: no name outlives a crash. A
connection also says who lives, because the kernel closes it when the process at its other end ends, however it ends.
Only processes of the same user are let in, since abstract names have no permissions. Names need Linux.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import sys
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress

from headrace.errors import FrameRejected, StreamError
from headrace.memory import anonymous_file
from headrace.streams.pieces import joined, separated

__all__ = ["Connection", "Ended", "Listener", "check_name", "connected"]

_LINUX = sys.platform == "linux"
_PACKET = 2**16 if _LINUX else 2000  # bytes that are sent in one piece; what is larger is in memory
_MOST_BYTES = 2**17  # of a message, if nothing else is said
_RIGHTS_BYTES = socket.CMSG_SPACE(16 * array("i").itemsize)  # 16 descriptors
_HERE, _IN_MEMORY = b"\0", b"\1"  # where a message is: the first byte of a packet
_FLAGS = socket.MSG_CMSG_CLOEXEC if _LINUX else 0
_CREDENTIALS = struct.Struct("3i")
_RETRY_SECONDS = 0.02  # between attempts to get a name
_CONNECT_SECONDS = 2.0
_PAUSE_SECONDS = 0.05  # without accepting connections, when no descriptors are left
_TICK_SECONDS = 1.0

#: What a forked child closes. If it kept a name or a connection, nobody would notice the death of this process.
_not_in_forks: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close_in_fork() -> None:
    for sock in [*_not_in_forks]:
        sock.close()


os.register_at_fork(after_in_child=_close_in_fork)


class Ended(Exception):
    """Raised when the process at the other end of a connection has ended, or has closed it."""


class Connection:
    """One end of a connection. A message arrives whole or not at all, even if its sender is killed.

    Args:
        sock: a connected Unix socket that keeps packets apart; it is closed with the connection.
        most_bytes: size of a message; a larger one is rejected before memory is allocated.
    """

    def __init__(self, sock: socket.socket, most_bytes: int = _MOST_BYTES) -> None:
        self._socket = sock
        self._most_bytes = most_bytes

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Returns two sockets that are connected with each other, for processes that inherit them."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET if _LINUX else socket.SOCK_DGRAM)

    def pid_of_user(self) -> int:
        """Returns the pid at the other end; 0 if the process is of another user, or cannot be seen from here."""
        found = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(found)
        return int(pid) if uid == os.getuid() else 0

    def fileno(self) -> int:
        """Returns the descriptor that is readable when a message has arrived or the other end is gone."""
        return self._socket.fileno()

    def wait_at_most(self, seconds: float) -> None:
        """Sets how long `send` and `receive` wait before they raise TimeoutError; 0: BlockingIOError at once."""
        self._socket.settimeout(max(seconds, 0.0))

    def send(self, parts: Sequence[bytes | memoryview], fds: Sequence[int] = ()) -> None:
        """Sends a message; raises `Ended` if the other end is gone."""
        data = joined(parts)
        if len(data) < _PACKET:
            self._send(_HERE + data, fds)
            return
        memory = anonymous_file(len(data))
        try:
            with open(memory, "wb", closefd=False) as file:
                file.write(data)
            self._send(_IN_MEMORY, [*fds, memory])
        finally:
            os.close(memory)

    def _send(self, packet: bytes, fds: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([packet], rights)
        except (ConnectionError, BrokenPipeError):
            raise Ended from None

    def receive(self) -> tuple[list[memoryview], list[int]]:
        """Returns the parts of a message, and its descriptors, which the caller closes.

        Raises:
            Ended: if the other end is gone.
            FrameRejected: if it is no message, or too large.
        """
        try:
            data, rights, flags, _ = self._socket.recvmsg(_PACKET, _RIGHTS_BYTES, _FLAGS)
        except ConnectionError:
            raise Ended from None
        fds = _descriptors(rights) if rights else []
        try:
            if not data:
                raise Ended
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise FrameRejected("a message between processes of this machine is too large")
            if data[:1] == _IN_MEMORY and fds:
                memory = fds.pop()
                try:
                    return separated(self._read(memory)), fds
                finally:
                    os.close(memory)
            if len(data) > self._most_bytes:
                raise FrameRejected(f"a message has {len(data)} bytes, at most {self._most_bytes} are accepted")
            return separated(memoryview(data)[1:]), fds
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    def _read(self, memory: int) -> bytes:
        nbytes = os.fstat(memory).st_size
        if nbytes > self._most_bytes:
            raise FrameRejected(f"a message has {nbytes} bytes, at most {self._most_bytes} are accepted")
        try:
            return os.pread(memory, nbytes, 0)
        except OSError as error:
            raise FrameRejected(f"a message is in memory that cannot be read ({error})") from error

    def close(self) -> None:
        """Closes the connection. Safe to call twice."""
        self._socket.close()


def _descriptors(rights: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array("i")
    for level, kind, data in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


def _address(name: str) -> str:
    if not _LINUX:
        raise StreamError("streams in shared memory need Linux; use the type 'ip' on this system")
    address = f"\0headrace/{os.getuid()}/{name}"
    if not name or len(address.encode()) > 107:
        raise ValueError(f"the name of the stream is {name[:100]!r}, expected 1 to 80 characters: it names a socket")
    return address


def check_name(name: str) -> None:
    """Raises ValueError if a name is too long, and StreamError if the system has no such names."""
    _address(name)


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _not_in_forks.add(made)
    return made


def connected(name: str, seconds: float = _CONNECT_SECONDS, most_bytes: int = _MOST_BYTES) -> Connection:
    """Returns a connection to whoever has a name.

    Raises:
        OSError: if nobody has it.
        StreamError: if a process of another user has it.
    """
    address = _address(name)
    sock = _socket()
    try:
        sock.settimeout(seconds)
        sock.connect(address)
        connection = Connection(sock, most_bytes)
        if not connection.pid_of_user():
            raise StreamError(f"a process of another user, or container, has the name {address[1:]!r}; choose another")
    except BaseException:
        sock.close()
        raise
    return connection


def _nothing(*_: object) -> None:
    """Does nothing."""


class Listener:
    """Accepts connections under a name, and has their messages dealt with in a thread.

    Args:
        name: the name.
        handle: called in the thread when a message has arrived, to receive it. If it raises, the connection is closed.
        gone: called in the thread when a connection ends, for whatever reason.
        stranger: called in the thread when a process of another user was turned away.
        waits: whether to wait for the end of another process that has the name, and to take over then.

    Raises:
        OSError: if another process has the name, unless `waits`.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[Connection], None],
        gone: Callable[[Connection], None] = _nothing,
        stranger: Callable[[], None] = _nothing,
        *,
        waits: bool = False,
    ) -> None:
        self._name = name
        self._handle = handle
        self._gone = gone
        self._stranger = stranger
        self._socket: socket.socket | None = None
        try:
            self._socket = self._bound()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not waits:
                raise
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=f"headrace listens as {name}", daemon=True)
        self._thread.start()

    @property
    def hosting(self) -> bool:
        """Whether the name is this object's."""
        return self._socket is not None

    def close(self) -> None:
        """Gives the name back, closes all connections and ends the thread. Safe to call twice."""
        if self._stop_write >= 0:
            os.write(self._stop_write, b"!")  # to close it is not enough: a fork has it too
            self._thread.join(10.0)
            os.close(self._stop_write)
            os.close(self._stop_read)
            self._stop_write = -1

    def _bound(self) -> socket.socket:
        sock = _socket()
        try:
            sock.bind(_address(self._name))
            sock.listen(128)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return sock

    def _run(self) -> None:
        while self._socket is None:
            if self._stopped_while_waiting():
                return
            with suppress(OSError):
                self._socket = self._bound()
        with self._socket, selectors.PollSelector() as selector:
            selector.register(self._stop_read, selectors.EVENT_READ)
            selector.register(self._socket, selectors.EVENT_READ)
            try:
                while True:
                    for key, _ in selector.select(_TICK_SECONDS):
                        if key.data is not None:
                            self._deal_with(selector, key.data)
                        elif key.fd == self._stop_read:
                            return
                        else:
                            self._accept(selector, self._socket)
            finally:
                for key in [*selector.get_map().values()]:
                    if key.data is not None:
                        self._end(selector, key.data)

    def _stopped_while_waiting(self) -> bool:
        """Waits until the process that has the name ends, or until `close`; returns whether it is the latter."""
        with selectors.PollSelector() as selector, suppress(OSError):
            selector.register(self._stop_read, selectors.EVENT_READ)
            try:
                connection = connected(self._name)
            except (OSError, StreamError):  # it has ended meanwhile, or is not ours
                return bool(selector.select(_RETRY_SECONDS))
            try:
                selector.register(connection, selectors.EVENT_READ)
                while not (ready := selector.select(_TICK_SECONDS)):
                    pass
                return any(key.fd == self._stop_read for key, _ in ready)
            finally:
                connection.close()
        return False

    def _accept(self, selector: selectors.BaseSelector, listening: socket.socket) -> None:
        try:
            sock, _ = listening.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptors are left, or the process that connects has ended
            time.sleep(_PAUSE_SECONDS)
            return
        _not_in_forks.add(sock)
        connection = Connection(sock)
        if connection.pid_of_user():
            connection.wait_at_most(0.0)  # who does not read must not stop the thread
            selector.register(connection, selectors.EVENT_READ, connection)
        else:
            self._stranger()
            connection.close()

    def _deal_with(self, selector: selectors.BaseSelector, connection: Connection) -> None:
        try:
            self._handle(connection)
        except Exception:  # whatever one process sends, the thread goes on serving the others
            self._end(selector, connection)

    def _end(self, selector: selectors.BaseSelector, connection: Connection) -> None:
        selector.unregister(connection)
        self._gone(connection)
        connection.close()
