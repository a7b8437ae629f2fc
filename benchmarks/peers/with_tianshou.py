"""Tianshou: its Collector fills a VectorReplayBuffer; values and log-probs are computed when it learns, so not here."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from loop import Collect
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv, SubprocVectorEnv
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import DiscreteActor, dist_fn_categorical_from_logits
from torch import nn
from worlds import WORLDS, T


def collector(mode: str, world: str, B: int) -> Collect:
    """mode: dummy (this process), subproc (a process per environment)."""
    makers = [WORLDS[world]] * B
    envs: Any = SubprocVectorEnv(makers) if mode == "subproc" else DummyVectorEnv(makers)
    actions = spaces.Discrete(2)
    body = Net(state_shape=(4,), hidden_sizes=[64, 64], activation=nn.Tanh)
    actor = DiscreteActor(preprocess_net=body, action_shape=2, softmax_output=False)
    policy = ProbabilisticActorPolicy(
        actor=actor, dist_fn=dist_fn_categorical_from_logits, action_space=actions, action_scaling=False
    )
    buffer = VectorReplayBuffer(T * B, B)
    rows: Collector[Any] = Collector(policy, envs, buffer)
    rows.reset()

    def collect(n_batches: int) -> int:
        for _ in range(n_batches):
            rows.reset_buffer()
            rows.collect(n_step=T * B)
        return n_batches * T * B

    return collect
