"""Runs an agent on the rows of a batch: noise, recurrent state, inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from headrace.agents.base import Agent
from headrace.buffers.tree import tree_map, tree_rows, tree_zeroed
from headrace.envs.spaces import Mismatch, described
from headrace.errors import AgentFailed, SamplerError, headline, traceback_of
from headrace.processes.status import Status
from headrace.rng import Stream, env_keys, uniforms
from headrace.types import AgentStep, StepInputs, Tree

__all__ = ["BatchPolicy"]

#: Number of columns of one inference in deterministic mode; the env id determines a column's position in its block.
_BLOCK = 32


class BatchPolicy:
    """Acts for some columns: draws the noise of a batch, holds the recurrent state and calls the agent.

    Args:
        agent: initialized, on its device.
        env_ids: global numbers of the columns' environments, in order and without gaps.
        n_rows: number of time steps of a batch.
        seed: seed of all randomness.
        stream: stream of the noise.
        status: where the process records what it is doing, for error messages.
        deterministic: whether to infer in fixed blocks of columns.
    """

    def __init__(
        self,
        agent: Agent,
        env_ids: Sequence[int],
        n_rows: int,
        *,
        seed: int,
        stream: Stream,
        status: Status,
        deterministic: bool,
    ) -> None:
        self._agent = agent
        self._status = status
        self._env_ids = list(env_ids)
        self._keys = env_keys(seed, stream, env_ids)
        #: Noise of a batch, float32 `[n_rows + 1, n, noise_size]`.
        self.noise = torch.zeros((n_rows + 1, len(env_ids), agent.noise_size)).numpy()
        self._n_uniforms = agent.noise_size
        if agent.noise_has_env_id:
            self._n_uniforms -= 1
            self.noise[..., -1] = self._env_ids
        self._drawn_for: int | Sequence[int] | None = None
        self._infer = _in_blocks(int(env_ids[0]) % _BLOCK, len(env_ids)) if deterministic else _directly
        #: Recurrent state of the columns, a tree of tensors `[n, …]`; None if feed-forward.
        self.state: Tree
        self.restart()

    def restart(self) -> None:
        """Zeros the recurrent state of every column."""
        self.state = self._agent.initial_state(len(self._keys))
        self.own_state()

    def own_state(self) -> None:
        """Copies the recurrent state before the agent is called for other columns, because the agent may reuse its
        tensors.
        """
        self.state = tree_map(torch.clone, self.state)

    def memory(self) -> dict[int, Tree]:
        """Returns the recurrent state of each column by env id, as trees of arrays; None if feed-forward."""
        rows = tree_map(_numpy, self.state)
        return {env_id: tree_map(np.copy, tree_rows(rows, row)) for row, env_id in enumerate(self._env_ids)}

    def restore(self, memory: Mapping[int, Tree]) -> None:
        """Restores the recurrent state that `memory` returned."""
        states = [memory[env_id] for env_id in self._env_ids]
        self.state = tree_map(lambda now, *rows: torch.from_numpy(np.stack(rows)).to(now.device), self.state, *states)

    def draw(self, first_step: int | Sequence[int]) -> None:
        """Draws the noise of the batch that begins at `first_step`, unless it is already drawn.

        Args:
            first_step: number of the first time step, or of each column's first.
        """
        if self._drawn_for == first_step:
            return
        n_rows, size = len(self.noise) - 1, self._n_uniforms
        if size and isinstance(first_step, int):
            self.noise[:-1, :, :size] = uniforms(self._keys, first_step, n_rows, size)
        elif size:
            steps = np.asarray(first_step)
            for step in set(steps.tolist()):
                columns = np.flatnonzero(steps == step)
                self.noise[:-1, columns, :size] = uniforms(self._keys[columns], step, n_rows, size)
        self._drawn_for = first_step

    def zero_state(self, is_first: torch.Tensor) -> None:
        """Zeros the recurrent state of columns at the first step of an episode.

        Args:
            is_first: bool `[n]`.
        """
        self.state = tree_zeroed(self.state, is_first)

    def step(self, inputs: StepInputs) -> AgentStep:
        """Calls the agent's `step` and keeps its new recurrent state.

        Args:
            inputs: the inputs of one row.

        Raises:
            AgentFailed: if the agent raises, or returns something other than an AgentStep.
        """
        step = self._ask(self._agent.step, "step()", inputs, self.state)
        if not isinstance(step, AgentStep):
            raise self.failure(Mismatch("", described(step), "an AgentStep"), "step()")
        self.state = step.state
        return step

    def value(self, inputs: StepInputs) -> torch.Tensor:
        """Calls the agent's `value` without changing the recurrent state.

        Args:
            inputs: the inputs of one row.

        Returns:
            Values `[n]`.

        Raises:
            AgentFailed: if the agent raises.
        """
        state = self.state
        self.own_state()  # `value` may write into the state that it is given
        value: torch.Tensor = self._ask(self._agent.value, "value()", inputs, state)
        return value

    def failure(self, mismatch: Mismatch, call: str) -> SamplerError:
        """Returns the error for an agent output that does not fit.

        Args:
            mismatch: what was returned and what was expected.
            call: name of the agent's method.
        """
        where = self._status.where()
        if mismatch.column is not None:
            where = replace(where, env_id=self._env_ids[mismatch.column])
        return AgentFailed(
            f"{type(self._agent).__name__}.{call} returned {mismatch}; correct the agent",
            where,
        )

    def overwritten(self, names: Sequence[str], call: str) -> SamplerError:
        """Returns the error for an agent that wrote into its inputs.

        Args:
            names: names of the inputs.
            call: name of the agent's method; the agent wrote in this call or before it.
        """
        return AgentFailed(
            f"{type(self._agent).__name__}.{call} wrote into {' and '.join(names)}, which is the memory of the batch, "
            "so the batch would be wrong; compute new tensors instead (x = x - mean, not x -= mean or x.sub_(mean))",
            self._status.where(),
        )

    def _ask(self, call: Callable[..., Any], name: str, inputs: StepInputs, state: Tree) -> Any:
        try:
            with torch.inference_mode():
                return self._infer(call, inputs, state)
        except Exception as error:
            raise AgentFailed(
                f"{type(self._agent).__name__}.{name} raised {headline(error)}",
                self._status.where(),
                traceback_of(error),
            ) from error


def _directly(call: Callable[..., Any], inputs: StepInputs, state: Tree) -> Any:
    return call(inputs, state)


def _in_blocks(offset: int, n: int) -> Callable[[Callable[..., Any], StepInputs, Tree], Any]:
    """Returns a function that infers in fixed blocks of 32 columns, with each column at a position fixed by its env id.

    Matrix products may round differently for another batch size or at another position in the batch, so neither may
    change. Unused positions are filled with copies of the first column; zeros would not work, because noise is never 0
    and agents may take its logarithm.
    """
    n_blocks = -(-(offset + n) // _BLOCK)

    def padded(leaf: torch.Tensor) -> torch.Tensor:
        rows = leaf[:1].repeat(n_blocks * _BLOCK, *[1] * (leaf.ndim - 1))
        rows[offset : offset + n] = leaf
        return rows

    def infer(call: Callable[..., Any], inputs: StepInputs, state: Tree) -> Any:
        inputs, state = tree_map(padded, inputs), tree_map(padded, state)
        blocks = [slice(k * _BLOCK, (k + 1) * _BLOCK) for k in range(n_blocks)]
        # Each result is copied, because an agent may return the same tensors again.
        parts = [tree_map(torch.clone, call(tree_rows(inputs, block), tree_rows(state, block))) for block in blocks]
        return tree_map(lambda *leaves: torch.cat(leaves)[offset : offset + n], parts[0], *parts[1:])

    return infer


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy(force=True)
