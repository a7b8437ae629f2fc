"""The contract of every algorithm: it improves an agent from batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from headrace.agents.base import Agent
from headrace.buffers.samples import Samples
from headrace.types import BatchSpec

__all__ = ["Algo", "OptInfo"]

#: Diagnostics of one `optimize_agent`: each the mean over its updates. Names are rlpyt's lowerCamelCase (`gradNorm`).
OptInfo = dict[str, float]


class Algo(ABC):
    """Updates an agent's parameters from batches, in place.

    The life of an algorithm::

        algo = PPO(PPOConfig(learning_rate=3e-4))
        algo.initialize(agent, n_itr=n_itr, batch_spec=sampler.batch_spec, seed=sampler.seed)
        opt_info = algo.optimize_agent(itr, samples)                     # for itr = 0, 1, ... n_itr − 1

    Settings are a frozen dataclass, `algo.config`. Schedules and random numbers are functions of
    `itr` and the seed, so there is nothing of them to save.
    """

    #: Whether batches must hold `agent.bootstrap_value`; what to pass to `sampler.initialize`.
    bootstrap_value: bool = False
    discount: float
    #: The settings; a resumed run must have the same. None: an algorithm without.
    config: Any = None

    @abstractmethod
    def initialize(self, agent: Agent, n_itr: int, batch_spec: BatchSpec, seed: int = 0) -> None:
        """Takes the agent, whose model is built, and makes the optimizer.

        n_itr: calls of `optimize_agent` to come, for schedules; batch_spec: of the batches; seed: of this algorithm's
        random numbers (minibatches).
        """

    @abstractmethod
    def optimize_agent(self, itr: int, samples: Samples) -> OptInfo:
        """Updates the agent from batch number `itr`. `samples` is read during the call only.

        Raises FloatingPointError if a loss is NaN or infinite; the parameters are then those of the last good update.
        """

    def __repr__(self) -> str:
        """The call that made it, with the settings that differ from the defaults."""
        return f"{type(self).__name__}({'' if self.config is None else repr(self.config)})"

    def sink(self) -> Any:
        """For algorithms that learn from a replay: what an asynchronous sampler is to `feed`, in place of the replay
        that `optimize_agent` would append to. Called before `initialize`; None: it learns from the batches themselves.
        """
        return None

    def save_contents(self, folder: Path) -> None:  # noqa: B027 (most have none)
        """Beside a checkpoint: adds to the folder what is too large to be written anew each time, a replay."""

    def load_contents(self, folder: Path, state: dict[str, Any]) -> None:  # noqa: B027
        """The inverse of `save_contents`, after `initialize`, for the checkpoint with this `state_dict`."""

    def cut(self) -> None:  # noqa: B027
        """The next batch does not continue the one before: some in between were lost, or every episode begins anew."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on as if never interrupted: tensors and plain values only."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, after `initialize`."""
