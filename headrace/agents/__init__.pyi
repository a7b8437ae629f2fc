"""Agents, which choose the actions of a batch of environments."""

from headrace.agents.base import Agent as Agent
