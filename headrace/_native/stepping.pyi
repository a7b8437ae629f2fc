from collections.abc import Callable, Sequence
from typing import Any

import gymnasium

from headrace.types import Tree

VERSION: int

class Leaf: ...

def leaf_of(space: gymnasium.Space[Any], to: Tree) -> Leaf: ...
def step_columns(
    leaf: Leaf,
    columns: Sequence[int] | None,
    env_ids: Sequence[int],
    steps: Sequence[Callable[[Any], Any]],
    actions: Sequence[Any],
    rewards: Any,
    line: memoryview,
    env_cell: int,
    record: Callable[[int, Any], None],
    take_info: Callable[[int, Any], None] | None,
) -> bool: ...
