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
    from headrace.envs.scalar import ScalarEnvs as ScalarEnvs

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "EnvFactory": "headrace.envs.factory",
        "LegacyGym": "headrace.envs.legacy_gym",
        "ScalarEnvs": "headrace.envs.scalar",
        "Violation": "headrace.envs.clauses",
        "check_env": "headrace.envs.checks",
        "make_atari": "headrace.envs.atari",
    },
)
