"""`Engine`: what does the work of a sampler. `BaseSampler` has one, and so has a sampler process."""

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
    """Makes environments, collects batches, evaluates. The methods are called in the order of this class.

    Args:
        name: of the sampler, for messages and for the names of its processes.
        layout: which part runs where.
        config: what the sampler was made with.
        status: says where this process is.
    """

    def __init__(self, name: str, layout: Layout, config: SamplerConfig, status: Status) -> None:
        self.name = name
        self.layout = layout
        self.config = config
        self.status = status
        #: The batch on the agent's device, with the option samples_device.
        self.device_batch: DeviceBatch | None = None

    def call_context(self) -> AbstractContextManager[None]:
        """What every call of the sampler happens in."""
        return nullcontext()

    @abstractmethod
    def divide(self, env_ids: Sequence[int], affinity: Affinity) -> list[Slice]:
        """Spreads the columns over processes."""

    @abstractmethod
    def start(self, slices: Sequence[Slice], configs: Sequence[SliceConfig], affinity: Affinity) -> EnvSpaces:
        """Makes the environments of every slice; returns their spaces."""

    @abstractmethod
    def setup(
        self, agent: Agent, spec: SlotSpec, slots: Slots, configs: Sequence[SliceConfig], first_slice: int
    ) -> None:
        """Gives agent and slots to every slice; returns when all stand at their first time step.

        first_slice: where the slices of this engine begin among those of the batch.
        """

    @abstractmethod
    def collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        """Has every slice fill its columns of the slot; returns reports in the order of columns."""

    @abstractmethod
    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        """Has every slice evaluate."""

    @abstractmethod
    def states(self) -> list[SliceState]:
        """Where every slice stands."""

    def require_sendable(self, args: Sequence[Any]) -> None:  # noqa: B027 (what stays in this process needs none)
        """Raises TypeError for arguments of `call` that cannot travel to the environments."""

    @abstractmethod
    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        """Calls a method of training environments; returns answers by env id."""

    @abstractmethod
    def stop(self) -> None:
        """Closes everything in good order."""

    @abstractmethod
    def kill(self) -> None:
        """Closes everything at once, after an error; raises nothing of its own."""

    def n_commanded(self, n_batches: int) -> int:
        """How many batches were begun, of which `n_batches` were asked for."""
        return n_batches

    def seconds(self, inside: float) -> float:
        """What `timing()` relates to. inside: seconds spent in `obtain_samples`."""
        return inside

    @property
    def server_timings(self) -> Sequence[ServerTiming]:
        """Where the time of the action servers went."""
        return ()
