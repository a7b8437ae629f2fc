"""Writes the agent's outputs into the slots of a batch, and checks that the agent did not write into its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from headrace.buffers.samples import Slot
from headrace.buffers.tree import tree_copy_into, tree_leaves, tree_map, tree_paths, tree_rows, tree_to_torch
from headrace.envs.agent_answers import action_writer, answer_writer
from headrace.samplers.inference.device import DeviceRows
from headrace.types import AgentStep, StepInputs, Tree

__all__ = ["Recorder"]


class _Views(NamedTuple):
    """A slot with precomputed views of every row.

    Args:
        slot: the slot.
        whole: the inputs of all rows at once; the views of single rows share their version counters.
        leaves: the tensors of `whole`.
        inputs: inputs of T + 1 rows.
        actions: actions of T rows.
        infos: agent_infos of T rows.
    """

    slot: Slot
    whole: StepInputs
    leaves: list[torch.Tensor]
    inputs: list[StepInputs]
    actions: list[Tree]
    infos: list[Tree]

    @staticmethod
    def of(slot: Slot, noise: np.ndarray) -> _Views:
        """Returns the views of a slot, with noise `[T + 1, B, noise_size]` among the inputs."""
        T = len(slot.reward)
        with torch.inference_mode(False):  # tensors made in inference mode have no version counter
            whole = tree_to_torch(slot.inputs(slice(None), noise))
            inputs = [tree_rows(whole, t) for t in range(T + 1)]
        return _Views(
            slot,
            whole,
            tree_leaves(whole),
            inputs,
            [tree_rows(slot.action, t) for t in range(T)],
            [tree_rows(slot.agent_info, t) for t in range(T)],
        )


class Recorder:
    """Reads and writes the columns of some slices in every slot: returns rows for the agent and writes its outputs.

    An output that does not fit raises `Mismatch`; nothing is broadcast or truncated.

    Args:
        action_space: action space of the environments.
        slots: the columns, in each slot that batches are written into in turn.
        widths: number of columns of each slice.
        noise: `[T + 1, B, noise_size]`, part of the inputs.
        device_rows: copies rows to the agent's device. None: the agent reads the slot itself.
    """

    def __init__(
        self,
        action_space: spaces.Space[Any],
        slots: Sequence[Slot],
        widths: Sequence[int],
        noise: np.ndarray,
        device_rows: DeviceRows | None,
    ) -> None:
        self._widths = widths
        self._device_rows = device_rows
        self._keeps = device_rows is not None and device_rows.keeps
        self._views = [_Views.of(slot, noise) for slot in slots]
        self._write_action = action_writer(action_space)
        self._write_info = answer_writer(slots[0].agent_info, "agent_info")
        self._write_state = answer_writer(slots[0].first_state, "state")
        self._write_value = answer_writer(slots[0].reward, "value")
        self._state_rows: Tree = tree_map(np.empty_like, tree_rows(slots[0].first_state, 0))
        self._final_rows: list[np.ndarray] = []
        self._final_states: list[Tree] = []
        #: For each slice, the recurrent states of the last batch's ended episodes that did not fit into its final
        #: region, or None.
        self.overflow: list[Tree] = [None] * len(widths)
        self.enter(0, 0)

    @property
    def n_slots(self) -> int:
        """Number of slots."""
        return len(self._views)

    @property
    def state_interval(self) -> int:
        """Number of rows from one recorded recurrent state to the next; 0 if none are recorded."""
        states = tree_leaves(self.slot.state)
        return len(self.slot.reward) // len(states[0]) if states else 0

    def enter(self, slot: int, version: int) -> None:
        """Prepares for row 0 of a batch.

        Args:
            slot: index of the slot.
            version: version of the parameters.
        """
        self.slot, self._whole, self._watched, self._inputs, self._actions, self._infos = self._views[slot]
        self.slot.version[:] = version
        self._final_rows, self._final_states = [], []
        if self._device_rows is not None:
            self._whole = self._device_rows.whole
            self._watched = tree_leaves(self._whole)
        self._versions = _versions(self._watched)

    def inputs(self, t: int) -> StepInputs:
        """Returns the agent's inputs for row t, on its device."""
        if self._device_rows is None:
            return self._inputs[t]
        inputs = self._device_rows.load(t, self._inputs[t])
        self._versions = _versions(self._watched)
        return inputs

    def overwritten(self) -> list[str]:
        """Returns the names of inputs that the agent wrote into since `enter` or `inputs`. Takes 1 µs."""
        if _versions(self._watched) == self._versions:
            return []
        now = zip(tree_paths(self._whole, "inputs"), self._versions, strict=True)
        return [path for (path, leaf), version in now if leaf._version != version]

    def write_action(self, t: int, action: Tree) -> None:
        """Writes the actions of row t; workers may be waiting for them."""
        self._write_action(self._actions[t], action)

    def write_info(self, t: int, step: AgentStep) -> None:
        """Writes the agent_info of row t, and the action too where rows are kept on the agent's device."""
        if self._keeps:
            assert self._device_rows is not None
            self._device_rows.record(t, step)
        else:
            self._write_info(self._infos[t], step.agent_info)

    def write_ends(self, t: int, state: Tree) -> None:
        """Keeps the recurrent states of episodes that ended in step t − 1, for V(final)."""
        rows = np.flatnonzero(self.slot.terminated[t - 1] | self.slot.truncated[t - 1])
        if len(rows):
            self._final_rows.append(rows)
            self._write_state(self._state_rows, state)
            self._final_states.append(tree_rows(self._state_rows, rows))

    def write_first_state(self, state: Tree) -> None:
        """Writes the recurrent state at the start of row 0."""
        self._write_state(tree_rows(self.slot.first_state, 0), state)

    def write_state(self, index: int, state: Tree) -> None:
        """Writes the recurrent state at the start of row `index` · k, where k is the `state_interval`."""
        self._write_state(tree_rows(self.slot.state, index), state)

    def write_last_state(self, state: Tree) -> None:
        """Writes the recurrent state after the last row."""
        self._write_state(tree_rows(self.slot.last_state, 0), state)

    def write_value(self, value: torch.Tensor) -> None:
        """Writes the value of row T."""
        assert self.slot.bootstrap_value is not None
        self._write_value(self.slot.bootstrap_value[0], value)

    def write_final_states(self) -> None:
        """Writes the kept states into the final regions of the slices, whose entries are in (time, column) order."""
        self.overflow = [None] * len(self._widths)
        if not self._final_rows:
            return
        rows = np.concatenate(self._final_rows)
        states = tree_map(lambda *leaves: np.concatenate(leaves), *self._final_states)
        first = 0
        for index, (width, region) in enumerate(zip(self._widths, self.slot.final, strict=True)):
            own = tree_rows(states, (rows >= first) & (rows < first + width))
            n, fits = int(((rows >= first) & (rows < first + width)).sum()), len(region.time)
            tree_copy_into(tree_rows(region.state, slice(0, min(n, fits))), tree_rows(own, slice(0, fits)))
            if n > fits:
                self.overflow[index] = tree_rows(own, slice(fits, None))
            first += width


def _versions(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Returns how often torch wrote to each tensor, through any view of it."""
    return [tensor._version for tensor in tensors]
