import numpy as np

VERSION: int

def network(
    rows: np.ndarray, weights: list[np.ndarray], biases: list[np.ndarray], outputs: list[np.ndarray]
) -> None: ...
def network_gradient(
    gradient: np.ndarray,
    weights: list[np.ndarray],
    inputs: list[np.ndarray],
    of_weights: list[np.ndarray],
    of_biases: list[np.ndarray],
    of_rows: np.ndarray | None,
) -> None: ...
def categorical(logits: np.ndarray, probability: np.ndarray, log_total: np.ndarray) -> None: ...
def categorical_log_prob(
    logits: np.ndarray, action: np.ndarray, probability: np.ndarray, log_prob: np.ndarray
) -> bool: ...
def categorical_log_prob_gradient(
    gradient: np.ndarray, probability: np.ndarray, action: np.ndarray, to: np.ndarray
) -> None: ...
def categorical_entropy(
    logits: np.ndarray, probability: np.ndarray, log_total: np.ndarray, entropy: np.ndarray
) -> None: ...
def categorical_entropy_gradient(
    gradient: np.ndarray,
    logits: np.ndarray,
    probability: np.ndarray,
    log_total: np.ndarray,
    entropy: np.ndarray,
    to: np.ndarray,
) -> None: ...
def gaussian_log_prob(
    mean: np.ndarray,
    log_std: np.ndarray,
    action: np.ndarray,
    log_prob: np.ndarray,
    by_mean: np.ndarray,
    by_log_std: np.ndarray,
) -> None: ...
def ppo_losses(
    log_prob: np.ndarray,
    entropy: np.ndarray,
    value: np.ndarray,
    old_log_prob: np.ndarray,
    advantage: np.ndarray,
    returns: np.ndarray,
    old_value: np.ndarray,
    clip: float,
    value_clip: float,
    by_log_prob: np.ndarray,
    by_value: np.ndarray,
) -> tuple[float, float, float, float, float]: ...
