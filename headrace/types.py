"""The small data classes and protocols that travel between the parts. Importing this module loads no torch."""

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

#: Key of a Dict observation that says which actions are allowed: 1 or True where they are, one entry per Discrete
#: action, or per action of each MultiDiscrete part side by side.
ACTION_MASK = "action_mask"

#: Arrays or tensors nested in dataclasses, dicts and tuples; None is an empty tree. See `headrace.buffers.tree`.
Tree = Any


@dataclass(frozen=True)
class BatchSpec:
    """The size of a batch: `T` time steps of `B` environments, leading dimensions `[T, B]`."""

    T: int
    B: int

    @property
    def size(self) -> int:
        """Environment steps in one batch."""
        return self.T * self.B


@dataclass(frozen=True)
class EnvSpaces:
    """The spaces of one environment, as an agent needs them to build its model."""

    observation: gymnasium.Space[Any]
    action: gymnasium.Space[Any]


@dataclass
class StepInputs:
    """All an agent is given to choose the actions of `n` rows.

    observation: tree of `[n, ...]`; prev_action: tree of `[n, ...]` and prev_reward `[n]`, zero where `is_first`;
    is_first: bool `[n]`, the row follows a reset; noise: float32 `[n, agent.noise_size]`, uniforms inside (0, 1) (the
    last one the row's env id where `agent.noise_has_env_id`), or None in a training forward. The training forward takes
    the same fields with leading dimensions `[T, B]` or `[B]`.
    """

    observation: Tree
    prev_action: Tree
    prev_reward: Any
    is_first: Any
    noise: Any = None


@dataclass
class AgentStep:
    """What an agent answers for `n` rows: `action` and `agent_info` are recorded, `state` enters the next step.

    action: tree of `[n, ...]`; agent_info: tree of `[n, ...]` or None; state: tree of `[n, ...]`, None if feed-forward.
    """

    action: Tree
    agent_info: Tree = None
    state: Tree = None


@dataclass
class StepRow:
    """Where an `EnvBatch` writes the results of one step of its `n` environments: views of a batch, no copies.

    observation is the *next* observation; the other fields belong to the transition. `floats` lists the
    floating-point arrays among them, which are checked for NaN and infinity.
    """

    observation: Tree
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    env_info: Tree
    floats: Sequence[np.ndarray] = ()


@dataclass
class Ends:
    """The episodes that ended in one step, in ascending row order.

    rows: int `[k]`, rows within the `EnvBatch`; observation: tree of `[k, ...]`, the observations before the resets;
    infos: the last info dict of each episode.
    """

    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.intp))
    observation: Tree = None
    infos: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Timing:
    """Counters of one collection loop, nanoseconds. `detailed_rows` of the `rows` were taken apart into the others.

    turned_to_ns: when a process that steps several loops last turned to this one; 0 where an agent drives it.
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

    @property
    def due(self) -> bool:
        """Whether the next row is one to take apart: one in 61, a prime, so it is not the same row of each batch."""
        return self.rows % 61 == 0


class EnvBatch(Protocol):
    """`n` environments with global ids, stepped together: the only thing the collection loop steps.

    Rows are 0 to n − 1; `env_ids[row]` is the environment's global number, the key of all its randomness. An ended row
    is reset in the same `step`, unless it has used up its allowance of resets: then it waits, its fields are zero, and
    `waiting` says so until `reset` starts it again. `notes`: (level, sentence) for the log, each to be said once.

    `resetting`: None, or, where environments need a step of their own to reset (Gymnasium's NEXT_STEP mode), a mask of
    the rows that do so in the next step: that step's action counts for nothing and its reward is 0. `holds`: whether
    rows can stand while others step; `moves_while_held`: they can only by beginning anew afterwards. `keeps_infos`: set
    by who asks for `infos`. Nothing that is written or returned shares memory with what an environment has.
    """

    env_ids: Sequence[int]
    spaces: EnvSpaces
    waiting: np.ndarray
    resetting: np.ndarray | None
    holds: bool
    moves_while_held: bool
    keeps_infos: bool
    notes: list[tuple[int, str]]

    def reset(self, rows: Sequence[int] | None, observation: Tree) -> None:
        """Resets the given rows (None: all); writes their first observations into `observation`, tree of `[n, ...]`."""

    def step(self, actions: Tree, out: StepRow, timing: Timing | None = None) -> Ends:
        """Steps every row that is not waiting with `actions` (tree of `[n, ...]`, as agents give them).

        With `timing`, adds what the environments and their resets took.
        """

    def step_random(self, out: StepRow) -> tuple[Sequence[Any], Ends]:
        """Steps every row that is not waiting with a random action of its own action space: (actions, ends).

        `out.observation` holds the current row when it is called: a mask in it (`ACTION_MASK`) is obeyed. The actions
        are as they would be recorded, one per row.
        """

    def hold(self, rows: np.ndarray, observation: Tree) -> None:
        """Has the rows of the mask `[n]` wait, and the others not.

        One that had to step meanwhile all the same begins anew, with the seed it began with before, when it waits no
        longer: its first observation is written into `observation`.
        """

    def allow(self, resets: int | None) -> None:
        """Sets how many times each row may still reset itself in `step`; None: always."""

    def infos(self) -> Sequence[dict[str, Any]]:
        """Copies of the info dicts of the last step, one per row, made right after it; only if `keeps_infos`."""

    def call(self, rows: Sequence[int], name: str, args: Sequence[Any]) -> list[Any]:
        """`env.name(*args)` of the environments of these rows; of a vector environment once, for all of them."""

    def close(self) -> None:
        """Closes every environment."""
