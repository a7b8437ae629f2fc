"""Environments: how they are made, stepped, recorded and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.envs.atari import make_atari as make_atari
    from headrace.envs.checks import check_env as check_env
    from headrace.envs.clauses import Violation as Violation
    from headrace.envs.factory import EnvFactory as EnvFactory
    from headrace.envs.legacy_gym import LegacyGym as LegacyGym
    from headrace.envs.padded import Padded as Padded
    from headrace.envs.pool import make_envpool as make_envpool
    from headrace.envs.scalar import ScalarEnvs as ScalarEnvs
    from headrace.envs.vector_envs import VectorEnvs as VectorEnvs

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "EnvFactory": "headrace.envs.factory",
        "LegacyGym": "headrace.envs.legacy_gym",
        "Padded": "headrace.envs.padded",
        "ScalarEnvs": "headrace.envs.scalar",
        "VectorEnvs": "headrace.envs.vector_envs",
        "Violation": "headrace.envs.clauses",
        "check_env": "headrace.envs.checks",
        "make_atari": "headrace.envs.atari",
        "make_envpool": "headrace.envs.pool",
    },
)
