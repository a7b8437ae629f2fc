"""The base class of all algorithms, which update an agent from batches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from headrace.agents.base import Agent
from headrace.algos.adam import AdamConfig, FlatAdam
from headrace.algos.ranks import ALONE, Ranks
from headrace.buffers.samples import Samples
from headrace.schema import anything, fields
from headrace.types import BatchSpec

__all__ = ["Algo", "OptInfo", "mean_info"]

#: Diagnostics of one `optimize_agent` call, means over its updates. Names are lowerCamelCase as in rlpyt (`gradNorm`).
OptInfo = dict[str, float]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Algo(ABC):
    """Base class of algorithms, which update an agent's parameters in place from batches.

    The calls in the life of an algorithm::

        algo = PPO(PPOConfig(learning_rate=3e-4))
        algo.initialize(agent, n_itr=n_itr, batch_spec=sampler.batch_spec, seed=sampler.seed)
        opt_info = algo.optimize_agent(itr, samples)                     # for itr = 0, 1, ... n_itr − 1

    Settings are a frozen dataclass, `algo.config`. Schedules and random numbers are functions of `itr` and the seed, so
    checkpoints need not store them.
    """

    #: Whether batches must contain `agent.bootstrap_value`; pass it to `sampler.initialize`.
    bootstrap_value: bool = False
    discount: float
    #: The settings, which must be equal in a resumed run; None: the algorithm has none.
    config: Any = None
    #: The optimizers by name, which `initialize` makes: one of all parameters, or several (actor, critic, ...).
    optimizers: Mapping[str, FlatAdam] = {}
    #: The learners of the training, see `join`.
    ranks: Ranks = ALONE

    @abstractmethod
    def initialize(self, agent: Agent, n_itr: int, batch_spec: BatchSpec, seed: int = 0) -> None:
        """Stores the agent and builds the optimizers.

        Args:
            agent: an initialized agent.
            n_itr: number of calls of `optimize_agent` in the run, for schedules.
            batch_spec: size of the batches.
            seed: seed of the algorithm's random numbers (minibatches).
        """

    @abstractmethod
    def optimize_agent(self, itr: int, samples: Samples) -> OptInfo:
        """Updates the agent from one batch and returns diagnostics by name.

        Args:
            itr: number of the batch.
            samples: the batch; it is read during the call only.

        Raises:
            FloatingPointError: if a loss or gradient is NaN or infinite. The parameters are then those of the last good
                update.
        """

    def require_agent(self, agent: Agent) -> None:
        """Raises TypeError, which names the agents that fit, for an agent that the algorithm cannot train.

        Runners call it before anything starts, and `initialize` calls it again. Default: every agent fits.
        """
        if not isinstance(agent, Agent):
            what = f"the class {agent.__name__}" if isinstance(agent, type) else f"a {type(agent).__name__}"
            raise TypeError(f"{type(self).__name__} trains an Agent object, got {what}")

    def require_batch(self, batch_spec: BatchSpec) -> None:  # noqa: B027 (most accept any)
        """Raises ValueError for batches that the algorithm cannot learn from; called where `require_agent` is."""

    def __repr__(self) -> str:
        """Returns the constructor call, with the settings that differ from the defaults."""
        return f"{type(self).__name__}({'' if self.config is None else repr(self.config)})"

    def sink(self) -> Any:
        """Returns the replay sink for `feed` of an asynchronous sampler; None if the algorithm learns from batches.

        The sink replaces the replay to which `optimize_agent` would append. Call it before `initialize`.
        """
        return None

    def save_contents(self, folder: Path) -> None:  # noqa: B027 (most have none)
        """Appends what is too large to rewrite for each checkpoint (a replay) to a folder beside the checkpoint."""

    def load_contents(self, folder: Path, state: dict[str, Any]) -> None:  # noqa: B027
        """Loads what `save_contents` wrote; call it after `initialize`.

        Args:
            folder: the folder beside the checkpoint.
            state: the `state_dict` in the checkpoint.
        """

    def join(self, ranks: Ranks) -> None:
        """Makes this learner one of several, each with batches of its own; call it after `initialize`.

        Every optimizer steps along the mean gradient of all ranks, and what an algorithm computes from a whole batch
        (normalization) includes the batches of all of them. The agents must be equal, and each rank must learn as
        often as the others.
        """
        self.require_initialized()
        self.ranks = ranks
        for optimizer in self.optimizers.values():
            optimizer.ranks = ranks

    def cut(self, returns: torch.Tensor | None = None) -> None:  # noqa: B027
        """Marks that the next batch does not continue the last one: batches were lost, or all episodes start anew.

        Args:
            returns: discounted returns `Σ γ^k r` of the running episodes up to the next batch, float `[B]`; None: 0.
        """

    def compiled(self, losses: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        """Returns the function that computes the losses of an update, compiled if the setting `compile` is set.

        Args:
            losses: a function of tensors, or of dataclasses of them.
        """
        if not isinstance(self.config, AdamConfig) or not self.config.compile:
            return losses
        # On a GPU as CUDA graphs; their outputs are overwritten by the next call, after the step that they are for.
        return torch.compile(losses, mode="reduce-overhead" if torch.cuda.is_available() else None)

    def require_initialized(self) -> None:
        """Raises ValueError before `initialize`."""
        if not self.optimizers:
            call = "initialize(agent, n_itr=..., batch_spec=sampler.batch_spec)"
            raise ValueError(f"{type(self).__name__} has no agent yet; call {call} first")

    def set_progress(self, progress: float) -> OptInfo:
        """Sets the learning rate of every optimizer to its value at `progress`.

        Args:
            progress: 0 at the start of training, 1 at its end.

        Returns:
            The learning rates, for the log: `learningRate`, or `actorLearningRate` and so on for several optimizers.
        """
        return {
            "learningRate" if len(self.optimizers) == 1 else f"{name}LearningRate": optimizer.set_progress(progress)
            for name, optimizer in self.optimizers.items()
        }

    def optim_state_dict(self) -> dict[str, Any]:
        """Returns the state of each optimizer by name, for `state_dict`."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_optim_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the result of `optim_state_dict`.

        Earlier checkpoints hold the state of the only optimizer without its name.

        Raises:
            ValueError: for optimizers that the algorithm does not have, missing ones, and invalid states.
        """
        if len(self.optimizers) == 1 and "param_groups" in state:
            state = dict.fromkeys(self.optimizers, state)
        fields(dict.fromkeys(self.optimizers, anything))(state, "optimizer")
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Returns all that training needs to resume as if never interrupted, as tensors and plain values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of `state_dict`; call it after `initialize`."""


def mean_info(infos: Sequence[OptInfo]) -> OptInfo:
    """Returns the diagnostics of several updates: each is the mean over the updates that have it."""
    values: dict[str, list[float]] = {}
    for info in infos:
        for name, value in info.items():
            values.setdefault(name, []).append(value)
    return {name: math.fsum(given) / len(given) for name, given in values.items()}
