"""The worker side of the parallel samplers: one target for all of them."""

from __future__ import annotations

import gc
import importlib
import logging
import pickle
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from headrace.envs.global_rng import seed_global_generators
from headrace.errors import EnvContractError, headline
from headrace.processes.affinity import Affinity, pin, set_torch_threads
from headrace.processes.child import Channel
from headrace.processes.status import Phase
from headrace.rng import GeneratorSeeds, Stream, generator_seeds
from headrace.samplers.collector import Collectors, SliceReport
from headrace.samplers.evaluation import EvalReport
from headrace.samplers.slice_envs import CollectorConfig
from headrace.samplers.traj_info import Episodes
from headrace.types import EnvSpaces

__all__ = ["Crew", "Setup", "initialize_worker", "obey", "process_seeds", "sampling_process"]

_log = logging.getLogger("headrace.samplers")

_ROLES = ("worker", "sampler process", "evaluation process")


class Crew(Protocol):
    """Environments of a process, before and after it is known what is done with them. spaces: of each slice."""

    @property
    def spaces(self) -> list[EnvSpaces]:
        """One for each slice."""

    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        """Calls training environments; answers by env id."""

    def close(self) -> None:
        """Closes everything; the first failure is raised after the last is closed."""


class Setup(Protocol):
    """The second thing a process is sent, once the agent is there and what a batch holds is known."""

    def station(self, crew: Any, channel: Channel) -> object:
        """What the process does from then on with its `Crew`: the methods are the commands, as of a `Station`."""


def initialize_worker(affinity: Affinity, loads_torch: bool, seeds: Sequence[GeneratorSeeds], rank: int) -> None:
    """First thing in a worker: its CPUs, its threads, its global generators, its garbage.

    One thread of torch, whatever the parent used, also where it is the environment that uses torch. What the parent
    made is frozen: a collection that walked it would copy its pages. seeds: of each worker, for environments that draw
    from the program's generators: forked workers would all go on with the parent's.
    """
    gc.freeze()
    cpus = affinity.cpus_of(rank)
    if cpus is not None:
        pin(cpus)
    if loads_torch:
        importlib.import_module("torch")
    set_torch_threads(affinity.worker_torch_threads)
    seed_global_generators(seeds[rank])


def process_seeds(config: CollectorConfig, role: str, number: int) -> GeneratorSeeds:
    """Of a process's global generators. number: of a worker or a sampler process its first environment, which no other
    has, also of samplers that share a seed.
    """
    return generator_seeds(config.seed, Stream.PROCESS, _ROLES.index(role), number, config.incarnation)


def sampling_process(channel: Channel, configs: tuple[CollectorConfig, ...]) -> None:
    """The life of a worker: environments, then what is done with them, then batches until told to leave."""
    obey(channel, Collectors(configs, channel.status))


def obey(channel: Channel, crew: Crew) -> None:
    """Commands and replies, in order::

    (start)                                → the spaces, of each slice
    Setup; descriptors                     → None, standing at the first row
    a method of its station, arguments     → what that returns: list[SliceReport] for "collect" …
    "call", name, args, env ids            → answers by env id
    None                                   → None, environments closed
    """
    try:
        channel.status.enter(Phase.WAITING)
        _reply_spaces(crew.spaces, channel)
        setup: Setup = channel.receive()
        if setup is not None:
            station = setup.station(crew, channel)
            channel.status.enter(Phase.WAITING)
            channel.reply(None)
            while (command := channel.receive()) is not None:
                _carry_out(command, station, crew, channel)
    except BaseException as error:
        if not isinstance(error, EOFError):  # the parent is gone
            channel.fail(error)  # before closing, which may hang or fail for the same reason
        crew.close()
        return
    crew.close()
    channel.leave()


def _reply_spaces(spaces: Sequence[EnvSpaces], channel: Channel) -> None:
    try:
        channel.reply(spaces)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise EnvContractError(
            f"the spaces of the environment cannot be sent to the program: {headline(error)}; a class that is made at "
            "run time cannot be pickled: have a wrapper give Gymnasium's own spaces with the same bounds"
        ) from error


def _carry_out(command: tuple[Any, ...], station: Any, crew: Crew, channel: Channel) -> None:
    name, *arguments = command
    if name == "call":
        channel.reply(crew.call(*arguments))
        return
    answer = getattr(station, name)(*arguments)
    try:
        channel.reply(answer)
    except (pickle.PicklingError, TypeError, AttributeError):
        for episodes in _episodes_in(answer):
            episodes.infos = [_portable(info) for info in episodes.infos]
        channel.reply(answer)
    if name == "collect":
        _, _, batch_index = arguments
        station.prepare(batch_index + 1)


def _episodes_in(answer: Any) -> Iterator[Episodes]:
    """The statistics in it, whose info dicts may hold what cannot be pickled."""
    for part in answer:
        match part:
            case Episodes():
                yield part
            case SliceReport():
                yield part.episodes
            case EvalReport():
                yield part.finished


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
