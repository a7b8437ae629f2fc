"""Evaluation in a process of its own, beside training: environments, and an agent that acts in them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from headrace.agents.base import Agent
from headrace.buffers.samples import SlotSpec
from headrace.buffers.shared import shared
from headrace.processes.child import Channel
from headrace.processes.status import Phase, Status
from headrace.samplers.collection.eval_slice import EvalCollector, require_alike
from headrace.samplers.collection.make_envs import CollectorConfig
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.engines.served import serving_device
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.local import LocalEvaluation
from headrace.samplers.workers.sampler_process import async_memory
from headrace.types import EnvSpaces

__all__ = ["Evaluator", "EvaluatorPlan", "EvaluatorSetup", "EvaluatorStation"]

Notes = list[tuple[int, str]]


@dataclass(frozen=True)
class EvaluatorPlan:
    """The evaluation environments of all slices as those of one."""

    config: CollectorConfig

    @staticmethod
    def of(configs: Sequence[CollectorConfig]) -> EvaluatorPlan:
        """From the slices, which are then to have none."""
        env_ids = tuple(env_id for config in configs for env_id in config.eval_env_ids)
        saved: Mapping[int, bytes] = {key: value for config in configs for key, value in config.eval_saved.items()}
        return EvaluatorPlan(
            replace(configs[0], env_ids=(), saved={}, memory={}, eval_env_ids=env_ids, eval_saved=saved)
        )

    def crew(self, status: Status) -> Evaluator:
        """See `Plan`."""
        return Evaluator(self.config, status)


class Evaluator:
    """The evaluation environments; `station` evaluates in them."""

    def __init__(self, config: CollectorConfig, status: Status) -> None:
        self.collector = EvalCollector(config, status)

    @property
    def spaces(self) -> list[EnvSpaces]:
        """None: training environments decide, `EvaluatorSetup` compares."""
        return []

    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        """No training environments are here."""
        return {}

    def close(self) -> None:
        """Closes the environments."""
        self.collector.close()


@dataclass(frozen=True)
class EvaluatorSetup:
    """How the process is set up. agent: pickled; n_versions: see `async_memory`; device, served: where it acts, as the
    sampler does that it belongs to.
    """

    spec: SlotSpec
    agent: bytes
    n_versions: int
    device: Any
    served: bool

    def station(self, crew: Evaluator, channel: Channel) -> EvaluatorStation:
        """With the memory whose descriptors come behind the command: slots, which it has no use for, and parameters."""
        agent: Agent = pickle.loads(self.agent)
        os.close(channel.receive_fd())
        arena, memory = shared(partial(async_memory, agent, self.n_versions, True), channel.receive_fd())
        arena.close_fd()
        assert agent.spaces is not None
        require_alike(crew.collector.spaces, agent.spaces)
        agent.to_device(serving_device(self.device) if self.served else self.device or agent.device)
        evaluation = LocalEvaluation(crew.collector, agent, self.spec, channel.status, memory.evaluation)
        return EvaluatorStation(crew.collector, evaluation, channel.status)


class EvaluatorStation:
    """The commands of the process."""

    def __init__(self, collector: EvalCollector, evaluation: LocalEvaluation, status: Status) -> None:
        self._collector = collector
        self._evaluation = evaluation
        self._status = status

    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes | Notes]:
        """See `LocalEvaluation`; the last of the answer is what the environments have for the log."""
        episodes = self._evaluation.evaluate(itr, version, evaluation_index)
        self._status.enter(Phase.WAITING)
        return [*episodes, self._collector.notes()]

    def state(self) -> list[SliceState]:
        """The pickled evaluation environments, or why there are none."""
        return [self._collector.state()]
