"""Who acts: an agent's hands on the rows of a slot, beside the environments or in an action server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
from headrace.envs.agent_answers import action_writer, answer_writer
from headrace.envs.spaces import Mismatch, described
from headrace.errors import AgentFailed, SamplerError, headline, traceback_of
from headrace.processes.status import Status
from headrace.rng import Stream, env_keys, uniforms
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.inference.device import DeviceBatch, DeviceRows
from headrace.types import AgentStep, StepInputs, Tree

__all__ = ["Actor", "actor_for"]

#: Rows of one inference in deterministic mode. Which row a number stands in is fixed by its env id.
_BLOCK = 32


class _Views(NamedTuple):
    """A slot, with the views of every row made once. inputs: of T + 1 rows; actions, infos: of T rows.

    whole: the inputs of all rows at once, with whom those of single rows share their version counters.
    """

    slot: Slot
    whole: StepInputs
    inputs: list[StepInputs]
    actions: list[Tree]
    infos: list[Tree]

    @staticmethod
    def of(slot: Slot, noise: np.ndarray) -> _Views:
        """With the noise `[T + 1, B, noise_size]` among the inputs."""
        T = len(slot.reward)
        with torch.inference_mode(False):  # tensors made under it count no versions
            whole = tree_to_torch(slot.inputs(slice(None), noise))
            inputs = [tree_rows(whole, t) for t in range(T + 1)]
        return _Views(
            slot,
            whole,
            inputs,
            [tree_rows(slot.action, t) for t in range(T)],
            [tree_rows(slot.agent_info, t) for t in range(T)],
        )


class Actor:
    """Acts for some columns: reads rows of a slot, writes action, agent_info, bootstrap value and states.

    Holds the recurrent state of its rows, zeroed where `is_first`, and draws the noise of a batch at its start. Checks
    what the agent answers before it counts: what does not fit is `AgentFailed`, and so is an agent that writes into its
    inputs.

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
        assert agent.spaces is not None  # the sampler has initialized it
        self._write_action = action_writer(agent.spaces.action)
        self._write_info = answer_writer(slots[0].agent_info, "agent_info")
        self._write_state = answer_writer(slots[0].first_state, "state")
        self._write_value = answer_writer(slots[0].reward, "value")
        self._state_rows: Tree = tree_map(np.empty_like, tree_rows(slots[0].first_state, 0))
        self._enter_slot(0)
        self.restart()
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
        self.own_state()

    def own_state(self) -> None:
        """Copies the recurrent states, before the agent does anything else: their tensors may be ones it uses again."""
        self._state = tree_map(torch.clone, self._state)

    def memory(self) -> dict[int, Tree]:
        """The recurrent states of its rows by env id, trees of arrays; None if feed-forward."""
        rows = tree_map(_numpy, self._state)
        return {env_id: tree_map(np.copy, tree_rows(rows, row)) for row, env_id in enumerate(self._env_ids)}

    def restore(self, memory: Mapping[int, Tree]) -> None:
        """The inverse of `memory`."""
        states = [memory[env_id] for env_id in self._env_ids]
        self._state = tree_map(lambda now, *rows: torch.from_numpy(np.stack(rows)).to(now.device), self._state, *states)

    def begin(self, version: int, first_step: int, slot: int = 0) -> None:
        """Before row 0 of a batch: the noise of its steps, the version of the parameters that act, its slot."""
        self._enter_slot(slot)
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
        inputs = self._load(t)
        if self._state is not None:
            self._enter_row(t, inputs.is_first)
        step: AgentStep = self._ask(self._agent.step, "step()", inputs, self._state)
        try:
            if not isinstance(step, AgentStep):
                raise Mismatch("its answer", described(step), "an AgentStep")
            self._write_action(self._actions[t], step.action)
        except Mismatch as mismatch:
            raise self._misfit(mismatch, "step()") from None
        self._state = step.state
        self._step = step

    def record(self, t: int) -> None:
        """Writes what the agent gave with the actions of row t. Nobody waits for it, so it is apart from `act`."""
        try:
            if self._device_rows is not None and self._device_rows.keeps:
                self._device_rows.record(t, self._step)
            else:
                self._write_info(self._infos[t], self._step.agent_info)
        except Mismatch as mismatch:
            raise self._misfit(mismatch, "step()") from None

    def finish(self) -> None:
        """After the last row: the value of row T, and the state to go on with."""
        slot, T = self._slot, len(self._noise) - 1
        inputs = self._load(T)
        self._write_states(tree_rows(slot.last_state, 0), self._state)
        if self._state is not None:
            self._enter_row(T, inputs.is_first)
            self._write_final_states()
        state = self._state
        self.own_state()  # `value` may write into the one it is given
        if slot.bootstrap_value is not None:
            value: torch.Tensor = self._ask(self._agent.value, "value()", inputs, state)
            try:
                self._write_value(slot.bootstrap_value[0], value)
            except Mismatch as mismatch:
                raise self._misfit(mismatch, "value()") from None

    def _enter_slot(self, index: int) -> None:
        self._slot, whole, self._inputs, self._actions, self._infos = self._views[index]
        self._whole = whole if self._device_rows is None else self._device_rows.whole
        self._watched = tree_leaves(self._whole)
        self._versions = _versions(self._watched)

    def _load(self, t: int) -> StepInputs:
        """What the agent is given for row t."""
        if self._device_rows is None:
            return self._inputs[t]
        inputs = self._device_rows.load(t, self._inputs[t])
        self._versions = _versions(self._watched)
        return inputs

    def _ask(self, call: Callable[..., Any], name: str, inputs: StepInputs, state: Tree) -> Any:
        """What a method of the agent answers, which may not write into its inputs: they are the batch itself."""
        try:
            with torch.inference_mode():
                answer = self._infer(call, inputs, state)
        except Exception as error:
            raise self._failed(error, name) from error
        if _versions(self._watched) != self._versions:
            raise self._overwritten(name)
        return answer

    def _enter_row(self, t: int, is_first: torch.Tensor) -> None:
        """Keeps the state of episodes that ended in step t − 1 for their V(final); zeroes it where row t `is_first`.

        Row 0 exists only once the loop is there: its state is recorded here, not in `begin`.
        """
        slot = self._slot
        rows = np.flatnonzero(slot.terminated[t - 1] | slot.truncated[t - 1]) if t else ()
        if len(rows):
            self._final_rows.append(np.asarray(rows))
            self._final_states.append(tree_rows(self._states(), rows))
        if slot.is_first[t].any():
            self._state = tree_zeroed(self._state, is_first)
        if t == 0:
            self._write_states(tree_rows(slot.first_state, 0), self._state)

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

    def _states(self) -> Tree:
        """The recurrent states as arrays, valid until the next call."""
        self._write_states(self._state_rows, self._state)
        return self._state_rows

    def _write_states(self, to: Tree, state: Tree) -> None:
        try:
            self._write_state(to, state)
        except Mismatch as mismatch:
            raise self._misfit(mismatch, "step()") from None

    def _misfit(self, mismatch: Mismatch, call: str) -> SamplerError:
        where = self._status.where()
        if mismatch.row is not None:
            where = replace(where, env_id=self._env_ids[mismatch.row])
        return AgentFailed(
            f"{type(self._agent).__name__}.{call} returned {mismatch.path} = {mismatch.came}, expected "
            f"{mismatch.expected}; correct the agent",
            where,
        )

    def _overwritten(self, call: str) -> SamplerError:
        now = zip(tree_paths(self._whole, "inputs"), self._versions, strict=True)
        names = [path for (path, leaf), version in now if leaf._version != version]
        return AgentFailed(
            f"{type(self._agent).__name__}.{call} wrote into {' and '.join(names)}, which is the memory of the batch: "
            "what is recorded would no longer be what it was given; compute something new in its place "
            "(x = x - mean, not x -= mean or x.sub_(mean))",
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
            # A copy of each: an agent may answer with the same tensors again.
            parts = [tree_map(torch.clone, call(tree_rows(inputs, block), tree_rows(state, block))) for block in blocks]
            return tree_map(lambda *leaves: torch.cat(leaves)[offset : offset + n], parts[0], *parts[1:])

        return infer


def _directly(call: Callable[..., Any], inputs: StepInputs, state: Tree) -> Any:
    return call(inputs, state)


def _versions(tensors: Sequence[torch.Tensor]) -> list[int]:
    """How often each was written by torch, whichever view of it was."""
    return [tensor._version for tensor in tensors]


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy(force=True)


def actor_for(
    agent: Agent,
    slots: Sequence[Slot],
    env_ids: Sequence[int],
    widths: Sequence[int],
    config: SliceConfig,
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
