"""Small data classes and protocols that are shared by all parts. Importing this module loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import gymnasium

__all__ = [
    "ACTION_MASK",
    "AgentStep",
    "BatchSpec",
    "Ends",
    "EnvBatch",
    "EnvSpaces",
    "StepInputs",
    "StepRow",
    "Timing",
    "Tree",
]

#: Key of a Dict observation that contains the mask of allowed actions: 1 or True where an action is allowed, with one
#: entry per Discrete action, or per action of all parts of a MultiDiscrete space in order.
ACTION_MASK = "action_mask"

#: Arrays or tensors nested in dataclasses, dicts and tuples; None is an empty tree. See `headrace.buffers.tree`.
Tree = Any


@dataclass(frozen=True)
class BatchSpec:
    """The size of a batch, leading dimensions `[T, B]`.

    Args:
        T: time steps.
        B: environments, one per column.
        state_interval: number of time steps from one recorded recurrent state to the next, which divides T; None: none
            are recorded.
    """

    T: int
    B: int
    state_interval: int | None = None

    @property
    def size(self) -> int:
        """Number of environment steps in one batch."""
        return self.T * self.B

    @property
    def n_states(self) -> int:
        """Number of recurrent states that a batch has of each environment, 0 if none are recorded."""
        return 0 if self.state_interval is None else self.T // self.state_interval


@dataclass(frozen=True)
class EnvSpaces:
    """The spaces of one environment, from which an agent builds its model.

    Args:
        observation: observation space.
        action: action space.
    """

    observation: gymnasium.Space[Any]
    action: gymnasium.Space[Any]


@dataclass
class StepInputs:
    """The inputs from which an agent chooses the actions of `n` environments.

    The training forward pass takes the same fields with leading dimensions `[T, B]` or `[B]`.

    Args:
        observation: tree of `[n, ...]`.
        prev_action: tree of `[n, ...]`, zero where `is_first`.
        prev_reward: float32 `[n]`, zero where `is_first`.
        is_first: bool `[n]`, whether the observation follows a reset.
        noise: float32 `[n, agent.noise_size]`, uniforms inside (0, 1); the last one is the env id instead if
            `agent.noise_has_env_id`. None in the training forward pass.
    """

    observation: Tree
    prev_action: Tree
    prev_reward: Any
    is_first: Any
    noise: Any = None


@dataclass
class AgentStep:
    """The output of an agent for `n` environments.

    Args:
        action: tree of `[n, ...]`, recorded.
        agent_info: tree of `[n, ...]` or None, recorded.
        state: recurrent state, tree of `[n, ...]`, an input of the next step; None if feed-forward.
    """

    action: Tree
    agent_info: Tree = None
    state: Tree = None


@dataclass(frozen=True)
class ActingRows:
    """The arrays of a batch that acting reads and writes, for agents that act in place.

    Args:
        observation: tree of `[T + 1, n, ...]`.
        prev_action: tree of `[T + 1, n, ...]`.
        prev_reward: float32 `[T + 1, n]`.
        noise: float32 `[T + 1, n, agent.noise_size]`.
        action: tree of `[T, n, ...]`, written.
        agent_info: tree of `[T, n, ...]` or None, written.
    """

    observation: Tree
    prev_action: Tree
    prev_reward: np.ndarray
    noise: np.ndarray
    action: Tree
    agent_info: Tree


class ActingPlan(Protocol):
    """Acts for the rows of one batch in place: `agent.step` without tensors, up to rounding.

    Args:
        reads_previous: whether `act` reads more of a row than the observation: previous inputs or `is_first`.
    """

    reads_previous: bool

    def load(self) -> bool:
        """Takes over the agent's parameters and mode for a batch; returns whether the plan can act in this batch."""

    def act(self, t: int, state: Tree) -> bool:
        """Writes actions and agent_info of row t, and the new recurrent state into the memory of the old one.

        Args:
            t: the row.
            state: recurrent state, tree of `[n, ...]`, zero at the first steps of episodes; None if feed-forward.

        Returns:
            False, without having changed the state, for `agent.step` to do it, if one of them is not finite.
        """

    def value(self, t: int, state: Tree) -> np.ndarray | None:
        """Returns the values of row t, float32 `[n]`; None if `agent.value` has to compute them."""


