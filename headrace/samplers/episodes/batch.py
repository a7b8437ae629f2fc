"""Batches of whole episodes of different lengths, their steps one after another. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.buffers.tree import tree_concatenate, tree_map, tree_rows
from headrace.envs.spaces import null_value
from headrace.samplers.episodes.conversion import fields_of_samples, samples_of, scattered
from headrace.samplers.episodes.paths import empty_fields, fields_of_paths, paths_of
from headrace.samplers.episodes.steps import EnvSpec, StepType, TimeStepBatch, same_spec
from headrace.samplers.episodes.validation import check
from headrace.types import Tree

if TYPE_CHECKING:
    from headrace.buffers.samples import Samples

__all__ = ["EpisodeBatch", "TrajectoryBatch"]

#: Fields with one entry per step, and with one per episode.
STEP_FIELDS = ("observations", "actions", "rewards", "step_types", "env_infos", "agent_infos", "versions")
EPISODE_FIELDS = ("last_observations", "lengths", "env_ids", "numbers", "starts")
#: Lists with one entry per episode.
INFO_LISTS = ("episode_infos", "last_infos")


@dataclass(eq=False, repr=False)
class EpisodeBatch:
    """`N` episodes with `S` steps in total. Steps of one episode are adjacent; episodes are in the sampler's order.

    Args:
        env_spec: spaces and time limit.
        observations: tree of `[S, ...]`; spaces Dict and Tuple are nested dicts and tuples.
        last_observations: tree of `[N, ...]`, the observation after the last step of each episode.
        actions: tree of `[S, ...]`, as recorded in `Samples`: indices from 0 for Discrete, not clipped for Box.
        rewards: float32 `[S]`.
        step_types: uint8 `[S]`, see `StepType`. The last step of a part of an episode may be FIRST or MID.
        lengths: int64 `[N]`, steps of each episode, at least 1; their sum is S.
        env_infos: dict of trees of `[S, ...]`; empty if there are none.
        agent_infos: tree of `[S, ...]`, the agent's own; or None.
        versions: int32 `[S]`, number of the parameters that acted.
        env_ids: int64 `[N]`, global number of the environment.
        numbers: int64 `[N]`, number of the episode among those that its environment started, from 0.
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

    def __repr__(self) -> str:
        spread = f" of {self.lengths.min()} to {self.lengths.max()} steps" if len(self) else ""
        ends = {kind.name: int((self.step_types == kind).sum()) for kind in (StepType.TERMINAL, StepType.TIMEOUT)}
        return f"EpisodeBatch: {len(self)} episodes{spread}, {len(self.rewards)} steps in total, {ends}"

    # ---- choosing and joining episodes ----

    @staticmethod
    def concatenate(*batches: EpisodeBatch) -> EpisodeBatch:
        """Returns the episodes of all batches, in order, in new memory.

        Raises:
            ValueError: if there is no batch, or the batches differ in `env_spec` or in the keys or shapes of a field.
        """
        spec = same_spec(batches)
        parts = [batch for batch in batches if len(batch)] or batches[:1]  # an empty one may lack the keys of others
        arrays = {
            name: tree_concatenate([getattr(batch, name) for batch in parts], name)
            for name in (*STEP_FIELDS, *EPISODE_FIELDS)
        }
        infos: dict[str, Any] = {
            name: [info for batch in parts for info in getattr(batch, name)] for name in INFO_LISTS
        }
        return EpisodeBatch(env_spec=spec, **arrays, **infos)

    def take(self, indices: Any) -> EpisodeBatch:
        """Returns some of the episodes, in the order of `indices`, in new memory.

        Args:
            indices: numbers of episodes (negative ones count from the end), a slice, or bool `[N]`.

        Raises:
            IndexError: if there is no such episode.
        """
        if not isinstance(indices, slice):
            indices = np.asarray(indices)
            if not indices.size:
                indices = indices.astype(np.int64)  # an empty list becomes float64
        chosen = np.arange(len(self))[indices].reshape(-1)
        lengths = self.lengths[chosen]
        # Where each chosen episode begins, less where it will begin.
        moved = self._first_steps[chosen] - (np.cumsum(lengths) - lengths)
        return self._selected(np.repeat(moved, lengths) + np.arange(lengths.sum()), chosen, chosen)

    def split(self) -> list[EpisodeBatch]:
        """Returns a batch for each episode, views of this batch's memory."""
        return [self._selected(steps, slice(i, i + 1), (i,)) for i, steps in enumerate(self._slices)]

    def _selected(self, steps: Any, episodes: Any, numbers: Any) -> EpisodeBatch:
        arrays = {name: tree_rows(getattr(self, name), steps) for name in STEP_FIELDS}
        arrays |= {name: tree_rows(getattr(self, name), episodes) for name in EPISODE_FIELDS}
        infos: dict[str, Any] = {name: [getattr(self, name)[number] for number in numbers] for name in INFO_LISTS}
        return EpisodeBatch(env_spec=self.env_spec, **arrays, **infos)

    @property
    def _first_steps(self) -> np.ndarray:
        """Where the first step of each episode is, int64 `[N]`."""
        first: np.ndarray = np.cumsum(self.lengths) - self.lengths
        return first

    @property
    def _slices(self) -> list[slice]:
        return [slice(first, first + n) for first, n in zip(self._first_steps, self.lengths, strict=True)]

    # ---- what follows from the fields ----

    @property
    def next_observations(self) -> Tree:
        """The observation after each step, tree of `[S, ...]`, in new memory."""
        ends = np.cumsum(self.lengths) - 1

        def following(observation: np.ndarray, last: np.ndarray) -> np.ndarray:
            after = np.empty_like(observation)
            after[:-1] = observation[1:]
            after[ends] = last
            return after

        return tree_map(following, self.observations, self.last_observations)

    @property
    def observations_list(self) -> list[Tree]:
        """The observations of each episode, trees of `[length, ...]`, views."""
        return [tree_rows(self.observations, steps) for steps in self._slices]

    @property
    def actions_list(self) -> list[Tree]:
        """The actions of each episode, trees of `[length, ...]`, views."""
        return [tree_rows(self.actions, steps) for steps in self._slices]

    @property
    def terminals(self) -> np.ndarray:
        """Whether each step reached a terminal state, bool `[S]`."""
        terminals: np.ndarray = self.step_types == StepType.TERMINAL
        return terminals

    @property
    def returns(self) -> np.ndarray:
        """Sum of the rewards of each episode, float64 `[N]`."""
        return np.add.reduceat(self.rewards, self._first_steps, dtype=np.float64) if len(self) else np.zeros(0)

    def time_steps(self) -> TimeStepBatch:
        """Returns the steps without their order in time: views, except for the next observations."""
        return TimeStepBatch(
            next_observations=self.next_observations,
            episode_infos=[info for info, n in zip(self.episode_infos, self.lengths, strict=True) for _ in range(n)],
            env_spec=self.env_spec,
            **{name: getattr(self, name) for name in STEP_FIELDS},
        )

    # ---- padding ----

    def padded(self, tree: Tree, max_length: int | None = None) -> Tree:
        """Returns values of the steps with one row per episode and zeros after its end, in new memory.

        Args:
            tree: a field of this batch, or anything else with one entry per step, e.g. advantages: tree of `[S, ...]`.
            max_length: length of a row. Default: `env_spec.max_episode_length`, or else the longest episode's length.

        Returns:
            Tree of `[N, max_length, ...]`; `valids` says which entries are steps.

        Raises:
            ValueError: if an episode is longer.
        """
        length = self._row_length(max_length)
        to = np.repeat(np.arange(len(self)) * length - self._first_steps, self.lengths) + np.arange(len(self.rewards))
        return tree_map(lambda leaf: scattered(leaf, (len(self), length), to), tree)

    def _row_length(self, max_length: int | None = None) -> int:
        longest = int(self.lengths.max(initial=0))
        length = self.env_spec.max_episode_length if max_length is None else max_length
        if length is not None and length < longest:
            raise ValueError(
                f"max_length is {length}, but episode {self.lengths.argmax()} has {longest} steps, expected at most as "
                "many; pass a larger max_length to padded()"
            )
        return longest if length is None else length

    @property
    def valids(self) -> np.ndarray:
        """Which entries of padded fields are steps, bool `[N, max_length]`."""
        mask: np.ndarray = np.arange(self._row_length()) < self.lengths[:, None]
        return mask

    @property
    def padded_observations(self) -> Tree:
        """See `padded`."""
        return self.padded(self.observations)

    @property
    def padded_next_observations(self) -> Tree:
        """See `padded`."""
        return self.padded(self.next_observations)

    @property
    def padded_actions(self) -> Tree:
        """See `padded`."""
        return self.padded(self.actions)

    @property
    def padded_rewards(self) -> np.ndarray:
        """See `padded`; float32 `[N, max_length]`."""
        rewards: np.ndarray = self.padded(self.rewards)
        return rewards

    @property
    def padded_step_types(self) -> np.ndarray:
        """See `padded`; uint8 `[N, max_length]`. Padding is 0 like `StepType.FIRST`; `valids` tells them apart."""
        kinds: np.ndarray = self.padded(self.step_types)
        return kinds

    @property
    def padded_agent_infos(self) -> Tree:
        """See `padded`."""
        return self.padded(self.agent_infos)

    @property
    def padded_env_infos(self) -> dict[str, Tree]:
        """See `padded`."""
        infos: dict[str, Tree] = self.padded(self.env_infos)
        return infos

    # ---- other forms ----

    def validate(self) -> EpisodeBatch:
        """Checks every field and returns this batch.

        Raises:
            TypeError, ValueError: for the first field that is wrong; the message says what came and what was expected.
        """
        check(self)
        return self

    def to_list(self) -> list[dict[str, Any]]:
        """Returns a dict for each episode ("path"); its arrays are views, except for the next observations.

        Keys: "observations", "next_observations", "actions", "rewards", "step_types", "env_infos", "agent_infos" and
        "versions" with one entry per step; "episode_infos", "last_infos", "env_ids", "numbers" and "starts" with the
        episode's own.
        """
        return paths_of(self)

    @staticmethod
    def from_list(env_spec: EnvSpec, paths: Sequence[Mapping[str, Any]]) -> EpisodeBatch:
        """Returns a batch of the episodes in a list of dicts, in new memory.

        Args:
            env_spec: spaces and time limit.
            paths: for each episode a dict as in `to_list`. It needs "observations" (of T steps, or T + 1 with the last
                observation), "actions" and "rewards"; for T observations "next_observations" too. Without "step_types",
                the last step is TERMINAL if the last entry of "terminals" or "dones" is true, else TIMEOUT. By default,
                the episodes are those of one environment, one after another.

        Raises:
            TypeError, ValueError: for the first entry that is missing or wrong.
        """
        parts = [EpisodeBatch(env_spec=env_spec, **fields) for fields in fields_of_paths(paths)]
        for number, part in enumerate(parts):
            check(part, f"paths[{number}]")
        if not parts:
            return EpisodeBatch(env_spec=env_spec, **empty_fields(env_spec))
        batch = EpisodeBatch.concatenate(*parts)
        observation, action = null_value(env_spec.observation_space), null_value(env_spec.action_space)
        for name, like in (("observations", observation), ("last_observations", observation), ("actions", action)):
            setattr(batch, name, tree_map(_cast, getattr(batch, name), like))
        return batch

    def to_samples(self) -> Samples:
        """Returns the episodes as columns of a batch `[T, B]`, in new memory; T is the longest episode's length.

        Every column ends with its episode and is padding from there on (`valid=False`); an end that is not TERMINAL
        is truncated, and `samples.final` has an entry for every episode. No column goes on after the batch: bootstrap
        values are zero and never used, and `env.last_observation` has the episodes' last observations.

        Policy-gradient algorithms learn from it; call `algo.cut()` before each batch, because its columns do not
        continue those of the batch before. Agents must be feed-forward: episodes have no recurrent states.
        """
        return samples_of(self)

    @staticmethod
    def from_samples(samples: Samples, env_spec: EnvSpec) -> EpisodeBatch:
        """Returns the whole episodes of a batch `[T, B]`, those that start and end in it, in new memory.

        They are ordered by (time step, column) of their start. `env_ids` are the columns, `numbers` count the whole
        episodes of a column, `starts` are time steps of the batch; info dicts are empty.

        Args:
            samples: a batch.
            env_spec: spaces and time limit.
        """
        return EpisodeBatch(env_spec=env_spec, **fields_of_samples(samples))

    to_trajectory_list = to_list
    from_trajectory_list = from_list


def _cast(leaf: np.ndarray, like: np.ndarray) -> np.ndarray:
    return leaf.astype(like.dtype, copy=False)


TrajectoryBatch = EpisodeBatch
