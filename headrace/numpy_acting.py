"""The classes of `headrace/_native/acting.pyx` in NumPy, which run where nothing is compiled, and the draws of actions.

`headrace.distributions` draws small batches by the same functions. Importing this module loads no torch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

__all__ = [
    "LARGEST_PRODUCT",
    "ROWS_ARE_INDEPENDENT",
    "CategoricalRows",
    "GaussianRows",
    "LstmNetwork",
    "Network",
    "ValueRows",
    "draw_categorical",
    "draw_epsilon_greedy",
    "draw_gaussian",
    "dueling",
    "mean_of_atoms",
    "normalized",
]

#: Whether the outputs of a row are the same bits whatever the number of rows. Those of a matrix product are not.
ROWS_ARE_INDEPENDENT = False
#: Multiplications of one matrix product. Above this, OpenBLAS starts threads, for which workers have no cores.
LARGEST_PRODUCT = 1 << 18


def normalized(vectors: np.ndarray, shift: np.ndarray, scale: np.ndarray, clip: float) -> np.ndarray:
    """Returns `(vectors − shift) · scale`, limited to ±`clip`, in new memory."""
    normal: np.ndarray = vectors - shift
    normal *= scale
    np.minimum(normal, clip, out=normal)
    np.maximum(normal, -clip, out=normal)
    return normal


def draw_categorical(logits: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Returns actions, int64 `[...]`; see `headrace.distributions.Categorical.sample`."""
    cumulated = np.exp(logits - logits.max(axis=-1, keepdims=True)).cumsum(axis=-1)
    return np.asarray((cumulated >= noise * cumulated[..., -1:]).argmax(axis=-1))


