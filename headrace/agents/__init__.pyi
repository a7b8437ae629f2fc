"""Agents: they choose actions for rows of environments."""

from headrace.agents.base import Agent as Agent
