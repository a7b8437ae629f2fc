"""The state of a sampler's environments between two batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headrace.buffers.samples import Slot
from headrace.buffers.tree import tree_map
from headrace.envs.copy_trial import Recorded
from headrace.envs.pickling import EnvState
from headrace.schema import fields, whole
from headrace.types import Tree

__all__ = ["NOT_ASKED", "EnvState", "SamplerState", "SliceState", "joined", "not_saved", "recorded"]

_NUMBERS = ("batches", "evaluations", "version", "incarnation", "ahead")
#: Why there are no environments in the state if saving them was not requested.
NOT_ASKED = "they are saved only with initialize(resumable=True)"


@dataclass
class SliceState:
    """The saved environments of a slice.

    Args:
        train: pickled `EnvState`s of training environments by env id.
        evaluation: pickled `EnvState`s of evaluation environments by env id.
        memory: recurrent states of the columns by env id, from the actor.
        why_not: why the environments are missing; "" if they are not.
    """

    train: dict[int, bytes] = field(default_factory=dict)
    evaluation: dict[int, bytes] = field(default_factory=dict)
    memory: dict[int, Tree] = field(default_factory=dict)
    why_not: str = ""


def joined(states: Sequence[SliceState]) -> SliceState:
    """Joins the states of all slices; without environments if any slice lacks them."""
    whole = SliceState(why_not=next((state.why_not for state in states if state.why_not), ""))
    for state in states if not whole.why_not else ():
        whole.train |= state.train
        whole.evaluation |= state.evaluation
        whole.memory |= state.memory
    return whole


@dataclass(frozen=True)
class SamplerState:
    """The state of a sampler between two batches, from which `initialize(resume=...)` continues.

    Environments are saved by env id, so a sampler of any kind with any number of workers can restore them.

    Args:
        batches: number of batches so far; addresses randomness.
        evaluations: number of evaluations so far; addresses randomness.
        version: number of parameter versions so far; addresses randomness.
        incarnation: how often the environments were restarted as new ones.
        ahead: how many of the batches were collected but not returned to the caller; the next batch does not continue
            the last returned one.
        train: pickled `EnvState`s of training environments by env id; empty if they are not available.
        evaluation: pickled `EnvState`s of evaluation environments by env id; empty if they are not available.
        memory: recurrent states of the columns by env id, trees of arrays, None if feed-forward.
        why_not: why the environments are missing; "" if they are not.
    """

    batches: int
    evaluations: int
    version: int
    incarnation: int
    ahead: int = 0
    train: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    evaluation: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    memory: Mapping[int, Tree] = field(default_factory=dict, repr=False)
    why_not: str = ""

    @staticmethod
    def of(numbers: Any) -> SamplerState:
        """Returns a state without environments from what `numbers` returned.

        Raises:
            ValueError: for anything else.
        """
        fields(dict.fromkeys(_NUMBERS, whole()))(numbers, "sampler")
        whole(0, numbers["batches"])(numbers["ahead"], "sampler.ahead")
        return SamplerState(**numbers)

    def numbers(self) -> dict[str, int]:
        """Returns everything but the environments as plain numbers, for a file."""
        return {name: getattr(self, name) for name in _NUMBERS}

    def require(self, env_ids: Sequence[int], n_eval: int) -> None:
        """Raises ValueError if the saved environments differ from those of the sampler that is to continue."""
        if self.train and (self.train.keys() != set(env_ids) or len(self.evaluation) != n_eval):
            raise ValueError(
                f"resume has the environments {sorted(self.train)} and {len(self.evaluation)} for evaluation, but this "
                f"sampler has {list(env_ids)} and {n_eval}; make them the same"
            )

    @property
    def next_incarnation(self) -> int:
        """Incarnation of a sampler that continues from this state."""
        return self.incarnation + (not self.train and self.batches > 0)


def recorded(slot: Slot, n_rows: int, *, begins: bool, resets: int | tuple[int, ...] | None) -> Recorded:
    """Returns the first rows of a slot, for copies of the environments to replay."""

    def rows(leaf: np.ndarray) -> np.ndarray:
        return leaf[:n_rows]

    return Recorded(
        tree_map(rows, slot.action),
        slot.reward[:n_rows],
        slot.terminated[:n_rows],
        slot.truncated[:n_rows],
        tree_map(lambda leaf: leaf[: n_rows + 1], slot.observation),
        begins=begins,
        resets=resets,
    )


def not_saved(name: str) -> str:
    """Returns the sentence that says why vector environments are not saved.

    Args:
        name: name of the environment factory.
    """
    return f"{name} makes vector environments, which are not saved"
