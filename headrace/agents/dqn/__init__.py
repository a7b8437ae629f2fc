"""DQN agents: ε-greedy by values of actions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.agents.dqn.categorical import (
        CategoricalDqnAgent as CategoricalDqnAgent,
        ReturnDistributions as ReturnDistributions,
    )
    from headrace.agents.dqn.dqn import DqnAgent as DqnAgent, DqnInfo as DqnInfo
    from headrace.agents.dqn.exploration import EpsilonSchedule as EpsilonSchedule

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "CategoricalDqnAgent": "headrace.agents.dqn.categorical",
        "DqnAgent": "headrace.agents.dqn.dqn",
        "DqnInfo": "headrace.agents.dqn.dqn",
        "EpsilonSchedule": "headrace.agents.dqn.exploration",
        "ReturnDistributions": "headrace.agents.dqn.categorical",
    },
)
