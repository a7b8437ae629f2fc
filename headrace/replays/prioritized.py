"""Replay that samples transitions with probabilities proportional to their priorities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from headrace.replays.hindsight import HindsightConfig
from headrace.replays.ring import ReplayRing, ReplaySpec
from headrace.replays.sum_tree import SumTree
from headrace.replays.uniform import UniformReplay
from headrace.schema import anything, fields, real, tensor, whole

__all__ = ["PrioritizedReplay"]

#: Largest priority p^α: the sum over as many of them as fit into memory stays finite.
_LARGEST = 1e290


class PrioritizedReplay(UniformReplay):
    """Proportional prioritized replay (Schaul et al., "Prioritized experience replay", 2016)::

        P(i) = p_i^α / Σ_j p_j^α,   p_i = |δ_i| + ε,   w_i = (N · P(i))^−β / max_j w_j

    (sections 3.3 and 3.4; the maximum is over the sampled transitions). New transitions get the largest
    priority so far, initially 1. Draws are stratified: the total is divided into n equal ranges, with one draw in each.

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
        if alpha < 0 or eps <= 0:
            raise ValueError(f"alpha must be at least 0 and eps more than 0, got alpha={alpha} and eps={eps}")
        super().__init__(spec, ring, n_step=n_step, discount=discount, seed=seed, hindsight=hindsight)
        self.alpha = alpha
        self.beta = beta
        self.eps = eps
        self._tree = SumTree(spec.size)
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
        """Sets the priorities of transitions; ignores those that have left the ring.

        Args:
            indices: `Transitions.indices`.
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
        kept = self._window.holds(index)  # by number, because another transition may be at the same position by now
        values = (given[kept].astype(np.float64) + self.eps) ** self.alpha
        self._tree.set(index[kept] % self.spec.size, values)
        self._largest = max(self._largest, float(values.max(initial=0.0)))

    def state_dict(self) -> dict[str, Any]:
        """Returns the random state, the priorities (float64 `[size]`) and the range of rows they belong to."""
        self._window.update()
        return {
            **super().state_dict(),
            "priorities": torch.from_numpy(self._tree.values.copy()),
            "largest": self._largest,
            "beta": self._beta,
            "oldest": self._window.oldest,
            "cursor": self._window.cursor,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; rows of the ring that were not saved get the largest priority.

        Raises:
            ValueError: for the state of a replay of another size or kind.
        """
        fields(
            {
                "random": anything,
                "priorities": tensor((self.spec.size,), torch.float64, 0),
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
        index = self._index_of(np.arange(self.spec.size))
        B = self.spec.batch.B
        known = (index >= state["oldest"] * B) & (index < state["cursor"] * B) & (saved > 0)
        self._tree.set_range(0, np.where(window.ready, np.where(known, saved, self._largest), 0.0))

    def _draw(self, n: int) -> np.ndarray:
        return self._index_of(self._tree.find((np.arange(n) + self._random.random(n)) / n))

    def _priorities(self, index: np.ndarray) -> np.ndarray:
        return self._tree.values.take(index % self.spec.size)

    def _weights(self, priorities: np.ndarray) -> np.ndarray:
        weights: np.ndarray = (priorities.min(initial=np.inf) / priorities) ** self._beta
        return weights.astype(np.float32)

    def _changed(self, start: int, stop: int) -> None:
        ready, values = self._window.ready[start:stop], self._tree.values[start:stop]
        self._tree.set_range(start, np.where(ready, np.where(values > 0, values, self._largest), 0.0))
