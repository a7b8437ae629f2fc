"""The Adam optimizer that all algorithms use, and its settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.adam import adam

from headrace.algos.checks import require
from headrace.algos.flat import FlatParameters
from headrace.algos.ranks import ALONE, Ranks
from headrace.config import checked_names
from headrace.schema import anything, each, fields, real, tensor

__all__ = ["AdamConfig", "FlatAdam"]


@checked_names
@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """The settings of an algorithm's optimizer."""

    learning_rate: float = 1e-3
    """Adam's step size, or its initial value if there is a schedule."""
    linear_lr_schedule: bool = True
    """Let the learning rate fall linearly to 0 at the end of training."""
    lr_schedule: Callable[[float], float] | None = None
    """A schedule in place of the linear one: a function from progress to a factor of the learning rate. Progress is the
    number of the batch divided by the number of batches: 0 at the start, 1 at the end. `lambda progress: 1 - progress`
    is the linear schedule, `lambda progress: 1.0` a constant learning rate."""
    adam_eps: float = 1e-5
    """Adam's ε."""
    compile: bool = False
    """Compile the losses with `torch.compile`, on a GPU as CUDA graphs. The first update then takes up to a minute; on
    a CPU, this needs a C++ compiler, and small models learn no faster (`benchmarks/compiled_losses.py`)."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "adam_eps"):
            require(name, getattr(self, name), 0.0, math.inf)
        if self.lr_schedule is not None and not callable(self.lr_schedule):
            raise TypeError(
                f"lr_schedule must be a function from progress (0 to 1) to a factor, got {self.lr_schedule!r}; for a "
                "constant rate, set learning_rate"
            )


class FlatAdam:
    """Adam for parameters that are kept in one vector; see `FlatParameters`.

    An algorithm has one for each part of the agent that has a loss or a learning rate of its own.

    Args:
        parameters: the parameters to update.
        config: the schedule of the learning rate, and ε.
        learning_rate: the learning rate at the start; None: `config.learning_rate`.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], config: AdamConfig, learning_rate: float | None = None
    ) -> None:
        self._flat = FlatParameters(parameters)
        self._config = config
        self._initial_rate = self.learning_rate = config.learning_rate if learning_rate is None else learning_rate
        self._moments = self._new_moments()

    #: The current learning rate.
    learning_rate: float
    #: The learners over which gradients are averaged.
    ranks: Ranks = ALONE

    @property
    def vector(self) -> torch.nn.Parameter:
        """All parameters, float `[n]`."""
        return self._flat.vector

    def set_progress(self, progress: float) -> float:
        """Sets the learning rate to that of the schedule at `progress`, and returns it.

        Args:
            progress: 0 at the start of training, 1 at its end.

        Raises:
            ValueError: if `lr_schedule` returns a factor that is negative, infinite or NaN.
        """
        self.learning_rate = self._initial_rate * _factor(self._config, progress)
        return self.learning_rate

    def backward(self, loss: torch.Tensor, max_norm: float | None) -> torch.Tensor:
        """Computes the gradient of a loss, its mean over `ranks`, and scales it down to the norm `max_norm`.

        Args:
            loss: a scalar.
            max_norm: largest norm of the gradient; None: it is not scaled.

        Returns:
            The norm before scaling, a scalar.
        """
        self._flat.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.ranks.mean_(self._flat.gradient)
        return self._flat.clip_grad_norm(max_norm)

    def step(self) -> None:
        """Updates the parameters by the gradient of the last `backward`."""
        vector, gradient, moments = self._flat.vector.detach(), self._flat.gradient, self._moments
        # PyTorch's function, not its class: to construct an optimizer imports torch._dynamo, which takes 1.5 s.
        adam(
            [vector],
            [gradient],
            [moments["exp_avg"]],
            [moments["exp_avg_sq"]],
            [],
            [moments["step"]],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.learning_rate,
            weight_decay=0.0,
            eps=self._config.adam_eps,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns Adam's moments and the learning rate, in the form of `torch.optim.Adam.state_dict`."""
        return {"state": {0: dict(self._moments)}, "param_groups": [{"lr": self.learning_rate, "params": [0]}]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the moments and the learning rate of a `state_dict`; other settings stay those of `config`.

        Raises:
            ValueError: if the shapes or dtypes of the moments are not those of the vector.
        """
        vector = self._flat.vector
        moments = {
            "step": tensor((), torch.float32, 0),
            "exp_avg": tensor(vector.shape, vector.dtype),
            "exp_avg_sq": tensor(vector.shape, vector.dtype, 0),
        }
        fields(
            {
                "state": fields({}, {0: fields(moments)}),  # that of `torch.optim.Adam` is empty before the first step
                "param_groups": each(fields({"lr": real(0, 1e300), "params": anything}, more=True), 1),
            }
        )(state, "optimizer")
        self.learning_rate = float(state["param_groups"][0]["lr"])
        self._moments = self._new_moments()
        for name, value in state["state"].get(0, {}).items():
            self._moments[name].copy_(value)

    def _new_moments(self) -> dict[str, torch.Tensor]:
        """Returns the number of steps and the moments before the first step."""
        vector = self._flat.vector.detach()
        return {
            "step": torch.zeros((), dtype=torch.float32, device=vector.device),
            "exp_avg": torch.zeros_like(vector),
            "exp_avg_sq": torch.zeros_like(vector),
        }


def _factor(config: AdamConfig, progress: float) -> float:
    """Returns the factor of the learning rate that the schedule gives."""
    if config.lr_schedule is None:
        return 1.0 - progress if config.linear_lr_schedule else 1.0
    factor = float(config.lr_schedule(progress))
    if not 0.0 <= factor < math.inf:
        raise ValueError(f"lr_schedule({progress:g}) is {factor}; a factor of the learning rate is at least 0")
    return factor
