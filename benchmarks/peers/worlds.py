"""The environments that all libraries step: `plain` is a CartPole without wrappers, `make` is Gymnasium's CartPole-v1,
`pong` is ALE's Pong with Gymnasium's own wrappers.

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

#: Ids of the environments that Gymnasium and EnvPool have as vector environments, too.
ENV_IDS = {"make": "CartPole-v1", "pong": "Pong-v5"}
#: What is recorded for B environments in T time steps.
T = 64
#: Worker processes of libraries that let the user choose: one per core.
WORKERS = len(os.sched_getaffinity(0))


def make_plain() -> gym.Env[Any, Any]:
    return PlainCartPole()


def make_registered() -> gym.Env[Any, Any]:
    return gym.make(ENV_IDS["make"])


def make_pong() -> gym.Env[Any, Any]:
    """Four grayscale frames [4, 84, 84], four emulator frames a step, up to 30 no-ops at the start."""
    import ale_py
    import cv2
    from gymnasium.wrappers import AtariPreprocessing, ClipReward, FrameStackObservation  # the oldest Gymnasium has not

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    cv2.setNumThreads(0)
    env = gym.make("ALE/Pong-v5", frameskip=1, obs_type="grayscale", disable_env_checker=True)
    return FrameStackObservation(ClipReward(AtariPreprocessing(env), -1.0, 1.0), 4)


WORLDS = {"plain": make_plain, "make": make_registered, "pong": make_pong}


def torch_threads(world: str) -> int:
    """Returns the number of torch threads of a process: as many as cores for convolutions, which can use them."""
    return WORKERS if world == "pong" else 1
