"""The worker side of the parallel samplers: one target for all of them."""

from __future__ import annotations

import gc
import logging
import pickle
from typing import TYPE_CHECKING, Any, NamedTuple

from headrace.buffers.samples import Slot, SlotSpec, build_slot
from headrace.buffers.shared import Allocate, Arena, measure
from headrace.processes.affinity import Affinity, pin
from headrace.processes.child import Channel
from headrace.samplers.collector import Collector, CollectorConfig
from headrace.samplers.traj_info import Episodes

if TYPE_CHECKING:
    from headrace.agents.base import Agent
    from headrace.agents.parameters import ParameterSlots

__all__ = ["SharedBatch", "initialize_worker", "sampling_process", "shared_batch"]

_log = logging.getLogger("headrace.samplers")


def initialize_worker(affinity: Affinity, loads_torch: bool, rank: int) -> None:
    """First thing in a worker: its CPUs, its threads, its garbage.

    One thread of torch, whatever the parent used: a pool of threads does not survive a fork, and the first large
    matrix product would wait for it for ever. What the parent made is frozen: a collection that walked it would copy
    its pages.
    """
    gc.freeze()
    cpus = affinity.cpus_of(rank)
    if cpus is not None:
        pin(cpus)
    if loads_torch:
        import torch

        torch.set_num_threads(affinity.worker_torch_threads)


def sampling_process(channel: Channel, config: CollectorConfig) -> None:
    """The life of a worker: environments, then an agent and a slot, then batches until told to leave.

    Commands and replies, in order::

        (start)                                        → the spaces
        "setup", index, spec, agent; descriptor        → True, standing at the first row
        "collect", itr, version, batch_index           → SliceReport
        "evaluate", itr, version, evaluation_index     → list[Episodes]
        "state"                                        → SliceState
        None                                           → True, environments closed
    """
    collector = Collector(config, channel.status)
    try:
        channel.reply(collector.spaces)
        while (command := channel.receive()) is not None:
            match command:
                case "setup", index, spec, agent_bytes:
                    agent: Agent = pickle.loads(agent_bytes)
                    arena, slot, parameters = shared_batch(spec, agent, channel.receive_fd())
                    arena.close_fd()
                    collector.setup(agent, spec, slot.slice(spec, index), spec.first_column(index))
                    channel.reply(True)
                case "collect", itr, version, batch_index:
                    parameters.load(agent, version)
                    report = collector.collect(itr, version, batch_index)
                    _reply(channel, report, [report.episodes])
                    collector.prepare(batch_index + 1)
                case "evaluate", itr, version, evaluation_index:
                    parameters.load(agent, version)
                    episodes = collector.evaluate(itr, version, evaluation_index)
                    _reply(channel, episodes, episodes)
                case "state":
                    channel.reply(collector.state())
    except BaseException as error:
        if not isinstance(error, EOFError):  # the parent is gone
            channel.fail(error)  # before closing, which may hang or fail for the same reason
        collector.close()
        return
    collector.close()
    channel.reply(True)


class SharedBatch(NamedTuple):
    """The memory a sampler and its workers share: one slot, and the agent's parameters on their way."""

    arena: Arena
    slot: Slot
    parameters: ParameterSlots


def shared_batch(spec: SlotSpec, agent: Agent, fd: int | None = None) -> SharedBatch:
    """Shared memory made anew, or, with the descriptor of the sampler's arena, attached to."""
    from headrace.agents.parameters import ParameterSlots  # loads torch

    def build(allocate: Allocate) -> tuple[Slot, ParameterSlots]:
        return build_slot(spec, allocate), ParameterSlots(agent, allocate)

    arena = Arena(measure(build), fd)
    return SharedBatch(arena, *build(arena.allocate))


def _reply(channel: Channel, message: Any, episodes: list[Episodes]) -> None:
    """Replies; info dicts that cannot be pickled lose the entries that are to blame, with a log line."""
    try:
        channel.reply(message)
    except (pickle.PicklingError, TypeError, AttributeError):
        for part in episodes:
            part.infos = [_portable(info) for info in part.infos]
        channel.reply(message)


def _portable(info: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, value in info.items():
        try:
            pickle.dumps(value)
        except Exception as error:
            _log.warning("info[%r] of an episode cannot be pickled (%s) and is left out", key, error)
        else:
            kept[key] = value
    return kept
