"""ZeroMQ sockets: on this machine in plain text, elsewhere encrypted, and only between parties that know each other.

A socket that is bound to an address other machines can reach needs `Keys` and an `AllowList`: CURVE encrypts, and only
clients whose public keys are in the list are let in. Clients need the public key of the server, so that nobody can take
its place. Each socket has a context of its own, which ends with it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import stat
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from headrace.errors import StreamError
from headrace.extras import extra
from headrace.schema import fields, optional, text

__all__ = ["AllowList", "Keys", "bound", "close", "connected", "load_zmq"]

_KEY = text(r"[!-~]{40}")  # 32 bytes in Z85
_FILE = fields({"public": _KEY, "secret": _KEY, "server": optional(_KEY)})
#: Checks of keys are asked for under this name. pyzmq calls its default "*", which does not mean all names.
_DOMAIN = b"headrace"
_HIGH_WATER = 8
_HANDSHAKE_MS = 10_000
_HEARTBEAT_MS = 5_000


def load_zmq() -> Any:
    """Returns the module of pyzmq.

    Raises:
        ImportError: if it is missing, with the extra that has it.
    """
    with extra("zmq", "streams on sockets need pyzmq"):
        import zmq as module
    return module


@dataclass(frozen=True)
class Keys:
    """The CURVE keys of one party.

    Args:
        public: its public key, 40 characters.
        secret: its secret key; it is in no text of this object.
        server: of a client, the public key of the server.
    """

    public: str
    secret: str = field(repr=False)
    server: str | None = None

    def __post_init__(self) -> None:
        _KEY(self.public, "public")
        optional(_KEY)(self.server, "server")
        if len(self.secret) != 40:
            raise ValueError("secret is no CURVE key of 40 characters")

    @staticmethod
    def generate() -> Keys:
        """Returns new keys."""
        public, secret = load_zmq().curve_keypair()
        return Keys(public.decode(), secret.decode())

    def of_server(self, public: str) -> Keys:
        """Returns these keys for a client of the server that has this public key."""
        return replace(self, server=public)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the keys to a new file that only this user can read.

        Raises:
            FileExistsError: if the file exists.
        """
        content = json.dumps({"public": self.public, "secret": self.secret, "server": self.server})
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(content + "\n")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Keys:
        """Reads keys from a file that `save` wrote.

        Raises:
            ValueError: if other users can read the file, or if it has no keys.
        """
        mode = stat.S_IMODE(Path(path).stat().st_mode)
        if mode & 0o077:
            raise ValueError(f"{path} can be read by other users (mode {mode:o}), and has a secret key; chmod 600 it")
        try:
            content = json.loads(Path(path).read_text())
            _FILE(content, str(path))
        except ValueError:
            raise ValueError(f"{path} has no keys as Keys.save writes them") from None
        return Keys(content["public"], content["secret"], content["server"])


class AllowList:
    """The public keys of the clients that a server lets in; it may change at any time, for new connections.

    Args:
        keys: public keys, of 40 characters.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._keys: frozenset[str] = frozenset()
        for key in keys:
            self.add(key)

    def add(self, key: str) -> None:
        """Lets a client in."""
        _KEY(key, "a key of an AllowList")
        self._keys |= {key}

    def remove(self, key: str) -> None:
        """Lets a client in no longer."""
        self._keys -= {key}

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a file of public keys, one in a line; lines that begin with # are comments."""
        lines = [line.strip() for line in Path(path).read_text().splitlines()]
        return cls(line for line in lines if line and not line.startswith("#"))


def _place(address: str) -> tuple[str, str]:
    """Returns host and port of "tcp://host:port" or "host:port"."""
    host, colon, port = address.removeprefix("tcp://").rpartition(":")
    if not host or not colon or not (port.isdecimal() and int(port) < 2**16):
        raise ValueError(
            f"the address is {address!r}, expected 'host:port' or 'tcp://host:port'; port 0 is any free one"
        )
    return host, port


def _require_safe(address: str, keys: Keys | None) -> tuple[str, str]:
    host, port = _place(address)
    try:
        here = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        here = False
    if not here and keys is None:
        raise ValueError(
            f"{address} can be reached from other machines, and without keys everybody could send and read there in "
            "plain text; give keys=Keys.generate() (and allowed=AllowList([...]) where it is bound), or use 127.0.0.1"
        )
    return host, port


def _socket(kind: int, host: str, high_water: int, most_bytes: int = -1) -> Any:
    """Returns a socket in a context of its own; what must be set before it connects or is bound is set."""
    module = load_zmq()
    socket = module.Context(io_threads=1).socket(kind)
    socket.sndhwm = socket.rcvhwm = high_water
    socket.maxmsgsize = most_bytes
    socket.linger = 0
    socket.rcvtimeo = socket.sndtimeo = 0
    socket.handshake_ivl = _HANDSHAKE_MS
    socket.heartbeat_ivl = _HEARTBEAT_MS
    socket.ipv6 = ":" in host
    return socket


