"""Evaluation workers, which measure how good the newest parameters are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.agents.base import Agent
from headrace.errors import ParameterDBError
from headrace.samplers.presets import SerialSampler
from headrace.system.connections import Connections
from headrace.system.policy import Following
from headrace.system.worker import TICK, PollResult, Worker

__all__ = ["EvaluationSettings", "EvaluationWorker"]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What an evaluation worker needs.

    Args:
        connections: of the run.
        env: what environments are made from, see `BaseSampler`.
        env_kwargs: their arguments.
        agent: not initialized.
        policy: name of the policy.
        n_envs: environments.
        n_episodes: episodes of an evaluation.
        interval: seconds between the beginnings of two evaluations.
        seed: of the run.
    """

    connections: Connections
    env: Any
    env_kwargs: Mapping[str, Any] | None
    agent: Agent
    policy: str
    n_envs: int
    n_episodes: int
    interval: float
    seed: int


class EvaluationWorker(Worker):
    """Evaluates the newest parameters, again and again, and writes the result to their metadata."""

    def _configure(self, config: EvaluationSettings) -> None:
        self._config = config
        sampler = SerialSampler(
            config.env,
            config.env_kwargs,
            batch_T=1,
            batch_B=1,
            max_decorrelation_steps=0,
            eval_n_envs=config.n_envs,
            eval_max_trajectories=config.n_episodes,
        )
        self._sampler = self.resources.enter_context(sampler.initialize(config.agent, seed=config.seed))
        self._database = self.resources.enter_context(config.connections.parameters())
        self._following = Following(config.agent, self._database, config.policy)
        self._evaluated = -1
        self._begun = -float("inf")
        self._mean = float("nan")

    def _poll(self) -> PollResult:
        config, following = self._config, self._following
        wait = self._begun + config.interval - time.monotonic()
        if wait > 0:
            time.sleep(min(wait, TICK))
            return PollResult()
        following.follow()
        if following.version == self._evaluated:
            time.sleep(TICK)  # a database says nothing by itself
            return PollResult()
        self._begun, version = time.monotonic(), following.version
        with suppress(ParameterDBError):  # it may be gone already
            self._database.tag(config.policy, version, self._tag)  # keeps it until it is evaluated
        infos = self._sampler.evaluate_agent(version)
        returns = [info.Return for info in infos]
        self._evaluated, self._mean = version, float(np.mean(returns))
        spread = {"mean_return": self._mean, "min_return": min(returns), "max_return": max(returns)}
        with suppress(ParameterDBError):
            self._database.update_metadata(config.policy, version, {**spread, "episodes": len(returns)})
        return PollResult(sum(info.Length for info in infos), 1)

    @property
    def _tag(self) -> str:
        return f"evaluation-{self.information.index}"

    def _figures(self) -> Mapping[str, float]:
        return {"version": self._evaluated, "mean_return": self._mean}
