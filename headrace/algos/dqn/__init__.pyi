"""DQN algorithms, which learn action values from a replay buffer."""

from headrace.algos.dqn.base import (
    QLearningAlgo as QLearningAlgo,
    QLearningConfig as QLearningConfig,
    TransitionLosses as TransitionLosses,
)
from headrace.algos.dqn.categorical import (
    CategoricalDQN as CategoricalDQN,
    CategoricalDQNConfig as CategoricalDQNConfig,
)
from headrace.algos.dqn.dqn import DQN as DQN, DQNConfig as DQNConfig
from headrace.algos.dqn.r2d1 import (
    R2D1 as R2D1,
    R2D1Config as R2D1Config,
    rescaled as rescaled,
    unscaled as unscaled,
)
