"""A batch policy and a recorder together: acts for the rows of a slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from headrace.agents.base import Agent
from headrace.buffers.samples import Slot
from headrace.buffers.tree import tree_to_torch
from headrace.envs.spaces import Mismatch
from headrace.processes.status import Status
from headrace.rng import Stream
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.inference.device import DeviceBatch, DeviceRows
from headrace.samplers.inference.policy import BatchPolicy
from headrace.samplers.inference.recorder import Recorder
from headrace.types import Tree

__all__ = ["Actor", "actor_for"]


class Actor:
    """Acts for some columns: reads rows of a slot, writes action, agent_info, bootstrap value and states.

    What an agent answers is checked before it counts: what does not fit is `AgentFailed`, and so is an agent that
    writes into its inputs.
    """

    def __init__(self, policy: BatchPolicy, recorder: Recorder) -> None:
        self._policy = policy
        self._recorder = recorder
        self._T = len(policy.noise) - 1

    @property
    def n_slots(self) -> int:
        """Number of slots that batches are written into in turn."""
        return self._recorder.n_slots

    @property
    def overflow(self) -> list[Tree]:
        """See `Recorder`."""
        return self._recorder.overflow

    def restart(self) -> None:
        """Zeros the state of every column."""
        self._policy.restart()

    def own_state(self) -> None:
        """Copies the state before the agent acts for other columns."""
        self._policy.own_state()

    def memory(self) -> dict[int, Tree]:
        """The state of each column by env id."""
        return self._policy.memory()

    def restore(self, memory: Mapping[int, Tree]) -> None:
        """The inverse of `memory`."""
        self._policy.restore(memory)

    def draw(self, first_step: int) -> None:
        """Draws the noise of the batch that begins at `first_step`, ahead of `begin`."""
        self._policy.draw(first_step)

    def begin(self, version: int, first_step: int, slot: int = 0) -> None:
        """Before row 0 of a batch.

        Args:
            version: of the parameters that act.
            first_step: number of the first step; the address of the noise.
            slot: which slot the batch is written into.
        """
        self._recorder.enter(slot, version)
        self._policy.draw(first_step)

    def act(self, t: int) -> None:
        """Chooses the actions of row t and writes them; `record` is to follow before the next row."""
        policy, recorder = self._policy, self._recorder
        inputs = recorder.inputs(t)
        try:
            if policy.state is not None:
                self._enter_row(t, inputs.is_first)
            self._step = step = policy.step(inputs)
            recorder.write_action(t, step.action)
        except Mismatch as mismatch:
            raise policy.failure(mismatch, "step()") from None
        self._require_unwritten("step()")

    def record(self, t: int) -> None:
        """Writes what the agent gave with the actions of row t. Nobody waits for it, so it is apart from `act`."""
        try:
            self._recorder.write_info(t, self._step)
        except Mismatch as mismatch:
            raise self._policy.failure(mismatch, "step()") from None

    def finish(self) -> None:
        """After the last row: the value of row T, and the state to go on with."""
        policy, recorder = self._policy, self._recorder
        inputs = recorder.inputs(self._T)
        try:
            recorder.write_last_state(policy.state)
            if policy.state is not None:
                self._enter_row(self._T, inputs.is_first)
                recorder.write_final_states()
        except Mismatch as mismatch:
            raise policy.failure(mismatch, "step()") from None
        if recorder.slot.bootstrap_value is None:
            policy.own_state()
            return
        value = policy.value(inputs)
        self._require_unwritten("value()")
        try:
            recorder.write_value(value)
        except Mismatch as mismatch:
            raise policy.failure(mismatch, "value()") from None

    def _enter_row(self, t: int, is_first: torch.Tensor) -> None:
        """Keeps the state of episodes that ended in step t − 1; zeros it where row t `is_first`.

        Row 0 exists only once the loop is there: its state is recorded here, not in `begin`.
        """
        policy, recorder = self._policy, self._recorder
        if t:
            recorder.write_ends(t, policy.state)
        if recorder.slot.is_first[t].any():
            policy.zero_state(is_first)
        if t == 0:
            recorder.write_first_state(policy.state)

    def _require_unwritten(self, call: str) -> None:
        names = self._recorder.overwritten()
        if names:
            raise self._policy.overwritten(names, call)


def actor_for(
    agent: Agent,
    slots: Sequence[Slot],
    env_ids: Sequence[int],
    widths: Sequence[int],
    config: SliceConfig,
    stream: Stream,
    status: Status,
    device_batch: DeviceBatch | None,
) -> Actor:
    """An actor with the settings of a slice.

    Args:
        agent: on its device.
        slots: the columns it acts for, of every slot that batches are written into in turn.
        env_ids: of the columns, in order and without gaps.
        widths: of the worker slices that the columns belong to.
        config: of one of them.
        stream: of the noise.
        status: says where an agent failed.
        device_batch: the same columns of a batch that stays on the agent's device.
    """
    policy = BatchPolicy(
        agent,
        env_ids,
        len(slots[0].reward),
        seed=config.seed,
        stream=stream,
        status=status,
        deterministic=config.deterministic,
    )
    device_rows = None
    if device_batch is not None or agent.device.type != "cpu":
        row = tree_to_torch(slots[0].inputs(0, np.zeros((len(env_ids), agent.noise_size), np.float32)))
        device_rows = DeviceRows(row, agent.device, device_batch)
    assert agent.spaces is not None  # the sampler has initialized it
    return Actor(policy, Recorder(agent.spaces.action, slots, widths, policy.noise, device_rows))
