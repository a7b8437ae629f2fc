"""Combines a batch policy and a recorder: acts for the rows of a slot."""

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
from headrace.samplers.inference.device import DeviceBatch, DeviceRows
from headrace.samplers.inference.policy import BatchPolicy
from headrace.samplers.inference.recorder import Recorder
from headrace.types import ActingPlan, ActingRows, AgentStep, StepInputs, Tree

__all__ = ["Actor", "actor_for"]


class Actor:
    """Acts for some columns: reads rows of a slot and writes action, agent_info, bootstrap value and recurrent states.

    The actor checks what the agent returns before it is used. An output that does not fit raises `AgentFailed`, and so
    does an agent that writes into its inputs.

    Args:
        policy: calls the agent.
        recorder: writes the agent's outputs into the slots.
        plans: for each slot, a plan that acts in place of both, or None.
    """

    def __init__(self, policy: BatchPolicy, recorder: Recorder, plans: Sequence[ActingPlan | None]) -> None:
        self._policy = policy
        self._recorder = recorder
        self._plans = plans
        self._plan: ActingPlan | None = None
        self._step: AgentStep | None = None
        self._T = len(policy.noise) - 1
        self._interval = recorder.state_interval

    @property
    def n_slots(self) -> int:
        """Number of slots that batches are written into in turn."""
        return self._recorder.n_slots

    @property
    def overflow(self) -> list[Tree]:
        """See `Recorder`."""
        return self._recorder.overflow

    def restart(self) -> None:
        """Zeros the recurrent state of every column."""
        self._policy.restart()

    def own_state(self) -> None:
        """Copies the recurrent state before the agent is called for other columns."""
        self._policy.own_state()

    def memory(self) -> dict[int, Tree]:
        """Returns the recurrent state of each column by env id."""
        return self._policy.memory()

    def restore(self, memory: Mapping[int, Tree]) -> None:
        """Restores the recurrent state that `memory` returned."""
        self._policy.restore(memory)

    def draw(self, first_step: int | Sequence[int]) -> None:
        """Draws the noise of the batch that begins at `first_step`, ahead of `begin`."""
        self._policy.draw(first_step)

    def load(self, slot: int = 0) -> bool:
        """Takes over the agent's parameters for a batch; call it before `begin`.

        Args:
            slot: index of the slot that the batch is written into.

        Returns:
            Whether `act` will read more of a row than the observation: previous inputs or `is_first`.
        """
        plan = self._plans[slot]
        self._plan = plan if plan is not None and plan.load() else None
        return self._plan is None or self._plan.reads_previous

    def begin(self, version: int, first_step: int | Sequence[int], slot: int = 0) -> None:
        """Prepares for row 0 of a batch.

        Args:
            version: version of the parameters.
            first_step: number of the first time step, or of each column's first; addresses the noise.
            slot: index of the slot that the batch is written into.
        """
        self._recorder.enter(slot, version)
        self._policy.draw(first_step)

    def act(self, t: int) -> None:
        """Computes and writes the actions of row t; call `record` before the next row."""
        self._step = None
        policy, recorder = self._policy, self._recorder
        inputs: StepInputs | None = None
        try:
            if policy.state is not None:
                inputs = recorder.inputs(t)
                self._enter_row(t, inputs.is_first)
            if self._plan is not None and self._plan.act(t, policy.state):
                return
            self._step = step = policy.step(inputs or recorder.inputs(t))
            recorder.write_action(t, step.action)
        except Mismatch as mismatch:
            raise policy.failure(mismatch, "step()") from None
        self._require_unwritten("step()")

    def record(self, t: int) -> None:
        """Writes what the agent returned besides the actions of row t. No worker waits for it, so it is separate from
        `act`.
        """
        if self._step is None:
            return
        try:
            self._recorder.write_info(t, self._step)
        except Mismatch as mismatch:
            raise self._policy.failure(mismatch, "step()") from None

    def finish(self) -> None:
        """Writes the value of row T and the recurrent state after the last row."""
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
        ready = None if self._plan is None else self._plan.value(self._T, policy.state)
        if ready is not None:
            recorder.slot.bootstrap_value[0] = ready
            return
        value = policy.value(inputs)
        self._require_unwritten("value()")
        try:
            recorder.write_value(value)
        except Mismatch as mismatch:
            raise policy.failure(mismatch, "value()") from None

    def _enter_row(self, t: int, is_first: torch.Tensor) -> None:
        """Keeps the states of episodes that ended in step t − 1; zeros the state where row t `is_first`; records it.

        The loop writes row 0 only after `begin`, so the first state is recorded here and not in `begin`.
        """
        policy, recorder = self._policy, self._recorder
        if t:
            recorder.write_ends(t, policy.state)
        if recorder.slot.is_first[t].any():
            policy.zero_state(is_first)
        if t == 0:
            recorder.write_first_state(policy.state)
        if self._interval and t % self._interval == 0 and t < self._T:
            recorder.write_state(t // self._interval, policy.state)

    def _require_unwritten(self, call: str) -> None:
        names = self._recorder.overwritten()
        if names:
            raise self._policy.overwritten(names, call)


def actor_for(
    agent: Agent,
    slots: Sequence[Slot],
    env_ids: Sequence[int],
    widths: Sequence[int],
    *,
    seed: int,
    stream: Stream,
    deterministic: bool,
    status: Status,
    device_batch: DeviceBatch | None = None,
) -> Actor:
    """Returns an actor.

    Args:
        agent: on its device.
        slots: the columns to act for, in each slot that batches are written into in turn.
        env_ids: global numbers of the columns' environments, in order and without gaps.
        widths: number of columns of each slice.
        seed: seed of all randomness.
        stream: stream of the noise.
        deterministic: see `SamplerOptions`.
        status: where the process records what it is doing, for error messages.
        device_batch: the same columns of a batch that stays on the agent's device, or None.
    """
    policy = BatchPolicy(
        agent,
        env_ids,
        len(slots[0].reward),
        seed=seed,
        stream=stream,
        status=status,
        deterministic=deterministic,
    )
    device_rows = None
    if device_batch is not None or agent.device.type != "cpu":
        row = tree_to_torch(slots[0].inputs(0, np.zeros((len(env_ids), agent.noise_size), np.float32)))
        device_rows = DeviceRows(row, agent.device, device_batch)
    assert agent.spaces is not None  # the sampler initialized the agent
    recorder = Recorder(agent.spaces.action, slots, widths, policy.noise, device_rows)
    plans: list[ActingPlan | None] = [None] * len(slots)
    if device_rows is None:
        plans = [agent.acting_plan(_rows_of(slot, policy.noise), deterministic) for slot in slots]
    return Actor(policy, recorder, plans)


def _rows_of(slot: Slot, noise: np.ndarray) -> ActingRows:
    return ActingRows(slot.observation, slot.prev_action, slot.prev_reward, noise, slot.action, slot.agent_info)
