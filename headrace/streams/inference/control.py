"""Connections that set up shared memory: Unix sockets that carry small messages and file descriptors.

A server listens under a name of Linux's abstract namespace, which is no file and vanishes with the process. A
connection also says who lives: the kernel closes it when the process at its other end ends, however it ends. Only
processes of the same user are let in, because abstract names have no permissions.
"""

from __future__ import annotations

import errno
import hashlib
import os
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from headrace.errors import FrameRejected, StreamError
from headrace.streams.codec import Frame, Limits, Part, decoded, encoded

__all__ = ["ControlThread", "Conversation", "Ended", "address_of", "joined", "separated"]

_MOST_BYTES = 2**17  # of a message; what may be larger is in memory, whose descriptor is sent
_MOST_FDS = 4
_LIMITS = Limits(header_bytes=_MOST_BYTES, payload_bytes=_MOST_BYTES)
_PAUSE = 0.05  # seconds without accepting connections, when there are no descriptors left
_COUNT = struct.Struct("<Q")


class Ended(Exception):
    """Raised when the process at the other end of a connection has ended, or has closed it."""


def address_of(name: str, number: int) -> str:
    """Returns the abstract name under which server `number` of a stream listens; each user has names of their own.

    Raises:
        StreamError: if the system has no abstract names.
    """
    if sys.platform != "linux":
        raise StreamError('streams in shared memory need Linux; use the type "ip" with the address tcp://127.0.0.1:0')
    readable = "".join(letter for letter in name if letter.isalnum())[:32]
    return f"\0headrace-inference-{os.getuid()}-{readable}-{hashlib.sha256(name.encode()).hexdigest()[:16]}-{number}"


def joined(parts: Sequence[Part]) -> bytes:
    """Returns the parts of a message as one piece."""
    sizes = [len(part) for part in parts]
    return b"".join([struct.pack(f"<{len(parts) + 1}Q", len(parts), *sizes), *parts])


def separated(data: bytes) -> list[memoryview]:
    """Returns the parts of what `joined` returned; raises FrameRejected if it is anything else."""
    view = memoryview(data)
    n = _COUNT.unpack_from(data)[0] if len(data) >= _COUNT.size else len(data)
    begin = (n + 1) * _COUNT.size
    if begin > len(data):
        raise FrameRejected("a message of a control connection is incomplete")
    sizes = struct.unpack_from(f"<{n}Q", data, _COUNT.size)
    if begin + sum(sizes) != len(data):
        raise FrameRejected("a message of a control connection has another length than it says")
    parts = []
    for size in sizes:
        parts.append(view[begin : begin + size])
        begin += size
    return parts


class Conversation:
    """One end of a connection. Each message has a number, which the answer to it has too.

    Args:
        sock: a connected Unix socket of the kind SOCK_SEQPACKET; it is closed with the conversation.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.pid, self._uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))

    @staticmethod
    def with_server(address: str, seconds: float) -> Conversation:
        """Returns a connection to a server; raises OSError if none listens there."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.settimeout(seconds)
            sock.connect(address)
            conversation = Conversation(sock)
        except BaseException:
            sock.close()
            raise
        if not conversation.with_this_user:
            conversation.close()
            raise StreamError(f"a process of another user (pid {conversation.pid}) listens under {address[1:]}")
        return conversation

    @property
    def with_this_user(self) -> bool:
        """Whether the other end belongs to a process of this user."""
        return bool(self._uid == os.getuid())

    def fileno(self) -> int:
        """Returns the descriptor that is readable when a message has arrived or the other end is gone."""
        return self._socket.fileno()

    def wait_at_most(self, seconds: float) -> None:
        """Sets how long `send` and `receive` wait before they raise TimeoutError; 0: BlockingIOError at once."""
        self._socket.settimeout(max(seconds, 0.0))

    def send(self, tree: object, fds: Sequence[int] = (), *, number: int = 0, producer: bytes = b"") -> None:
        """Sends a message; raises `Ended` if the other end is gone."""
        self.send_bytes(joined(encoded(Frame(tree, producer=producer, sequence=number))), fds)

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Sends a message that is packed already."""
        if len(data) > _MOST_BYTES:
            raise StreamError(f"a message of a control connection has {len(data)} bytes, at most {_MOST_BYTES}")
        try:
            socket.send_fds(self._socket, [data], fds)
        except (ConnectionError, BrokenPipeError):
            raise Ended from None

    def receive(self) -> tuple[Frame, list[int]]:
        """Returns a message and its descriptors, which the caller closes.

        Raises:
            Ended: if the other end is gone.
            FrameRejected: if it is no message of headrace.
        """
        try:
            data, fds, flags, _ = socket.recv_fds(self._socket, _MOST_BYTES, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            raise Ended from None
        try:
            if not data:
                raise Ended
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise FrameRejected("a message of a control connection is too large")
            return decoded(separated(data), _LIMITS), fds
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    def close(self) -> None:
        """Closes the connection."""
        self._socket.close()


class ControlThread:
    """Accepts connections and has their messages dealt with, while the process that serves the stream is busy.

    Args:
        address: from `address_of`.
        stream: name of the stream, for errors.
        handle: deals with a message that has arrived on a connection. If it raises, the connection is closed.
        gone: called when a connection ends, for whatever reason.
        stranger: called when a process of another user was turned away.

    Raises:
        StreamError: if another server has the address.
    """

    def __init__(
        self,
        address: str,
        stream: str,
        handle: Callable[[Conversation], None],
        gone: Callable[[Conversation], None],
        stranger: Callable[[], None],
    ) -> None:
        self._handle = handle
        self._gone = gone
        self._stranger = stranger
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            self._listener.bind(address)
        except OSError as error:
            self._listener.close()
            if error.errno != errno.EADDRINUSE:
                raise
            raise StreamError(
                f"stream {stream!r} has a server on this machine already; close that one, or give the streams "
                "different names, or each server a rank of its own"
            ) from None
        self._listener.listen(128)
        self._stop, self._stopping = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name=f"headrace inference {stream}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Closes all connections and ends the thread."""
        self._stopping.close()
        self._thread.join(10.0)
        self._stop.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector, self._listener:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stop, selectors.EVENT_READ)
            running = True
            while running:
                for key, _ in selector.select(1.0):
                    if key.fileobj is self._stop:
                        running = False
                    elif key.fileobj is self._listener:
                        self._accept(selector)
                    else:
                        self._deal_with(selector, key.data)
            for key in [*selector.get_map().values()]:
                if key.data is not None:
                    self._end(selector, key.data)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            accepted, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptors are left, or the process that connects has ended
            time.sleep(_PAUSE)
            return
        try:
            conversation = Conversation(accepted)
        except OSError:
            accepted.close()
            return
        if conversation.with_this_user:
            conversation.wait_at_most(0.0)  # a client that does not read its answers must not stop the thread
            selector.register(conversation, selectors.EVENT_READ, conversation)
        else:
            self._stranger()
            conversation.close()

    def _deal_with(self, selector: selectors.BaseSelector, conversation: Conversation) -> None:
        try:
            self._handle(conversation)
        except Exception:  # whatever a client sends, the thread goes on serving the others
            self._end(selector, conversation)

    def _end(self, selector: selectors.BaseSelector, conversation: Conversation) -> None:
        selector.unregister(conversation)
        self._gone(conversation)
        with suppress(OSError):
            conversation.close()
