from collections.abc import Sequence

import numpy as np

VERSION: int
ROWS_ARE_INDEPENDENT: bool
LARGEST_PRODUCT: int

class Network:
    n: int
    n_out: int
    def __init__(self, sizes: Sequence[int], observation: Sequence[np.ndarray]) -> None: ...
    def load(
        self,
        layers: Sequence[tuple[np.ndarray, np.ndarray]],
        norm: tuple[np.ndarray, np.ndarray, float] | None,
    ) -> None: ...

class LstmNetwork(Network):
    def __init__(
        self,
        sizes: Sequence[int],
        observation: Sequence[np.ndarray],
        prev_action: np.ndarray,
        prev_reward: np.ndarray,
    ) -> None: ...
    def enter(self, h: np.ndarray, c: np.ndarray) -> None: ...

class ActorRows:
    def __init__(
        self, policy: Network, value: Network | None, noise: np.ndarray, action: np.ndarray, values: np.ndarray
    ) -> None: ...
    def act(self, t: int) -> bool: ...
    def value(self, t: int, to: np.ndarray) -> bool: ...

class CategoricalRows(ActorRows):
    def __init__(
        self,
        policy: Network,
        value: Network | None,
        noise: np.ndarray,
        action: np.ndarray,
        values: np.ndarray,
        logits: np.ndarray,
    ) -> None: ...
    def load(self, greedy: bool) -> None: ...

class GaussianRows(ActorRows):
    def __init__(
        self,
        policy: Network,
        value: Network | None,
        noise: np.ndarray,
        action: np.ndarray,
        values: np.ndarray,
        mean: np.ndarray,
        log_std: np.ndarray,
    ) -> None: ...
    def load(
        self,
        greedy: bool,
        middle: np.ndarray,
        half: np.ndarray,
        offset: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
    ) -> None: ...

class ValueRows:
    def __init__(
        self,
        network: Network,
        shared: Network | None,
        noise: np.ndarray,
        action: np.ndarray,
        q: np.ndarray,
    ) -> None: ...
    def load(self, epsilon: np.ndarray, atoms: np.ndarray | None) -> None: ...
    def act(self, t: int) -> bool: ...
    def value(self, t: int, to: np.ndarray) -> bool: ...
