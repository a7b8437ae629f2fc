"""Batches of whole episodes of different lengths, their steps one after another. Importing this loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.buffers.tree import tree_map, tree_paths, tree_rows
from headrace.samplers.episodes.steps import EnvSpec
from headrace.types import Tree

__all__ = ["EpisodeBatch", "TrajectoryBatch"]

#: Fields with one entry per step, and with one per episode.
STEP_FIELDS = ("observations", "actions", "rewards", "step_types", "env_infos", "agent_infos", "versions")
EPISODE_FIELDS = ("last_observations", "lengths", "env_ids", "numbers", "starts")
#: Lists with one entry per episode.
INFO_LISTS = ("episode_infos", "last_infos")


@dataclass
class EpisodeBatch:
    """`N` episodes with `S` steps in total. Steps of one episode are adjacent; episodes are in the sampler's order.

    Args:
        env_spec: spaces and time limit.
        observations: tree of `[S, ...]`; spaces Dict and Tuple are nested dicts and tuples.
        last_observations: tree of `[N, ...]`, the observation after the last step of each episode.
        actions: tree of `[S, ...]`.
        rewards: float32 `[S]`.
        step_types: uint8 `[S]`, see `StepType`.
        lengths: int64 `[N]`, steps of each episode, at least 1; their sum is S.
        env_infos: dict of trees of `[S, ...]`; empty if there are none.
        agent_infos: tree of `[S, ...]`, the agent's own; or None.
        versions: int32 `[S]`, number of the parameters that acted.
        env_ids: int64 `[N]`, global number of the environment.
        numbers: int64 `[N]`, number of the episode among those of its environment, from 0.
        episode_infos: for each episode, what `reset` returned as info.
        last_infos: for each episode, the info of its last step.
        starts: int64 `[N]`, number of the worker's row in which the episode started.
    """

    env_spec: EnvSpec
    observations: Tree
    last_observations: Tree
    actions: Tree
    rewards: np.ndarray
    step_types: np.ndarray
    lengths: np.ndarray
    env_infos: dict[str, Tree]
    agent_infos: Tree
    versions: np.ndarray
    env_ids: np.ndarray
    numbers: np.ndarray
    episode_infos: list[dict[str, Any]]
    last_infos: list[dict[str, Any]]
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    @staticmethod
    def concatenate(*batches: EpisodeBatch) -> EpisodeBatch:
        """Returns the episodes of all batches, in order, in new memory.

        Raises:
            ValueError: if there is no batch, or the batches differ in `env_spec` or in the keys of a field.
        """
        if not batches:
            raise ValueError("concatenate() got no batch, expected at least one")
        parts = [batch for batch in batches if len(batch)] or [batches[0]]
        spec = batches[0].env_spec
        for batch in batches:
            if batch.env_spec is not spec and batch.env_spec != spec:
                raise ValueError(
                    f"concatenate() got batches of {spec} and {batch.env_spec}; concatenate those of each apart"
                )
        arrays = {
            name: _concatenated(name, [getattr(batch, name) for batch in parts])
            for name in (*STEP_FIELDS, *EPISODE_FIELDS)
        }
        infos = {name: [info for batch in parts for info in getattr(batch, name)] for name in INFO_LISTS}
        return EpisodeBatch(env_spec=spec, **arrays, **infos)

    def take(self, indices: Any) -> EpisodeBatch:
        """Returns some of the episodes, in the order of `indices`, in new memory.

        Args:
            indices: numbers of episodes (negative ones count from the end), a slice, or bool `[N]`.

        Raises:
            IndexError: if there is no such episode.
        """
        chosen = np.arange(len(self))[_as_index(indices)].reshape(-1)
        lengths = self.lengths[chosen]
        first_steps = np.cumsum(self.lengths) - self.lengths
        steps = np.repeat(first_steps[chosen] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        arrays = {name: tree_rows(getattr(self, name), steps) for name in STEP_FIELDS}
        arrays |= {name: tree_rows(getattr(self, name), chosen) for name in EPISODE_FIELDS}
        infos = {name: [getattr(self, name)[index] for index in chosen] for name in INFO_LISTS}
        return EpisodeBatch(env_spec=self.env_spec, **arrays, **infos)


def _as_index(indices: Any) -> Any:
    """Returns a slice as it is, and anything else as an array; an empty list has no dtype of its own."""
    if isinstance(indices, slice):
        return indices
    array = np.asarray(indices)
    return array if array.size else array.astype(np.int64)


def _concatenated(name: str, trees: list[Tree]) -> Tree:
    """Concatenates the leaves of trees of the same structure; `name` is the field's, for errors."""
    paths = sorted(path for path, _ in tree_paths(trees[0], name))
    for tree in trees[1:]:
        other = sorted(path for path, _ in tree_paths(tree, name))
        if other != paths:
            raise ValueError(
                f"concatenate() got batches whose {name} have different parts: {paths} and {other}; "
                "concatenate batches of one environment and one agent"
            )
    return tree_map(lambda *leaves: np.concatenate(leaves), *trees)


TrajectoryBatch = EpisodeBatch
