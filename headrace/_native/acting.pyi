from collections.abc import Sequence

import numpy as np

VERSION: int

class Network:
    n: int
    n_in: int
    n_out: int
    def __init__(self, sizes: Sequence[int], n: int) -> None: ...
    def load(self, layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> None: ...

class CategoricalRows:
    def __init__(
        self,
        policy: Network,
        value: Network | None,
        observation: np.ndarray,
        noise: np.ndarray,
        action: np.ndarray,
        logits: np.ndarray,
        values: np.ndarray,
    ) -> None: ...
    def act(self, t: int, greedy: bool) -> bool: ...
    def value(self, t: int, to: np.ndarray) -> bool: ...
