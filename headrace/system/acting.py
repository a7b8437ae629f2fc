"""What actors, policy workers and trainers have to agree on: the contents of a chunk, and of a request for actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.buffers.samples import Slot, SlotSpec
from headrace.buffers.tree import allocate_like, tree_leaves, tree_map, tree_rows
from headrace.types import StepInputs, Tree

__all__ = ["Acting", "Answer", "inputs_of", "merged", "request_of"]


@dataclass(frozen=True)
class Acting:
    """How the agent of a policy acts, for processes that do not have it.

    Args:
        spec: contents of a chunk: T steps of one slice of n environments. Trees of the agent's own classes are plain
            tuples of their leaves, which need no torch to be unpickled.
        noise_size: numbers in `StepInputs.noise` per environment and step.
        noise_has_env_id: whether the last of them is the env id.
    """

    spec: SlotSpec
    noise_size: int
    noise_has_env_id: bool

    @staticmethod
    def of(spec: SlotSpec, noise_size: int, noise_has_env_id: bool) -> Acting:
        """Returns what an agent needs to act for chunks of this spec."""
        return Acting(spec.plain(), noise_size, noise_has_env_id)

    @property
    def n_envs(self) -> int:
        """Number of environments of a slice."""
        return self.spec.batch.B

    def example(self) -> tuple[Tree, Tree]:
        """Returns an example of a request and of its result, for the stream between actors and policy workers."""
        spec, n = self.spec, self.n_envs
        request = {
            "observation": _zeros(spec.observation, n),
            "prev_action": _zeros(spec.action, n),
            "prev_reward": np.zeros(n, np.float32),
            "is_first": np.zeros(n, np.bool_),
            "noise": np.zeros((n, self.noise_size), np.float32),
            "values": np.bool_(False),
        }
        result = {"action": _zeros(spec.action, n), "agent_info": _zeros(spec.agent_info, n)}
        if spec.bootstrap:
            result["value"] = np.zeros(n, np.float32)
        if spec.state:
            request["state"] = result["state"] = _zeros(spec.state, n)
        return request, result


@dataclass(frozen=True)
class Answer:
    """The result of a request: actions and what comes with them, or values.

    Args:
        action, agent_info, state: trees of `[n, ...]`.
        value: float32 `[n]`; None if chunks do not record values.
        version: of the parameters.
    """

    action: Tree
    agent_info: Tree
    state: Tree
    value: np.ndarray | None
    version: int


def request_of(slot: Slot, t: int, noise: np.ndarray, state: Tree, values: bool) -> dict[str, Any]:
    """Returns the request for the actions of row t.

    Args:
        slot: the chunk.
        t: the row.
        noise: float32 `[n, noise_size]`.
        state: recurrent state entering the row, or None.
        values: whether the values of the row are wanted, and not actions.
    """
    request = {
        "observation": tree_rows(slot.observation, t),
        "prev_action": tree_rows(slot.prev_action, t),
        "prev_reward": slot.prev_reward[t],
        "is_first": slot.is_first[t],
        "noise": noise,
        "values": np.bool_(values),
    }
    if tree_leaves(state):
        request["state"] = state
    return request


def inputs_of(requests: Any) -> StepInputs:
    """Returns the agent's inputs for requests `[k, n, …]` from k slices, as arrays `[k · n, …]`."""
    flat = {name: merged(value) for name, value in requests.items() if name not in ("values", "state")}
    return StepInputs(**flat)


def merged(tree: Tree) -> Tree:
    """Returns arrays `[k · n, …]` for arrays `[k, n, …]`."""
    return tree_map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def _zeros(example: Tree, n: int) -> Tree:
    return allocate_like(example, (n,), np.zeros)
