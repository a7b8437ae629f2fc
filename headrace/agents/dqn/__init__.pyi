"""DQN agents, which act ε-greedily on action values."""

from headrace.agents.dqn.categorical import (
    CategoricalDqnAgent as CategoricalDqnAgent,
    ReturnDistributions as ReturnDistributions,
)
from headrace.agents.dqn.dqn import DqnAgent as DqnAgent, DqnInfo as DqnInfo
from headrace.agents.dqn.exploration import EpsilonSchedule as EpsilonSchedule
