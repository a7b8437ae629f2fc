"""What an inference stream is, in one value that travels to all processes of a run; its clients and its server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.streams.codec import Limits
from headrace.streams.inference.client import InferenceClient
from headrace.streams.inference.server import InferenceServer
from headrace.types import Tree

if TYPE_CHECKING:
    from headrace.streams.inference.local import LocalInferenceQueues
    from headrace.streams.inference.message_server import ServerChannel
    from headrace.streams.inference.messages import ClientChannel
    from headrace.streams.inference.zeromq import Names
    from headrace.streams.sockets import AllowList, Keys

__all__ = ["InferenceStream", "make_client", "make_server"]

_TYPES = ("inline", "local", "shared_memory", "ip", "name")


@dataclass(frozen=True)
class InferenceStream:
    """Describes an inference stream.

    ============= ================ ==============================================================
    type          where            what it needs
    ============= ================ ==============================================================
    inline        in one process   `policy`
    local         child processes  `queues`
    shared_memory one machine      `name`; Linux
    ip            any machines     `address`; beyond loopback `keys`, and `allowed` for the server
    name          any machines     `name`, `names`; beyond loopback as for ip
    ============= ================ ==============================================================

    Args:
        type: how requests and answers are carried.
        name: name of the stream.
        rank: of a client, its number among those of the stream: which queues of a local stream it has, and which
            server, modulo their number. Of a server, its number among the servers.
        servers: number of servers, in shared memory. Each serves its own clients.
        address: of the server, "tcp://host:port"; a server takes any free port for 0, and says which in its
            `address`. Servers of type "name" take loopback without it.
        example: an example of a request and one of a result. With it, the memory is reserved at once, and everything
            that looks otherwise is refused; None, or None in the place of either: the first one declares it.
        capacity: in shared memory, requests of all clients together that may be on their way at a time.
        policy: of an inline stream: returns the results `[n, ...]` of requests `[n, ...]`.
        queues: of a local stream.
        names: where servers publish their addresses, a `NameRecordRepository`.
        keys: CURVE keys of this party.
        allowed: the clients that a server lets in.
        timeout: seconds that a client's calls wait which are given no timeout.
        resend_after: seconds after which a client sends requests again that were not answered.
        limits: what a message may contain.
    """

    type: str
    name: str = "inference"
    rank: int = 0
    servers: int = 1
    address: str | None = None
    example: tuple[Tree, Tree] | None = None
    capacity: int = 256
    policy: Callable[[Tree], Tree] | None = None
    queues: LocalInferenceQueues | None = None
    names: Names | None = None
    keys: Keys | None = field(default=None, repr=False)
    allowed: AllowList | None = None
    timeout: float = 60.0
    resend_after: float = 1.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        needs = {"inline": ["policy"], "local": ["queues"], "ip": ["address"], "name": ["names"]}
        if self.type not in _TYPES:
            raise ValueError(f"type is {self.type!r}, expected one of {', '.join(_TYPES)}")
        for what in needs.get(self.type, []):
            if getattr(self, what) is None:
                raise ValueError(f"an inference stream of type {self.type!r} needs {what}=")
        if not self.name or self.capacity < 1 or self.servers < 1 or self.rank < 0:
            raise ValueError(
                f"name is {self.name!r}, capacity {self.capacity}, servers {self.servers}, rank {self.rank}; expected "
                "a name, at least one slot and one server, and a rank from 0"
            )
        if self.example is not None and (not isinstance(self.example, tuple) or len(self.example) != 2):
            raise ValueError("example is expected to be a tuple of two: a request and a result, either may be None")


def make_client(
    spec: str | InferenceStream | InferenceClient, *, names: Names | None = None, client_id: bytes | None = None
) -> InferenceClient:
    """Returns a client of a stream.

    Args:
        spec: a description; the name of a stream that a name service knows; or a client, which is returned.
        names: the name service, if `spec` is a name.
        client_id: who the client is, 1 to 64 bytes that no other client has; None: random.

    Raises:
        ImportError: if a package is missing that the type needs.
        ValueError: if the stream cannot have such a client.
    """
    if isinstance(spec, InferenceClient):
        return spec
    stream = InferenceStream("name", spec, names=names) if isinstance(spec, str) else spec
    example, timeout = stream.example, stream.timeout
    if stream.type == "inline":
        from headrace.streams.inference.inline import InlineInferenceClient

        assert stream.policy is not None
        return InlineInferenceClient(stream.policy, stream.name, example=example, timeout=timeout)
    if stream.type == "shared_memory":
        from headrace.streams.inference.control import address_of
        from headrace.streams.inference.shared_client import SharedMemoryClient

        address = address_of(stream.name, stream.rank % stream.servers)
        return SharedMemoryClient(stream.name, address, example=example, timeout=timeout, client_id=client_id)
    from headrace.streams.inference.messages import MessageClient

    return MessageClient(
        stream.name,
        _client_channel(stream),
        example=example,
        timeout=timeout,
        resend_after=stream.resend_after,
        limits=stream.limits,
        client_id=client_id,
    )


def _client_channel(stream: InferenceStream) -> ClientChannel:
    if stream.type == "local":
        from headrace.streams.inference.local import LocalClientChannel

        assert stream.queues is not None
        return LocalClientChannel(stream.queues, stream.rank)
    from headrace.streams.inference.zeromq import ZmqClientChannel, subtree_of

    names, address = stream.names, stream.address
    if stream.type == "name":
        assert names is not None
        none = f"no server has published its address under {subtree_of(stream.name)}"
        return ZmqClientChannel(lambda: names.get_subtree(subtree_of(stream.name)), stream.rank, stream.keys, none)
    assert address is not None
    return ZmqClientChannel(lambda: [address], stream.rank, stream.keys, "there is no address")


def make_server(spec: str | InferenceStream | InferenceServer, *, names: Names | None = None) -> InferenceServer:
    """Returns a server of a stream.

    Args:
        spec: a description; the name of a stream that a name service will know; or a server, which is returned.
        names: the name service, if `spec` is a name.

    Raises:
        ImportError: if a package is missing that the type needs.
        ValueError: if the stream is inline, or an address would let strangers in.
        StreamError: if there is such a server already.
    """
    if isinstance(spec, InferenceServer):
        return spec
    stream = InferenceStream("name", spec, names=names) if isinstance(spec, str) else spec
    if stream.type == "inline":
        raise ValueError("an inline stream has no server: its client calls the policy itself")
    if stream.type == "shared_memory":
        from headrace.streams.inference.control import address_of
        from headrace.streams.inference.shared_server import SharedMemoryServer

        address = address_of(stream.name, stream.rank % stream.servers)
        return SharedMemoryServer(stream.name, address, capacity=stream.capacity, example=stream.example)
    from headrace.streams.inference.message_server import MessageServer

    channel, address = _server_channel(stream)
    return MessageServer(stream.name, channel, address, example=stream.example, limits=stream.limits)


def _server_channel(stream: InferenceStream) -> tuple[ServerChannel, str]:
    """Returns the channel of a server, and its address."""
    if stream.type == "local":
        from headrace.streams.inference.local import LocalServerChannel

        assert stream.queues is not None
        return LocalServerChannel(stream.queues), ""
    from headrace.streams.inference.zeromq import ZmqServerChannel, subtree_of

    channel = ZmqServerChannel(
        stream.address or "tcp://127.0.0.1:0",
        stream.keys,
        stream.allowed,
        max(2 * stream.limits.header_bytes, stream.limits.payload_bytes),
        stream.names,
        subtree_of(stream.name),
    )
    return channel, channel.address
