import numpy as np

VERSION: int

def uniforms(keys: np.ndarray, first: int, to: np.ndarray) -> None: ...
def add_episodes(
    reward: np.ndarray,
    stepped: np.ndarray,
    times: np.ndarray,
    columns: np.ndarray,
    begin: np.ndarray,
    gap: int,
    discount: float,
    first: np.ndarray,
    length: np.ndarray,
    returns: np.ndarray,
    discounted: np.ndarray,
    nonzero: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]: ...
