"""The server's side of every inference stream: forms batches of what has arrived, and answers them."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.streams.inference.endpoint import Clock, Endpoint
from headrace.streams.inference.trees import Layout, Leaves
from headrace.types import Tree

__all__ = ["MAX_NAME_BYTES", "InferenceBatch", "InferenceServer", "ServerCounts"]

#: Length of the name of a policy.
MAX_NAME_BYTES = 128


@dataclass(frozen=True, eq=False)
class InferenceBatch:
    """Requests that are answered together; `len(batch)` is their number n, 0 if none had arrived.

    Args:
        requests: the requests, stacked: arrays `[n, ...]`; None if n is 0.
        clients: who asked: the `client_id` of each row.
        agents: index of the agent of each row, int64 `[n]`.
        ids: id of each request, int64 `[n]`.
        places: where the answers go; for the server that made the batch.
    """

    requests: Tree
    clients: Sequence[bytes]
    agents: np.ndarray
    ids: np.ndarray
    places: Any = None

    def __len__(self) -> int:
        return len(self.clients)


@dataclass
class ServerCounts:
    """What a server has counted.

    Args:
        received: requests.
        answered: requests that were answered.
        duplicates: requests that came again, and answers that were given again.
        lost: answers whose client was gone, or did not read.
        rejected: messages that were damaged or not what the stream transports, and clients without permission.
        dropped: peers whose messages are not read any more, because too many were rejected.
    """

    received: int = 0
    answered: int = 0
    duplicates: int = 0
    lost: int = 0
    rejected: int = 0
    dropped: int = 0


def _nothing() -> InferenceBatch:
    return InferenceBatch(None, (), np.empty(0, np.int64), np.empty(0, np.int64))


class InferenceServer(Endpoint):
    """Receives the requests of all clients and sends them results. To be used from one thread.

    The loop of a policy process is `batch = server.poll_requests(timeout=…)`, then `server.respond(batch, results,
    policy_name, policy_version)`. A server is a context manager.

    Args:
        name: name of the stream, for errors.
        address: where clients find the server, for those who ask.
        example: an example of a request and one of a result. None, or None in the place of either: the first one
            declares what all others look like.
        clock: returns seconds.
    """

    def __init__(
        self,
        name: str,
        address: str = "",
        *,
        example: tuple[Tree, Tree] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(name, "server")
        requests, results = example or (None, None)
        self.counts = ServerCounts()
        #: Where clients find the server; empty, if that follows from the stream.
        self.address = address
        self._clock = clock
        self._looked_at = clock()
        self._requests = None if requests is None else Layout(requests, "request")
        self._results = None if results is None else Layout(results, "result")

    def poll_requests(
        self, timeout: float = 0.0, max_batch: int | None = None, max_wait: float = 0.0
    ) -> InferenceBatch:
        """Returns all requests that have arrived, from all clients.

        Clients take turns: one that was left out because of `max_batch` comes first in the next batch.

        Args:
            timeout: seconds to wait for the first request, if there is none.
            max_batch: number of requests to return at most; None: all.
            max_wait: seconds to wait for more. The batch is returned as soon as it has `max_batch` requests, or the
                oldest one arrived this long ago; 0: at once.
        """
        self._check_open()
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}, expected at least 1")
        begin = self._clock()
        deadline = begin + timeout

        def enough(n: int) -> bool:
            """Returns whether to stop receiving though there is more: requests may come faster than they are read."""
            return bool(max_wait > 0 and n and self._clock() >= max(begin, self._oldest()) + max_wait)

        since = self._looked_at  # what came while nobody looked has waited since then, as far as anybody knows
        while True:
            n = self._look(since, enough)
            now = self._looked_at = self._clock()
            if n:
                full = max_batch is not None and n >= max_batch
                until = now if full or max_wait <= 0 else self._oldest() + max_wait
                if now >= until:
                    batch = self._take(n if max_batch is None else min(n, max_batch))
                    if len(batch):  # 0: the clients that asked are gone
                        self.counts.received += len(batch)
                        return batch
            else:
                until = deadline
                if now >= until:
                    return _nothing()
            self._sleep(until - now)
            since = self._clock()

    def respond(self, batch: InferenceBatch, results: Tree, policy_name: str = "", policy_version: int = -1) -> None:
        """Answers a batch; never waits. Answers that cannot be delivered are counted.

        Args:
            batch: what `poll_requests` returned.
            results: arrays `[n, ...]`, row i for request i.
            policy_name: name of the policy.
            policy_version: number of its parameters.

        Raises:
            ValueError: if the results have another structure, dtype or shape than declared.
        """
        self._check_open()
        n = len(batch)
        if not n:
            return
        if len(policy_name.encode()) > MAX_NAME_BYTES:
            raise ValueError(f"policy_name is {policy_name[:50]!r}…, expected at most {MAX_NAME_BYTES} bytes")
        layout = self._results or Layout.of_batch(results, "result")
        leaves = layout.leaves(results, n)
        self._results = layout
        self._answer(batch, leaves, policy_name, int(policy_version))

    @abstractmethod
    def set_constant(self, name: str, tree: Tree) -> None:
        """Sets what clients get from `get_constant(name)`; replaces an earlier value.

        Args:
            name: name of the constant.
            tree: arrays, numbers and short strings nested in dicts, tuples and dataclasses.
        """

    @abstractmethod
    def _look(self, since: float, enough: Callable[[int], bool]) -> int:
        """Receives what has arrived, and returns the number of requests that wait.

        Args:
            since: when what is received now arrived, at the earliest.
            enough: is given the number of requests that wait, and returns whether to leave the others for later.
        """

    @abstractmethod
    def _oldest(self) -> float:
        """Returns when the oldest of the waiting requests arrived, by the clock; there is one."""

    @abstractmethod
    def _take(self, n: int) -> InferenceBatch:
        """Returns n of the waiting requests."""

    @abstractmethod
    def _sleep(self, seconds: float) -> None:
        """Waits until something may have arrived, for `seconds` at most."""

    @abstractmethod
    def _answer(self, batch: InferenceBatch, leaves: Leaves, policy_name: str, policy_version: int) -> None:
        """Sends results, whose arrays are `[n, ...]`."""
