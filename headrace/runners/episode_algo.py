"""Lets the library's algorithms learn from whole episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.agents.base import Agent
from headrace.algos.base import Algo
from headrace.runners.local import LocalRunner
from headrace.runners.seeding import torch_seeded
from headrace.types import BatchSpec

__all__ = ["EpisodeAlgo"]


class EpisodeAlgo:
    """An algorithm of the library in the form that `LocalRunner` trains: one update per epoch, from whole episodes.

    Episodes become columns of a padded batch, so every algorithm fits that learns from batches with `env.valid`.

    Args:
        algo: the algorithm, not initialized.
        policy: the agent.
        max_path_length: time limit of an episode in steps. Default: that of the environment.
    """

    def __init__(self, algo: Algo, policy: Agent, max_path_length: int | None = None) -> None:
        algo.require_agent(policy)
        self.algo = algo
        self.policy = policy
        self.max_path_length = max_path_length
        self._state: Mapping[str, Any] | None = None

    def train(self, runner: LocalRunner) -> float:
        """Trains until the last epoch; returns the mean return of the last episodes."""
        agent, algo = self.policy, self.algo
        mean_return = float("nan")
        algo.initialize(agent, n_itr=runner.n_epochs, batch_spec=BatchSpec(1, 1), seed=runner.seed)
        if self._state is not None:
            algo.load_state_dict(dict(self._state))
            self._state = None
        for epoch in runner.step_epochs():
            episodes = runner.obtain_episodes(runner.step_itr)
            with torch_seeded(runner.seed, epoch, agent.device):
                runner.record(algo.optimize_agent(epoch, episodes.to_samples()))
            mean_return = float(episodes.returns.mean())
            runner.step_itr += 1
        return mean_return

    def __getstate__(self) -> dict[str, Any]:
        """Returns classes, settings and states: parameters are views of an optimizer's vector, as pickles are not."""
        agent, algo = self.policy, self.algo
        return {
            "algo": (type(algo), algo.config, algo.state_dict() if algo.optimizers else self._state),
            "policy": (type(agent), agent.settings(), agent.spaces, agent.spaces and agent.state_dict()),
            "max_path_length": self.max_path_length,
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        algo_cls, config, self._state = state["algo"]
        agent_cls, settings, spaces, agent_state = state["policy"]
        self.algo = algo_cls(config)
        self.policy = agent_cls(**settings)
        self.max_path_length = state["max_path_length"]
        if spaces is not None:
            self.policy.initialize(spaces, seed=0)
            self.policy.load_state_dict(agent_state)
