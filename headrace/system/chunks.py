"""Chunks: T steps of one slice of environments, as actors post them; and the batches that algorithms learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.buffers.samples import AgentSamples, EnvSamples, Final, Samples, Slot
from headrace.buffers.tree import tree_leaves, tree_map, tree_rows
from headrace.samplers.collection.slice import SliceReport
from headrace.types import Tree

if TYPE_CHECKING:
    import torch

__all__ = ["RunningReturns", "chunk_of", "returns_of", "samples_of"]

_OF_AGENT = {"agent_info", "first_state", "last_state", "state"}
_FINAL = ("time", "column", "observation", "prev_action", "prev_reward", "state")


class RunningReturns:
    """The discounted returns of the running episodes of a slice, which algorithms need to scale rewards.

    A trainer does not see the steps of an environment in succession: the chunks of others lie between.

    Args:
        n: number of environments.
        discount: γ.
    """

    def __init__(self, n: int, discount: float) -> None:
        self._returns = np.zeros(n, np.float32)
        self._discount = np.float32(discount)

    def advance(self, slot: Slot) -> np.ndarray:
        """Returns the returns up to row 0 of a chunk, float32 `[1, n]`, and goes on to its end."""
        before, y = self._returns, self._returns
        for reward, ended in zip(slot.reward, slot.terminated | slot.truncated, strict=True):
            y = np.where(ended, np.float32(0), self._discount * y + reward)
        self._returns = y
        return before[None]


def chunk_of(slot: Slot, report: SliceReport, returns: np.ndarray, overflow_state: Tree = None) -> dict[str, Any]:
    """Returns a chunk: the arrays of a slot by name, and in "final" one entry for each episode that ended.

    The arrays are those of the slot. Fields that the slot does not have are left out; of the agent's own trees, chunks
    have the leaves, as `Acting` declares.

    Args:
        slot: the memory of one slice.
        report: what the slice reported after the last row.
        returns: discounted returns of the running episodes up to row 0, float32 `[1, n]`.
        overflow_state: recurrent states of the final entries that did not fit into the slot.
    """
    chunk = {name: _plain(name, value) for name, value in vars(slot).items() if name != "final" and tree_leaves(value)}
    chunk["returns"] = returns
    (region,) = slot.final
    entries = tree_rows(region, slice(0, min(report.n_final, len(region.time))))
    if report.overflow is not None:
        more = report.overflow
        more.state = overflow_state
        entries = tree_map(lambda *leaves: np.concatenate(leaves), entries, more)
    final = {name: getattr(entries, name) for name in _FINAL}
    chunk["final"] = {name: _plain(name, value) for name, value in final.items() if tree_leaves(value)}
    return chunk


def returns_of(chunks: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """Returns the discounted returns of the running episodes up to row 0 of some chunks, float32 `[B]`."""
    import torch

    return torch.from_numpy(np.concatenate([chunk["returns"][0] for chunk in chunks]))


def samples_of(chunks: Sequence[Mapping[str, Any]], agent_info: Tree, state: Tree) -> Samples:
    """Returns the batch that consists of some chunks, one beside the other.

    Args:
        chunks: of the same number of steps.
        agent_info: example of the agent's own tree, of which chunks have the leaves.
        state: example of its recurrent state, or None.
    """
    import torch

    widths = [chunk["reward"].shape[1] for chunk in chunks]

    def joined(name: str) -> Tree:
        if name not in chunks[0]:
            return None
        return tree_map(
            lambda *leaves: torch.from_numpy(np.concatenate(leaves, axis=1)), *(chunk[name] for chunk in chunks)
        )

    observation, is_first = joined("observation"), joined("is_first")
    prev_action, prev_reward = joined("prev_action"), joined("prev_reward")
    rows = slice(None, -1)
    env = EnvSamples(
        observation=tree_rows(observation, rows),
        is_first=is_first[rows],
        prev_reward=prev_reward[rows],
        reward=joined("reward"),
        terminated=joined("terminated"),
        truncated=joined("truncated"),
        valid=joined("valid"),
        env_info=joined("env_info"),
        last_observation=tree_rows(observation, slice(-1, None)),
    )
    agent = AgentSamples(
        action=joined("action"),
        prev_action=tree_rows(prev_action, rows),
        agent_info=_rebuilt(agent_info, joined("agent_info")),
        version=joined("version"),
        bootstrap_value=joined("bootstrap_value"),
        first_state=_rebuilt(state, joined("first_state")),
        last_state=_rebuilt(state, joined("last_state")),
    )
    return Samples(agent, env, _final_of(chunks, widths, state))


def _plain(name: str, value: Tree) -> Tree:
    return tuple(tree_leaves(value)) if name in _OF_AGENT else value


def _final_of(chunks: Sequence[Mapping[str, Any]], widths: Sequence[int], state: Tree) -> Final:
    """Returns the ended episodes of all chunks in (time, column) order."""
    import torch

    finals = [chunk["final"] for chunk in chunks]
    offsets = np.cumsum([0, *widths[:-1]])
    time = np.concatenate([final["time"] for final in finals])
    column = np.concatenate([final["column"] + offset for final, offset in zip(finals, offsets, strict=True)])
    order = np.lexsort((column, time))

    def joined(name: str) -> Tree:
        if name not in finals[0]:
            return None
        return tree_map(
            lambda *leaves: torch.from_numpy(np.concatenate(leaves)[order]), *(final[name] for final in finals)
        )

    return Final(
        time=torch.from_numpy(time[order]),
        column=torch.from_numpy(column[order]),
        observation=joined("observation"),
        prev_action=joined("prev_action"),
        prev_reward=joined("prev_reward"),
        state=_rebuilt(state, joined("state")),
    )


def _rebuilt(example: Tree, leaves: Tree) -> Tree:
    """Returns the leaves in the structure of the example."""
    if leaves is None or example is None:
        return None
    values = iter(tree_leaves(leaves))
    return tree_map(lambda _: next(values), example)
