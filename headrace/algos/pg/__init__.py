"""Policy-gradient algorithms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.algos.pg.a2c import A2C as A2C, A2CConfig as A2CConfig
    from headrace.algos.pg.base import PgConfig as PgConfig, PolicyGradientAlgo as PolicyGradientAlgo
    from headrace.algos.pg.impala import IMPALA as IMPALA, IMPALAConfig as IMPALAConfig
    from headrace.algos.pg.ppo import PPO as PPO, PPOConfig as PPOConfig

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "A2C": "headrace.algos.pg.a2c",
        "A2CConfig": "headrace.algos.pg.a2c",
        "IMPALA": "headrace.algos.pg.impala",
        "IMPALAConfig": "headrace.algos.pg.impala",
        "PPO": "headrace.algos.pg.ppo",
        "PPOConfig": "headrace.algos.pg.ppo",
        "PgConfig": "headrace.algos.pg.base",
        "PolicyGradientAlgo": "headrace.algos.pg.base",
    },
)
