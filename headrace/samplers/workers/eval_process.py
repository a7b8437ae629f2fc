"""Evaluation in a separate process beside training, with its own environments and agent."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from headrace.agents.base import Agent
from headrace.buffers.shared import shared
from headrace.processes.child import Channel
from headrace.processes.status import Phase
from headrace.samplers.collection.evaluation import EvalSlice, require_alike
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.inference.device import serving_device
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.hand_over import HandOverSpec
from headrace.samplers.workers.local import LocalEvaluator
from headrace.samplers.workers.sampler_process import async_memory
from headrace.types import EnvSpaces

__all__ = ["EvalProcess", "eval_config"]

Notes = list[tuple[int, str]]


def eval_config(configs: Sequence[SliceConfig]) -> SliceConfig:
    """Joins the evaluation environments of all slices into one configuration; the slices must then have none."""
    env_ids = tuple(env_id for config in configs for env_id in config.eval_env_ids)
    saved: Mapping[int, bytes] = {key: value for config in configs for key, value in config.eval_saved.items()}
    return replace(configs[0], env_ids=(), saved={}, memory={}, eval_env_ids=env_ids, eval_saved=saved)


class EvalProcess:
    """Runs evaluations on command; see `Worker`."""

    def __init__(self, config: SliceConfig, channel: Channel) -> None:
        self._channel = channel
        self._environments = EvalSlice(config, channel.status)
        #: Empty: the training environments determine the spaces, and `setup` compares those of the agent.
        self.spaces: list[EnvSpaces] = []

    def setup(self, spec: HandOverSpec, agent_bytes: bytes, device: Any, served: bool) -> None:
        """Attaches to the shared parameters and makes the evaluator.

        The descriptor of the slots arrives before that of the parameters and is closed, because this process does not
        use slots.

        Args:
            spec: which memory to attach to.
            agent_bytes: the pickled agent.
            device: the sampler's device, or None.
            served: whether the sampler has an action server, which determines the default device.
        """
        channel = self._channel
        agent: Agent = pickle.loads(agent_bytes)
        os.close(channel.receive_fd())
        arena, memory = shared(partial(async_memory, agent, spec, True), channel.receive_fd())
        arena.close_fd()
        assert agent.spaces is not None
        require_alike(self._environments.spaces, agent.spaces)
        agent.to_device(serving_device(device) if served else device or agent.device)
        self._evaluator = LocalEvaluator(self._environments, agent, spec.slot, channel.status, memory.evaluation)
        channel.status.enter(Phase.WAITING)

    def evaluate(self, itr: int, version: int, evaluation_index: int) -> tuple[list[Episodes], Notes]:
        """Runs an evaluation; see `LocalEvaluator.evaluate`. Returns the episodes and the log messages."""
        episodes = self._evaluator.evaluate(itr, version, evaluation_index)
        self._channel.status.enter(Phase.WAITING)
        return episodes, self._environments.notes()

    def states(self) -> list[SliceState]:
        """Returns the pickled evaluation environments, or the reason why they are missing."""
        return [self._environments.state()]

    def prepare(self) -> None:
        """Does nothing: evaluations begin with resets."""

    def close(self) -> None:
        """Closes the environments."""
        self._environments.close()
