"""Episodes as columns of a batch `[T, B]`, and back. Importing this loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.buffers.samples import AgentSamples, EnvSamples, Final, Samples
from headrace.buffers.tree import tree_map, tree_rows, tree_to_numpy, tree_to_torch
from headrace.samplers.episodes.steps import StepType, step_types_of
from headrace.types import Tree

if TYPE_CHECKING:
    from headrace.samplers.episodes.batch import EpisodeBatch

__all__ = ["ends_of", "fields_of_samples", "samples_of", "scattered"]


def scattered(leaf: np.ndarray, leading: tuple[int, int], to: np.ndarray) -> np.ndarray:
    """Returns zeros `[*leading, ...]` with the rows of `leaf` at places `to` of the flattened leading dimensions."""
    out = np.zeros((leading[0] * leading[1], *leaf.shape[1:]), leaf.dtype)
    out[to] = leaf
    return out.reshape(*leading, *leaf.shape[1:])


def ends_of(episodes: EpisodeBatch) -> tuple[np.ndarray, np.ndarray]:
    """Returns (terminated, truncated), both bool `[S]`; a last step that is not TERMINAL is truncated."""
    terminated = episodes.terminals
    truncated = episodes.step_types == StepType.TIMEOUT
    truncated[np.cumsum(episodes.lengths) - 1] = True
    return terminated, truncated & ~terminated


def samples_of(episodes: EpisodeBatch) -> Samples:
    """See `EpisodeBatch.to_samples`."""
    T, B = int(episodes.lengths.max(initial=0)), len(episodes)
    ends = np.cumsum(episodes.lengths)
    column = np.repeat(np.arange(B), episodes.lengths)
    time = np.arange(len(column)) - np.repeat(ends - episodes.lengths, episodes.lengths)
    to = time * B + column
    is_first = time == 0
    later = ~is_first

    def columns(tree: Tree) -> Tree:
        return tree_to_torch(tree_map(lambda leaf: scattered(leaf, (T, B), to), tree))

    def columns_of_previous(tree: Tree) -> Tree:
        return tree_to_torch(tree_map(lambda leaf: scattered(leaf[:-1][later[1:]], (T, B), to[later]), tree))

    terminated, truncated = ends_of(episodes)
    order = np.argsort(episodes.lengths, kind="stable")  # by (time, column) of the last step
    env = EnvSamples(
        observation=columns(episodes.observations),
        is_first=columns(is_first),
        prev_reward=columns_of_previous(episodes.rewards),
        reward=columns(episodes.rewards),
        terminated=columns(terminated),
        truncated=columns(truncated),
        valid=columns(np.ones(len(column), np.bool_)),
        env_info=columns(episodes.env_infos) if episodes.env_infos else None,
        last_observation=tree_to_torch(tree_map(lambda leaf: leaf[None].copy(), episodes.last_observations)),
    )
    agent = AgentSamples(
        action=columns(episodes.actions),
        prev_action=columns_of_previous(episodes.actions),
        agent_info=columns(episodes.agent_infos),
        version=columns(episodes.versions),
        bootstrap_value=tree_to_torch(np.zeros((1, B), np.float32)),
        first_state=None,
        last_state=None,
    )
    final = Final(
        time=tree_to_torch(episodes.lengths[order] - 1),
        column=tree_to_torch(order),
        observation=tree_to_torch(tree_rows(episodes.last_observations, order)),
        prev_action=tree_to_torch(tree_rows(episodes.actions, ends[order] - 1)),
        prev_reward=tree_to_torch(episodes.rewards[ends[order] - 1]),
        state=None,
    )
    return Samples(agent, env, final)


def fields_of_samples(samples: Samples) -> dict[str, Any]:
    """Returns the fields of `EpisodeBatch.from_samples` but `env_spec`."""
    env, agent, final = (tree_to_numpy(part) for part in (samples.env, samples.agent, samples.final))
    T, B = env.reward.shape
    # Places in one column after another, where each end follows its start.
    is_start = (env.is_first & env.valid).T.reshape(-1)
    last = np.flatnonzero(((env.terminated | env.truncated) & env.valid).T)
    first = np.maximum.accumulate(np.where(is_start, np.arange(T * B), -1))[last]
    whole = first >= last // T * T  # the start is in the same column
    column, start = np.divmod(first[whole], T)
    per_column = np.bincount(column, minlength=B)
    numbers = np.arange(len(column)) - np.repeat(np.cumsum(per_column) - per_column, per_column)
    order = np.lexsort((column, start))
    column, start, end = column[order], start[order], last[whole][order] % T

    lengths = end - start + 1
    steps = np.repeat(start - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    places = (steps, np.repeat(column, lengths))
    entry = np.zeros((T, B), np.int64)
    entry[final.time, final.column] = np.arange(len(final.time))
    step_types = step_types_of(env.is_first, env.terminated, env.truncated)
    return {
        "observations": tree_rows(env.observation, places),
        # A batch without ends may have no tree in `final`.
        "last_observations": tree_rows(
            final.observation if len(final) else tree_rows(env.last_observation, 0), entry[end, column]
        ),
        "actions": tree_rows(agent.action, places),
        "rewards": env.reward[places],
        "step_types": step_types[places],
        "lengths": lengths,
        "env_infos": {} if env.env_info is None else tree_rows(env.env_info, places),
        "agent_infos": tree_rows(agent.agent_info, places),
        "versions": agent.version[places],
        "env_ids": column,
        "numbers": numbers[order],
        "episode_infos": [{} for _ in column],
        "last_infos": [{} for _ in column],
        "starts": start,
    }
