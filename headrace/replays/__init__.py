"""Replay buffers: batches are appended to a ring in shared memory, transitions are sampled from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.replays.base import ReplayNotReady as ReplayNotReady, Transitions as Transitions
    from headrace.replays.file import ReplayFile as ReplayFile
    from headrace.replays.make import make_replay as make_replay, replay_spec as replay_spec, shared_ring as shared_ring
    from headrace.replays.prioritized import PrioritizedReplay as PrioritizedReplay
    from headrace.replays.ring import (
        ReplayRing as ReplayRing,
        ReplaySpec as ReplaySpec,
        ReplayWriter as ReplayWriter,
        build_ring as build_ring,
    )
    from headrace.replays.uniform import UniformReplay as UniformReplay

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "PrioritizedReplay": "headrace.replays.prioritized",
        "ReplayFile": "headrace.replays.file",
        "ReplayNotReady": "headrace.replays.base",
        "ReplayRing": "headrace.replays.ring",
        "ReplaySpec": "headrace.replays.ring",
        "ReplayWriter": "headrace.replays.ring",
        "Transitions": "headrace.replays.base",
        "UniformReplay": "headrace.replays.uniform",
        "build_ring": "headrace.replays.ring",
        "make_replay": "headrace.replays.make",
        "replay_spec": "headrace.replays.make",
        "shared_ring": "headrace.replays.make",
    },
)
