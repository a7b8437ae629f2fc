"""Policy-gradient agents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.agents.pg.base import PgAgent as PgAgent, PgInfo as PgInfo
    from headrace.agents.pg.categorical import (
        CategoricalPgAgent as CategoricalPgAgent,
        RecurrentCategoricalPgAgent as RecurrentCategoricalPgAgent,
    )
    from headrace.agents.pg.gaussian import (
        GaussianPgAgent as GaussianPgAgent,
        RecurrentGaussianPgAgent as RecurrentGaussianPgAgent,
    )

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "CategoricalPgAgent": "headrace.agents.pg.categorical",
        "GaussianPgAgent": "headrace.agents.pg.gaussian",
        "PgAgent": "headrace.agents.pg.base",
        "PgInfo": "headrace.agents.pg.base",
        "RecurrentCategoricalPgAgent": "headrace.agents.pg.categorical",
        "RecurrentGaussianPgAgent": "headrace.agents.pg.gaussian",
    },
)
