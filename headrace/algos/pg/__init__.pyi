"""Policy-gradient algorithms."""

from headrace.algos.pg.a2c import A2C as A2C, A2CConfig as A2CConfig
from headrace.algos.pg.base import PgConfig as PgConfig, PolicyGradientAlgo as PolicyGradientAlgo
from headrace.algos.pg.impala import IMPALA as IMPALA, IMPALAConfig as IMPALAConfig
from headrace.algos.pg.ppo import PPO as PPO, PPOConfig as PPOConfig
from headrace.algos.pg.vpg import VPG as VPG, VPGConfig as VPGConfig
