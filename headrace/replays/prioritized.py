"""Replays that sample with probabilities proportional to priorities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from headrace.replays.base import Drawn, Transitions
from headrace.replays.hindsight import HindsightConfig
from headrace.replays.replay import Reader, Replay, draws
from headrace.replays.ring import ReplayRing, ReplaySpec
from headrace.replays.sum_tree import SumTree
from headrace.replays.uniform import transitions_reader
from headrace.schema import anything, fields, real, tensor, whole

__all__ = ["Prioritized", "PrioritizedReplay"]

#: Largest priority p^α: the sum over as many of them as fit into memory stays finite.
_LARGEST = 1e290


class Prioritized(Replay[Drawn]):
    """Proportional prioritized replay (Schaul et al., "Prioritized experience replay", 2016)::

        P(i) = p_i^α / Σ_j p_j^α,   p_i = |δ_i| + ε,   w_i = (N · P(i))^−β / max_j w_j

    (sections 3.3 and 3.4; the maximum is over what was sampled). New entries get the largest priority so far, initially
    1. Draws are stratified: the total is divided into n equal ranges, with one draw in each. Users construct one of its
    subclasses.

    Args:
        spec: layout of the ring.
        ring: the memory to read.
        gather: copies what was drawn.
        random: generator of the draws.
        alpha: exponent of the priorities; 0 is uniform sampling.
        beta: exponent of the importance weights; 1 corrects the bias fully. May be changed at any time.
        eps: ε.
    """

    def __init__(
        self,
        spec: ReplaySpec,
        ring: ReplayRing,
        gather: Reader[Drawn],
        random: np.random.Generator,
        alpha: float,
        beta: float,
        eps: float,
    ) -> None:
        if alpha < 0 or eps <= 0:
            raise ValueError(f"alpha must be at least 0 and eps more than 0, got alpha={alpha} and eps={eps}")
        super().__init__(spec, ring, gather, random)
        self.alpha = alpha
        self.beta = beta
        self.eps = eps
        self._tree = SumTree(self._window.size)
        self._largest = 1.0  # largest p^α ever stored in the tree

    @property
    def beta(self) -> float:
        """Exponent β of the importance weights."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        if not value >= 0:
            raise ValueError(f"beta must be at least 0, got {value}")
        self._beta = float(value)

    def update_priorities(self, indices: Any, priorities: torch.Tensor) -> None:
        """Sets priorities; ignores those of entries that have left the ring.

        Args:
            indices: `indices` of what was sampled.
            priorities: `[N]`, for example `|δ|`; absolute values are taken.

        Raises:
            ValueError: if the shapes differ or a priority is not finite.
        """
        given = np.abs(np.asarray(priorities.detach().cpu() if isinstance(priorities, torch.Tensor) else priorities))
        index = np.asarray(indices)
        if given.shape != index.shape:
            raise ValueError(f"priorities must have the shape of indices, {list(index.shape)}, got {list(given.shape)}")
        if not np.isfinite(given).all():
            raise ValueError("priorities must be finite, got NaN or infinity; the loss has diverged")
        self._window.update()
        kept = self._window.holds(index)  # by number, because another entry may be at the same position by now
        values = self._powers(given[kept])
        self._tree.set(index[kept] % self._window.size, values)
        self._largest = max(self._largest, float(values.max(initial=0.0)))

    def state_dict(self) -> dict[str, Any]:
        """Returns the random state, the priorities (float64 `[size]`) and the range of places they belong to."""
        self._window.update()
        return {
            **super().state_dict(),
            "priorities": torch.from_numpy(self._tree.values.copy()),
            "largest": self._largest,
            "beta": self._beta,
            "oldest": self._window.first,
            "cursor": self._window.stop,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; rows of the ring that were not saved get the priority of new ones.

        Raises:
            ValueError: for the state of a replay of another size or kind.
        """
        fields(
            {
                "random": anything,
                "priorities": tensor((self._window.size,), torch.float64, 0),
                "largest": real(0, _LARGEST),
                "beta": real(0, _LARGEST),
                "oldest": whole(),
                "cursor": whole(),
            }
        )(state, "replay")
        saved = np.asarray(state["priorities"])
        if saved.max() > _LARGEST:
            raise ValueError(f"replay.priorities has {saved.max()}, expected at most {_LARGEST:g}")
        super().load_state_dict(state)
        self._largest, self.beta = float(state["largest"]), state["beta"]
        window = self._window
        window.update()
        index = window.index_of(np.arange(window.size))
        B = self.spec.batch.B
        known = (index >= state["oldest"] * B) & (index < state["cursor"] * B) & (saved > 0)
        self._tree.set_range(0, self._entering(0, window.ready, np.where(known, saved, 0.0)))

    def _draw(self, n: int) -> np.ndarray:
        return self._window.index_of(self._tree.find((np.arange(n) + self._random.random(n)) / n))

    def _priorities(self, index: np.ndarray) -> np.ndarray:
        return self._tree.values.take(index % self._window.size)

    def _weights(self, priorities: np.ndarray) -> np.ndarray:
        weights: np.ndarray = (priorities.min(initial=np.inf) / priorities) ** self._beta
        return weights.astype(np.float32)

    def _changed(self, start: int, stop: int) -> None:
        ready, values = self._window.ready[start:stop], self._tree.values[start:stop]
        self._tree.set_range(start, self._entering(start, ready, values))

    def _entering(self, start: int, ready: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Returns the values of the tree from position `start` on: those given, or of new entries where they are 0."""
        entering = np.where(ready, values, 0.0)
        new = (ready & (values == 0)).nonzero()[0]
        if len(new):
            entering[new] = self._first_values(start + new)
        return entering

    def _first_values(self, positions: np.ndarray) -> Any:
        """Returns p^α of new entries at these positions, one for all or float64 `[n]`."""
        return self._largest

    def _powers(self, priorities: np.ndarray) -> np.ndarray:
        """Returns p^α of absolute errors `[n]`: float64 `[n]`."""
        powers: np.ndarray = (priorities.astype(np.float64) + self.eps) ** self.alpha
        return powers


class PrioritizedReplay(Prioritized[Transitions]):
    """Prioritized replay of transitions; see `Prioritized`.

    Args:
        spec: layout of the ring.
        ring: the memory to read.
        n_step: maximum number of steps of a transition.
        discount: γ per step.
        seed: seed of the draws.
        alpha: exponent of the priorities; 0 is uniform sampling.
        beta: exponent of the importance weights; 1 corrects the bias fully. May be changed at any time.
        eps: ε.
        hindsight: see `UniformReplay`.
    """

    def __init__(
        self,
        spec: ReplaySpec,
        ring: ReplayRing,
        *,
        n_step: int = 1,
        discount: float = 0.99,
        seed: int = 0,
        alpha: float = 0.6,
        beta: float = 0.4,
        eps: float = 1e-6,
        hindsight: HindsightConfig | None = None,
    ) -> None:
        random = draws(seed)
        reader = transitions_reader(spec, ring, n_step, discount, hindsight, random)
        super().__init__(spec, ring, reader, random, alpha, beta, eps)
        self.n_step = n_step
        self.discount = discount
