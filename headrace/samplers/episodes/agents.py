"""Agents from what callers of episode samplers pass as one."""

from __future__ import annotations

from typing import Any

from headrace.agents.base import Agent
from headrace.samplers.episodes.policies import PolicyAgent

__all__ = ["as_agent"]


def as_agent(value: Any) -> Agent:
    """Returns an agent of the library as it is, and a policy as a `PolicyAgent`; raises TypeError for anything else."""
    return value if isinstance(value, Agent) else PolicyAgent(value)
