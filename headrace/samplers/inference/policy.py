"""An agent for the rows of a batch: noise, recurrent state, inference."""

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

#: Rows of one inference in deterministic mode. Which row a number stands in is fixed by its env id.
_BLOCK = 32


class BatchPolicy:
    """Acts for some columns: draws the noise of a batch, holds their recurrent state, asks the agent.

    Args:
        agent: initialized, on its device.
        env_ids: of the columns, in order and without gaps.
        n_rows: time steps of a batch.
        seed: of all randomness.
        stream: of the noise.
        status: says where an agent failed.
        deterministic: infer in fixed blocks of rows.
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
        self._drawn_for: int | None = None
        self._infer = _in_blocks(int(env_ids[0]) % _BLOCK, len(env_ids)) if deterministic else _directly
        #: Recurrent state of the columns, a tree of tensors `[n, …]`; None if feed-forward.
        self.state: Tree
        self.restart()

    def restart(self) -> None:
        """Zeros the state of every column."""
        self.state = self._agent.initial_state(len(self._keys))
        self.own_state()

    def own_state(self) -> None:
        """Copies the state, before the agent does anything else: its tensors may be ones that the agent uses again."""
        self.state = tree_map(torch.clone, self.state)

    def memory(self) -> dict[int, Tree]:
        """The state of each column by env id, trees of arrays; None if feed-forward."""
        rows = tree_map(_numpy, self.state)
        return {env_id: tree_map(np.copy, tree_rows(rows, row)) for row, env_id in enumerate(self._env_ids)}

    def restore(self, memory: Mapping[int, Tree]) -> None:
        """The inverse of `memory`."""
        states = [memory[env_id] for env_id in self._env_ids]
        self.state = tree_map(lambda now, *rows: torch.from_numpy(np.stack(rows)).to(now.device), self.state, *states)

    def draw(self, first_step: int) -> None:
        """Draws the noise of the batch that begins at `first_step`, unless it was drawn before."""
        if self._drawn_for != first_step:
            n_rows, size = len(self.noise), self._n_uniforms
            if size:
                self.noise[:-1, :, :size] = uniforms(self._keys, first_step, n_rows - 1, size)
            self._drawn_for = first_step

    def zero_state(self, is_first: torch.Tensor) -> None:
        """Zeros the state of columns at the first step of an episode, bool `[n]`."""
        self.state = tree_zeroed(self.state, is_first)

    def step(self, inputs: StepInputs) -> AgentStep:
        """Asks the agent for actions, and keeps its new state.

        Raises:
            AgentFailed: what the agent raised, or if it answered something else than an AgentStep.
        """
        step = self._ask(self._agent.step, "step()", inputs, self.state)
        if not isinstance(step, AgentStep):
            raise self.failure(Mismatch("its answer", described(step), "an AgentStep"), "step()")
        self.state = step.state
        return step

    def value(self, inputs: StepInputs) -> torch.Tensor:
        """Asks the agent for values `[n]`; the state stays what it is. Raises AgentFailed for what the agent raised."""
        state = self.state
        self.own_state()  # `value` may write into the one it is given
        value: torch.Tensor = self._ask(self._agent.value, "value()", inputs, state)
        return value

    def failure(self, mismatch: Mismatch, call: str) -> SamplerError:
        """The error of an answer that does not fit. call: the method of the agent."""
        where = self._status.where()
        if mismatch.row is not None:
            where = replace(where, env_id=self._env_ids[mismatch.row])
        return AgentFailed(
            f"{type(self._agent).__name__}.{call} returned {mismatch.path} = {mismatch.came}, expected "
            f"{mismatch.expected}; correct the agent",
            where,
        )

    def overwritten(self, names: Sequence[str], call: str) -> SamplerError:
        """The error of an agent that wrote into its inputs, at the latest in this call."""
        return AgentFailed(
            f"{type(self._agent).__name__}.{call} wrote into {' and '.join(names)}, which is the memory of the batch: "
            "what is recorded would no longer be what it was given; compute something new in its place "
            "(x = x - mean, not x -= mean or x.sub_(mean))",
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


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy(force=True)