def draw_gaussian(mean: np.ndarray, log_std: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Returns vectors, float `[..., d]`; see `headrace.distributions.Gaussian.sample`."""
    half = noise.shape[-1] // 2
    radius = np.sqrt(-2.0 * np.log(noise[..., :half]))
    angle = np.float32(2.0 * math.pi) * noise[..., half:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)[..., : mean.shape[-1]]
    drawn: np.ndarray = mean + np.exp(log_std) * normal
    return drawn


def draw_epsilon_greedy(q: np.ndarray, noise: np.ndarray, epsilon: float | np.ndarray) -> np.ndarray:
    """Returns actions, int64 `[...]`; see `headrace.distributions.EpsilonGreedy.sample`."""
    action = np.asarray(q.argmax(axis=-1))
    explores = noise[..., 0] < epsilon
    if explores.any():  # late in training few elements explore
        # float32, as in torch's comparison, so that both code paths choose the same action.
        count = (q > -np.inf).cumsum(axis=-1, dtype=np.float32)
        anywhere = (count >= noise[..., 1:2] * count[..., -1:]).argmax(axis=-1)
        action = np.where(explores, anywhere, action)
    return action


def dueling(advantage: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Returns `value + advantage − its mean over actions`, in the memory of `advantage`.

    Args:
        advantage: float `[..., n_actions, n_atoms]`.
        value: float `[..., n_atoms]`.
    """
    advantage += value[..., None, :] - advantage.mean(axis=-2, keepdims=True)
    return advantage


def mean_of_atoms(logits: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Returns the means, float `[...]`, of distributions over atoms `[n_atoms]` given by logits `[..., n_atoms]`."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights @ atoms / weights.sum(axis=-1))


class Network:
    """See `headrace/_native/acting.pyx`."""

    def __init__(self, sizes: Sequence[int], observation: Sequence[np.ndarray]) -> None:
        n_rows, n = observation[0].shape[:2]
        self._parts = [part.reshape(n_rows, n, -1) for part in observation]
        self._outputs = [np.zeros((n, size), np.float32) for size in sizes[1:]]
        self.n, self.n_out = n, sizes[-1]

    def load(
        self,
        layers: Sequence[tuple[np.ndarray, np.ndarray]],
        norm: tuple[np.ndarray, np.ndarray, float] | None,
    ) -> None:
        """Copies the parameters."""
        self._layers = [(weight.copy().T, bias.copy()) for weight, bias in layers]
        self._norm = None if norm is None else (norm[0].copy(), norm[1].copy(), norm[2])

    def _see(self, t: int) -> np.ndarray:
        parts = [part[t] for part in self._parts]
        x = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        return x if self._norm is None else normalized(x, *self._norm)

    def run(self, t: int) -> np.ndarray:
        """Returns the outputs `[n, n_out]` of row t, which the next call overwrites."""
        x, last = self._see(t), self._outputs[-1]
        for (weight, bias), output in zip(self._layers, self._outputs, strict=True):
            np.matmul(x, weight, out=output)
            output += bias
            x = output
            if output is not last:
                np.tanh(output, out=output)
        return last

    def keep(self) -> None:
        """Makes the state after the row that ran last the state of the next row."""


class LstmNetwork(Network):
    """See `headrace/_native/acting.pyx`."""

    def __init__(
        self,
        sizes: Sequence[int],
        observation: Sequence[np.ndarray],
        prev_action: np.ndarray,
        prev_reward: np.ndarray,
    ) -> None:
        super().__init__(sizes, observation)
        self._prev_action, self._prev_reward = prev_action, prev_reward
        self._codes = np.eye(sizes[1], dtype=np.float32) if prev_action.ndim == 2 else None

    def enter(self, h: np.ndarray, c: np.ndarray) -> None:
        """Sets the memory of the state, float32 `[n, sizes[3]]` each, which `act` updates."""
        self._h, self._c = h, c

    def run(self, t: int) -> np.ndarray:
        """Returns the outputs `[n, n_out]` of row t."""
        action, reward = self._prev_action[t], self._prev_reward[t, :, None]
        if self._codes is not None:
            action = self._codes[action.clip(0, len(self._codes) - 1)]
        x = np.concatenate([self._see(t), action, reward], axis=-1)
        (weight, bias), of_input, of_state, head = self._layers
        x = np.tanh(x @ weight + bias)
        gates = x @ of_input[0]
        gates += self._h @ of_state[0]
        gates += of_input[1]
        gates += of_state[1]
        i, f, g, o = np.split(gates, 4, axis=-1)
        self._c_next = _sigmoid(f) * self._c + _sigmoid(i) * np.tanh(g)
        self._h_next = _sigmoid(o) * np.tanh(self._c_next)
        product: np.ndarray = self._h_next @ head[0] + head[1]
        return product

    def keep(self) -> None:
        """See `Network`."""
        self._h[:], self._c[:] = self._h_next, self._c_next


class ActorRows(ABC):
    """See `headrace/_native/acting.pyx`."""

    def __init__(
        self, policy: Network, value: Network | None, noise: np.ndarray, action: np.ndarray, values: np.ndarray
    ) -> None:
        self._policy, self._value = policy, value
        self._noise, self._action, self._values = noise, action, values
        self._n_outputs = policy.n_out - (value is None)

    def _infer(self, t: int, values: np.ndarray) -> np.ndarray:
        outputs = self._policy.run(t)
        values[:] = outputs[:, -1] if self._value is None else self._value.run(t)[:, 0]
        return outputs[:, : self._n_outputs]

    @abstractmethod
    def _draw(self, t: int, outputs: np.ndarray) -> bool:
        """Writes distributions and actions of row t; returns whether they are finite."""

    def act(self, t: int) -> bool:
        """Writes row t and updates the state; returns False, with the state unchanged, if an output is not finite."""
        values = self._values[t]
        if not self._draw(t, self._infer(t, values)) or not _finite(values):
            return False
        self._policy.keep()
        return True

    def value(self, t: int, to: np.ndarray) -> bool:
        """Writes the values of row t into `to`, `[n]`; returns whether they are finite."""
        self._infer(t, to)
        return _finite(to)


class CategoricalRows(ActorRows):
    """See `headrace/_native/acting.pyx`."""

    def __init__(
        self,
        policy: Network,
        value: Network | None,
        noise: np.ndarray,
        action: np.ndarray,
        values: np.ndarray,
        logits: np.ndarray,
    ) -> None:
        super().__init__(policy, value, noise, action, values)
        self._logits = logits

    def load(self, greedy: bool) -> None:
        """Sets whether to take the most probable actions."""
        self._greedy = greedy

    def _draw(self, t: int, outputs: np.ndarray) -> bool:
        self._logits[t] = outputs
        if not _finite(outputs):
            return False
        self._action[t] = outputs.argmax(axis=-1) if self._greedy else draw_categorical(outputs, self._noise[t])
        return True


class GaussianRows(ActorRows):
    """See `headrace/_native/acting.pyx`."""

    def __init__(
        self,
        policy: Network,
        value: Network | None,
        noise: np.ndarray,
        action: np.ndarray,
        values: np.ndarray,
        mean: np.ndarray,
        log_std: np.ndarray,
    ) -> None:
        super().__init__(policy, value, noise, action, values)
        self._mean, self._log_std = mean, log_std

    def load(
        self,
        greedy: bool,
        middle: np.ndarray,
        half: np.ndarray,
        offset: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
    ) -> None:
        """Sets whether to take the means, and how outputs become distributions."""
        self._greedy, self._middle, self._half = greedy, middle, half
        self._offset, self._low, self._high = offset, low, high

    def _draw(self, t: int, outputs: np.ndarray) -> bool:
        mean, log_std, action = self._mean[t], self._log_std[t], self._action[t]
        d = mean.shape[-1]
        np.multiply(self._half, outputs[:, :d], out=mean)
        mean += self._middle
        log_std[:] = self._offset
        if outputs.shape[1] > d:
            log_std += outputs[:, d:]
            np.maximum(log_std, self._low, out=log_std)
            np.minimum(log_std, self._high, out=log_std)
        action[:] = mean if self._greedy else draw_gaussian(mean, log_std, self._noise[t])
        return _finite(action) and _finite(log_std)  # an action is not finite if its mean is not


class ValueRows:
    """See `headrace/_native/acting.pyx`."""

    def __init__(
        self,
        network: Network,
        shared: Network | None,
        noise: np.ndarray,
        action: np.ndarray,
        q: np.ndarray,
    ) -> None:
        self._network, self._shared = network, shared
        self._noise, self._action, self._q = noise, action, q
        self._shape = (network.n, q.shape[2], network.n_out // q.shape[2])

    def load(self, epsilon: np.ndarray, atoms: np.ndarray | None) -> None:
        """Sets ε, float32 `[1]` or of every environment by its env id, and the atoms, float32 `[n_atoms]`, or None."""
        env_ids = self._noise[0, :, -1].astype(np.int64)
        self._epsilon = epsilon if len(epsilon) == 1 else epsilon[env_ids % len(epsilon)]
        self._atoms = None if atoms is None else atoms.copy()

    def _infer(self, t: int) -> np.ndarray:
        outputs = self._network.run(t).reshape(self._shape)
        if self._shared is not None:
            dueling(outputs, self._shared.run(t))
        return outputs[..., 0] if self._atoms is None else mean_of_atoms(outputs, self._atoms)

    def act(self, t: int) -> bool:
        """Writes row t; returns False, having written nothing of use, if a value is not finite."""
        q = self._q[t]
        q[:] = self._infer(t)
        self._action[t] = draw_epsilon_greedy(q, self._noise[t], self._epsilon)
        return _finite(q)

    def value(self, t: int, to: np.ndarray) -> bool:
        """Writes the values of the best actions of row t into `to`, `[n]`; returns whether all values are finite."""
        q = self._infer(t)
        q.max(axis=-1, out=to)
        return _finite(q)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    half: np.ndarray = 0.5 + 0.5 * np.tanh(0.5 * x)  # `exp` would overflow, with a warning
    return half


def _finite(numbers: np.ndarray) -> bool:
    return bool(np.isfinite(numbers).all())
