"""Replays of sequences of time steps, for agents with a memory."""

from __future__ import annotations

import numpy as np

from headrace.replays.base import Sequences
from headrace.replays.prioritized import Prioritized
from headrace.replays.replay import Replay, draws
from headrace.replays.ring import ReplayRing, ReplaySpec
from headrace.replays.sequences import SequenceGather, SequenceShape

__all__ = ["PrioritizedSequenceReplay", "UniformSequenceReplay", "mixed_priorities"]


def mixed_priorities(errors: np.ndarray, eta: float) -> np.ndarray:
    """Returns the priority of each sequence, `η · max |δ| + (1 − η) · mean |δ|`, float `[N]`.

    Kapturowski et al., "Recurrent experience replay in distributed reinforcement learning", 2019, section 2.3.

    Args:
        errors: `|δ|` of the learned time steps, float `[T, N]`; NaN is left out.
        eta: η.

    Returns:
        The priorities; NaN for a sequence without errors.
    """
    known = ~np.isnan(errors)
    n_known = known.sum(axis=0)
    kept = np.where(known, errors, 0.0)
    mean = kept.sum(axis=0) / np.maximum(n_known, 1)
    mixed: np.ndarray = np.where(n_known, eta * kept.max(axis=0) + (1.0 - eta) * mean, np.nan)
    return mixed


class UniformSequenceReplay(Replay[Sequences]):
    """Samples all sequences with equal probability.

    Sequences start at the rows with recurrent states, every `state_interval` of the sampler, and overlap if they are
    longer than that. They may contain ends of episodes, but nothing is missing in them. The ring should hold states
    (`ReplaySpec.state`), or the agent starts each sequence without a memory.

    Args:
        spec: layout of the ring.
        ring: the memory to read.
        shape: lengths of the sequences' parts.
        discount: γ per step.
        seed: seed of the draws.
    """

    def __init__(
        self, spec: ReplaySpec, ring: ReplayRing, shape: SequenceShape, *, discount: float = 0.99, seed: int = 0
    ) -> None:
        super().__init__(spec, ring, SequenceGather(spec, ring, shape, discount), draws(seed))
        self.shape = shape
        self.discount = discount


class PrioritizedSequenceReplay(Prioritized[Sequences]):
    """Samples sequences in proportion to their priorities; see `UniformSequenceReplay` and `Prioritized`.

    If errors of steps are stored with them (`ReplaySpec.errors`), a new sequence gets its priority from the errors of
    its learned steps, see `mixed_priorities`; without known errors, it gets the largest priority so far.

    Args:
        spec: layout of the ring.
        ring: the memory to read.
        shape: lengths of the sequences' parts.
        discount: γ per step.
        seed: seed of the draws.
        alpha: exponent of the priorities; 0 is uniform sampling.
        beta: exponent of the importance weights; 1 corrects the bias fully. May be changed at any time.
        eta: η of the priorities of new sequences.
        eps: added to every priority.
    """

    def __init__(
        self,
        spec: ReplaySpec,
        ring: ReplayRing,
        shape: SequenceShape,
        *,
        discount: float = 0.99,
        seed: int = 0,
        alpha: float = 0.6,
        beta: float = 0.4,
        eta: float = 0.9,
        eps: float = 1e-6,
    ) -> None:
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must be between 0 and 1, got {eta!r}")
        super().__init__(spec, ring, SequenceGather(spec, ring, shape, discount), draws(seed), alpha, beta, eps)
        self.shape = shape
        self.discount = discount
        self.eta = eta

    def _first_values(self, positions: np.ndarray) -> np.ndarray:
        """See `Prioritized`."""
        values = np.full(len(positions), self._largest)
        if self.ring.error is not None:
            place, column = np.divmod(positions, self.spec.batch.B)
            learned = self.shape.warmup_T + np.arange(self.shape.batch_T)[:, None]
            errors = self.ring.error[(place * self.spec.every + learned) % self.spec.n_rows, column]
            mixed = mixed_priorities(errors, self.eta)
            known = ~np.isnan(mixed)
            values[known] = self._powers(mixed[known])
            self._largest = max(self._largest, float(values.max(initial=0.0)))
        return values
