"""Determines the contents of a batch by running one step of the agent."""

from __future__ import annotations

import numpy as np
import torch

from headrace.agents.base import Agent
from headrace.buffers.samples import SlotSpec
from headrace.buffers.tree import tree_map
from headrace.envs.scalar import EnvInfoKeys
from headrace.envs.spaces import described, null_value
from headrace.errors import AgentFailed, headline, traceback_of
from headrace.types import AgentStep, BatchSpec, EnvSpaces, StepInputs

__all__ = ["slot_spec"]


def slot_spec(
    agent: Agent,
    spaces: EnvSpaces,
    batch_spec: BatchSpec,
    widths: tuple[int, ...],
    env_info_keys: EnvInfoKeys,
    bootstrap_value: bool,
) -> SlotSpec:
    """Returns the contents of a batch; the agent's part is taken from one step on null inputs.

    Args:
        agent: initialized, on its device.
        spaces: spaces of one environment.
        batch_spec: batch size.
        widths: number of columns of each slice.
        env_info_keys: the fields of info that are recorded.
        bootstrap_value: whether the value of row T is recorded.

    Raises:
        AgentFailed: if the step raises, or returns something other than an AgentStep.
    """
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
