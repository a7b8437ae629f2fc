"""The batch: its memory layout (`Slot`) and the user's view of it (`Samples`).

A slot holds all arrays of one batch in shared or private memory. Workers write their columns; users read torch views of
the same memory. Row t of every `[T, B]` array is contiguous over B, so it can be used directly as an inference batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.buffers.describe import described_batch
from headrace.buffers.shared import Allocate
from headrace.buffers.tensordict import tensordict_of
from headrace.buffers.tree import allocate_like, tree_copy_into, tree_leaves, tree_map, tree_rows, tree_to_numpy
from headrace.types import BatchSpec, StepInputs, StepRow, Tree

if TYPE_CHECKING:
    import torch

__all__ = [
    "AgentSamples",
    "EnvSamples",
    "Final",
    "FinalRegion",
    "Samples",
    "Slot",
    "SlotSpec",
    "build_slot",
    "build_slots",
]

_BOOL, _FLOAT, _INT32, _INT64 = (np.dtype(name) for name in ("bool", "float32", "int32", "int64"))


@dataclass(frozen=True)
class SlotSpec:
    """Contents of a batch: sizes, and examples (arrays for one environment) of trees that depend on spaces and agent.

    Args:
        batch: T and B.
        widths: number of columns of each slice, in column order.
        observation, action: examples.
        agent_info, env_info, state: examples, or None.
        bootstrap: whether the agent's value of row T is recorded.
    """

    batch: BatchSpec
    widths: tuple[int, ...]
    observation: Tree
    action: Tree
    agent_info: Tree = None
    env_info: Tree = None
    state: Tree = None
    bootstrap: bool = False

    def plain(self) -> SlotSpec:
        """Returns a spec of the same memory without the agent's classes, which may need torch to unpickle."""
        agent_info, state = tuple(tree_leaves(self.agent_info)), tuple(tree_leaves(self.state))
        return replace(self, agent_info=agent_info, state=state)

    def final_capacity(self, index: int) -> int:
        """Returns how many ended episodes the memory of slice `index` holds."""
        width = self.widths[index]
        return max(2 * width, self.batch.T * width // 8)

    def first_column(self, index: int) -> int:
        """Returns the first column of slice `index`."""
        return sum(self.widths[:index])


@dataclass
class FinalRegion:
    """Memory for the ended episodes of one slice, filled from entry 0 in (time, column) order; see `Final`.

    Args:
        time, column: int64 `[F]`.
        observation, prev_action, prev_reward, state: `[F, ...]`, the inputs for V(final).
    """

    time: np.ndarray
    column: np.ndarray
    observation: Tree
    prev_action: Tree
    prev_reward: np.ndarray
    state: Tree

    def fill(self, entries: FinalRegion) -> FinalRegion | None:
        """Copies the first entries that fit, without their states; returns the remaining entries, or None."""
        n, entries = len(entries.time), replace(entries, state=None)
        fits = slice(0, min(n, len(self.time)))
        more = n > fits.stop
        tree_copy_into(tree_rows(replace(self, state=None), fits), tree_rows(entries, fits) if more else entries)
        return tree_rows(entries, slice(fits.stop, None)) if more else None


@dataclass
class Slot:
    """The arrays of one batch, or of one slice of its columns.

    Args:
        observation, is_first, prev_action, prev_reward: `[T+1, B]`.
        reward, terminated, truncated, valid, env_info, action, agent_info, version: `[T, B]`.
        bootstrap_value, first_state, last_state: `[1, B]`, state: `[T/k, B]` (k: `state_interval`), each or None.
        final: one region per slice.
    """

    observation: Tree
    is_first: np.ndarray
    prev_action: Tree
    prev_reward: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    env_info: Tree
    action: Tree
    agent_info: Tree
    version: np.ndarray
    bootstrap_value: np.ndarray | None
    first_state: Tree
    last_state: Tree
    state: Tree
    final: tuple[FinalRegion, ...]

    def slice(self, spec: SlotSpec, index: int) -> Slot:
        """Returns the columns of slice `index`, with its final region."""
        return self.slices(spec, index, index + 1)

    def slices(self, spec: SlotSpec, first: int, stop: int) -> Slot:
        """Returns the columns of slices `first` to `stop` − 1, which are adjacent, with their final regions."""
        columns = (slice(None), slice(spec.first_column(first), spec.first_column(stop)))
        values = {name: tree_rows(value, columns) for name, value in vars(self).items() if name != "final"}
        return Slot(**values, final=self.final[first:stop])

    def step_row(self, t: int) -> StepRow:
        """Returns where environments write the results of step t: observation into row t + 1, the rest into row t."""
        observation, env_info = tree_rows(self.observation, t + 1), tree_rows(self.env_info, t)
        floats = [leaf for leaf in (*tree_leaves(observation), *tree_leaves(env_info)) if leaf.dtype.kind == "f"]
        return StepRow(observation, self.reward[t], self.terminated[t], self.truncated[t], env_info, floats)

    def inputs(self, t: Any, noise: Tree) -> StepInputs:
        """Returns the agent's inputs in row t (0 to T) or in several rows: views of this slot, and the given noise."""
        return StepInputs(
            tree_rows(self.observation, t),
            tree_rows(self.prev_action, t),
            self.prev_reward[t],
            self.is_first[t],
            noise,
        )


def build_slot(spec: SlotSpec, allocate: Allocate) -> Slot:
    """Builds a slot whose arrays come from `allocate(shape, dtype)`: an arena's method, or `numpy.zeros`.

    The spec determines the order of allocation, so every process that attaches to an arena finds the same offsets.
    """
    T, B = spec.batch.T, spec.batch.B

    def like(example: Tree, *leading: int) -> Tree:
        return allocate_like(example, leading, allocate)

    return Slot(
        observation=like(spec.observation, T + 1, B),
        is_first=allocate((T + 1, B), _BOOL),
        prev_action=like(spec.action, T + 1, B),
        prev_reward=allocate((T + 1, B), _FLOAT),
        reward=allocate((T, B), _FLOAT),
        terminated=allocate((T, B), _BOOL),
        truncated=allocate((T, B), _BOOL),
        valid=allocate((T, B), _BOOL),
        env_info=like(spec.env_info, T, B),
        action=like(spec.action, T, B),
        agent_info=like(spec.agent_info, T, B),
        version=allocate((T, B), _INT32),
        bootstrap_value=allocate((1, B), _FLOAT) if spec.bootstrap else None,
        first_state=like(spec.state, 1, B),
        last_state=like(spec.state, 1, B),
        state=like(spec.state, spec.batch.n_states, B) if spec.batch.n_states else None,
        final=tuple(
            FinalRegion(
                time=allocate((capacity,), _INT64),
                column=allocate((capacity,), _INT64),
                observation=like(spec.observation, capacity),
                prev_action=like(spec.action, capacity),
                prev_reward=allocate((capacity,), _FLOAT),
                state=like(spec.state, capacity),
            )
            for capacity in map(spec.final_capacity, range(len(spec.widths)))
        ),
    )


def build_slots(spec: SlotSpec, n: int, allocate: Allocate) -> list[Slot]:
    """Builds `n` slots of the same spec, one after another in memory."""
    return [build_slot(spec, allocate) for _ in range(n)]


@dataclass
class Final:
    """The `N` episodes that ended in a batch, in (time, column) order, with all inputs for V(final).

    Args:
        time, column: int64 `[N]`, time step and column of the last step.
        observation: tree of `[N, ...]`, the true final observation, from before the reset.
        prev_action: tree of `[N, ...]`, action of the last step.
        prev_reward: `[N]`, reward of the last step.
        state: tree of `[N, ...]`, recurrent state after the last step; None if feed-forward.
    """

    time: torch.Tensor
    column: torch.Tensor
    observation: Tree
    prev_action: Tree
    prev_reward: torch.Tensor
    state: Tree

    def __len__(self) -> int:
        return len(self.time)

    def inputs(self) -> StepInputs:
        """Returns the inputs of `agent.value` for the final observations (with `state`); is_first is always False."""
        never = self.time < 0
        return StepInputs(self.observation, self.prev_action, self.prev_reward, never)


@dataclass
class EnvSamples:
    """What the environments returned; see the table in the documentation.

    Args:
        observation: tree of `[T, B, ...]`.
        is_first: bool `[T, B]`, no previous action and reward, because an episode starts.
        prev_reward, reward: float32 `[T, B]`.
        terminated, truncated: bool `[T, B]`.
        valid: bool `[T, B]`, False for padding.
        env_info: tree of `[T, B, ...]`, the recorded fields of info; None if there are none.
        last_observation: tree of `[1, B, ...]`, the observation after row T − 1.
    """

    observation: Tree
    is_first: torch.Tensor
    prev_reward: torch.Tensor
    reward: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor
    valid: torch.Tensor
    env_info: Tree
    last_observation: Tree

    @property
    def done(self) -> torch.Tensor:
        """Whether an episode ended, `terminated | truncated`, bool `[T, B]`."""
        return self.terminated | self.truncated

    def __getitem__(self, index: Any) -> EnvSamples:
        return EnvSamples(**_indexed(vars(self), index, ("last_observation",)))


@dataclass
class AgentSamples:
    """What the agent saw and did.

    Args:
        action, prev_action: trees of `[T, B, ...]`.
        agent_info: tree of `[T, B, ...]`, or None.
        version: int32 `[T, B]`, number of the parameters that acted.
        bootstrap_value: float32 `[1, B]`, the agent's value of `last_observation`, or None.
        first_state, last_state: trees of `[1, B, ...]`, state before row 0 and after row T − 1, or None.
        state: tree of `[T/k, B, ...]`, state before rows 0, k, 2k, ... (k: `state_interval` of the sampler), or None.
    """

    action: Tree
    prev_action: Tree
    agent_info: Tree
    version: torch.Tensor
    bootstrap_value: torch.Tensor | None
    first_state: Tree
    last_state: Tree
    state: Tree = None

    def __getitem__(self, index: Any) -> AgentSamples:
        return AgentSamples(**_indexed(vars(self), index, ("bootstrap_value", "first_state", "last_state", "state")))


@dataclass(repr=False)
class Samples:
    """One batch `[T, B]`: torch views of the sampler's memory, valid until its next call; `copy()` makes a copy.

    `samples[:, columns]` selects columns of all fields, including `final`; `samples.env[t]` and `samples.agent[t]`
    index the fields that have a time dimension.

    Args:
        agent: what the agent saw and did.
        env: what the environments returned.
        final: the episodes that ended in the batch.
    """

    agent: AgentSamples
    env: EnvSamples
    final: Final

    @staticmethod
    def of(slot: Slot) -> Samples:
        """Returns views of a slot, with an empty `final`, which `with_final` sets for each batch."""
        import torch

        def torch_of(tree: Tree) -> Tree:
            return tree_map(torch.from_numpy, tree)

        rows = slice(None, -1)
        env = EnvSamples(
            observation=torch_of(tree_rows(slot.observation, rows)),
            is_first=torch_of(slot.is_first[rows]),
            prev_reward=torch_of(slot.prev_reward[rows]),
            reward=torch_of(slot.reward),
            terminated=torch_of(slot.terminated),
            truncated=torch_of(slot.truncated),
            valid=torch_of(slot.valid),
            env_info=torch_of(slot.env_info),
            last_observation=torch_of(tree_rows(slot.observation, slice(-1, None))),
        )
        agent = AgentSamples(
            action=torch_of(slot.action),
            prev_action=torch_of(tree_rows(slot.prev_action, rows)),
            agent_info=torch_of(slot.agent_info),
            version=torch_of(slot.version),
            bootstrap_value=torch_of(slot.bootstrap_value),
            first_state=torch_of(slot.first_state),
            last_state=torch_of(slot.last_state),
            state=torch_of(slot.state),
        )
        none = torch.zeros(0, dtype=torch.int64)
        return Samples(agent, env, Final(none, none, None, None, torch.zeros(0), None))

    def with_final(self, final: Final) -> Samples:
        """Returns the same views in new dataclasses and dicts, with this `final`."""
        return Samples(tree_map(lambda leaf: leaf, self.agent), tree_map(lambda leaf: leaf, self.env), final)

    def __repr__(self) -> str:
        return described_batch(self.env, self.agent, self.final)

    @property
    def batch_spec(self) -> BatchSpec:
        """T and B of this batch."""
        T, B = self.env.reward.shape
        states = tree_leaves(self.agent.state)
        return BatchSpec(T, B, T // len(states[0]) if states else None)

    def __getitem__(self, index: Any) -> Samples:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        if not isinstance(rows, slice) or rows != slice(None):
            raise TypeError(
                f"samples[...] selects columns, as in samples[:, columns], got time steps {rows!r}; "
                "select time steps of a part: samples.env[t] or samples.agent[t]"
            )
        wanted = np.arange(self.batch_spec.B)[columns].reshape(-1)
        # New column j holds the entries of column wanted[j]; restore (time, column) order afterwards.
        new_column, entry = np.nonzero(wanted[:, None] == tree_to_numpy(self.final.column))
        order = np.lexsort((new_column, tree_to_numpy(self.final.time)[entry]))
        final: Final = tree_rows(self.final, entry[order])
        final.column[:] = _like(new_column[order], final.column)
        chosen = (slice(None), columns if isinstance(columns, slice) else wanted)
        return Samples(self.agent[chosen], self.env[chosen], final)

    def copy(self) -> Samples:
        """Returns a copy of the batch in new memory."""
        return Samples(*(tree_map(lambda leaf: leaf.clone(), part) for part in (self.agent, self.env, self.final)))

    def numpy(self) -> Samples:
        """Returns views of the same memory as NumPy arrays."""
        return Samples(*(tree_map(lambda leaf: leaf.numpy(), part) for part in (self.agent, self.env, self.final)))

    def to_tensordict(self) -> Any:
        """Returns the fields of shape `[T, B, ...]` as a `tensordict.TensorDict` of that batch size, without a copy.

        Its keys are "env" and "agent", and below them the field names; parts of a tuple are "0", "1", … Fields without
        a time dimension (`last_observation`, `bootstrap_value`, states) and `final` are left out.

        Raises:
            ImportError: if the package tensordict is not installed.
        """
        return tensordict_of(self.env, self.agent)


def _indexed(fields: dict[str, Tree], index: Any, without_time: Sequence[str]) -> dict[str, Tree]:
    """Indexes `[T, B]` fields with `index`, and the fields `without_time` with its column part only."""
    rows, columns = index if isinstance(index, tuple) else (index, slice(None))
    return {
        name: tree_rows(tree, (slice(None), columns) if name in without_time else (rows, columns))
        for name, tree in fields.items()
    }


def _like(values: np.ndarray, other: Any) -> Any:
    """Returns `values` as an array, or as a tensor if `other` is one."""
    return values if isinstance(other, np.ndarray) else other.new_tensor(values)
