"""Replay buffers: batches are appended to a ring in shared memory, and transitions or sequences are sampled."""

from headrace.replays.base import ReplayNotReady as ReplayNotReady, Sequences as Sequences, Transitions as Transitions
from headrace.replays.hindsight import (
    HindsightConfig as HindsightConfig,
    HindsightGather as HindsightGather,
)
from headrace.replays.make import (
    make_replay as make_replay,
    make_sequence_replay as make_sequence_replay,
    replay_over as replay_over,
    replay_spec as replay_spec,
    sequence_replay_over as sequence_replay_over,
    shared_ring as shared_ring,
)
from headrace.replays.prioritized import PrioritizedReplay as PrioritizedReplay
from headrace.replays.replay import Replay as Replay
from headrace.replays.ring import (
    ReplayRing as ReplayRing,
    ReplaySpec as ReplaySpec,
    build_ring as build_ring,
)
from headrace.replays.sequence import (
    PrioritizedSequenceReplay as PrioritizedSequenceReplay,
    UniformSequenceReplay as UniformSequenceReplay,
    mixed_priorities as mixed_priorities,
)
from headrace.replays.sequences import SequenceShape as SequenceShape
from headrace.replays.sink import ReplaySink as ReplaySink
from headrace.replays.storage import ReplayFile as ReplayFile
from headrace.replays.uniform import UniformReplay as UniformReplay
from headrace.replays.writer import ReplayWriter as ReplayWriter
