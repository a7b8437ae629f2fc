"""Environments that do not survive a pickle. The module imports little, because another interpreter imports it."""

import threading
from typing import Any

import numpy as np

from tests.walk import Walk

STEPS: dict[int, int] = {0: 0}


class Forgets(Walk):
    """Pickles its constructor arguments only."""

    def __reduce__(self) -> Any:
        return Forgets, ()


class ForgetsItsGenerator(Walk):
    """Pickles everything except its random generator."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_np_random": np.random.default_rng(0)}


class HoldsALock(Walk):
    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()


class Large(Walk):
    def __init__(self) -> None:
        super().__init__()
        self._data = bytes(65 << 20)


class LoadsNowhere(Walk):
    """Cannot be unpickled if it is an evaluation environment."""

    def __init__(self, evaluates: bool = False) -> None:
        super().__init__()
        self.evaluates = evaluates

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["evaluates"]:
            raise RuntimeError("no display")
        vars(self).update(state)


class ForgetsWhenItEvaluates(LoadsNowhere):
    """A copy of an evaluation environment shows other observations."""

    _is_copy = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _is_copy=True)

    def step(self, action: np.int64) -> Any:
        observation, *rest = super().step(action)
        return (observation + float(self.evaluates and self._is_copy), *rest)


class Ticks(Walk):
    """Counts in a global of its module, which a reset sets to 0."""

    def reset(self, **more: Any) -> Any:
        STEPS[0] = 0
        return super().reset(**more)

    def step(self, action: np.int64) -> Any:
        STEPS[0] += 1
        observation, reward, *_ = super().step(action)
        return observation + STEPS[0], reward, False, False, {}
