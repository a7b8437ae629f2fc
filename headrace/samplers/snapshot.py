"""Where the environments of a sampler stand between two batches, and whether a copy of them is a faithful one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from headrace.buffers.tree import tree_leaves, tree_map, tree_rows
from headrace.envs.factory import EnvFactory, close_quietly
from headrace.envs.pickling import dumps, loads
from headrace.envs.scalar import ScalarEnvs
from headrace.errors import headline
from headrace.processes.status import Phase, Status
from headrace.samplers.loop import SlotView
from headrace.schema import fields, whole
from headrace.types import StepRow, Tree

__all__ = ["EnvState", "Rehearsal", "SamplerState", "SliceState", "dumped", "not_pickled"]

_NUMBERS = ("batches", "evaluations", "version", "incarnation", "ahead")
#: Environments of a slice whose copies are tried.
_REHEARSED = 8


@dataclass
class EnvState:
    """All there is of one environment between two batches.

    seed: of its first reset, if that is still to come; row: where the collection loop stands, running: the statistics
    of the running episode (both None for evaluation, which begins with resets).
    """

    env: gymnasium.Env[Any, Any]
    seed: int | None
    row: Tree = None
    running: Any = None


@dataclass
class SliceState:
    """The pickled `EnvState`s of a slice by env id; or none, and in `why_not` the reason. memory: the recurrent states
    of its rows by env id, from who acts for them.
    """

    train: dict[int, bytes] = field(default_factory=dict)
    evaluation: dict[int, bytes] = field(default_factory=dict)
    memory: dict[int, Tree] = field(default_factory=dict)
    why_not: str = ""


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


class Rehearsal:
    """Pickled copies of some environments, which then step what the originals stepped.

    A pickle may lose what an environment is about and say nothing: its generator, its simulator's state. So copies made
    before the first batch are stepped with the recorded actions after it; they must do what is recorded, bit for bit.
    That is a batch of environment steps once per run.
    """

    def __init__(self, envs: ScalarEnvs, observation: Tree, name: str, status: Status) -> None:
        """observation: null value of the space. Raises what pickling raises."""
        self._n = min(_REHEARSED, len(envs.env_ids))
        self._name = name
        self._status = status
        copies: list[gymnasium.Env[Any, Any]] = []
        try:
            for row in range(self._n):
                status.enter(Phase.SAVING, envs.env_ids[row])
                copies.append(loads(dumps(envs.environment(row)[0])))
        except BaseException:
            close_quietly(copies)
            raise
        self._envs = ScalarEnvs(
            copies, envs.env_ids[: self._n], [(None, None)] * self._n, name=name, status=status, env_info_keys={}
        )
        self._copies = copies
        self._observation = tree_map(lambda leaf: np.zeros((self._n, *leaf.shape), leaf.dtype), observation)

    def difference(self, view: SlotView, wait_reset: bool) -> str:
        """Steps the copies through the batch that the originals have just collected; says what differed, or ""."""
        self._envs.allow(0 if wait_reset else None)
        try:
            for t in range(len(view.rewards)):
                self._status.enter(Phase.SAVING, step=t)
                wrong = self._step(view, t)
                if wrong:
                    return f"a pickled copy of {self._name} gave another {wrong} than the original in step {t}"
        except Exception as error:
            return f"a pickled copy of {self._name} failed where the original did not ({headline(error)})".split("\n")[
                0
            ]
        finally:
            self.close()
        return ""

    def close(self) -> None:
        """Closes the copies."""
        close_quietly(self._copies)

    def _step(self, view: SlotView, t: int) -> str:
        n, slot = self._n, view.slot
        rows = slice(0, n)
        out = StepRow(self._observation, np.zeros(n, np.float32), np.zeros(n, np.bool_), np.zeros(n, np.bool_), None)
        waited = self._envs.waiting.copy()
        self._envs.step(tree_rows(view.actions[t], rows), out)
        for name, came, recorded, rows_alike in (
            ("reward", out.reward, slot.reward[t, rows], ~waited),
            ("end", out.terminated, slot.terminated[t, rows], ~waited),
            ("end", out.truncated, slot.truncated[t, rows], ~waited),
            *(
                ("observation", came, recorded[t + 1, rows], ~self._envs.waiting)  # a waiting row's is blanked
                for came, recorded in zip(tree_leaves(out.observation), tree_leaves(slot.observation), strict=True)
            ),
        ):
            if not np.array_equal(came[rows_alike], recorded[rows_alike]):
                return name
        return ""


def dumped(env_ids: Sequence[int], states: Sequence[EnvState], status: Status) -> dict[int, bytes]:
    """Pickles states by env id; raises what pickling raises."""
    found = {}
    for env_id, state in zip(env_ids, states, strict=True):
        status.enter(Phase.SAVING, env_id)
        found[env_id] = dumps(state)
    return found


def not_pickled(factory: EnvFactory, error: Exception) -> str:
    """The sentence for environments that cannot be saved."""
    return f"{factory.name} cannot be pickled ({headline(error)})".split("\n")[0]
