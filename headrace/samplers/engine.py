"""`Engine` does the work of a sampler. `BaseSampler` has one, and so does each sampler process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from headrace.buffers.samples import SlotSpec
from headrace.processes.affinity import Affinity
from headrace.processes.status import Status
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.collection.slice import SliceReport
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.config import SamplerConfig
from headrace.samplers.layout import Layout, Slice
from headrace.samplers.timing import ServerTiming
from headrace.samplers.traj_info import Episodes
from headrace.types import EnvSpaces

if TYPE_CHECKING:
    from headrace.agents.base import Agent
    from headrace.samplers.inference.device import DeviceBatch
    from headrace.samplers.workers.memory import Slots

__all__ = ["Engine"]


class Engine(ABC):
    """Makes environments, collects batches and evaluates. The methods are called in the order in which they are
    defined.

    Args:
        name: name of the sampler, for messages and process names.
        layout: which part runs in which process.
        config: the sampler's configuration.
        status: where this process records what it is doing.
    """

    def __init__(self, name: str, layout: Layout, config: SamplerConfig, status: Status) -> None:
        self.name = name
        self.layout = layout
        self.config = config
        self.status = status
        #: The batch on the agent's device if the option samples_device is set, else None.
        self.device_batch: DeviceBatch | None = None

    def call_context(self) -> AbstractContextManager[None]:
        """Returns the context in which every call of the sampler runs."""
        return nullcontext()

    @abstractmethod
    def divide(self, env_ids: Sequence[int], affinity: Affinity) -> list[Slice]:
        """Distributes the columns over processes; returns the slices."""

    @abstractmethod
    def start(self, slices: Sequence[Slice], configs: Sequence[SliceConfig], affinity: Affinity) -> EnvSpaces:
        """Makes the environments of every slice; returns their spaces."""

    @abstractmethod
    def setup(
        self, agent: Agent, spec: SlotSpec, slots: Slots, configs: Sequence[SliceConfig], first_slice: int
    ) -> None:
        """Sets up every slice with the agent and slots; returns when all slices are ready for their first time step.

        Args:
            agent: the agent that acts.
            spec: the contents of a slot.
            slots: the memory of the batches.
            configs: one per slice of this engine.
            first_slice: index of this engine's first slice among the slices of the batch.
        """

    @abstractmethod
    def collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        """Makes every slice fill its columns of the slot.

        Args:
            itr: number of the batch, for the agent's schedules.
            version: version of the parameters.
            batch_index: counts batches from 0.

        Returns:
            The reports of the slices in column order.
        """

    @abstractmethod
    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        """Makes every slice evaluate; returns the episodes."""

    @abstractmethod
    def states(self) -> list[SliceState]:
        """Returns the state of every slice."""

    def require_sendable(self, args: Sequence[Any]) -> None:  # noqa: B027 (not needed within one process)
        """Raises TypeError if the arguments of `call` cannot be sent to the environments' process."""

    @abstractmethod
    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        """Calls a method of training environments; returns the results by env id."""

    @abstractmethod
    def stop(self) -> None:
        """Closes everything in order."""

    @abstractmethod
    def kill(self) -> None:
        """Closes everything immediately after an error; does not raise."""

    def n_commanded(self, n_batches: int) -> int:
        """Returns how many batches were commanded, of which `n_batches` were requested by the caller."""
        return n_batches

    def seconds(self, inside: float) -> float:
        """Returns the time to which `timing()` relates its shares.

        Args:
            inside: seconds spent in `obtain_samples`.
        """
        return inside

    @property
    def server_timings(self) -> Sequence[ServerTiming]:
        """How the action servers spent their time."""
        return ()
