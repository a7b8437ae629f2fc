"""Requests and answers as clients keep them: in batches, of which results are rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from headrace.streams.inference.trees import Leaves
from headrace.types import Tree

__all__ = ["Answers", "InferenceResult", "InferenceResults", "Requests"]


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


class InferenceResults(NamedTuple):
    """The answers to n requests as one batch.

    Args:
        value: arrays `[n, ...]` of what the policy returned.
        policy_names: name of the policy that answered, of each row.
        policy_versions: number of its parameters, int64 `[n]`.
    """

    value: Tree
    policy_names: Sequence[str]
    policy_versions: np.ndarray


class Requests(NamedTuple):
    """Requests in the order of their ids. agents: who asks; leaves: arrays `[n, ...]`, of a single one also `[...]`."""

    ids: list[int]
    agents: list[int]
    leaves: Leaves

    def without(self, ids: Collection[int]) -> Requests:
        """Returns the requests that are not among `ids`."""
        kept = [row for row, number in enumerate(self.ids) if number not in ids]
        if len(kept) == len(self.ids):
            return self
        leaves = [leaf[kept] for leaf in self.leaves] if kept else []
        return Requests([self.ids[row] for row in kept], [self.agents[row] for row in kept], leaves)


@dataclass(eq=False)
class Answers:
    """Answers that arrived together. ids: of the requests; leaves: the arrays `[n, ...]` of the results; trees: a tree
    for each row, once the first of them is asked for.
    """

    ids: Sequence[int]
    leaves: Leaves
    policy_name: str
    policy_version: int
    trees: list[Tree] | None = None
