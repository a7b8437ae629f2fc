"""DQN agents, which act ε-greedily on action values."""

from headrace.agents.dqn.categorical import (
    CategoricalDqnAgent as CategoricalDqnAgent,
    ReturnDistributions as ReturnDistributions,
)
from headrace.agents.dqn.dqn import DqnAgent as DqnAgent, DqnInfo as DqnInfo
from headrace.agents.dqn.exploration import EpsilonSchedule as EpsilonSchedule
from headrace.agents.dqn.r2d1 import R2d1Agent as R2d1Agent, R2d1AlternatingAgent as R2d1AlternatingAgent
