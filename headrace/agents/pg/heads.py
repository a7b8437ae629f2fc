"""Heads, which turn the outputs of a model into a distribution over actions, one per kind of action space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from headrace import compiled
from headrace.agents.masks import masked
from headrace.distributions.bernoulli import Bernoulli
from headrace.distributions.categorical import Categorical
from headrace.distributions.gaussian import Gaussian
from headrace.distributions.multi_categorical import MultiCategorical
from headrace.types import ActingRows

__all__ = ["DiscreteHead", "Distribution", "GaussianHead", "PolicyHead"]

Distribution = Categorical | MultiCategorical | Bernoulli | Gaussian

_LOG_STD_RANGE = (-20.0, 2.0)
_NO_BOUND = 1e6


class PolicyHead(ABC):
    """Base class of policy heads: `build` prepares one for an action space, `dist` turns outputs into distributions."""

    #: Number of outputs that the model must return.
    n_outputs: int
    #: Number of uniforms that one sample uses.
    noise_size: int
    #: Number of entries of an action mask; None if actions cannot be masked.
    mask_size: int | None

    def settings(self) -> dict[str, Any]:
        """Returns the arguments of the agent's constructor that belong to the head, by name."""
        return {}

    @abstractmethod
    def build(self, space: spaces.Space[Any], agent: str) -> None:
        """Prepares the head for an action space.

        Args:
            space: the action space of one environment.
            agent: class name of the agent, for the error.

        Raises:
            TypeError: if the head does not support the space.
        """

    def prepare(self, model: torch.nn.Module) -> None:  # noqa: B027 (most have none)
        """Adds the head's own parameters to a new model."""

    @abstractmethod
    def dist(self, model: torch.nn.Module, outputs: torch.Tensor, mask: torch.Tensor | None) -> Distribution:
        """Returns the distribution over actions, with leading dims `[...]`.

        Args:
            model: the model, which holds the head's own parameters.
            outputs: outputs of the model, float `[..., n_outputs]`.
            mask: action mask `[..., mask_size]`, or None.
        """

    def acting_rows(self, rows: ActingRows, policy: Any, value: Any) -> Any:
        """Returns what acts for the rows of a batch (see `plan_for`); None if the head has nothing of the kind.

        Args:
            rows: the rows.
            policy: network of the outputs and, if there is no `value`, the value.
            value: network of the value, or None.
        """
        return None

    def acting_settings(self, model: torch.nn.Module, greedy: bool) -> tuple[Any, ...]:
        """Returns the arguments of the `load` of what `acting_rows` returned.

        Args:
            model: the model, which holds the head's own parameters.
            greedy: whether to take the most probable actions.
        """
        return (greedy,)

    def exploration(self, dist: Any, valid: torch.Tensor) -> dict[str, float]:
        """Returns measures of exploration over the valid steps of a batch, by name, for the log.

        Args:
            dist: distributions from which actions were sampled, leading dims `[T, B]`.
            valid: bool `[T, B]`.
        """
        return {}


class DiscreteHead(PolicyHead):
    """A categorical for Discrete actions, one per part of MultiDiscrete actions, a Bernoulli per MultiBinary bit."""

    def build(self, space: spaces.Space[Any], agent: str) -> None:
        """See `PolicyHead`."""
        match space:
            case spaces.Discrete():
                self._sizes = [int(space.n)]
            case spaces.MultiDiscrete() if space.nvec.ndim == 1:
                self._sizes = space.nvec.tolist()
            case spaces.MultiBinary() if len(space.shape) == 1:
                self._sizes = [2] * space.shape[0]
            case _:
                raise TypeError(
                    f"{agent} acts in Discrete, MultiDiscrete [k] and MultiBinary [n] action spaces, but the "
                    f"environment has {space}; use a GaussianPgAgent for Box actions, or flatten others with an "
                    "ActionWrapper"
                )
        self._coins = isinstance(space, spaces.MultiBinary)
        self._one = isinstance(space, spaces.Discrete)
        self.n_outputs = len(self._sizes) if self._coins else sum(self._sizes)
        self.noise_size = len(self._sizes)
        self.mask_size = None if self._coins else self.n_outputs

    def dist(self, model: torch.nn.Module, outputs: torch.Tensor, mask: torch.Tensor | None) -> Distribution:
        """See `PolicyHead`."""
        if self._one:
            return Categorical(outputs if mask is None else masked(outputs, mask))
        if self._coins:
            return Bernoulli(outputs)
        parts = torch.split(outputs, self._sizes, dim=-1)
        if mask is not None:
            parts = tuple(map(masked, parts, torch.split(mask, self._sizes, dim=-1)))
        return MultiCategorical(tuple(map(Categorical, parts)))

    def acting_rows(self, rows: ActingRows, policy: Any, value: Any) -> Any:
        """See `PolicyHead`."""
        if not self._one or rows.action.dtype != np.int64:
            return None
        info = rows.agent_info
        return compiled.acting.CategoricalRows(policy, value, rows.noise, rows.action, info.value, info.dist.logits)


