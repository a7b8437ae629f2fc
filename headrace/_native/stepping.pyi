from array import array
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

from headrace.envs.infos import InfoField
from headrace.types import Tree

VERSION: int

class Leaf: ...

def leaf_of(space: gymnasium.Space[Any], to: Tree) -> Leaf: ...

class Fields:
    def __init__(self, fields: Sequence[InfoField], to: dict[str, np.ndarray]) -> None: ...
    def write(self, column: int, info: Any) -> None: ...

class Row:
    fields: Fields | None
    def __init__(
        self, leaf: Leaf, fields: Fields | None, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
    ) -> None: ...

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
        keep_info: Callable[[int, Any], None] | None,
        last_info: Callable[[Any], dict[str, Any]],
        ended: list[int],
        infos: list[dict[str, Any]],
    ) -> bool: ...
    def reset(self, row: Row, columns: list[int], line: memoryview, record: Callable[[int, Any], None]) -> bool: ...
