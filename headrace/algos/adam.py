"""The Adam optimizer that all algorithms use: settings, learning-rate schedule, and loading of its saved state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from headrace.algos.checks import require
from headrace.config import checked_names
from headrace.schema import anything, each, fields, real, tensor

__all__ = ["AdamConfig", "adam_for", "load_adam", "set_learning_rate"]


@checked_names
@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """The settings of an algorithm's optimizer."""

    learning_rate: float = 1e-3
    """Adam's step size; at the start, if there is a schedule."""
    linear_lr_schedule: bool = True
    """Let the learning rate fall linearly to 0 at the end of training."""
    lr_schedule: Callable[[float], float] | None = None
    """In place of the line: a function from progress to what the learning rate is multiplied with. Progress is the
    number of the batch divided by that of all batches: 0 at the start, 1 at the end. `lambda progress: 1 - progress` is
    the line, `lambda progress: 1.0` no schedule."""
    adam_eps: float = 1e-5
    """Adam's ε."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "adam_eps"):
            require(name, getattr(self, name), 0.0, math.inf)
        if self.lr_schedule is not None and not callable(self.lr_schedule):
            raise TypeError(
                f"lr_schedule must be a function from progress (0 to 1) to a factor, got {self.lr_schedule!r}; for a "
                "constant rate, set learning_rate"
            )


def adam_for(vector: torch.nn.Parameter, config: AdamConfig) -> torch.optim.Adam:
    """Returns an Adam optimizer of one parameter vector with the configured settings."""
    return torch.optim.Adam([vector], lr=config.learning_rate, eps=config.adam_eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Adam, config: AdamConfig, progress: float) -> float:
    """Sets the optimizer's learning rate to that at `progress`, and returns it.

    Args:
        optimizer: the optimizer.
        config: the settings.
        progress: 0 at the start of training, 1 at its end.

    Raises:
        ValueError: if `lr_schedule` returns a factor that is negative, infinite or NaN.
    """
    factor = 1.0
    if config.lr_schedule is not None:
        factor = float(config.lr_schedule(progress))
        if not 0.0 <= factor < math.inf:
            raise ValueError(f"lr_schedule({progress:g}) is {factor}; a factor of the learning rate is at least 0")
    elif config.linear_lr_schedule:
        factor = 1.0 - progress
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * factor
    return config.learning_rate * factor


def load_adam(optimizer: torch.optim.Adam, state: Mapping[str, Any]) -> None:
    """Loads the moments and the learning rate of a saved `state_dict`; the optimizer keeps its other settings.

    Args:
        optimizer: an optimizer of one parameter vector.
        state: its saved `state_dict`.

    Raises:
        ValueError: if the shapes or dtypes of the moments are not those of the vector. Adam would accept them and fail
            in its first step.
    """
    (group,) = optimizer.param_groups
    (vector,) = group["params"]
    moments = {
        "step": tensor((), torch.float32, 0),
        "exp_avg": tensor(vector.shape, vector.dtype),
        "exp_avg_sq": tensor(vector.shape, vector.dtype, 0),
    }
    fields(
        {
            "state": fields({}, {0: fields(moments)}),  # empty before the first step
            "param_groups": each(fields({"lr": real(0, 1e300), "params": anything}, more=True), 1),
        }
    )(state, "optimizer")
    (own,) = optimizer.state_dict()["param_groups"]
    lr = state["param_groups"][0]["lr"]
    optimizer.load_state_dict({"state": state["state"], "param_groups": [{**own, "lr": lr}]})
