"""The environments that all libraries step: `plain` is a CartPole without wrappers, `make` is Gymnasium's CartPole-v1.

Imported by the interpreters of the libraries, which do not have headrace.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym

sys.path.append(str(Path(__file__).resolve().parents[1]))
from plain_cartpole import PlainCartPole

ENV_ID = "CartPole-v1"
#: What is recorded for B environments in T time steps, with the network MLP 64-64 and one torch thread per process.
T = 64
#: Worker processes of libraries that let the user choose: one per core.
WORKERS = len(os.sched_getaffinity(0))


def make_plain() -> gym.Env[Any, Any]:
    return PlainCartPole()


def make_registered() -> gym.Env[Any, Any]:
    return gym.make(ENV_ID)


WORLDS = {"plain": make_plain, "make": make_registered}
