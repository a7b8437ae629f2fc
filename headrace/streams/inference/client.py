"""The client's side of every inference stream: numbers requests, keeps answers until they are consumed, and waits."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from headrace.errors import StreamError, StreamTimeout
from headrace.streams.inference.endpoint import Clock, Endpoint
from headrace.streams.inference.requests import Answers, InferenceResult, InferenceResults, Requests
from headrace.streams.inference.trees import Layout, Leaves
from headrace.types import Tree

__all__ = ["ClientCounts", "InferenceClient"]


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
        self._posted: list[Requests] = []
        self._next_id = 0
        self._awaited: dict[int, None] = {}  # sent and not answered, in the order of their ids
        self._arrived: dict[int, tuple[Answers, int] | StreamError] = {}  # the answers, and which row of them

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
        self._check_agent(index)
        if self._requests is None:
            self._requests = Layout(request, "request")
        leaves = self._requests.leaves(request)
        number = self._next_id
        self._next_id = number + 1
        self._posted.append(Requests([number], [index], leaves))
        self.counts.posted += 1
        return number

    def post_batch(self, requests: Tree, indices: Sequence[int]) -> range:
        """Adds the requests of n agents to the next `flush`, and returns their ids. It costs no more than one request.

        Args:
            requests: as of `post_request`, but arrays `[n, ...]`, row i for the agent `indices[i]`.
            indices: the agents that ask.

        Raises:
            ValueError: as `post_request` does, or if there is no row for each agent.
        """
        self._check_open()
        agents = [int(index) for index in indices]
        for index in {*agents}:
            self._check_agent(index)
        n = len(agents)
        layout = self._requests or Layout.of_batch(requests, "request")
        leaves = layout.leaves(requests, n)
        self._requests = layout
        ids = range(self._next_id, self._next_id + n)
        if n:
            self._next_id += n
            self._posted.append(Requests([*ids], agents, leaves))
            self.counts.posted += n
        return ids

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
            assert self._requests is not None
            ids = [number for post in self._posted for number in post.ids]
            agents = [agent for post in self._posted for agent in post.agents]
            leaves = self._requests.stacked([post.leaves for post in self._posted], len(ids))
            self._send(Requests(ids, agents, leaves), self._deadline(timeout))
            self._posted = []
            self._awaited.update(dict.fromkeys(ids))
            self.counts.sent += len(ids)

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
        results = []
        for answers, row in self._consumed(ids):
            if answers.trees is None:
                assert self._results is not None
                answers.trees = self._results.trees(answers.leaves, len(answers.ids))
            results.append(InferenceResult(answers.trees[row], answers.policy_name, answers.policy_version))
        return results

    def consume_batch(self, ids: Sequence[int]) -> InferenceResults:
        """Returns the answers to these requests as one batch, in the order of `ids`, and forgets them.

        Raises:
            StreamError: as `consume_result` does.
            ValueError: as `consume_result` does, or if there are no ids.
        """
        if not len(ids):
            raise ValueError("ids are empty, expected at least one")
        found = self._consumed(ids)
        assert self._results is not None
        first = found[0][0]
        rows = [row for _, row in found]
        if all([answers is first for answers, _ in found]):
            leaves = first.leaves if rows == [*range(len(first.ids))] else [leaf[rows] for leaf in first.leaves]
        else:
            leaves = self._results.stacked(
                [[leaf[row, ...] for leaf in answers.leaves] for answers, row in found], len(rows)
            )
        return InferenceResults(
            self._results.tree(leaves),
            [answers.policy_name for answers, _ in found],
            np.array([answers.policy_version for answers, _ in found], np.int64),
        )

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
        given_up = {*ids}
        self._posted = [left for post in self._posted if (left := post.without(given_up)).ids]
        for number in given_up:
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
    def _send(self, requests: Requests, deadline: float) -> None:
        """Sends requests, all or none; raises StreamTimeout at the deadline. The arrays are of nobody else."""

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
        awaited, arrived = self._awaited, self._arrived
        n_before = len(awaited)
        for row, number in enumerate(answers.ids):
            if number in awaited:
                del awaited[number]
                arrived[number] = (answers, row)
            elif number < self._next_id:
                self.counts.duplicates += 1
            else:
                self.counts.unknown += 1
        self.counts.answered += n_before - len(awaited)

    def _consumed(self, ids: Sequence[int]) -> list[tuple[Answers, int]]:
        """Returns where the answers to these requests are, and forgets them."""
        self._check_open()
        if len({*ids}) < len(ids):
            raise ValueError(f"ids are {[*ids]}, expected each once")
        arrived = self._arrived
        missing = [number for number in ids if number not in arrived]
        if missing:
            self._check_asked(missing)
            raise StreamError(f"request {missing[0]} of stream {self._name!r} has no answer yet; call wait() before")
        found = [arrived.pop(number) for number in ids]
        for of_request in found:
            if isinstance(of_request, StreamError):
                raise of_request
        return cast(list[tuple[Answers, int]], found)

    def _refuse(self, ids: Iterable[int], reason: str) -> None:
        """Answers requests with an error, which `consume_result` raises."""
        for number in ids:
            if number in self._awaited:
                del self._awaited[number]
                self._arrived[number] = StreamError(f"request {number} of stream {self._name!r} was refused: {reason}")

    def _deadline(self, timeout: float | None) -> float:
        return self._clock() + (self._timeout if timeout is None else timeout)

    def _check_agent(self, index: int) -> None:
        if not 0 <= index < max(1, self._n_agents):
            raise ValueError(f"index is {index}, expected one that register_agent() returned ({self._n_agents} agents)")

    def _check_asked(self, ids: Iterable[int]) -> None:
        for number in ids:
            if any(number in post.ids for post in self._posted):
                raise ValueError(f"request {number} of stream {self._name!r} was not sent yet; call flush() before")
            if number not in self._awaited:
                raise ValueError(f"{number} is no request of stream {self._name!r} that waits for its answer")
