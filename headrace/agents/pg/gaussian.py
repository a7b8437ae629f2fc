"""Policy-gradient agents for Box actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from headrace.agents.pg.base import PgAgent
from headrace.agents.pg.heads import GaussianHead
from headrace.agents.plan import is_of
from headrace.config import checked_names
from headrace.models.mlp import ActorCritic
from headrace.models.rnn import RecurrentActorCritic
from headrace.types import ActingPlan, ActingRows

__all__ = ["GaussianPgAgent", "RecurrentGaussianPgAgent"]


@checked_names
class GaussianPgAgent(PgAgent):
    """Samples Box actions `[d]` from a diagonal Gaussian; feed-forward.

    `GaussianHead` describes how outputs are scaled to the bounds.

    Args:
        ModelCls: see `PgAgent`.
        model_kwargs: see `PgAgent`.
        state_dependent_std: see `GaussianHead`.
        init_log_std: see `GaussianHead`.
    """

    def __init__(
        self,
        ModelCls: Any = ActorCritic,
        model_kwargs: Mapping[str, Any] | None = None,
        state_dependent_std: bool = False,
        init_log_std: float = 0.0,
    ) -> None:
        super().__init__(GaussianHead(state_dependent_std, init_log_std), ModelCls, model_kwargs)

    @override
    def acting_plan(self, rows: ActingRows, deterministic: bool) -> ActingPlan | None:
        return self._plan(rows, deterministic) if is_of(self, GaussianPgAgent) else None


@checked_names
class RecurrentGaussianPgAgent(PgAgent):
    """Recurrent `GaussianPgAgent`, with an LSTM (or a GRU: `model_kwargs={"cell": "gru"}`) over the whole episode.

    Args:
        ModelCls: see `PgAgent`.
        model_kwargs: see `PgAgent`.
        state_dependent_std: see `GaussianHead`.
        init_log_std: see `GaussianHead`.
    """

    def __init__(
        self,
        ModelCls: Any = RecurrentActorCritic,
        model_kwargs: Mapping[str, Any] | None = None,
        state_dependent_std: bool = False,
        init_log_std: float = 0.0,
    ) -> None:
        super().__init__(GaussianHead(state_dependent_std, init_log_std), ModelCls, model_kwargs, recurrent=True)

    @override
    def acting_plan(self, rows: ActingRows, deterministic: bool) -> ActingPlan | None:
        return self._plan(rows, deterministic) if is_of(self, RecurrentGaussianPgAgent) else None
