from array import array
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from headrace.types import Tree

VERSION: int

class Leaf: ...

def leaf_of(space: gymnasium.Space[Any], to: Tree) -> Leaf: ...

class Row:
    def __init__(self, leaf: Leaf, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> None: ...

class Stepper:
    def __init__(self, env_ids: list[int], resets: list[Callable[[], Any]], env_cell: int) -> None: ...
    def step(
        self,
        row: Row,
        columns: list[int] | None,
        steps: list[Callable[[Any], Any]],
        actions: list[Any],
        rewards: array[float],
        line: memoryview,
        record: Callable[[int, Any], None],
        take_info: Callable[[int, Any], None] | None,
        last_info: Callable[[Any], dict[str, Any]],
        ended: list[int],
        infos: list[dict[str, Any]],
    ) -> bool: ...
    def reset(self, row: Row, columns: list[int], line: memoryview, record: Callable[[int, Any], None]) -> bool: ...
