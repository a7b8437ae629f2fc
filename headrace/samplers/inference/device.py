"""Copies rows of a slot to another device, and holds batches that stay there for the learner."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from headrace.agents.base import Agent
from headrace.buffers.samples import AgentSamples, EnvSamples, Samples, Slot
from headrace.buffers.shared import Arena
from headrace.buffers.tree import tree_leaves, tree_map, tree_rows
from headrace.envs.agent_answers import AS_AT_FIRST, AnswerWriter, answer_writer
from headrace.envs.spaces import Mismatch
from headrace.types import AgentStep, StepInputs, Tree

__all__ = ["DeviceBatch", "DeviceRows", "Pinned", "device_batch", "serving_device"]

_log = logging.getLogger("headrace.samplers")


class DeviceBatch:
    """The agent's inputs and outputs of one batch on a device: inputs `[T+1, B]`, action and agent_info `[T, B]`.

    `samples` completes the batch by copying the other fields to the device, once per batch.

    Args:
        inputs: trees of `[T+1, B, ...]`.
        action: tree of `[T, B, ...]`.
        agent_info: tree of `[T, B, ...]`.
        device: where they are.
    """

    def __init__(self, inputs: StepInputs, action: Tree, agent_info: Tree, device: torch.device) -> None:
        self.inputs = inputs
        self.action = action
        self.agent_info = agent_info
        self.device = device

    def columns(self, first: int, stop: int) -> DeviceBatch:
        """Returns columns `first` to `stop` − 1 of the same memory."""
        columns = (slice(None), slice(first, stop))
        inputs, action, agent_info = tree_rows((self.inputs, self.action, self.agent_info), columns)
        return DeviceBatch(inputs, action, agent_info, self.device)

    def samples(self, host: Samples) -> Samples:
        """Returns the batch `host` on the device.

        Fields that the environments and the sampler wrote are copied; the others are views of this memory.
        """
        inputs, device = self.inputs, self.device
        rows, last = slice(None, -1), slice(-1, None)
        env: dict[str, Tree] = {
            "observation": tree_rows(inputs.observation, rows),
            "last_observation": tree_rows(inputs.observation, last),
            "prev_reward": inputs.prev_reward[rows],
            "is_first": inputs.is_first[rows],
        }
        agent: dict[str, Tree] = {
            "prev_action": tree_rows(inputs.prev_action, rows),
            "action": self.action,
            "agent_info": self.agent_info,
        }
        env = {name: env[name] if name in env else _sent(tree, device) for name, tree in vars(host.env).items()}
        agent = {name: agent[name] if name in agent else _sent(tree, device) for name, tree in vars(host.agent).items()}
        return Samples(AgentSamples(**agent), EnvSamples(**env), _sent(host.final, device))


def device_batch(slot: Slot, agent: Agent, device: torch.device) -> DeviceBatch:
    """Allocates a `DeviceBatch` for an agent and a slot."""
    T, B = slot.reward.shape

    def room(leaf: np.ndarray) -> torch.Tensor:
        return torch.zeros(leaf.shape, dtype=torch.from_numpy(leaf[:0]).dtype, device=device)

    inputs = StepInputs(
        tree_map(room, slot.observation),
        tree_map(room, slot.prev_action),
        room(slot.prev_reward),
        room(slot.is_first),
        torch.zeros((T + 1, B, agent.noise_size), device=device),
    )
    return DeviceBatch(inputs, tree_map(room, slot.action), tree_map(room, slot.agent_info), device)


class DeviceRows:
    """Copies the rows of some columns to a device, with one transfer per leaf and row.

    Args:
        inputs: torch views of any row of the slot.
        device: where to copy rows to.
        batch: the same columns of a `DeviceBatch`, where row t is kept. None: each row overwrites the previous one.
    """

    def __init__(self, inputs: StepInputs, device: torch.device, batch: DeviceBatch | None) -> None:
        self._batch = batch
        if batch is None:
            self._row = tree_map(lambda leaf: torch.zeros_like(leaf, device=device), inputs)
            self._row_leaves: Sequence[Any] = tree_leaves(self._row)
        else:
            n_rows = len(batch.inputs.is_first)
            self._rows = [tree_rows(batch.inputs, t) for t in range(n_rows)]
            self._leaves = [tree_leaves(row) for row in self._rows]
            n_steps = n_rows - 1
            self._actions = [tree_rows(batch.action, t) for t in range(n_steps)]
            self._infos = [tree_rows(batch.agent_info, t) for t in range(n_steps)]
            self._write_action = answer_writer(batch.action, "action", _tensor_writer)
            self._write_info = answer_writer(batch.agent_info, "agent_info", _tensor_writer)

    @property
    def keeps(self) -> bool:
        """Whether rows are kept, so that `record` must be called."""
        return self._batch is not None

    @property
    def whole(self) -> StepInputs:
        """All of the memory that rows are loaded into."""
        whole: StepInputs = self._row if self._batch is None else self._batch.inputs
        return whole

    def load(self, t: int, inputs: StepInputs) -> StepInputs:
        """Copies row t to the device and returns it there."""
        row, leaves = (self._row, self._row_leaves) if self._batch is None else (self._rows[t], self._leaves[t])
        for to, value in zip(leaves, tree_leaves(inputs), strict=True):
            to.copy_(value, non_blocking=True)  # asynchronous only if the slot is registered with CUDA
        loaded: StepInputs = row
        return loaded

    def record(self, t: int, step: AgentStep) -> None:
        """Keeps the agent's action and agent_info of row t; raises Mismatch if they do not fit."""
        self._write_action(self._actions[t], step.action)
        self._write_info(self._infos[t], step.agent_info)


def _tensor_writer(example: torch.Tensor, path: str) -> AnswerWriter:
    def write(to: torch.Tensor, value: Any) -> None:
        if not isinstance(value, torch.Tensor):
            raise Mismatch(path, f"a {type(value).__name__}", f"a tensor: {AS_AT_FIRST}, {_kind(to)}")
        if value.shape != to.shape or not torch.can_cast(value.dtype, to.dtype):
            raise Mismatch(path, _kind(value), f"{AS_AT_FIRST}, {_kind(to)}")
        to.copy_(value)

    return write


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _sent(tree: Tree, device: torch.device) -> Any:
    """Copies a tree to the device, even if that is the CPU: the slot will be overwritten."""
    return tree_map(lambda leaf: leaf.to(device, copy=True), tree)


def serving_device(device: torch.device | None) -> torch.device:
    """Returns the device of an action server: `device`, or by default the first GPU if there is one, else the CPU."""
    if device is not None:
        return device
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


class Pinned:
    """Registers an arena with CUDA, so that copies from it need no staging and do not block the host.

    Registering locks the pages, which takes some time, once. If the system refuses (a limit on locked memory), copies
    are slower, and a warning is logged.

    Args:
        arena: the memory to register.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena: Arena | None = arena
        error = torch.cuda.cudart().cudaHostRegister(arena.address, arena.nbytes, 0)  # type: ignore[no-untyped-call]
        if int(error) != 0:
            self._arena = None
            _log.warning("the batch's memory could not be registered with CUDA (error %d); copies are slower", error)

    def release(self) -> None:
        """Unregisters the memory; call it before the memory is freed."""
        arena, self._arena = self._arena, None
        if arena is not None:
            torch.cuda.cudart().cudaHostUnregister(arena.address)  # type: ignore[no-untyped-call]
