"""Policy-gradient agents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.agents.pg.categorical import CategoricalPgAgent as CategoricalPgAgent, PgInfo as PgInfo

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "CategoricalPgAgent": "headrace.agents.pg.categorical",
        "PgInfo": "headrace.agents.pg.categorical",
    },
)
