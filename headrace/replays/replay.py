"""Base class of replays: what is sampled, how it is drawn, and what happens when the writer overtakes the reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol

import numpy as np
import torch

from headrace.replays.base import Drawn, ReplayNotReady
from headrace.replays.ring import ReplayRing, ReplaySpec
from headrace.replays.window import Starts, Window
from headrace.rng import Stream
from headrace.schema import fields, text, whole

__all__ = ["Reader", "Replay", "draws"]

_TRIES = 1000
#: Schema of the state of the random generator of the draws.
_RANDOM = fields(
    {
        "bit_generator": text("PCG64"),
        "state": fields({"state": whole(0, 2**128 - 1), "inc": whole(0, 2**128 - 1)}),
        "has_uint32": whole(0, 1),
        "uinteger": whole(0, 2**32 - 1),
    }
)


class Reader(Protocol[Drawn]):
    """Copies transitions or sequences out of a ring.

    Args:
        starts: where they start.
    """

    starts: Starts

    def __call__(self, index: np.ndarray, weights: np.ndarray) -> tuple[Drawn, np.ndarray]:
        """Returns what starts at `index`, and the oldest row that each was read from, as row · B + column.

        It does not notice rows that are overwritten while it reads; the caller must compare the oldest rows.

        Args:
            index: int64 `[N]`, place · B + column (see `Window`).
            weights: importance weights, float32 `[N]`.

        Returns:
            The N transitions or sequences, and int64 `[N]`.
        """

    def put(self, drawn: Drawn, positions: np.ndarray, others: Drawn, chosen: np.ndarray) -> None:
        """Replaces the entries at `positions`, int64 `[n]`, of `drawn` by the `chosen` entries of `others`."""


def draws(seed: int) -> np.random.Generator:
    """Returns the generator of a replay's draws."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(int(Stream.REPLAY),))))


class Replay(Generic[Drawn]):
    """The learner's side of a ring; this class draws with equal probability. Users construct one of its subclasses.

    Args:
        spec: layout of the ring.
        ring: the memory to read.
        gather: copies what was drawn.
        random: generator of the draws.
    """

    def __init__(self, spec: ReplaySpec, ring: ReplayRing, gather: Reader[Drawn], random: np.random.Generator) -> None:
        starts = gather.starts
        least = -(-(spec.batch.T + starts.ahead + max(spec.frames, 1)) // starts.every) * starts.every
        if spec.n_rows < least:
            raise ValueError(
                f"a replay of {spec.n_rows} time steps is too small for batches of {spec.batch.T} time steps and "
                f"{starts.what}; make it at least {least} time steps, {least * spec.batch.B} steps in all"
            )
        self.spec = spec
        self.ring = ring
        self._window = Window(spec, ring, starts, self._changed)
        self._gather: Callable[[np.ndarray, np.ndarray], tuple[Drawn, np.ndarray]] = gather
        self._put = gather.put
        self._what = starts.what
        self._random = random

    def __len__(self) -> int:
        """Returns the number of transitions or sequences that can be sampled now."""
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

    def sample(self, n: int) -> Drawn:
        """Samples `n` transitions or sequences with replacement, into their own memory.

        Raises:
            ReplayNotReady: while nothing can be sampled.
        """
        self._look()
        index = self._draw(n)
        priorities = self._priorities(index)
        drawn, oldest = self._gather(index, self._weights(priorities))
        lost = self._lost(oldest)
        if len(lost):
            self._replace(lost, drawn, priorities)
        return drawn

    def update_priorities(self, indices: Any, priorities: torch.Tensor) -> None:
        """Does nothing: all have the same priority."""

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
        """Reads what the writer changed; raises ReplayNotReady if nothing can be sampled."""
        self._window.update()
        while not self._window.count and self._window.still_whole() > self._window.oldest:
            self._window.update()  # the rows seen before were overwritten meanwhile, and there are newer ones
        if not self._window.count:
            raise ReplayNotReady(
                f"there is nothing to sample: {self.n_appended} steps were appended, and this replay samples "
                f"{self._what}; collect more steps before learning"
            )

    def _draw(self, n: int) -> np.ndarray:
        """Draws `n` of what can be sampled: int64 indices `[n]`, place · B + column."""
        window, B = self._window, self.spec.batch.B
        first, stop = window.first * B, window.stop * B
        index = self._random.integers(first, stop, n)
        for _ in range(_TRIES):
            refused = (~window.ready.take(index % window.size)).nonzero()[0]
            if not len(refused):
                return index
            if window.count * 20 < stop - first:
                break
            index[refused] = self._random.integers(first, stop, len(refused))
        # Less than 1 in 20 can be sampled: choose among those directly.
        positions = window.ready.nonzero()[0]
        return window.index_of(positions[self._random.integers(0, len(positions), n)])

    def _lost(self, oldest: np.ndarray) -> np.ndarray:
        """Returns the positions of what was gathered and may be torn. oldest: as a `Reader` returned it."""
        lost: np.ndarray = (oldest < self._window.still_whole() * self.spec.batch.B).nonzero()[0]
        return lost

    def _replace(self, lost: np.ndarray, drawn: Drawn, priorities: np.ndarray) -> None:
        """Draws replacements for what was overwritten while it was copied.

        All others are kept, so each attempt replaces fewer of them and takes less time. A reader that had no CPU core
        for a while therefore catches up.

        Args:
            lost: positions of the torn ones.
            drawn: what was sampled; changed in place.
            priorities: their priorities, `[N]`; changed in place.
        """
        for _ in range(_TRIES):
            self._look()
            index = self._draw(len(lost))
            priorities[lost] = self._priorities(index)
            others, oldest = self._gather(index, self._weights(priorities[lost]))
            torn = self._lost(oldest)  # check at once, because what follows takes time too
            whole = np.setdiff1d(np.arange(len(lost)), torn)
            self._put(drawn, lost[whole], others, whole)
            lost = lost[torn]
            if not len(lost):
                drawn.weights = torch.from_numpy(self._weights(priorities))  # normalized over all of them
                return
        raise RuntimeError(_OUTRUN)

    def _priorities(self, index: np.ndarray) -> np.ndarray:
        """Returns the values to which the sampling probabilities at these indices are proportional."""
        return np.ones(len(index), np.float32)

    def _weights(self, priorities: np.ndarray) -> np.ndarray:
        """Returns the importance weights, float32 `[N]`."""
        return priorities

    def _changed(self, start: int, stop: int) -> None:
        """Called after positions start to stop − 1 of the window's `ready` were written."""


_OUTRUN = "time steps are overwritten faster than they are read; make the replay larger, or make its writer wait"
