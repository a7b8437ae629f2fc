"""The contract of every agent: actions for rows of environments, from what it is given and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.agents.device import device_here
from headrace.buffers.samples import Samples
from headrace.checkpoints.file import save_checkpoint
from headrace.config import call_text
from headrace.rng import Stream
from headrace.types import AgentStep, EnvSpaces, StepInputs, Tree

__all__ = ["Agent"]


class Agent(ABC):
    """Chooses actions for `n` rows at a time. Pure over rows: row i of an answer depends on row i of the inputs only.

    The life of an agent::

        agent.initialize(spaces, seed=0)                    # builds the model; the sampler does this
        agent.sample_mode(itr)                              # once a batch, in every process that acts
        step = agent.step(inputs, state)                    # n rows; samplers keep state and hand it back
        value = agent.value(inputs, state)                  # n rows, for bootstrapping
        agent.train_mode(itr)
        outputs = agent(inputs, state)                      # with gradients, leading dims [], [B] or [T, B]

    Randomness comes in as `inputs.noise`, `noise_size` uniforms per row and step, so an action does not depend on which
    rows share a call. Recurrent state belongs to the rows, is held by whoever calls, and is zero where `is_first`.
    Agents are pickled (cloudpickle) to reach workers.
    """

    #: Numbers of `inputs.noise` per row and step that `step` uses: uniforms.
    noise_size: int = 0
    #: Whether the last of them is no uniform, but the env id of the row, for exploration per environment.
    noise_has_env_id: bool = False
    #: Built by `initialize`.
    model: torch.nn.Module
    spaces: EnvSpaces | None = None

    def initialize(self, spaces: EnvSpaces, *, seed: int, global_B: int = 1, env_ids: Sequence[int] = (0,)) -> None:
        """Builds the model; its weights are a function of the seed. An agent that has a model already keeps it.

        global_B: environments over all ranks; env_ids: those of this rank, for exploration per environment.
        """
        if self.spaces is not None:
            if self.spaces != spaces:
                raise ValueError(f"the agent was built for {self.spaces}, these environments have {spaces}")
            return
        weights_seed = int(np.random.SeedSequence(seed, spawn_key=(int(Stream.WEIGHTS),)).generate_state(1)[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(weights_seed)
            # Orthogonal starts are matrix products, which more threads round differently: one, whatever is set.
            n_threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                model = self.build_model(spaces)
            finally:
                torch.set_num_threads(n_threads)
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            if torch.nn.parameter.is_lazy(tensor):
                raise TypeError(
                    f"{name} of {type(model).__name__} has no size before its first input; workers need the size "
                    "before, so name it: Linear(in_features, …) in place of LazyLinear(…)"
                )
        self.model = model
        self.spaces = spaces

    @abstractmethod
    def build_model(self, spaces: EnvSpaces) -> torch.nn.Module:
        """The model for these spaces; raises TypeError for spaces this agent cannot act in."""

    @abstractmethod
    def step(self, inputs: StepInputs, state: Tree) -> AgentStep:
        """Actions for `n` rows. Called under `torch.inference_mode`."""

    @abstractmethod
    def value(self, inputs: StepInputs, state: Tree) -> torch.Tensor:
        """The value of `n` rows, float `[n]`; does not advance the state."""

    @abstractmethod
    def __call__(self, inputs: StepInputs, state: Tree = None) -> Any:
        """The training forward, with gradients, over leading dims `[]`, `[B]` or `[T, B]`."""

    def initial_state(self, n: int) -> Tree:
        """Zeros `[n, ...]`, the recurrent state at the start of an episode; None if feed-forward."""
        return None

    def sample_mode(self, itr: int) -> None:
        """Before collecting batch `itr`: explore. Schedules are functions of `itr`."""
        if self.model.training:  # 50 µs for the default model, once a batch
            self.model.eval()

    def eval_mode(self, itr: int) -> None:
        """Before an evaluation at `itr`: act greedily."""
        self.model.eval()

    def train_mode(self, itr: int) -> None:
        """Before optimizing with batch `itr`."""
        self.model.train()

    def update_statistics(self, observation: Tree) -> None:  # noqa: B027 (most have none)
        """Takes observations of a batch, tree of `[N, ...]`, into statistics the model normalizes with, if it does.

        Algorithms call it once a batch, after learning from it: what is recorded and what is learned from it come from
        the same function.
        """

    def exploration(self, itr: int, samples: Samples) -> dict[str, float]:
        """How much the agent explored in batch `itr`, numbers by name; runners log them. None for most."""
        return {}

    def acting_state(self) -> list[torch.Tensor]:
        """The tensors that decide actions (parameters and buffers), as they live in the model, in a fixed order.

        Not those of the model's `state_dict()`: a buffer that is not saved decides as well.
        """
        return [tensor.detach() for tensor in chain(self.model.parameters(), self.model.buffers())]

    def to_device(self, device: torch.device | str) -> None:
        """Moves the model; raises ValueError for a GPU that is not there."""
        place = device_here(device, "device")
        self.model.to(place)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        tensors = chain(self.model.parameters(), self.model.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """What an optimizer updates."""
        return self.model.parameters()

    def settings(self) -> dict[str, Any]:
        """What the constructor was given, by name: `type(agent)(**agent.settings())` is alike, but not initialized.

        Agents whose constructors take arguments override this; checkpoints describe the agent by it.
        """
        return {}

    def __repr__(self) -> str:
        """The call that made it, with the settings that differ from the defaults."""
        return call_text(type(self), self.settings())

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint must hold to rebuild this agent's behaviour: tensors and plain values only."""
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, in place. Raises KeyError or RuntimeError for a state of another model."""
        own, came = self.model.state_dict(), state["model"]
        for name in own.keys() & came.keys():  # of names and shapes torch says more; other dtypes it would round
            dtypes = [value.dtype for value in (own[name], came[name]) if isinstance(value, torch.Tensor)]
            if len(set(dtypes)) > 1:
                raise RuntimeError(f"{name} is of {dtypes[1]}, expected {dtypes[0]}")
        self.model.load_state_dict(came)

    def save(self, path: str | Path, itr: int = 0) -> None:
        """Writes a file that `headrace.load_agent` makes a policy of: weights, class, settings and spaces; no code.

        Whole or not there at all, with a checksum, as checkpoints are. itr: batches the agent was trained for, which
        the exploration of a loaded agent may depend on. Raises ValueError for an agent without a model, OSError where
        the disk does not take it.
        """
        from headrace.agents.description import described  # which speaks of this class

        if self.spaces is None:
            raise ValueError("the agent has no model yet; agent.initialize(spaces, seed=0) builds one, or a sampler")
        save_checkpoint(path, {"agent": self.state_dict(), "about": described(self), "itr": int(itr)})
