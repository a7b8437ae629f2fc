"""CategoricalDQN (C51), which learns return distributions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headrace.agents.dqn.categorical import CategoricalDqnAgent
from headrace.algos.dqn.base import QLearningAlgo, QLearningConfig, TransitionLosses
from headrace.config import checked_names, settings_in
from headrace.replays.base import Transitions

__all__ = ["CategoricalDQN", "CategoricalDQNConfig", "projected"]


@checked_names
@dataclass(frozen=True, kw_only=True)
class CategoricalDQNConfig(QLearningConfig):
    """The settings of `CategoricalDQN`. Number and range of the atoms are settings of the agent."""


@settings_in(CategoricalDQNConfig)
class CategoricalDQN(QLearningAlgo):
    """Minimizes the cross entropy between the projected target distribution and the agent's return distribution.

    The KL divergence from the target is the priority. Bellemare, Dabney and Munos, "A distributional perspective on
    reinforcement learning", 2017, algorithm 1. The agent is a `CategoricalDqnAgent`.

    Args:
        config: the settings; None: the defaults.
    """

    AgentCls = CategoricalDqnAgent
    config: CategoricalDQNConfig
    _agent: CategoricalDqnAgent
    _target: CategoricalDqnAgent

    def __init__(self, config: CategoricalDQNConfig | None = None) -> None:
        super().__init__(CategoricalDQNConfig() if config is None else config)

    def losses(self, transitions: Transitions) -> TransitionLosses:
        """See `QLearningAlgo`."""
        each = torch.arange(len(transitions.return_), device=transitions.return_.device)
        with torch.no_grad():
            following = self._target.distributions(transitions.next_inputs)
            best = self.best_next(following.q, transitions)
            p = following.logits[each, best].softmax(dim=-1)
            target = projected(p, self._agent.atoms, transitions.return_, transitions.discount)
        now = self._agent.distributions(transitions.inputs)
        action = transitions.action.long()
        loss = -(target * now.logits[each, action].log_softmax(dim=-1)).sum(dim=-1)
        # KL divergence = cross entropy − entropy of the target. Clamped because it may round below 0.
        divergence = (loss.detach() + torch.xlogy(target, target).sum(dim=-1)).clamp(min=0.0)
        info = {"klDivergence": divergence.mean(), "q": now.q.detach()[each, action].mean()}
        return TransitionLosses(loss, divergence, info)


def projected(p: torch.Tensor, atoms: torch.Tensor, return_: torch.Tensor, discount: torch.Tensor) -> torch.Tensor:
    """Projects the distribution of `return_ + discount · Z` onto the atoms; returns probabilities `[N, n_atoms]`::

        b_j = ([r + γ z_j] − V_min) / Δz
        m_l += p_j (1 − (b_j − l)),  m_{l+1} += p_j (b_j − l)     with l = ⌊b_j⌋

    where brackets clip to V_min … V_max. This is algorithm 1 of Bellemare et al., 2017, except that probability which
    falls exactly on an atom is not lost.

    Args:
        p: probabilities of Z over the atoms, float `[N, n_atoms]`.
        atoms: the atoms, float `[n_atoms]`, evenly spaced by Δz.
        return_: n-step returns, float `[N]`.
        discount: discount of Z, float `[N]`.
    """
    last = len(atoms) - 1
    spacing = (atoms[-1] - atoms[0]) / last
    moved = (return_[:, None] + discount[:, None] * atoms).clamp(atoms[0], atoms[-1])
    place = ((moved - atoms[0]) / spacing).clamp(max=last)  # rounding may exceed the last atom
    below = place.floor()
    above = place - below
    lower = below.nan_to_num().long()  # NaN is no valid index, but stays NaN in `above`
    spread = torch.zeros_like(p).scatter_add_(-1, lower, p * (1.0 - above))
    return spread.scatter_add_(-1, (lower + 1).clamp(max=last), p * above)
