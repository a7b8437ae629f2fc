"""How the outputs of a model become a distribution over actions: one policy per kind of action space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from headrace.agents.masks import masked
from headrace.distributions.bernoulli import Bernoulli
from headrace.distributions.categorical import Categorical
from headrace.distributions.gaussian import Gaussian
from headrace.distributions.multi_categorical import MultiCategorical

__all__ = ["DiscretePolicy", "Distribution", "GaussianPolicy", "Policy"]

Distribution = Categorical | MultiCategorical | Bernoulli | Gaussian

_LOG_STD_RANGE = (-20.0, 2.0)
_NO_BOUND = 1e6


class Policy(ABC):
    """Built for an action space by `build`; then `dist` for every row of outputs."""

    #: Outputs the model is to give, and uniforms a draw takes.
    n_outputs: int
    noise_size: int
    #: Entries of an action mask; None where actions cannot be masked.
    mask_size: int | None

    def settings(self) -> dict[str, Any]:
        """What the agent's constructor was given for it, by name."""
        return {}

    @abstractmethod
    def build(self, space: spaces.Space[Any], agent: str) -> None:
        """Looks at the action space; raises TypeError, which names the agent, if it is not one of this policy's."""

    def prepare(self, model: torch.nn.Module) -> None:  # noqa: B027 (most have none)
        """Adds parameters of the policy's own to a new model."""

    @abstractmethod
    def dist(self, model: torch.nn.Module, outputs: torch.Tensor, mask: torch.Tensor | None) -> Distribution:
        """The distribution `[...]` of outputs `[..., n_outputs]`; mask: `[..., mask_size]`, or None."""

    def exploration(self, dist: Any, valid: torch.Tensor) -> dict[str, float]:
        """How much was explored by drawing from distributions `[T, B]`, where valid: numbers by name, to log."""
        return {}


class DiscretePolicy(Policy):
    """Softmax over Discrete and over each part of MultiDiscrete actions, a coin for each bit of MultiBinary ones."""

    def build(self, space: spaces.Space[Any], agent: str) -> None:
        """See `Policy`."""
        match space:
            case spaces.Discrete():
                self._sizes = [int(space.n)]
            case spaces.MultiDiscrete() if space.nvec.ndim == 1:
                self._sizes = space.nvec.tolist()
            case spaces.MultiBinary() if len(space.shape) == 1:
                self._sizes = [2] * space.shape[0]
            case _:
                raise TypeError(
                    f"{agent} acts in Discrete, MultiDiscrete [k] and MultiBinary [n] action spaces, the environment "
                    f"has {space}; take a GaussianPgAgent for Box actions, flatten others with an ActionWrapper"
                )
        self._coins = isinstance(space, spaces.MultiBinary)
        self._one = isinstance(space, spaces.Discrete)
        self.n_outputs = len(self._sizes) if self._coins else sum(self._sizes)
        self.noise_size = len(self._sizes)
        self.mask_size = None if self._coins else self.n_outputs

    def dist(self, model: torch.nn.Module, outputs: torch.Tensor, mask: torch.Tensor | None) -> Distribution:
        """See `Policy`."""
        if self._one:
            return Categorical(outputs if mask is None else masked(outputs, mask))
        if self._coins:
            return Bernoulli(outputs)
        parts = torch.split(outputs, self._sizes, dim=-1)
        if mask is not None:
            parts = tuple(map(masked, parts, torch.split(mask, self._sizes, dim=-1)))
        return MultiCategorical(tuple(map(Categorical, parts)))


class GaussianPolicy(Policy):
    """A diagonal Gaussian over Box actions `[d]`, in units of the bounds: output 0 is the middle, ±1 are the bounds.

    An unbounded number is in its own units. Actions are not cut: the recorded action is the drawn one, the environment
    gets it clipped. state_dependent_std: the model gives log standard deviations too; else they are parameters
    (`log_std`, added to the model). init_log_std: where those begin.
    """

    mask_size = None

    def __init__(self, state_dependent_std: bool, init_log_std: float) -> None:
        self._state_dependent = state_dependent_std
        self._init_log_std = init_log_std

    def settings(self) -> dict[str, Any]:
        """See `Policy`."""
        return {"state_dependent_std": self._state_dependent, "init_log_std": self._init_log_std}

    def build(self, space: spaces.Space[Any], agent: str) -> None:
        """See `Policy`."""
        if not isinstance(space, spaces.Box) or len(space.shape) != 1 or space.dtype.kind != "f":
            raise TypeError(
                f"{agent} acts in Box action spaces [d] of floats, the environment has {space}; take a "
                "CategoricalPgAgent for Discrete, MultiDiscrete and MultiBinary actions, flatten others with an "
                "ActionWrapper"
            )
        self._d = space.shape[0]
        # A number that can only have one value has no scale: it is left to the environment's clipping.
        # Bounds beyond a million are no range to act in, they say that there is none.
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        bounded = (low > -_NO_BOUND) & (high < _NO_BOUND) & (low < high)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        middle, half = 0.5 * (low + high), 0.5 * (high - low)
        self._middle, self._half = (torch.from_numpy(values.astype(np.float32)) for values in (middle, half))
        self._in_units = bool((middle == 0).all() and (half == 1).all())
        self.n_outputs = 2 * self._d if self._state_dependent else self._d
        self.noise_size = Gaussian.noise_size(self._d)

    def prepare(self, model: torch.nn.Module) -> None:
        """See `Policy`."""
        if not self._state_dependent:
            model.register_parameter("log_std", torch.nn.Parameter(torch.full((self._d,), float(self._init_log_std))))

    def dist(self, model: torch.nn.Module, outputs: torch.Tensor, mask: torch.Tensor | None) -> Distribution:
        """See `Policy`."""
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

    def exploration(self, dist: Gaussian, valid: torch.Tensor) -> dict[str, float]:
        """See `Policy`: the mean deviation."""
        return {"actionStd": float(dist.log_std[valid].exp().mean())}
