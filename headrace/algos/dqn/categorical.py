"""CategoricalDQN (C51): distributions of returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headrace.agents.dqn.categorical import CategoricalDqnAgent
from headrace.algos.dqn.base import QLearningAlgo, QLearningConfig, TransitionLosses
from headrace.config import checked_names
from headrace.replays.base import Transitions

__all__ = ["CategoricalDQN", "CategoricalDQNConfig", "projected"]


@checked_names
@dataclass(frozen=True, kw_only=True)
class CategoricalDQNConfig(QLearningConfig):
    """The settings of `CategoricalDQN`. The returns that are told apart are the agent's: `n_atoms, V_min, V_max`."""


class CategoricalDQN(QLearningAlgo):
    """Cross entropy of the distribution of returns with the projected one of the target; the divergence from that is
    the priority.

    Bellemare, Dabney and Munos, "A distributional perspective on reinforcement learning", 2017, algorithm 1. For a
    `CategoricalDqnAgent`.
    """

    AgentCls = CategoricalDqnAgent
    config: CategoricalDQNConfig
    _agent: CategoricalDqnAgent
    _target: CategoricalDqnAgent

    def __init__(self, config: CategoricalDQNConfig | None = None) -> None:
        super().__init__(CategoricalDQNConfig() if config is None else config)

    def losses(self, transitions: Transitions) -> TransitionLosses:
        """See `QLearningAlgo`."""
        rows = torch.arange(len(transitions.return_), device=transitions.return_.device)
        with torch.no_grad():
            following = self._target.distributions(transitions.next_inputs)
            best = self.best_next(following.q, transitions)
            p = following.logits[rows, best].softmax(dim=-1)
            target = projected(p, self._agent.atoms, transitions.return_, transitions.discount)
        now = self._agent.distributions(transitions.inputs)
        action = transitions.action.long()
        loss = -(target * now.logits[rows, action].log_softmax(dim=-1)).sum(dim=-1)
        # Cross entropy less entropy; it may round below 0.
        divergence = (loss.detach() + torch.xlogy(target, target).sum(dim=-1)).clamp(min=0.0)
        info = {"klDivergence": divergence.mean(), "q": now.q.detach()[rows, action].mean()}
        return TransitionLosses(loss, divergence, info)


def projected(p: torch.Tensor, atoms: torch.Tensor, return_: torch.Tensor, discount: torch.Tensor) -> torch.Tensor:
    """The distribution of `return_ + discount · Z` over the atoms, cut to their range, `[N, n_atoms]`::

        b_j = ([r + γ z_j] − V_min) / Δz
        m_l += p_j (1 − (b_j − l)),  m_{l+1} += p_j (b_j − l)     with l = ⌊b_j⌋

    with brackets that cut to V_min … V_max: algorithm 1 of Bellemare et al., 2017, without its loss of what falls on an
    atom exactly.

    p `[N, n_atoms]`: the distribution of Z over `atoms` `[n_atoms]`, evenly spaced by Δz; return_, discount `[N]`.
    """
    last = len(atoms) - 1
    spacing = (atoms[-1] - atoms[0]) / last
    moved = (return_[:, None] + discount[:, None] * atoms).clamp(atoms[0], atoms[-1])
    place = ((moved - atoms[0]) / spacing).clamp(max=last)  # rounding may lead beyond
    below = place.floor()
    above = place - below
    lower = below.nan_to_num().long()  # what is not a number stays none, in the shares
    spread = torch.zeros_like(p).scatter_add_(-1, lower, p * (1.0 - above))
    return spread.scatter_add_(-1, (lower + 1).clamp(max=last), p * above)
