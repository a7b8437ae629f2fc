"""DQN algorithms: action values from a replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
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

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "CategoricalDQN": "headrace.algos.dqn.categorical",
        "CategoricalDQNConfig": "headrace.algos.dqn.categorical",
        "DQN": "headrace.algos.dqn.dqn",
        "DQNConfig": "headrace.algos.dqn.dqn",
        "QLearningAlgo": "headrace.algos.dqn.base",
        "QLearningConfig": "headrace.algos.dqn.base",
        "TransitionLosses": "headrace.algos.dqn.base",
    },
)
