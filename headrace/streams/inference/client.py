"""The client's side of every inference stream: numbers requests, keeps answers until they are consumed, and waits."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from headrace.errors import StreamError, StreamTimeout
from headrace.streams.inference.endpoint import Clock, Endpoint
from headrace.streams.inference.trees import Layout, Leaves
from headrace.types import Tree

__all__ = ["Answers", "ClientCounts", "InferenceClient", "InferenceResult", "Post"]


class InferenceResult(NamedTuple):  # one is made for each request: faster than a dataclass
    """The answer to one request.

    Args:
        value: a row of what the policy returned.
        policy_name: name of the policy that answered.
        policy_version: number of its parameters.
    """

    value: Tree
    policy_name: str
    policy_version: int


@dataclass
class ClientCounts:
    """What a client has counted.

    Args:
        posted: requests.
        sent: requests that were sent.
        resent: requests that were sent once more, because no answer came.
        answered: requests whose answer arrived.
        duplicates: answers to requests that had been answered already, or given up.
        unknown: answers to requests that this client never sent.
        rejected: messages that were damaged, or not what the stream transports.
    """

    posted: int = 0
    sent: int = 0
    resent: int = 0
    answered: int = 0
    duplicates: int = 0
    unknown: int = 0
    rejected: int = 0


class Post(NamedTuple):
    """A request that has not been sent. agent: who asks; leaves: the arrays of the request."""

    agent: int
    leaves: Leaves


@dataclass(frozen=True)
class Answers:
    """Answers that arrived together. ids: of the requests; leaves: the arrays `[n, ...]` of the results."""

    ids: Sequence[int]
    leaves: Leaves
    policy_name: str
    policy_version: int


class InferenceClient(Endpoint):
    """Sends the requests of some agents to a policy, and receives its results. To be used from one thread.

    `post_request` and `flush` send; `poll_responses` and `is_ready`, or `wait`, tell when answers are there;
    `consume_result` returns them in the order asked. A client is a context manager.

    Args:
        name: name of the stream, for errors.
        example: an example of a request and one of a result. None, or None in the place of either: the first one
            declares what all others look like.
        timeout: seconds that a call waits which is given no timeout of its own.
        clock: returns seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        example: tuple[Tree, Tree] | None = None,
        timeout: float = 60.0,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(name, "client")
        requests, results = example or (None, None)
        self.counts = ClientCounts()
        #: Who this client is; random, so that no two clients share it, however they were seeded or forked.
        self.client_id = os.urandom(8)
        self._timeout = timeout
        self._clock = clock
        self._requests = None if requests is None else Layout(requests, "request")
        self._results = None if results is None else Layout(results, "result")
        self._pid = os.getpid()
        self._n_agents = 0
        self._posted: dict[int, Post] = {}
        self._next_id = 0
        self._awaited: dict[int, None] = {}  # sent and not answered, in the order of their ids
        self._arrived: dict[int, InferenceResult | StreamError] = {}

    # ---- what a user calls ----

    def register_agent(self) -> int:
        """Returns the index of one more agent of this client; agents may be registered at any time."""
        self._check_open()
        self._n_agents += 1
        return self._n_agents - 1

    def post_request(self, request: Tree, index: int = 0) -> int:
        """Adds a request to the next `flush`, and returns its id. Nothing is sent before.

        Args:
            request: arrays and numbers nested in dicts, tuples and dataclasses. They are read when the request is
                flushed: do not change them before.
            index: the agent that asks.

        Raises:
            ValueError: if the request has another structure, dtype or shape than declared, or the agent is unknown.
        """
        self._check_open()
        if not 0 <= index < max(1, self._n_agents):
            raise ValueError(f"index is {index}, expected one that register_agent() returned ({self._n_agents} agents)")
        if self._requests is None:
            self._requests = Layout(request, "request")
        leaves = self._requests.leaves(request)
        number, self._next_id = self._next_id, self._next_id + 1
        self._posted[number] = Post(index, leaves)
        self.counts.posted += 1
        return number

    def flush(self, timeout: float | None = None) -> None:
        """Sends all requests that were posted, as one batch.

        Args:
            timeout: seconds to wait at most for a server that is not there, or does not read.

        Raises:
            StreamTimeout: if nothing could be sent in time; the requests stay posted.
            StreamError: if the server refuses this client or its requests.
        """
        self._check_open()
        if os.getpid() != self._pid:
            raise StreamError(
                f"process {os.getpid()} was forked from process {self._pid}, which made this client of {self._name!r}; "
                "make a client in the process that uses it"
            )
        if self._posted:
            posts, self._posted = self._posted, {}
            try:
                self._send(posts, self._deadline(timeout))
            except BaseException:
                self._posted = posts
                raise
            self._awaited.update(dict.fromkeys(posts))
            self.counts.sent += len(posts)

    def poll_responses(self) -> int:
        """Receives the answers that have arrived, without waiting; returns how many there were."""
        self._check_open()
        before = self.counts.answered
        for answers in self._receive():
            self._accept(answers)
        return self.counts.answered - before

    def is_ready(self, ids: Iterable[int]) -> bool:
        """Returns whether the answers of all these requests have been received, by `poll_responses` or `wait`."""
        arrived = self._arrived
        return all(number in arrived for number in ids)

    def consume_result(self, ids: Sequence[int]) -> list[InferenceResult]:
        """Returns the answers to these requests in the order of `ids`, and forgets them.

        Raises:
            StreamError: if an answer is not there, or if the server refused a request.
            ValueError: if an id is there twice, or was consumed before.
        """
        self._check_open()
        if len({*ids}) < len(ids):
            raise ValueError(f"ids are {[*ids]}, expected each once")
        missing = [number for number in ids if number not in self._arrived]
        if missing:
            self._check_asked(missing)
            raise StreamError(f"request {missing[0]} of stream {self._name!r} has no answer yet; call wait() before")
        results = [self._arrived.pop(number) for number in ids]
        for result in results:
            if isinstance(result, StreamError):
                raise result
        return [result for result in results if isinstance(result, InferenceResult)]

    def wait(self, ids: Sequence[int], timeout: float | None = None) -> None:
        """Waits until the answers to all these requests have been received.

        Args:
            ids: requests that were flushed.
            timeout: seconds to wait at most.

        Raises:
            StreamTimeout: if an answer does not come in time. The request stays asked: wait for it again, or
                `forget` it.
            ValueError: if an id was consumed before, or was not flushed.
        """
        self._check_open()
        deadline = self._deadline(timeout)
        while True:
            self.poll_responses()
            missing = [number for number in ids if number not in self._arrived]
            if not missing:
                return
            self._check_asked(missing)
            left = deadline - self._clock()
            if left <= 0:
                raise StreamTimeout(
                    f"{len(missing)} of {len(ids)} requests of stream {self._name!r} got no answer in time (the first "
                    f"is number {missing[0]}): {self._state()}"
                )
            self._sleep(left)

    def wait_any(self, ids: Collection[int], timeout: float) -> bool:
        """Waits until the answer to one of these requests has been received; returns whether there is one.

        Args:
            ids: requests; those that were not flushed yet get no answer.
            timeout: seconds to wait at most.
        """
        self._check_open()
        deadline = self._clock() + timeout
        while True:
            self.poll_responses()
            if not self._arrived.keys().isdisjoint(ids):
                return True
            left = deadline - self._clock()
            if left <= 0:
                return False
            self._sleep(left)

    def forget(self, ids: Iterable[int]) -> None:
        """Gives up requests: their answers, if any come, are counted and dropped."""
        for number in ids:
            self._posted.pop(number, None)
            self._awaited.pop(number, None)
            self._arrived.pop(number, None)

    def get_constant(self, name: str, timeout: float | None = None) -> Tree:
        """Returns what the server has set as a constant, such as the first recurrent state of its policy.

        Raises:
            StreamTimeout: if the server has not set it in time.
        """
        self._check_open()
        return self._constant(name, self._deadline(timeout))

    # ---- what a kind of stream does ----

    @abstractmethod
    def _send(self, posts: Mapping[int, Post], deadline: float) -> None:
        """Sends requests, all or none; raises StreamTimeout at the deadline."""

    @abstractmethod
    def _receive(self) -> Iterable[Answers]:
        """Returns what has arrived, without waiting."""

    @abstractmethod
    def _sleep(self, seconds: float) -> None:
        """Waits until something may have arrived, for `seconds` at most."""

    @abstractmethod
    def _constant(self, name: str, deadline: float) -> Tree:
        """Returns a constant; raises StreamTimeout at the deadline."""

    def _state(self) -> str:
        """Returns what is known about the server, for the message of a timeout."""
        return "the server is slow, or none is running"

    # ---- what they share ----

    def _result_leaves(self, results: Tree, n: int) -> Leaves:
        """Returns the arrays of a batch of results; raises ValueError if they are not as declared."""
        layout = self._results or Layout.of_batch(results, "result")
        leaves = layout.leaves(results, n)
        self._results = layout
        return leaves

    def _accept(self, answers: Answers) -> None:
        assert self._results is not None
        layout, leaves = self._results, answers.leaves
        for row, number in enumerate(answers.ids):
            if number in self._awaited:
                del self._awaited[number]
                value = layout.tree([leaf[row] for leaf in leaves])
                self._arrived[number] = InferenceResult(value, answers.policy_name, answers.policy_version)
                self.counts.answered += 1
            elif number < self._next_id:
                self.counts.duplicates += 1
            else:
                self.counts.unknown += 1

    def _refuse(self, ids: Iterable[int], reason: str) -> None:
        """Answers requests with an error, which `consume_result` raises."""
        for number in ids:
            if number in self._awaited:
                del self._awaited[number]
                self._arrived[number] = StreamError(f"request {number} of stream {self._name!r} was refused: {reason}")

    def _deadline(self, timeout: float | None) -> float:
        return self._clock() + (self._timeout if timeout is None else timeout)

    def _check_asked(self, ids: Iterable[int]) -> None:
        for number in ids:
            if number in self._posted:
                raise ValueError(f"request {number} of stream {self._name!r} was not sent yet; call flush() before")
            if number not in self._awaited:
                raise ValueError(f"{number} is no request of stream {self._name!r} that waits for its answer")
