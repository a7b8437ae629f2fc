"""Distributions over actions, as trees of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.distributions.categorical import Categorical as Categorical

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Categorical": "headrace.distributions.categorical",
    },
)
