"""Agents for Box actions whose policies follow the gradient of learned action values."""

from headrace.agents.qpg.base import ActorWithCritics as ActorWithCritics, QpgAgent as QpgAgent
from headrace.agents.qpg.deterministic import DdpgAgent as DdpgAgent, DdpgInfo as DdpgInfo, Td3Agent as Td3Agent
from headrace.agents.qpg.sac import SacAgent as SacAgent, SacInfo as SacInfo
