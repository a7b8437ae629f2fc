"""Policy-gradient agents for Discrete, MultiDiscrete and MultiBinary actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from headrace.agents.pg.base import PgAgent
from headrace.agents.pg.heads import DiscreteHead
from headrace.agents.plan import is_of
from headrace.config import checked_names
from headrace.models.mlp import ActorCritic
from headrace.models.rnn import RecurrentActorCritic
from headrace.types import ActingPlan, ActingRows

__all__ = ["CategoricalPgAgent", "RecurrentCategoricalPgAgent"]


@checked_names
class CategoricalPgAgent(PgAgent):
    """Samples Discrete actions from a softmax, MultiDiscrete ones part by part, MultiBinary ones bit by bit.

    Feed-forward. The default model (`ActorCritic`) depends on the observation space: two tanh layers of 64 units over
    numbers, a `NatureCnn` over images.

    Args:
        ModelCls: see `PgAgent`.
        model_kwargs: see `PgAgent`.
    """

    def __init__(self, ModelCls: Any = ActorCritic, model_kwargs: Mapping[str, Any] | None = None) -> None:
        super().__init__(DiscreteHead(), ModelCls, model_kwargs)

    @override
    def acting_plan(self, rows: ActingRows, deterministic: bool) -> ActingPlan | None:
        return self._plan(rows, deterministic) if is_of(self, CategoricalPgAgent) else None


@checked_names
class RecurrentCategoricalPgAgent(PgAgent):
    """Recurrent `CategoricalPgAgent`, with an LSTM (or a GRU: `model_kwargs={"cell": "gru"}`) over the whole episode.

    Args:
        ModelCls: see `PgAgent`.
        model_kwargs: see `PgAgent`.
    """

    def __init__(self, ModelCls: Any = RecurrentActorCritic, model_kwargs: Mapping[str, Any] | None = None) -> None:
        super().__init__(DiscreteHead(), ModelCls, model_kwargs, recurrent=True)

    @override
    def acting_plan(self, rows: ActingRows, deterministic: bool) -> ActingPlan | None:
        return self._plan(rows, deterministic) if is_of(self, RecurrentCategoricalPgAgent) else None
