"""Inline inference: the policy is in the actor's own process, and answers all requests of a flush as one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from headrace.errors import StreamTimeout
from headrace.streams.inference.client import InferenceClient
from headrace.streams.inference.endpoint import Clock
from headrace.streams.inference.requests import Answers, Requests
from headrace.streams.inference.trees import copied
from headrace.types import Tree

__all__ = ["InlineInferenceClient"]


class InlineInferenceClient(InferenceClient):
    """A client that asks a policy of its own process. `flush` calls it, once for all requests that were posted.

    Args:
        policy: is called with the requests, arrays `[n, ...]`, and returns the results `[n, ...]`. Its attributes
            `name` and `version`, where it has them, are the policy's name and version.
        name: name of the stream, for errors.
        example: an example of a request and one of a result; see `InferenceClient`.
        timeout: not used: nothing is waited for.
        clock: returns seconds.
    """

    def __init__(
        self,
        policy: Callable[[Tree], Tree],
        name: str = "",
        *,
        example: tuple[Tree, Tree] | None = None,
        timeout: float = 60.0,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(name, example=example, timeout=timeout, clock=clock)
        #: May be replaced by another one between two flushes.
        self.policy: Any = policy
        self._answers: list[Answers] = []
        self._constants: dict[str, Tree] = {}

    def set_constant(self, name: str, tree: Tree) -> None:
        """Sets what `get_constant` returns, as a server does."""
        self._constants[name] = copied(tree)

    def flush(self, timeout: float | None = None) -> None:
        """Calls the policy with all requests that were posted; their answers are ready afterwards."""
        super().flush(timeout)
        self.poll_responses()

    def _send(self, requests: Requests, deadline: float) -> None:
        assert self._requests is not None
        results = self.policy(self._requests.tree(requests.leaves))
        name, version = getattr(self.policy, "name", ""), getattr(self.policy, "version", -1)
        leaves = self._result_leaves(results, len(requests.ids))
        self._answers.append(Answers(requests.ids, leaves, name, version))

    def _receive(self) -> Iterable[Answers]:
        answers, self._answers = self._answers, []
        return answers

    def _sleep(self, seconds: float) -> None:
        """Nothing can arrive: what was flushed is answered."""

    def _constant(self, name: str, deadline: float) -> Tree:
        if name not in self._constants:
            raise StreamTimeout(f"stream {self._name!r} is inline and has no constant {name!r}; call set_constant()")
        return copied(self._constants[name])

    def _leave(self) -> None:
        self._answers.clear()
