"""Who acts: an agent beside the environments. `Actor` is its hands; `LocalCollector` puts loop and actor together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from headrace.agents.base import Agent
from headrace.buffers.tree import tree_copy_into, tree_leaves, tree_map, tree_paths, tree_rows, tree_to_torch
from headrace.errors import AgentFailed, SamplerError, headline, traceback_of
from headrace.processes.status import Status
from headrace.rng import Stream, env_keys, uniforms
from headrace.samplers.loop import SlotView
from headrace.types import AgentStep, StepInputs, Tree

__all__ = ["Actor"]

#: Rows of one inference in deterministic mode. Which row a number stands in is fixed by its env id.
_BLOCK = 32


class Actor:
    """Acts for one slice of columns: reads rows of a slot, writes action, agent_info, bootstrap value and states.

    Holds the recurrent state of its rows, zeroed where `is_first`, and draws the noise of a batch at its start.
    """

    def __init__(
        self,
        agent: Agent,
        view: SlotView,
        env_ids: Sequence[int],
        *,
        seed: int,
        stream: Stream,
        status: Status,
        deterministic: bool,
    ) -> None:
        self._agent = agent
        self._status = status
        self._view = view
        self._slot = slot = view.slot
        self._keys = env_keys(seed, stream, env_ids)
        T = len(slot.reward)
        self._noise = torch.zeros((T + 1, len(env_ids), agent.noise_size))
        self._inputs = [tree_to_torch_inputs(slot.inputs(t, None), self._noise[t]) for t in range(T + 1)]
        self._outputs = [
            (tree_leaves(tree_rows(slot.action, t)), tree_leaves(tree_rows(slot.agent_info, t))) for t in range(T)
        ]
        self._state: Tree = agent.initial_state(len(env_ids))
        self._infer = self._in_blocks(int(env_ids[0]) % _BLOCK, len(env_ids)) if deterministic else _directly
        self._drawn_for: int | None = None
        self._final_states: list[Tree] = []
        #: States of the last batch's ended episodes that did not fit into the slot's final region, or None.
        self.overflow: Tree = None

    def restart(self) -> None:
        """Zero state in every row."""
        self._state = self._agent.initial_state(len(self._keys))

    def state_of(self, row: int) -> Tree:
        """The recurrent state of a row, a tree of arrays; None if feed-forward."""
        return tree_map(lambda leaf: leaf[row].numpy(force=True).copy(), self._state)

    def go_on(self, states: Sequence[Tree]) -> None:
        """The inverse of `state_of`, for all rows."""
        self._state = tree_map(lambda now, *rows: torch.from_numpy(np.stack(rows)).to(now.device), self._state, *states)

    def begin(self, version: int, first_step: int) -> None:
        """Before row 0 of a batch: the noise of its steps, and the version of the parameters that act."""
        slot = self._slot
        if self._drawn_for != first_step:
            self.draw(first_step)
        slot.version[:] = version
        self._final_states = []

    def draw(self, first_step: int) -> None:
        """Draws the noise of the batch that begins at `first_step`; `begin` does, unless it was done ahead."""
        n_rows, _, size = self._noise.shape
        if size:
            self._noise[:-1] = torch.from_numpy(uniforms(self._keys, first_step, n_rows - 1, size))
        self._drawn_for = first_step

    def act(self, t: int) -> None:
        """Chooses the actions of row t."""
        if self._state is not None:
            self._enter_row(t)
        try:
            with torch.inference_mode():
                step: AgentStep = self._infer(self._agent.step, self._inputs[t], self._state)
        except Exception as error:
            raise self._failed(error, "step()") from error
        self._state = step.state
        action, agent_info = self._outputs[t]
        if t == 0:
            self._check(step)
        for to, value in zip(action, tree_leaves(step.action), strict=True):
            to[...] = value.numpy(force=True)
        for to, value in zip(agent_info, tree_leaves(step.agent_info), strict=True):
            to[...] = value.numpy(force=True)

    def finish(self) -> None:
        """After the last row: the value of row T, and the state to go on with."""
        slot, T = self._slot, len(self._noise) - 1
        if self._state is not None:
            tree_copy_into(tree_rows(slot.last_state, 0), tree_map(_numpy, self._state))
            self._enter_row(T)
            self._write_final_states()
        if slot.bootstrap_value is not None:
            try:
                with torch.inference_mode():
                    value: torch.Tensor = self._infer(self._agent.value, self._inputs[T], self._state)
                slot.bootstrap_value[0] = value.numpy(force=True)
            except Exception as error:
                raise self._failed(error, "value()") from error

    def _enter_row(self, t: int) -> None:
        """Keeps the state of episodes that ended in step t − 1 for their V(final); zeroes it where row t `is_first`.

        Row 0 exists only once the loop is there: its state is recorded here, not in `begin`.
        """
        slot = self._slot
        rows = np.flatnonzero(slot.terminated[t - 1] | slot.truncated[t - 1]) if t else ()
        if len(rows):
            self._final_states.append(tree_map(_numpy, tree_rows(self._state, torch.from_numpy(rows))))
        self._state = _zeroed(self._state, self._inputs[t].is_first)
        if t == 0:
            tree_copy_into(tree_rows(slot.first_state, 0), tree_map(_numpy, self._state))

    def _write_final_states(self) -> None:
        self.overflow = None
        if self._final_states:
            states = tree_map(lambda *leaves: np.concatenate(leaves), *self._final_states)
            n, fits = sum(len(tree_leaves(part)[0]) for part in self._final_states), len(self._slot.final[0].time)
            tree_copy_into(
                tree_rows(self._slot.final[0].state, slice(0, min(n, fits))), tree_rows(states, slice(0, fits))
            )
            if n > fits:
                self.overflow = tree_rows(states, slice(fits, None))

    def _check(self, step: AgentStep) -> None:
        """Once a batch: the answer has the leaves and shapes its buffers were made for. Assignment would broadcast."""
        action, agent_info = self._outputs[0]
        expected = [leaf.shape for leaf in (*action, *agent_info)]
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


def tree_to_torch_inputs(inputs: StepInputs, noise: torch.Tensor) -> StepInputs:
    """Torch views of a row, with the noise of its step."""
    inputs = tree_to_torch(inputs)
    inputs.noise = noise
    return inputs


def _directly(call: Callable[..., Any], inputs: StepInputs, state: Tree) -> Any:
    return call(inputs, state)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy(force=True)


def _zeroed(state: Tree, is_first: torch.Tensor) -> Tree:
    """The state with the rows zeroed where `is_first`."""
    if not is_first.any():
        return state
    return tree_map(lambda leaf: leaf.masked_fill(is_first.reshape(-1, *[1] * (leaf.ndim - 1)), 0), state)
