"""Replay that samples all transitions with equal probability."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from headrace.buffers.tree import tree_leaves
from headrace.replays.base import ReplayNotReady, Transitions
from headrace.replays.hindsight import HindsightConfig, HindsightGather
from headrace.replays.ring import ReplayRing, ReplaySpec
from headrace.replays.transitions import Gather
from headrace.replays.window import Window
from headrace.rng import Stream
from headrace.schema import fields, text, whole

__all__ = ["UniformReplay"]

_TRIES = 1000
#: Schema of the state of the random generator that draws transitions.
_RANDOM = fields(
    {
        "bit_generator": text("PCG64"),
        "state": fields({"state": whole(0, 2**128 - 1), "inc": whole(0, 2**128 - 1)}),
        "has_uint32": whole(0, 1),
        "uinteger": whole(0, 2**32 - 1),
    }
)


class UniformReplay:
    """The learner's side of a ring that a `ReplayWriter` fills in this or another process.

    Args:
        spec: layout of the ring.
        ring: the memory to read.
        n_step: maximum number of steps of a transition.
        discount: γ per step.
        seed: seed of the draws.
        hindsight: replace goals by goals that were reached later, see `HindsightGather`; None: leave them.
    """

    def __init__(
        self,
        spec: ReplaySpec,
        ring: ReplayRing,
        *,
        n_step: int = 1,
        discount: float = 0.99,
        seed: int = 0,
        hindsight: HindsightConfig | None = None,
    ) -> None:
        least = spec.batch.T + n_step + max(spec.frames, 1)
        if n_step < 1:
            raise ValueError(f"n_step must be at least 1, got {n_step}")
        if spec.n_rows < least:
            raise ValueError(
                f"a replay of {spec.n_rows} time steps is too small for batches of {spec.batch.T} time steps and "
                f"{n_step}-step transitions; make it at least {least} time steps, {least * spec.batch.B} steps in all"
            )
        self.spec = spec
        self.ring = ring
        self.n_step = n_step
        self.discount = discount
        self._window = Window(spec, ring, n_step, self._changed)
        self._random = np.random.Generator(
            np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(int(Stream.REPLAY),)))
        )
        self._gather = (
            Gather(spec, ring, n_step, discount)
            if hindsight is None
            else HindsightGather(spec, ring, n_step, discount, hindsight, self._random)
        )

    def __len__(self) -> int:
        """Returns the number of transitions that can be sampled now."""
        self._window.update()
        return self._window.count

    @property
    def n_appended(self) -> int:
        """Number of environment steps ever appended, without padding."""
        for _ in range(_TRIES):
            n_steps = self._window.n_appended()
            if n_steps is not None:
                return n_steps
        raise RuntimeError(_OUTRUN)

    def sample(self, n: int) -> Transitions:
        """Samples `n` transitions with replacement, into their own memory.

        Raises:
            ReplayNotReady: while no transition can be sampled.
        """
        self._look()
        index = self._draw(n)
        priorities = self._priorities(index)
        transitions, oldest = self._gather(index, self._weights(priorities))
        lost = self._lost(oldest)
        if len(lost):
            self._replace(lost, transitions, priorities)
        return transitions

    def update_priorities(self, indices: Any, priorities: torch.Tensor) -> None:
        """Does nothing: all transitions have the same priority."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what is needed to continue sampling exactly, given the same contents of the ring."""
        return {"random": self._random.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; the ring must have its contents again.

        Raises:
            ValueError: for the state of another kind of replay.
        """
        fields({"random": _RANDOM}, more=True)(state, "replay")
        self._random.bit_generator.state = state["random"]

    def _look(self) -> None:
        """Reads what the writer changed; raises ReplayNotReady if no transition can be sampled."""
        self._window.update()
        while not self._window.count and self._window.still_whole() > self._window.oldest:
            self._window.update()  # the rows seen before were overwritten meanwhile, and there are newer ones
        if not self._window.count:
            raise ReplayNotReady(
                f"there is no transition to sample: {self.n_appended} steps were appended, and a transition needs "
                f"{self.n_step} and the observation after them; collect more steps before learning"
            )

    def _draw(self, n: int) -> np.ndarray:
        """Draws `n` transitions that can be sampled: int64 indices `[n]`, row · B + column."""
        window, B, size = self._window, self.spec.batch.B, self.spec.size
        index = self._random.integers(window.oldest * B, window.cursor * B, n)
        for _ in range(_TRIES):
            refused = (~window.ready.take(index % size)).nonzero()[0]
            if not len(refused):
                return index
            if window.count * 20 < (window.cursor - window.oldest) * B:
                break
            index[refused] = self._random.integers(window.oldest * B, window.cursor * B, len(refused))
        # Less than 1 in 20 can be sampled: choose among those directly.
        places = window.ready.nonzero()[0]
        return self._index_of(places[self._random.integers(0, len(places), n)])

    def _index_of(self, place: np.ndarray) -> np.ndarray:
        """Returns the index, row · B + column, of the transition stored at a position of the ring."""
        lowest = (self._window.cursor - self.spec.n_rows) * self.spec.batch.B
        return lowest + (place - lowest) % self.spec.size

    def _lost(self, oldest: np.ndarray) -> np.ndarray:
        """Returns the positions of gathered transitions that may be torn. oldest: as returned by `Gather`."""
        lost: np.ndarray = (oldest < self._window.still_whole() * self.spec.batch.B).nonzero()[0]
        return lost

    def _replace(self, lost: np.ndarray, transitions: Transitions, priorities: np.ndarray) -> None:
        """Draws replacements for transitions that were overwritten while they were copied.

        All other transitions are kept, so each attempt replaces fewer transitions and takes less time. A reader that
        had no CPU core for a while therefore catches up.

        Args:
            lost: positions of the torn transitions.
            transitions: what was sampled; changed in place.
            priorities: priorities of the drawn transitions, `[N]`; changed in place.
        """
        for _ in range(_TRIES):
            self._look()
            index = self._draw(len(lost))
            priorities[lost] = self._priorities(index)
            others, oldest = self._gather(index, self._weights(priorities[lost]))
            torn = self._lost(oldest)  # check at once, because what follows takes time too
            whole = np.setdiff1d(np.arange(len(lost)), torn)
            for to, values in zip(tree_leaves(transitions), tree_leaves(others), strict=True):
                np.asarray(to)[lost[whole]] = np.asarray(values)[whole]
            lost = lost[torn]
            if not len(lost):
                transitions.weights = torch.from_numpy(self._weights(priorities))  # normalized over all of them
                return
        raise RuntimeError(_OUTRUN)

    def _priorities(self, index: np.ndarray) -> np.ndarray:
        """Returns the values to which the sampling probabilities of these transitions are proportional."""
        return np.ones(len(index), np.float32)

    def _weights(self, priorities: np.ndarray) -> np.ndarray:
        """Returns the importance weights, float32 `[N]`."""
        return priorities

    def _changed(self, start: int, stop: int) -> None:
        """Called after positions start to stop − 1 of the window's `ready` were written."""


_OUTRUN = "time steps are overwritten faster than they are read; make the replay larger, or make its writer wait"
