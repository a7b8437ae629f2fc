"""What a slot is made for, and what its final regions hold as one tree."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from headrace.agents.base import Agent
from headrace.buffers.samples import Final, Samples, Slot, SlotSpec, build_slots
from headrace.buffers.shared import shared
from headrace.buffers.tree import tree_map, tree_rows
from headrace.envs.scalar import EnvInfoKeys
from headrace.envs.spaces import described, null_value
from headrace.errors import AgentFailed, headline, traceback_of
from headrace.samplers.collection.slice import SliceReport
from headrace.types import AgentStep, BatchSpec, EnvSpaces, StepInputs

__all__ = ["Slots", "slot_spec"]


class Slots:
    """The shared memory that batches are written into in turn: batch number i into slot i mod n."""

    def __init__(self, spec: SlotSpec, n: int, fd: int | None = None) -> None:
        """fd: of the arena of another process, to attach to."""
        self.arena, self.all = shared(partial(build_slots, spec, n), fd)
        self._views = [Samples.of(slot) for slot in self.all]

    def samples(self, batch_index: int, reports: Sequence[SliceReport]) -> Samples:
        """Views of a batch, with its final entries."""
        place = batch_index % len(self.all)
        return self._views[place].with_final(_assembled(reports, self.all[place]))


def slot_spec(
    agent: Agent,
    spaces: EnvSpaces,
    batch_spec: BatchSpec,
    widths: tuple[int, ...],
    env_info_keys: EnvInfoKeys,
    bootstrap_value: bool,
) -> SlotSpec:
    """What the batch holds; the agent's part from one step on null inputs, whose errors are AgentFailed."""
    observation, action = null_value(spaces.observation), null_value(spaces.action)

    def one_row(leaf: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(leaf[None].copy()).to(agent.device)

    state = agent.initial_state(1)
    inputs = StepInputs(
        tree_map(one_row, observation),
        tree_map(one_row, action),
        one_row(np.zeros((), np.float32)),
        one_row(np.ones((), np.bool_)),
        one_row(np.full(agent.noise_size, 0.5, np.float32)),
    )
    agent.sample_mode(0)
    try:
        with torch.inference_mode():
            step = agent.step(inputs, state)
    except Exception as error:
        raise AgentFailed(
            f"{type(agent).__name__}.step raised {headline(error)}", traceback_text=traceback_of(error)
        ) from error
    if not isinstance(step, AgentStep):
        raise AgentFailed(f"{type(agent).__name__}.step returned {described(step)}, expected an AgentStep")

    def example(leaf: torch.Tensor) -> np.ndarray:
        return leaf[0].numpy(force=True)

    env_info = {name: np.zeros(tuple(shape), np.dtype(dtype)) for name, (dtype, shape) in env_info_keys.items()}
    return SlotSpec(
        batch=batch_spec,
        widths=widths,
        observation=observation,
        action=action,
        agent_info=tree_map(example, step.agent_info),
        env_info=env_info or None,
        state=tree_map(example, state),
        bootstrap=bootstrap_value,
    )


def _assembled(reports: Sequence[SliceReport], slot: Slot) -> Final:
    """The final entries of all slices as one tree of exactly N, in (time, column) order: the one small copy."""
    parts = []
    for report, region in zip(reports, slot.final, strict=True):
        parts.append(tree_rows(region, slice(0, report.n_final)))
        if report.overflow is not None:
            parts.append(report.overflow)
    order = np.lexsort((np.concatenate([part.column for part in parts]), np.concatenate([part.time for part in parts])))
    whole = tree_map(lambda *leaves: torch.from_numpy(np.concatenate(leaves)[order]), parts[0], *parts[1:])
    return Final(**vars(whole))
