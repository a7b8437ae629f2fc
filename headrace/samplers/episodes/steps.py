"""Kinds of steps, the spec of an environment, and batches of steps without an order in time. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from headrace.buffers.tree import tree_concatenate, tree_rows
from headrace.types import Tree

if TYPE_CHECKING:
    import gymnasium

__all__ = ["EnvSpec", "StepType", "TimeStepBatch", "same_spec", "step_types_of"]


class StepType(IntEnum):
    """The place of a step in its episode; batches store it as uint8.

    The last step of an episode is TERMINAL or TIMEOUT, also if it is the only one.
    """

    FIRST = 0  #: the first step of a longer episode
    MID = 1  #: neither the first nor the last step
    TERMINAL = 2  #: the episode ended in a terminal state, whose value is 0
    TIMEOUT = 3  #: the episode was cut, e.g. by a time limit; the last observation has a value (bootstrap)

    @classmethod
    def get_step_type(cls, step_cnt: int, max_episode_length: int | None, done: bool) -> StepType:
        """Returns the type of a step.

        A terminal state at the time limit is TERMINAL: the time limit changed nothing.

        Args:
            step_cnt: number of the step in its episode, from 1.
            max_episode_length: time limit in steps; None if there is none.
            done: whether the step reached a terminal state.

        Raises:
            ValueError: if `step_cnt` is less than 1.
        """
        if step_cnt < 1:
            raise ValueError(f"step_cnt must be at least 1, got {step_cnt}; the first step of an episode is step 1")
        if done:
            return cls.TERMINAL
        if max_episode_length is not None and step_cnt >= max_episode_length:
            return cls.TIMEOUT
        return cls.FIRST if step_cnt == 1 else cls.MID


def step_types_of(is_first: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> np.ndarray:
    """Returns the step types, uint8 `[...]`, of steps given as bool arrays `[...]`; TERMINAL wins over TIMEOUT."""
    going_on = np.where(is_first, np.uint8(StepType.FIRST), np.uint8(StepType.MID))
    cut = np.where(truncated, np.uint8(StepType.TIMEOUT), going_on)
    return np.where(terminated, np.uint8(StepType.TERMINAL), cut)


@dataclass(frozen=True)
class EnvSpec:
    """What a batch of episodes states about its environment.

    Args:
        observation_space: observation space.
        action_space: action space.
        max_episode_length: time limit in steps; None if there is none.
    """

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    max_episode_length: int | None = None


class _Batch(Protocol):
    env_spec: EnvSpec


def same_spec(batches: Sequence[_Batch]) -> EnvSpec:
    """Returns the spec of batches that shall be concatenated; raises ValueError if there is none or they differ."""
    if not batches:
        raise ValueError("concatenate() got no batch, expected at least one")
    spec = batches[0].env_spec
    for batch in batches:
        if batch.env_spec is not spec and batch.env_spec != spec:
            raise ValueError(f"concatenate() got batches of {spec} and of {batch.env_spec}, expected one env_spec")
    return spec


_STEP_FIELDS = (
    "observations",
    "actions",
    "rewards",
    "next_observations",
    "step_types",
    "env_infos",
    "agent_infos",
    "versions",
)


@dataclass(eq=False)
class TimeStepBatch:
    """`S` steps without an order in time.

    Args:
        env_spec: spaces and time limit.
        observations, actions, next_observations: trees of `[S, ...]`.
        rewards: float32 `[S]`.
        step_types: uint8 `[S]`, see `StepType`.
        env_infos: dict of trees of `[S, ...]`; empty if there are none.
        agent_infos: tree of `[S, ...]`, or None.
        episode_infos: for each step, what `reset` returned as info at the start of its episode.
        versions: int32 `[S]`, number of the parameters that acted.
    """

    env_spec: EnvSpec
    observations: Tree
    actions: Tree
    rewards: np.ndarray
    next_observations: Tree
    step_types: np.ndarray
    env_infos: dict[str, Tree]
    agent_infos: Tree
    episode_infos: list[dict[str, Any]]
    versions: np.ndarray

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def terminals(self) -> np.ndarray:
        """Whether each step reached a terminal state, bool `[S]`."""
        terminals: np.ndarray = self.step_types == StepType.TERMINAL
        return terminals

    @staticmethod
    def concatenate(*batches: TimeStepBatch) -> TimeStepBatch:
        """Returns the steps of all batches, in order, in new memory.

        Raises:
            ValueError: if there is no batch, or the batches differ in `env_spec` or in the keys or shapes of a field.
        """
        spec = same_spec(batches)
        arrays = {name: tree_concatenate([getattr(batch, name) for batch in batches], name) for name in _STEP_FIELDS}
        infos = [info for batch in batches for info in batch.episode_infos]
        return TimeStepBatch(env_spec=spec, episode_infos=infos, **arrays)

    def split(self) -> list[TimeStepBatch]:
        """Returns a batch for each step, views of this batch's memory."""
        return [TimeStepBatch(env_spec=self.env_spec, **step) for step in self.to_time_step_list()]

    def to_time_step_list(self) -> list[dict[str, Any]]:
        """Returns a dict for each step with the fields but `env_spec`, each with one entry: trees of `[1, ...]`."""
        return [
            {name: tree_rows(getattr(self, name), slice(i, i + 1)) for name in (*_STEP_FIELDS, "episode_infos")}
            for i in range(len(self))
        ]

    @staticmethod
    def from_time_step_list(env_spec: EnvSpec, steps: Sequence[Mapping[str, Any]]) -> TimeStepBatch:
        """Returns the batch of a list from `to_time_step_list`; raises as `concatenate` does."""
        return TimeStepBatch.concatenate(*(TimeStepBatch(env_spec=env_spec, **step) for step in steps))
