"""Small torch modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.models.conv import NatureCnn as NatureCnn
    from headrace.models.features import Features as Features
    from headrace.models.mlp import ActorCritic as ActorCritic
    from headrace.models.norm import RunningNorm as RunningNorm
    from headrace.models.q import DuelingHead as DuelingHead, QNetwork as QNetwork
    from headrace.models.rnn import RecurrentActorCritic as RecurrentActorCritic

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ActorCritic": "headrace.models.mlp",
        "DuelingHead": "headrace.models.q",
        "Features": "headrace.models.features",
        "NatureCnn": "headrace.models.conv",
        "QNetwork": "headrace.models.q",
        "RecurrentActorCritic": "headrace.models.rnn",
        "RunningNorm": "headrace.models.norm",
    },
)
