"""Who acts: an agent's hands on the rows of a slot, beside the environments or in an action server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from headrace.agents.base import Agent
from headrace.buffers.samples import Slot
from headrace.buffers.tree import (
    tree_copy_into,
    tree_leaves,
    tree_map,
    tree_paths,
    tree_rows,
    tree_to_torch,
    tree_zeroed,
)
from headrace.errors import AgentFailed, SamplerError, headline, traceback_of
from headrace.processes.status import Status
from headrace.rng import Stream, env_keys, uniforms
from headrace.samplers.device_rows import DeviceBatch, DeviceRows
from headrace.samplers.slice_envs import CollectorConfig
from headrace.types import AgentStep, StepInputs, Tree

__all__ = ["Actor", "actor_for"]

#: Rows of one inference in deterministic mode. Which row a number stands in is fixed by its env id.
_BLOCK = 32


class _Views(NamedTuple):
    """A slot, with the views of every row made once. inputs: T + 1; actions, infos: the leaves of T rows."""

    slot: Slot
    inputs: list[StepInputs]
    actions: list[list[np.ndarray]]
    infos: list[list[np.ndarray]]

    @staticmethod
    def of(slot: Slot, noise: np.ndarray) -> _Views:
        """With the noise `[T + 1, B, noise_size]` among the inputs."""
        T = len(slot.reward)
        return _Views(
            slot,
            [tree_to_torch(slot.inputs(t, noise[t])) for t in range(T + 1)],
            [tree_leaves(tree_rows(slot.action, t)) for t in range(T)],
            [tree_leaves(tree_rows(slot.agent_info, t)) for t in range(T)],
        )


class Actor:
    """Acts for some columns: reads rows of a slot, writes action, agent_info, bootstrap value and states.

    Holds the recurrent state of its rows, zeroed where `is_first`, and draws the noise of a batch at its start.

    slots: of every slot that batches are written into in turn, the columns it acts for, of one or more worker slices;
    widths: of these slices; env_ids: of the columns, in order and without gaps; device_rows: where the rows are copied
    for the agent; None: the agent reads the slot itself.
    """

    def __init__(
        self,
        agent: Agent,
        slots: Sequence[Slot],
        env_ids: Sequence[int],
        *,
        widths: Sequence[int],
        seed: int,
        stream: Stream,
        status: Status,
        deterministic: bool,
        device_rows: DeviceRows | None = None,
    ) -> None:
        self._agent = agent
        self._status = status
        self._widths = widths
        self._env_ids = list(env_ids)
        self._keys = env_keys(seed, stream, env_ids)
        self._device_rows = device_rows
        self._noise = torch.zeros((len(slots[0].reward) + 1, len(env_ids), agent.noise_size)).numpy()
        self._n_uniforms = agent.noise_size
        if agent.noise_has_env_id:
            self._n_uniforms -= 1
            self._noise[..., -1] = self._env_ids
        self._views = [_Views.of(slot, self._noise) for slot in slots]
        self._slot, self._inputs, self._actions, self._infos = self._views[0]
        self._state: Tree = agent.initial_state(len(env_ids))
        self._infer = self._in_blocks(int(env_ids[0]) % _BLOCK, len(env_ids)) if deterministic else _directly
        self._drawn_for: int | None = None
        self._final_rows: list[np.ndarray] = []
        self._final_states: list[Tree] = []
        #: For each slice the states of the last batch's ended episodes that did not fit into its final region, or None.
        self.overflow: list[Tree] = [None] * len(widths)

    @property
    def n_slots(self) -> int:
        """How many slots batches are written into in turn."""
        return len(self._views)

    def restart(self) -> None:
        """Zero state in every row."""
        self._state = self._agent.initial_state(len(self._keys))

    def memory(self) -> dict[int, Tree]:
        """The recurrent states of its rows by env id, trees of arrays; None if feed-forward."""
        rows = tree_map(_numpy, self._state)
        return {env_id: tree_map(np.copy, tree_rows(rows, row)) for row, env_id in enumerate(self._env_ids)}

    def go_on(self, memory: Mapping[int, Tree]) -> None:
        """The inverse of `memory`."""
        states = [memory[env_id] for env_id in self._env_ids]
        self._state = tree_map(lambda now, *rows: torch.from_numpy(np.stack(rows)).to(now.device), self._state, *states)

    def begin(self, version: int, first_step: int, slot: int = 0) -> None:
        """Before row 0 of a batch: the noise of its steps, the version of the parameters that act, its slot."""
        self._slot, self._inputs, self._actions, self._infos = self._views[slot]
        if self._drawn_for != first_step:
            self.draw(first_step)
        self._slot.version[:] = version
        self._final_rows, self._final_states = [], []

    def draw(self, first_step: int) -> None:
        """Draws the noise of the batch that begins at `first_step`; `begin` does, unless it was done ahead."""
        n_rows, size = len(self._noise), self._n_uniforms
        if size:
            self._noise[:-1, :, :size] = uniforms(self._keys, first_step, n_rows - 1, size)
        self._drawn_for = first_step

    def act(self, t: int) -> None:
        """Chooses the actions of row t and writes them; `record` is to follow before the next row."""
        inputs = self._inputs[t] if self._device_rows is None else self._device_rows.load(t, self._inputs[t])
        if self._state is not None:
            self._enter_row(t, inputs.is_first)
        try:
            with torch.inference_mode():
                step: AgentStep = self._infer(self._agent.step, inputs, self._state)
        except Exception as error:
            raise self._failed(error, "step()") from error
        self._state = step.state
        if t == 0:
            self._check(step)
        for to, value in zip(self._actions[t], tree_leaves(step.action), strict=True):
            to[...] = value.numpy(force=True)
        self._step = step

    def record(self, t: int) -> None:
        """Writes what the agent gave with the actions of row t. Nobody waits for it, so it is apart from `act`."""
        if self._device_rows is not None and self._device_rows.keeps:
            self._device_rows.record(t, self._step)
            return
        for to, value in zip(self._infos[t], tree_leaves(self._step.agent_info), strict=True):
            to[...] = value.numpy(force=True)

    def finish(self) -> None:
        """After the last row: the value of row T, and the state to go on with."""
        slot, T = self._slot, len(self._noise) - 1
        inputs = self._inputs[T] if self._device_rows is None else self._device_rows.load(T, self._inputs[T])
        if self._state is not None:
            tree_copy_into(tree_rows(slot.last_state, 0), tree_map(_numpy, self._state))
            self._enter_row(T, inputs.is_first)
            self._write_final_states()
        if slot.bootstrap_value is not None:
            try:
                with torch.inference_mode():
                    value: torch.Tensor = self._infer(self._agent.value, inputs, self._state)
                slot.bootstrap_value[0] = value.numpy(force=True)
            except Exception as error:
                raise self._failed(error, "value()") from error

    def _enter_row(self, t: int, is_first: torch.Tensor) -> None:
        """Keeps the state of episodes that ended in step t − 1 for their V(final); zeroes it where row t `is_first`.

        Row 0 exists only once the loop is there: its state is recorded here, not in `begin`.
        """
        slot = self._slot
        rows = np.flatnonzero(slot.terminated[t - 1] | slot.truncated[t - 1]) if t else ()
        if len(rows):
            self._final_rows.append(np.asarray(rows))
            self._final_states.append(tree_map(_numpy, tree_rows(self._state, torch.from_numpy(rows))))
        if slot.is_first[t].any():
            self._state = tree_zeroed(self._state, is_first)
        if t == 0:
            tree_copy_into(tree_rows(slot.first_state, 0), tree_map(_numpy, self._state))

    def _write_final_states(self) -> None:
        """Into the final regions of the slices, whose entries are in the same order: that of (time, row)."""
        self.overflow = [None] * len(self._widths)
        if not self._final_rows:
            return
        rows = np.concatenate(self._final_rows)
        states = tree_map(lambda *leaves: np.concatenate(leaves), *self._final_states)
        first = 0
        for index, (width, region) in enumerate(zip(self._widths, self._slot.final, strict=True)):
            own = tree_rows(states, (rows >= first) & (rows < first + width))
            n, fits = int(((rows >= first) & (rows < first + width)).sum()), len(region.time)
            tree_copy_into(tree_rows(region.state, slice(0, min(n, fits))), tree_rows(own, slice(0, fits)))
            if n > fits:
                self.overflow[index] = tree_rows(own, slice(fits, None))
            first += width

    def _check(self, step: AgentStep) -> None:
        """Once a batch: the answer has the leaves and shapes its buffers were made for. Assignment would broadcast."""
        expected = [leaf.shape for leaf in (*self._actions[0], *self._infos[0])]
        came = [*tree_paths(step.action, "action"), *tree_paths(step.agent_info, "agent_info")]
        if [tuple(leaf.shape) for _, leaf in came] != expected:
            raise AgentFailed(
                f"{type(self._agent).__name__}.step() returned "
                f"{', '.join(f'{path} {list(leaf.shape)}' for path, leaf in came)}; "
                f"expected the shapes {', '.join(str(list(shape)) for shape in expected)}: one entry per row of its "
                "inputs, the same leaves at every step",
                self._status.where(),
            )

    def _failed(self, error: Exception, call: str) -> SamplerError:
        return AgentFailed(
            f"{type(self._agent).__name__}.{call} raised {headline(error)}", self._status.where(), traceback_of(error)
        )

    def _in_blocks(self, offset: int, n: int) -> Callable[[Callable[..., Any], StepInputs, Tree], Any]:
        """Inference in fixed blocks of 32 rows, each row at the place its env id says, the others like the first.

        Matrix products may round differently for another number of rows, or at another row; so neither may change.
        Zeros would not do for the others: noise is never 0, and agents may take its logarithm.
        """
        n_blocks = -(-(offset + n) // _BLOCK)

        def padded(leaf: torch.Tensor) -> torch.Tensor:
            rows = leaf[:1].repeat(n_blocks * _BLOCK, *[1] * (leaf.ndim - 1))
            rows[offset : offset + n] = leaf
            return rows

        def infer(call: Callable[..., Any], inputs: StepInputs, state: Tree) -> Any:
            inputs, state = tree_map(padded, inputs), tree_map(padded, state)
            blocks = [slice(k * _BLOCK, (k + 1) * _BLOCK) for k in range(n_blocks)]
            parts = [call(tree_rows(inputs, block), tree_rows(state, block)) for block in blocks]
            return tree_map(lambda *leaves: torch.cat(leaves)[offset : offset + n], parts[0], *parts[1:])

        return infer


def _directly(call: Callable[..., Any], inputs: StepInputs, state: Tree) -> Any:
    return call(inputs, state)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy(force=True)


def actor_for(
    agent: Agent,
    slots: Sequence[Slot],
    env_ids: Sequence[int],
    widths: Sequence[int],
    config: CollectorConfig,
    stream: Stream,
    status: Status,
    kept: DeviceBatch | None,
) -> Actor:
    """An actor with the settings of a slice, for an agent that is on its device. See `Actor`."""
    device_rows = None
    if kept is not None or agent.device.type != "cpu":
        row = tree_to_torch(slots[0].inputs(0, np.zeros((len(env_ids), agent.noise_size), np.float32)))
        device_rows = DeviceRows(row, agent.device, kept)
    return Actor(
        agent,
        slots,
        env_ids,
        widths=widths,
        seed=config.seed,
        stream=stream,
        status=status,
        deterministic=config.deterministic,
        device_rows=device_rows,
    )