class GaussianHead(PolicyHead):
    """A diagonal Gaussian over Box actions `[d]`, scaled to the bounds: output 0 is the middle, ±1 are the bounds.

    Unbounded components are not scaled. The recorded action is the sampled one, not clipped; the environment receives
    the clipped one.

    Args:
        state_dependent_std: True: the model also outputs log standard deviations. False: they are parameters
            (`log_std`, added to the model).
        init_log_std: initial log standard deviation, in the scaled units.
    """

    mask_size = None

    def __init__(self, state_dependent_std: bool, init_log_std: float) -> None:
        self._state_dependent = state_dependent_std
        self._init_log_std = init_log_std

    def settings(self) -> dict[str, Any]:
        """See `PolicyHead`."""
        return {"state_dependent_std": self._state_dependent, "init_log_std": self._init_log_std}

    def build(self, space: spaces.Space[Any], agent: str) -> None:
        """See `PolicyHead`."""
        if not isinstance(space, spaces.Box) or len(space.shape) != 1 or space.dtype.kind != "f":
            raise TypeError(
                f"{agent} acts in Box action spaces [d] of floats, but the environment has {space}; use a "
                "CategoricalPgAgent for Discrete, MultiDiscrete and MultiBinary actions, or flatten others with an "
                "ActionWrapper"
            )
        self._d = space.shape[0]
        # A component with low = high has no scale: it stays unscaled, and the environment's clipping sets its value.
        # Bounds of a million or more mean that the component is unbounded.
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        bounded = (low > -_NO_BOUND) & (high < _NO_BOUND) & (low < high)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        middle, half = 0.5 * (low + high), 0.5 * (high - low)
        self._middle, self._half = (torch.from_numpy(values.astype(np.float32)) for values in (middle, half))
        self._in_units = bool((middle == 0).all() and (half == 1).all())
        self.n_outputs = 2 * self._d if self._state_dependent else self._d
        self.noise_size = Gaussian.noise_size(self._d)

    def prepare(self, model: torch.nn.Module) -> None:
        """See `PolicyHead`."""
        if not self._state_dependent:
            model.register_parameter("log_std", torch.nn.Parameter(torch.full((self._d,), float(self._init_log_std))))

    def dist(self, model: torch.nn.Module, outputs: torch.Tensor, mask: torch.Tensor | None) -> Distribution:
        """See `PolicyHead`."""
        if self._state_dependent:
            mean, log_std = outputs.chunk(2, dim=-1)
            log_std = (log_std + self._init_log_std).clamp(*_LOG_STD_RANGE)
        else:
            log_std = model.get_parameter("log_std")
            mean, log_std = outputs, log_std.expand(outputs.shape)
        if not self._in_units:
            middle, half = self._middle.to(outputs.device), self._half.to(outputs.device)
            mean, log_std = middle + half * mean, log_std + half.log()
        return Gaussian(mean, log_std)

    def acting_rows(self, rows: ActingRows, policy: Any, value: Any) -> Any:
        """See `PolicyHead`."""
        if rows.action.dtype != np.float32:
            return None
        value_of, dist = rows.agent_info.value, rows.agent_info.dist
        return compiled.acting.GaussianRows(policy, value, rows.noise, rows.action, value_of, dist.mean, dist.log_std)

    def acting_settings(self, model: torch.nn.Module, greedy: bool) -> tuple[Any, ...]:
        """See `PolicyHead`."""
        middle, half = self._middle.numpy(), self._half.numpy()
        offset = low = high = np.log(half)
        if self._state_dependent:
            offset = offset + np.float32(self._init_log_std)
            low, high = low + np.float32(_LOG_STD_RANGE[0]), high + np.float32(_LOG_STD_RANGE[1])
        else:
            offset = offset + model.get_parameter("log_std").detach().numpy()
            low, high = np.full_like(half, -np.inf), np.full_like(half, np.inf)
        return greedy, middle, half, offset, low, high

    def exploration(self, dist: Gaussian, valid: torch.Tensor) -> dict[str, float]:
        """Returns `actionStd`, the mean standard deviation."""
        return {"actionStd": float(dist.log_std[valid].exp().mean())}
