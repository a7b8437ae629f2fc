"""Small torch modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.models.features import FlatFeatures as FlatFeatures
    from headrace.models.mlp import ActorCriticMlp as ActorCriticMlp

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ActorCriticMlp": "headrace.models.mlp",
        "FlatFeatures": "headrace.models.features",
    },
)
