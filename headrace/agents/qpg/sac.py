"""`SacAgent`, whose policy is a squashed Gaussian."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import override

from headrace.agents.qpg.base import QpgAgent
from headrace.buffers.samples import Samples
from headrace.config import checked_names
from headrace.distributions.squashed_gaussian import SquashedGaussian
from headrace.models.actor import Actor
from headrace.models.critics import Critics
from headrace.types import StepInputs, Tree

__all__ = ["SacAgent", "SacInfo"]

_LOG_STD_RANGE = (-20.0, 2.0)


@dataclass
class SacInfo:
    """The `agent_info` that `SacAgent` records, and the output of its policy's forward pass.

    Args:
        dist: distribution over scaled actions, with leading dims `[...]`.
    """

    dist: SquashedGaussian


@checked_names
class SacAgent(QpgAgent):
    """Samples Box actions from the tanh of a diagonal Gaussian, scaled to the bounds; has two critics, or more.

    Haarnoja et al., "Soft actor-critic algorithms and applications", 2018. The policy network outputs the Gaussian's
    means and the logarithms of its standard deviations, which are clipped to [−20, 2]. In evaluations, the action is
    the tanh of the mean.

    Args:
        ModelCls: see `QpgAgent`.
        model_kwargs: see `QpgAgent`.
        QModelCls: see `QpgAgent`.
        q_model_kwargs: see `QpgAgent`.
        n_critics: see `QpgAgent`.
        random_itr_max: see `QpgAgent`.
    """

    outputs_per_action = 2

    def __init__(
        self,
        ModelCls: Any = Actor,
        model_kwargs: Mapping[str, Any] | None = None,
        QModelCls: Any = Critics,
        q_model_kwargs: Mapping[str, Any] | None = None,
        *,
        n_critics: int = 2,
        random_itr_max: int = 0,
    ) -> None:
        super().__init__(ModelCls, model_kwargs, QModelCls, q_model_kwargs, n_critics, random_itr_max)

    @override
    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "n_critics": self.n_critics}

    @override
    def __call__(self, inputs: StepInputs, state: Tree = None) -> SacInfo:
        """Returns the distribution over scaled actions, with gradients."""
        mean, log_std = self._outputs(inputs).chunk(2, dim=-1)
        return SacInfo(SquashedGaussian(mean, log_std.clamp(*_LOG_STD_RANGE)))

    @override
    def chosen(self, info: SacInfo, noise: torch.Tensor | None) -> torch.Tensor:
        return info.dist.mode() if noise is None else info.dist.sample(noise)

    @override
    def exploration(self, itr: int, samples: Samples) -> dict[str, float]:
        """Returns `actionStd`, the mean standard deviation of the Gaussian, before tanh."""
        log_std = samples.agent.agent_info.dist.log_std
        return {"actionStd": float(log_std[samples.env.valid].exp().mean())}
