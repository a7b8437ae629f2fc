"""Where the environments of a sampler stand between two batches."""

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
#: Why there is no state of environments that were not to be saved.
NOT_ASKED = "it was not asked for: initialize(resumable=True)"


@dataclass
class SliceState:
    """The pickled `EnvState`s of a slice by env id; or none, and in `why_not` the reason. memory: the recurrent states
    of its rows by env id, from who acts for them.
    """

    train: dict[int, bytes] = field(default_factory=dict)
    evaluation: dict[int, bytes] = field(default_factory=dict)
    memory: dict[int, Tree] = field(default_factory=dict)
    why_not: str = ""


def joined(states: Sequence[SliceState]) -> SliceState:
    """Those of all slices as one; without environments where they are missing of one."""
    whole = SliceState(why_not=next((state.why_not for state in states if state.why_not), ""))
    for state in states if not whole.why_not else ():
        whole.train |= state.train
        whole.evaluation |= state.evaluation
        whole.memory |= state.memory
    return whole


@dataclass(frozen=True)
class SamplerState:
    """Where a sampler stands between two batches: what `initialize(resume=...)` goes on from.

    batches, evaluations, version: how many there were, the addresses of randomness; incarnation: how often the
    environments were begun anew; ahead: of the batches, those that were collected and not given to anybody, so that the
    next one does not continue what was given last; train, evaluation: pickled `EnvState`s by env id, and memory: the
    recurrent states of their rows (trees of arrays, None if feed-forward), so that any number of workers of any sampler
    can take them over; empty where they could not be had, `why_not` says why.
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
        """Without environments, from what `numbers` answers; raises ValueError for anything else."""
        fields(dict.fromkeys(_NUMBERS, whole()))(numbers, "sampler")
        whole(0, numbers["batches"])(numbers["ahead"], "sampler.ahead")
        return SamplerState(**numbers)

    def numbers(self) -> dict[str, int]:
        """All of it but environments: plain numbers, for a file."""
        return {name: getattr(self, name) for name in _NUMBERS}

    def require(self, env_ids: Sequence[int], n_eval: int) -> None:
        """Raises ValueError if the environments in it are not those of a sampler that is to go on from here."""
        if self.train and (self.train.keys() != set(env_ids) or len(self.evaluation) != n_eval):
            raise ValueError(
                f"resume has the environments {sorted(self.train)} and {len(self.evaluation)} for evaluation, this "
                f"sampler has {list(env_ids)} and {n_eval}; they must be the same"
            )

    @property
    def next_incarnation(self) -> int:
        """That of a sampler which goes on from here."""
        return self.incarnation + (not self.train and self.batches > 0)


def recorded(slot: Slot, n_rows: int, *, begins: bool, resets: int | None) -> Recorded:
    """The first rows of a slot, as copies are to repeat them."""

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
    """The sentence for vector environments. name: the factory's."""
    return f"{name} makes vector environments, which are not saved"
