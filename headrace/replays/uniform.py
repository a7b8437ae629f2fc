"""Replay that samples all transitions with equal probability."""

from __future__ import annotations

from headrace.replays.base import Transitions
from headrace.replays.replay import Replay
from headrace.replays.ring import ReplayRing, ReplaySpec
from headrace.replays.transitions import Gather

__all__ = ["UniformReplay"]


class UniformReplay(Replay[Transitions]):
    """The learner's side of a ring that a `ReplayWriter` fills in this or another process.

    Args:
        spec: layout of the ring.
        ring: the memory to read.
        n_step: maximum number of steps of a transition.
        discount: γ per step.
        seed: seed of the draws.
    """

    def __init__(
        self, spec: ReplaySpec, ring: ReplayRing, *, n_step: int = 1, discount: float = 0.99, seed: int = 0
    ) -> None:
        super().__init__(spec, ring, Gather(spec, ring, n_step, discount), seed)
        self.n_step = n_step
        self.discount = discount
