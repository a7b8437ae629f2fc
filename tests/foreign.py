"""Environments with peculiarities of other packages: they do what is not allowed, or need what they do not declare."""

import os
import sys
import threading
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from tests.walk import Walk

__all__ = ["Exits", "Hangs", "MadeAtRunTime", "MadeNowhere", "NeedsAWorld", "OnePerProcess"]


class Exits(Walk):
    """Ends its process without an exception, like a library that lost its display."""

    def step(self, action: Any) -> Any:
        os._exit(1)


class Hangs(Walk):
    """Waits for a thread that does not exist after a fork."""

    def step(self, action: Any) -> Any:
        threading.Event().wait(100)


class NeedsAWorld(Walk):
    def __init__(self, world: str) -> None:
        super().__init__()


class OnePerProcess(Walk):
    """Allows one environment per process, like an emulator that is a global of its library."""

    made_in = 0

    def __init__(self) -> None:
        if OnePerProcess.made_in == os.getpid():
            raise RuntimeError("cannot create multiple emulator instances")
        OnePerProcess.made_in = os.getpid()
        super().__init__()


class _Spaced(gym.Env[Any, Any]):
    def __init__(self, cls: type[spaces.Box]) -> None:
        self.observation_space = cls(-1, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(2)


class MadeAtRunTime(_Spaced):
    """Its space has a class that is added to a module when the environment is made, that is, only in the worker."""

    def __init__(self) -> None:
        cls = type("GridSpace", (spaces.Box,), {"__module__": __name__})
        setattr(sys.modules[__name__], "GridSpace", cls)  # noqa: B010
        super().__init__(cls)


class MadeNowhere(_Spaced):
    """Its space has a class that is in no module."""

    def __init__(self) -> None:
        super().__init__(type("LostSpace", (spaces.Box,), {"__module__": __name__}))
