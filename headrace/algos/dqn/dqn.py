"""DQN, which learns action values by temporal differences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from headrace.algos.checks import require
from headrace.algos.dqn.base import QLearningAlgo, QLearningConfig, TransitionLosses
from headrace.config import checked_names, settings_in
from headrace.replays.base import Transitions

__all__ = ["DQN", "DQNConfig"]


@checked_names
@dataclass(frozen=True, kw_only=True)
class DQNConfig(QLearningConfig):
    """The settings of `DQN`."""

    delta_clip: float | None = None
    """Errors beyond this count linearly (Huber loss) instead of squared; None: all are squared. 1 is usual if rewards
    are rare and clipped to ±1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delta_clip is not None:
            require("delta_clip", self.delta_clip, 0.0, math.inf)


@settings_in(DQNConfig)
class DQN(QLearningAlgo):
    """Minimizes the squared or Huber loss of `δ = return + discount · Q_target(s', a*) − Q(s, a)`; priority is `|δ|`.

    Mnih et al., "Human-level control through deep reinforcement learning", Nature 2015. a* is the best action of the
    target network or, for double DQN, of the online network (van Hasselt et al., "Deep reinforcement learning with
    double Q-learning", 2016, equation 4).

    Args:
        config: the settings; None: the defaults.
    """

    config: DQNConfig

    def __init__(self, config: DQNConfig | None = None) -> None:
        super().__init__(DQNConfig() if config is None else config)

    def losses(self, transitions: Transitions) -> TransitionLosses:
        """See `QLearningAlgo`."""
        with torch.no_grad():
            next_q = self._target(transitions.next_inputs).q
            best = self.best_next(next_q, transitions)
            value = next_q.gather(-1, best[:, None])[:, 0]
            target = transitions.return_ + transitions.discount * value
        q = self._agent(transitions.inputs).q.gather(-1, transitions.action.long()[:, None])[:, 0]
        error = (target - q).detach().abs()
        return TransitionLosses(self._penalty(q, target), error, {"tdAbsErr": error.mean(), "q": q.detach().mean()})

    def _penalty(self, q: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns ½δ², linear beyond `delta_clip`, float `[N]`."""
        if self.config.delta_clip is None:
            return 0.5 * (target - q).square()
        return functional.huber_loss(q, target, reduction="none", delta=self.config.delta_clip)
