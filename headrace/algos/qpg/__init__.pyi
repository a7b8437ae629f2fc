"""DDPG, TD3 and SAC, which learn action values and a policy from a replay buffer."""

from headrace.algos.qpg.base import QpgAlgo as QpgAlgo, QpgConfig as QpgConfig
from headrace.algos.qpg.ddpg import DDPG as DDPG, DDPGConfig as DDPGConfig
from headrace.algos.qpg.sac import SAC as SAC, SACConfig as SACConfig
from headrace.algos.qpg.td3 import TD3 as TD3, TD3Config as TD3Config
