"""Environments: how they are made, stepped, recorded and checked."""

from headrace.envs.atari import make_atari as make_atari
from headrace.envs.checking.check import check_env as check_env
from headrace.envs.checking.rules import Violation as Violation
from headrace.envs.envpool import make_envpool as make_envpool
from headrace.envs.factory import EnvFactory as EnvFactory
from headrace.envs.legacy_gym import LegacyGym as LegacyGym
from headrace.envs.padded import Padded as Padded
from headrace.envs.scalar import ScalarEnvs as ScalarEnvs
from headrace.envs.vector.spec import VectorEnvs as VectorEnvs