@dataclass
class StepRow:
    """Where an `EnvBatch` writes the results of one step of its `n` environments: views of a batch, no copies.

    Args:
        observation: the *next* observation; all other fields belong to the transition.
        reward: float32 `[n]`.
        terminated: bool `[n]`.
        truncated: bool `[n]`.
        env_info: recorded fields of info, tree of `[n, ...]` or None.
        floats: the floating-point arrays among the above, which are checked for NaN and infinity.
        infos: list of length `n` that receives copies of the info dicts; None if they are not wanted.
        prepared: what the `EnvBatch` made of this row when it first wrote to it, for its own use.
    """

    observation: Tree
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    env_info: Tree
    floats: Sequence[np.ndarray] = ()
    infos: list[dict[str, Any]] | None = None
    prepared: Any = None


@dataclass
class Ends:
    """The episodes that ended in one step, in ascending order of their environments.

    Args:
        columns: int `[k]`, indices of the environments in the `EnvBatch`.
        observation: tree of `[k, ...]`, the observations before the resets.
        infos: the last info dict of each episode.
    """

    columns: np.ndarray = field(default_factory=lambda: np.empty(0, np.intp))
    observation: Tree = None
    infos: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Timing:
    """Counters of one collection loop. Some rows, one in 61, are timed in detail.

    Args:
        rows: rows collected.
        steps: environment steps.
        batch_ns: nanoseconds inside batches.
        detailed_rows: rows that were timed in detail.
        row_ns: nanoseconds of the detailed rows.
        acting_ns: nanoseconds of them for the agent, or waiting for its actions.
        env_ns: nanoseconds of them inside `env.step`.
        reset_ns: nanoseconds of them inside resets.
        turned_to_ns: clock time at which a process that steps several loops last switched to this one; 0 if an agent
            drives the loop.
    """

    rows: int = 0
    steps: int = 0
    batch_ns: int = 0
    detailed_rows: int = 0
    row_ns: int = 0
    acting_ns: int = 0
    env_ns: int = 0
    reset_ns: int = 0
    turned_to_ns: int = 0


class EnvBatch(Protocol):
    """`n` environments with global ids that are stepped together; the collection loop steps nothing else.

    Environments are indexed from 0 to n − 1. After an episode ends, its environment is reset in the same `step`, unless
    it has used up its allowance of resets: then it waits, its fields are zero, and `waiting` is set until `reset`
    restarts it. Nothing that is written or returned shares memory with the environments.

    Args:
        env_ids: `env_ids[i]` is the global number of environment i, the key of all its randomness.
        spaces: spaces of one environment.
        waiting: bool `[n]`, which environments wait for a reset.
        resetting: None, or, where environments use a step of their own to reset (Gymnasium's NEXT_STEP mode), bool
            `[n]`, which environments do so in the next step: its action is ignored and its reward is 0.
        holds: whether some environments can be held while others step.
        moves_while_held: whether held environments are stepped all the same, and restarted on release.
        notes: (level, message) pairs for the log, each to be logged once.
    """

    env_ids: Sequence[int]
    spaces: EnvSpaces
    waiting: np.ndarray
    resetting: np.ndarray | None
    holds: bool
    moves_while_held: bool
    notes: list[tuple[int, str]]

    def reset(self, columns: Sequence[int] | None, observation: Tree) -> None:
        """Resets environments.

        Args:
            columns: indices of the environments; None: all.
            observation: tree of `[n, ...]`, receives the first observations.
        """

    def step(self, actions: Tree, out: StepRow, timing: Timing | None = None) -> Ends:
        """Steps every environment that is not waiting.

        Args:
            actions: tree of `[n, ...]`, as agents return them.
            out: receives the results.
            timing: if given, the time inside environments and resets is added to it.
        """

    def random_actions(self, observation: Tree) -> Tree:
        """Samples an action from each environment's own action space; zero for environments that wait.

        Args:
            observation: tree of `[n, ...]`, the current observations, whose action masks (`ACTION_MASK`) are respected.

        Returns:
            The actions as they are recorded, a tree of `[n, ...]` for `step`.
        """

    def hold(self, columns: np.ndarray, observation: Tree) -> None:
        """Holds the environments of a mask, and releases all others.

        An environment that had to step while it was held is restarted on release, with the seed of its last start.

        Args:
            columns: bool `[n]`, the environments to hold.
            observation: tree of `[n, ...]`, receives the first observations of restarted environments.
        """

    def allow(self, resets: int | Sequence[int] | None) -> None:
        """Sets how many more times each environment may reset itself in `step`; None: without limit."""

    def call(self, columns: Sequence[int], name: str, args: Sequence[Any]) -> list[Any]:
        """Calls `env.name(*args)` on the environments with these indices; on a vector environment once for all."""

    def close(self) -> None:
        """Closes every environment."""
