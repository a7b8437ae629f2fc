"""Agents: they choose actions for rows of environments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.agents.base import Agent as Agent

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Agent": "headrace.agents.base",
    },
)
