"""Samplers with two groups of environments: one steps while actions are computed for the other."""

from __future__ import annotations

from headrace.samplers.engines.served import GpuSamplerBase
from headrace.samplers.inference.action_server import AlternatingActionServer, NoOverlapAlternatingActionServer
from headrace.samplers.layout import Layout

__all__ = ["AlternatingSampler", "AlternatingSamplerBase", "NoOverlapAlternatingSampler"]


class AlternatingSamplerBase(GpuSamplerBase):
    """Each worker has environments of both groups and steps them in turn. Any agent will do, recurrent ones too: states
    belong to rows. Nothing need be even.
    """

    ServerCls = AlternatingActionServer


class AlternatingSampler(AlternatingSamplerBase):
    """The server computes for one group while the other steps, so neither cores nor device wait for each other."""

    layout = Layout(processes=True, served=True, groups=2)


class NoOverlapAlternatingSampler(AlternatingSamplerBase):
    """The two groups never step at once: a group is let go when the other has come in."""

    ServerCls = NoOverlapAlternatingActionServer
    layout = Layout(processes=True, served=True, groups=2)
