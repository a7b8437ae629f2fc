"""The base class of all agents. An action depends only on the arguments of `step` and on the parameters."""

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
from headrace.types import ActingPlan, ActingRows, AgentStep, EnvSpaces, StepInputs, Tree

__all__ = ["Agent"]


class Agent(ABC):
    """Base class of agents, which choose actions for `n` environments at a time.

    Element i of an output depends on element i of the inputs only. The calls in the life of an agent::

        agent.initialize(spaces, seed=0)                    # builds the model; the sampler calls this
        agent.sample_mode(itr)                              # once per batch, in every process that runs inference
        step = agent.step(inputs, state)                    # n environments; the sampler passes step.state back in
        value = agent.value(inputs, state)                  # n environments, for bootstrapping
        agent.train_mode(itr)
        outputs = agent(inputs, state)                      # with gradients, leading dims [], [B] or [T, B]

    All randomness is passed as `inputs.noise`, `noise_size` uniforms per environment and step, so an action does not
    depend on which environments share a call. The caller keeps the recurrent state of each environment; it is zero
    where `is_first`. Agents are pickled (cloudpickle) to send them to workers.
    """

    #: Number of uniforms in `inputs.noise` that `step` uses per environment and step.
    noise_size: int = 0
    #: Whether the last number is the env id instead of a uniform, for per-environment exploration.
    noise_has_env_id: bool = False
    #: Names of submodules of the model that `step` and `value` do not use, such as a critic. Other processes receive
    #: the agent without them; checkpoints hold them.
    learner_only: Sequence[str] = ()
    #: The model, built by `initialize`.
    model: torch.nn.Module
    spaces: EnvSpaces | None = None

    def initialize(self, spaces: EnvSpaces, *, seed: int, global_B: int = 1, env_ids: Sequence[int] = (0,)) -> None:
        """Builds the model, with weights determined by the seed. An agent that already has a model keeps it.

        Args:
            spaces: spaces of one environment.
            seed: seed of the run.
            global_B: number of environments over all ranks, for per-environment exploration.
            env_ids: ids of the environments of this rank, for per-environment exploration.

        Raises:
            ValueError: if the agent's model was built for other spaces, or has no module of a name in `learner_only`.
            TypeError: if the model has lazy parameters, or the agent cannot act in these spaces.
        """
        if self.spaces is not None:
            if self.spaces != spaces:
                raise ValueError(f"the agent was built for {self.spaces}, but these environments have {spaces}")
            return
        weights_seed = int(np.random.SeedSequence(seed, spawn_key=(int(Stream.WEIGHTS),)).generate_state(1)[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(weights_seed)
            # Orthogonal initialization uses matrix products, whose rounding depends on the number of threads, so it
            # always runs on one thread.
            n_threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                model = self.build_model(spaces)
            finally:
                torch.set_num_threads(n_threads)
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            if torch.nn.parameter.is_lazy(tensor):
                raise TypeError(
                    f"{name} of {type(model).__name__} has no size before its first input, but workers need "
                    "it earlier; name the size: Linear(in_features, …) instead of LazyLinear(…)"
                )
        missing = set(self.learner_only) - {name for name, _ in model.named_modules()}
        if missing:
            raise ValueError(
                f"{type(self).__name__}.learner_only names {', '.join(sorted(missing))}, and its "
                f"{type(model).__name__} has the modules {', '.join(name for name, _ in model.named_children())}"
            )
        self.model = model
        self.spaces = spaces

    @abstractmethod
    def build_model(self, spaces: EnvSpaces) -> torch.nn.Module:
        """Returns a new model for these spaces. Raises TypeError for spaces that the agent does not support."""

    @abstractmethod
    def step(self, inputs: StepInputs, state: Tree) -> AgentStep:
        """Returns actions for `n` environments. Called under `torch.inference_mode`.

        Args:
            inputs: tree of `[n, ...]`.
            state: recurrent state, tree of `[n, ...]`; None if feed-forward.
        """

    @abstractmethod
    def value(self, inputs: StepInputs, state: Tree) -> torch.Tensor:
        """Returns the values of `n` environments, float `[n]`. Does not advance the recurrent state.

        Args:
            inputs: tree of `[n, ...]`.
            state: recurrent state, tree of `[n, ...]`; None if feed-forward.
        """

    @abstractmethod
    def __call__(self, inputs: StepInputs, state: Tree = None) -> Any:
        """Runs the training forward pass, with gradients, over leading dims `[]`, `[B]` or `[T, B]`."""

    def acting_plan(self, rows: ActingRows, deterministic: bool) -> ActingPlan | None:
        """Returns a plan that does the work of `step` and `value` in place; None, as for most agents, if there is none.

        Args:
            rows: the rows of a batch.
            deterministic: whether an output may not depend on the number of columns, not even by rounding.
        """
        return None

    def initial_state(self, n: int) -> Tree:
        """Returns the recurrent state at the start of an episode, zeros `[n, ...]`; None if feed-forward."""
        return None

    def sample_mode(self, itr: int) -> None:
        """Sets the agent to explore; called before batch `itr` is collected. Schedules are functions of `itr`."""
        if self.model.training:  # `eval()` takes 50 µs for the default model, once per batch
            self.model.eval()

    def eval_mode(self, itr: int) -> None:
        """Sets the agent to act greedily; called before an evaluation at `itr`."""
        self.model.eval()

    def train_mode(self, itr: int) -> None:
        """Sets the model to training mode; called before optimizing with batch `itr`."""
        self.model.train()

    def update_statistics(self, observation: Tree) -> None:  # noqa: B027 (most have none)
        """Updates the statistics with which the model normalizes observations, if it has any.

        Algorithms call it once per batch, after learning from the batch, so that a batch is collected and learned from
        with the same statistics.

        Args:
            observation: observations of a batch, tree of `[N, ...]`.
        """

    def exploration(self, itr: int, samples: Samples) -> dict[str, float]:
        """Returns measures of exploration in batch `itr`, by name, for the log; empty for most agents."""
        return {}

    def acting_state(self) -> list[torch.Tensor]:
        """Returns the tensors on which actions depend, in an order that is the same in every process.

        These are the parameters and buffers of the model, except those that only `learner_only` modules have.
        `state_dict()` is not enough: it leaves out non-persistent buffers, on which actions depend as well.
        """
        model, left_out = self.model, tuple(f"{name}." for name in self.learner_only)
        # Duplicates are kept, because an encoder that actor and critic share may appear under the critic first.
        tensors = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
        acting = {id(tensor): tensor.detach() for name, tensor in tensors if not name.startswith(left_out)}
        return list(acting.values())

    def to_device(self, device: torch.device | str) -> None:
        """Moves the model to the device. Raises ValueError for a GPU that does not exist."""
        place = device_here(device, "device")
        self.model.to(place)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        tensors = chain(self.model.parameters(), self.model.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Returns the parameters that an optimizer updates."""
        return self.model.parameters()

    def settings(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, by name.

        `type(agent)(**agent.settings())` is an equal agent that is not initialized. Agents whose constructors take
        arguments override this; checkpoints store the result as the description of the agent.
        """
        return {}

    def __repr__(self) -> str:
        """Returns the constructor call, with the settings that differ from the defaults."""
        return call_text(type(self), self.settings())

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a checkpoint needs to restore the agent's behaviour, as tensors and plain values."""
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of `state_dict`, in place.

        Raises:
            KeyError: if the state holds no model.
            RuntimeError: if the names, shapes or dtypes are those of another model.
        """
        own, came = self.model.state_dict(), state["model"]
        # torch checks names and shapes, with a better message, but it converts (rounds) other dtypes silently.
        for name in own.keys() & came.keys():
            dtypes = [value.dtype for value in (own[name], came[name]) if isinstance(value, torch.Tensor)]
            if len(set(dtypes)) > 1:
                raise RuntimeError(f"{name} has the dtype {dtypes[1]}, expected {dtypes[0]}")
        self.model.load_state_dict(came)

    def get_param_values(self) -> Any:
        """Returns `state_dict()`; the name that garage's policies have."""
        return self.state_dict()

    def set_param_values(self, params: Any) -> None:
        """Calls `load_state_dict`; the name that garage's policies have."""
        self.load_state_dict(params)

    def save(self, path: str | Path, itr: int = 0) -> None:
        """Writes weights, class, settings and spaces, but no code, to a file for `headrace.load_agent`.

        The write is atomic and the file has a checksum, as for checkpoints.

        Args:
            path: the file.
            itr: number of batches the agent was trained on; the exploration of a loaded agent may depend on it.

        Raises:
            ValueError: if the agent has no model.
            OSError: if the file cannot be written.
        """
        from headrace.agents.description import described  # here, because that module imports this one

        if self.spaces is None:
            raise ValueError(
                "the agent has no model yet; call agent.initialize(spaces, seed=0), or initialize a sampler with it"
            )
        save_checkpoint(path, {"agent": self.state_dict(), "about": described(self), "itr": int(itr)})
