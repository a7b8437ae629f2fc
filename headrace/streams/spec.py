"""Descriptions of sample streams, from which producers and consumers are made: what connects them is a value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from headrace.streams.codec import LIMITS, Limits
from headrace.streams.ip import IpSampleConsumer, IpSampleProducer
from headrace.streams.local import LocalSampleConsumer, LocalSampleProducer, SampleQueue
from headrace.streams.name_resolving import (
    NameResolvingSampleConsumer,
    NameResolvingSampleProducer,
    Names,
    Spread,
)
from headrace.streams.sample import NullSampleProducer, Policy, SampleConsumer, SampleProducer
from headrace.streams.shared_memory import SharedMemorySampleConsumer, SharedMemorySampleProducer
from headrace.streams.slots import Order
from headrace.streams.sockets import AllowList, Keys
from headrace.types import Tree

__all__ = ["SampleStream", "make_consumer", "make_producer", "register_consumer", "register_producer"]

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class SampleStream:
    """Describes a sample stream. Its producers and consumers get the same, but for what differs between machines.

    Args:
        type: "local" (processes of one program), "shared_memory" (of one machine), "ip" (an address), "name" (an
            address that a name service knows), "null" (producers only), or a type that was registered.
        name: of the stream.
        address: "ip": where the consumer listens and producers send to, "host:port"; a consumer may use port 0, and
            its `address` says where it is. "name": where the consumer listens. "local": the `SampleQueue`; None: a new
            one, so make the description before the processes start, and pass it to them.
        example: a sample, the largest there will be. It makes slots of shared memory large enough, and consumers
            reject samples of other keys or dtypes and return its dataclasses.
        batch_size: how many samples consumers return as one; None: single samples.
        qsize: messages of "local" or slots of "shared_memory".
        reuses: of "shared_memory": how often each sample is delivered.
        order: of "shared_memory": "fifo", "fresh" or "least_reused".
        policy: what producers do with samples that are not taken: "block" or "drop_oldest".
        capacity: how many samples a producer holds at most.
        compressed: paths of fields that producers compress, such as "observation".
        limits: what consumers accept.
        keys: of this side, for sockets. None: plain text, only on this machine.
        allowed: public keys of the producers, for consumers with keys.
        names: the name service of "name", a `headrace.services.NameRecordRepository`.
        spread: of "name": samples of a producer go to one consumer by "rank", "round_robin", or to all, "broadcast".
        rank: of "name": number of the producer.
    """

    type: str
    name: str = ""
    address: Any = None
    example: Tree = None
    batch_size: int | None = None
    qsize: int = 64
    reuses: int = 1
    order: Order = "fifo"
    policy: Policy = "block"
    capacity: int = 4096
    compressed: Sequence[str] = ()
    limits: Limits = LIMITS
    keys: Keys | None = field(default=None, repr=False)
    allowed: AllowList | None = field(default=None, repr=False)
    names: Names | None = None
    spread: Spread = "rank"
    rank: int = 0

    def __post_init__(self) -> None:
        if self.type == "local" and self.address is None:
            object.__setattr__(self, "address", SampleQueue(self.qsize))
        if self.type != "shared_memory" and (self.reuses, self.order) != (1, "fifo"):
            raise ValueError(
                f"reuses and order are settings of the type 'shared_memory', and the type is {self.type!r}"
            )


def _names_of(stream: SampleStream) -> Names:
    if stream.names is None:
        raise ValueError(
            f"the sample stream {stream.name!r} is found by its name, so give names=, the name service, such as "
            "headrace.services.make_repository('redis://127.0.0.1')"
        )
    return stream.names


def _address_of(stream: SampleStream) -> str:
    if not isinstance(stream.address, str):
        raise ValueError(
            f"the sample stream {stream.name!r} of the type 'ip' has the address {stream.address!r}, "
            "expected 'host:port'"
        )
    return stream.address


def _producing(stream: SampleStream) -> dict[str, Any]:
    return {"policy": stream.policy, "capacity": stream.capacity, "compressed": stream.compressed}


def _consuming(stream: SampleStream) -> dict[str, Any]:
    return {"example": stream.example, "batch_size": stream.batch_size, "limits": stream.limits}


def _receiving(stream: SampleStream) -> dict[str, Any]:
    address = stream.address or "127.0.0.1:0"
    return {**_consuming(stream), "address": address, "keys": stream.keys, "allowed": stream.allowed}


def _local_producer(stream: SampleStream) -> SampleProducer:
    return LocalSampleProducer(stream.address, stream.name, **_producing(stream))


def _local_consumer(stream: SampleStream) -> SampleConsumer:
    return LocalSampleConsumer(stream.address, stream.name, **_consuming(stream))


def _shared_memory_producer(stream: SampleStream) -> SampleProducer:
    return SharedMemorySampleProducer(stream.name, **_producing(stream))


def _shared_memory_consumer(stream: SampleStream) -> SampleConsumer:
    return SharedMemorySampleConsumer(
        stream.name, qsize=stream.qsize, reuses=stream.reuses, order=stream.order, **_consuming(stream)
    )


def _ip_producer(stream: SampleStream) -> SampleProducer:
    return IpSampleProducer(_address_of(stream), stream.name, keys=stream.keys, **_producing(stream))


def _ip_consumer(stream: SampleStream) -> SampleConsumer:
    return IpSampleConsumer(name=stream.name, **_receiving(stream))


def _name_producer(stream: SampleStream) -> SampleProducer:
    return NameResolvingSampleProducer(
        _names_of(stream),
        stream.name,
        method=stream.spread,
        rank=stream.rank,
        keys=stream.keys,
        **_producing(stream),
    )


def _name_consumer(stream: SampleStream) -> SampleConsumer:
    return NameResolvingSampleConsumer(_names_of(stream), stream.name, **_receiving(stream))


def _null_producer(stream: SampleStream) -> SampleProducer:
    return NullSampleProducer()


#: The types of streams. What `register_producer` and `register_consumer` add is there for the whole process.
_PRODUCERS: dict[str, Callable[[SampleStream], SampleProducer]] = {
    "local": _local_producer,
    "shared_memory": _shared_memory_producer,
    "ip": _ip_producer,
    "name": _name_producer,
    "null": _null_producer,
}
_CONSUMERS: dict[str, Callable[[SampleStream], SampleConsumer]] = {
    "local": _local_consumer,
    "shared_memory": _shared_memory_consumer,
    "ip": _ip_consumer,
    "name": _name_consumer,
}


def register_producer(type: str, make: Callable[[SampleStream], SampleProducer]) -> None:
    """Adds a type of streams, or replaces one, for producers of this process.

    Args:
        type: its name in `SampleStream`.
        make: returns a producer for a description.
    """
    _PRODUCERS[type] = make


def register_consumer(type: str, make: Callable[[SampleStream], SampleConsumer]) -> None:
    """Adds a type of streams, or replaces one, for consumers of this process.

    Args:
        type: its name in `SampleStream`.
        make: returns a consumer for a description.
    """
    _CONSUMERS[type] = make


def make_producer(spec: str | SampleStream | SampleProducer, *, names: Names | None = None) -> SampleProducer:
    """Returns a producer.

    Args:
        spec: a description; the name of a stream that a name service knows; or a producer, which is returned.
        names: the name service, if `spec` is a name.

    Raises:
        ValueError: for a type that is not known.
    """
    if isinstance(spec, SampleProducer):
        return spec
    stream = SampleStream("name", spec, names=names) if isinstance(spec, str) else spec
    return _maker(_PRODUCERS, stream, "producers")(stream)


def make_consumer(spec: str | SampleStream | SampleConsumer, *, names: Names | None = None) -> SampleConsumer:
    """Returns a consumer.

    Args:
        spec: a description; the name of a stream that a name service will know; or a consumer, which is returned.
        names: the name service, if `spec` is a name.

    Raises:
        ValueError: for a type that is not known.
    """
    if isinstance(spec, SampleConsumer):
        return spec
    stream = SampleStream("name", spec, names=names) if isinstance(spec, str) else spec
    return _maker(_CONSUMERS, stream, "consumers")(stream)


def _maker(
    makers: dict[str, Callable[[SampleStream], _Made]], stream: Any, what: str
) -> Callable[[SampleStream], _Made]:
    if not isinstance(stream, SampleStream):
        raise TypeError(f"spec is a {type(stream).__name__}, expected a name, a SampleStream, or one of {what}")
    if stream.type not in makers:
        raise ValueError(
            f"the type of the sample stream {stream.name!r} is {stream.type!r}, and {what} are made for "
            f"{sorted(makers)}; register others"
        )
    return makers[stream.type]
