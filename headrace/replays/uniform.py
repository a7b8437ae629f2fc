"""Replay that samples all transitions with equal probability."""

from __future__ import annotations

import numpy as np

from headrace.replays.base import Transitions
from headrace.replays.hindsight import HindsightConfig, HindsightGather
from headrace.replays.replay import Replay, draws
from headrace.replays.ring import ReplayRing, ReplaySpec
from headrace.replays.transitions import Gather

__all__ = ["UniformReplay", "transitions_reader"]


class UniformReplay(Replay[Transitions]):
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
        random = draws(seed)
        super().__init__(spec, ring, transitions_reader(spec, ring, n_step, discount, hindsight, random), random)
        self.n_step = n_step
        self.discount = discount


def transitions_reader(
    spec: ReplaySpec,
    ring: ReplayRing,
    n_step: int,
    discount: float,
    hindsight: HindsightConfig | None,
    random: np.random.Generator,
) -> Gather:
    """Returns what copies transitions out of a ring, with other goals if `hindsight` says so.

    Args:
        spec: layout of the ring.
        ring: the memory to read.
        n_step: maximum number of steps of a transition.
        discount: γ per step.
        hindsight: how goals are replaced; None: they are not.
        random: generator of the draws.
    """
    if hindsight is None:
        return Gather(spec, ring, n_step, discount)
    return HindsightGather(spec, ring, n_step, discount, hindsight, random)
