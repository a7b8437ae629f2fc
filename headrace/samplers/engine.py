"""What a layout implements: the part of a sampler that says which process does what."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from headrace.buffers.samples import SlotSpec
from headrace.processes.affinity import Affinity
from headrace.samplers.collection.make_envs import CollectorConfig
from headrace.samplers.collection.slice import SliceReport
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.layout import Slice
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.memory import Slots
from headrace.types import EnvSpaces

__all__ = ["Hooks"]


class Hooks(ABC):
    """`BaseSampler` calls these in the order of the file; so does a sampler process, without the state around them."""

    def _around(self) -> AbstractContextManager[None]:
        """Around every call of a person's."""
        return nullcontext()

    @abstractmethod
    def _divided(self, env_ids: Sequence[int], affinity: Affinity) -> list[Slice]:
        """Over which processes the columns are spread."""

    @abstractmethod
    def _start(self, configs: Sequence[CollectorConfig], affinity: Affinity) -> EnvSpaces:
        """Makes the environments of every slice; returns their spaces."""

    @abstractmethod
    def _setup(self, spec: SlotSpec, slots: Slots, configs: Sequence[CollectorConfig]) -> None:
        """Gives slots and agent to every slice; returns when all stand at their first row."""

    @abstractmethod
    def _collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        """Has every slice fill its columns of the slot; reports in the order of columns."""

    @abstractmethod
    def _evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        """Has every slice evaluate."""

    @abstractmethod
    def _states(self) -> list[SliceState]:
        """The state of every slice."""

    @abstractmethod
    def _stop(self) -> None:
        """Closes everything in good order."""

    @abstractmethod
    def _kill(self) -> None:
        """Closes everything at once, after an error; raises nothing of its own."""

    @abstractmethod
    def _call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        """Has every slice call its environments; answers by env id."""