def bound(
    kind: int,
    address: str,
    keys: Keys | None = None,
    allowed: AllowList | None = None,
    *,
    high_water: int = _HIGH_WATER,
    most_bytes: int = -1,
) -> tuple[Any, str]:
    """Returns a socket that others connect to, and its address.

    Calls on it do not wait; poll it first. Close it with `close`.

    Args:
        kind: such as `zmq.PULL`.
        address: "host:port"; port 0: any free port.
        keys: of this server; None: plain text, only on this machine.
        allowed: the clients that are let in, with keys.
        high_water: how many messages may wait on each side of a connection.
        most_bytes: size of a part of a message; whoever sends a larger one is disconnected. -1: no limit.

    Raises:
        ValueError: for plain text on an address that other machines can reach, or for keys without `allowed`.
        StreamError: if the port is in use, or is not on this machine.
    """
    host, port = _require_safe(address, keys)
    if keys is not None and allowed is None:
        raise ValueError("keys without allowed would let every stranger in that has a key; give an AllowList")
    module = load_zmq()
    socket = _socket(kind, host, high_water, most_bytes)
    try:
        if keys is not None and allowed is not None:
            _Gate(socket.context, allowed).start()
            socket.curve_server = True
            socket.curve_publickey, socket.curve_secretkey = keys.public.encode(), keys.secret.encode()
            socket.zap_domain = _DOMAIN
        socket.bind(f"tcp://{host}:{'*' if port == '0' else port}")
        return socket, socket.last_endpoint.decode()
    except module.ZMQError as error:
        close(socket)
        remedy = "use port 0 for any free port" if port != "0" else "name an address of this machine"
        raise StreamError(f"cannot receive on {address}: {error}; {remedy}") from error
    except BaseException:
        close(socket)
        raise


def connected(kind: int, address: str, keys: Keys | None = None, *, high_water: int = _HIGH_WATER) -> Any:
    """Returns a socket that connects to an address, now or as soon as somebody is there, and again after a loss.

    Calls on it do not wait; poll it first. Messages wait in it only while there is a connection. Close it with `close`.

    Args:
        kind: such as `zmq.PUSH`.
        address: "host:port".
        keys: of this client, with the key of the server (`Keys.of_server`); None: plain text, only on this machine.
        high_water: how many messages may wait on each side of the connection.

    Raises:
        ValueError: for plain text to an address on another machine, or for keys without the key of the server.
    """
    host, port = _require_safe(address, keys)
    if keys is not None and keys.server is None:
        raise ValueError("keys have no key of the server, so anybody could take its place; use keys.of_server(public)")
    socket = _socket(kind, host, high_water)
    try:
        socket.immediate = True
        socket.reconnect_ivl, socket.reconnect_ivl_max = 20, 1000
        if keys is not None and keys.server is not None:
            socket.curve_serverkey = keys.server.encode()
            socket.curve_publickey, socket.curve_secretkey = keys.public.encode(), keys.secret.encode()
        socket.connect(f"tcp://{host}:{port}")
    except BaseException:
        close(socket)
        raise
    return socket


def close(socket: Any, deadline: float = 0.0) -> bool:
    """Closes a socket and ends its context; safe to call twice.

    Args:
        socket: from `bound` or `connected`.
        deadline: time of `time.monotonic` until which messages that wait may still be sent.

    Returns:
        Whether all of them were sent before the deadline; with the deadline in the past, nobody knows.
    """
    if socket.closed:
        return True
    left = max(0.0, deadline - time.monotonic())
    context = socket.context
    socket.close(linger=int(left * 1e3))
    context.term()  # returns when the messages are sent, or at the deadline
    return time.monotonic() < deadline


class _Gate(threading.Thread):
    """Answers libzmq's question whether a client may come in (ZAP, RFC 27), for the sockets of one context.

    It ends when the context does. The user id of a message is the public key of its sender.
    """

    def __init__(self, context: Any, allowed: AllowList) -> None:
        super().__init__(name="headrace-stream-gate", daemon=True)
        self._allowed = allowed
        self._zmq = load_zmq()
        self._socket = context.socket(self._zmq.REP)
        self._socket.linger = 0
        self._socket.bind("inproc://zeromq.zap.01")

    def run(self) -> None:
        from zmq.utils import z85

        try:
            while True:
                version, number, domain, _, _, mechanism, *credentials = self._socket.recv_multipart()
                known = mechanism == b"CURVE" and domain == _DOMAIN and len(credentials) == 1
                key = z85.encode(credentials[0]).decode() if known else ""
                status = (b"200", b"OK", key.encode()) if key in self._allowed else (b"400", b"not allowed", b"")
                self._socket.send_multipart([version, number, *status, b""])
        except self._zmq.ZMQError:  # the context ends
            pass
        finally:
            self._socket.close()
