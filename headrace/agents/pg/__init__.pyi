"""Policy-gradient agents."""

from headrace.agents.pg.base import PgAgent as PgAgent, PgInfo as PgInfo
from headrace.agents.pg.categorical import (
    CategoricalPgAgent as CategoricalPgAgent,
    RecurrentCategoricalPgAgent as RecurrentCategoricalPgAgent,
)
from headrace.agents.pg.gaussian import (
    GaussianPgAgent as GaussianPgAgent,
    RecurrentGaussianPgAgent as RecurrentGaussianPgAgent,
)
