"""The main function of all worker processes: receives commands and sends replies."""

from __future__ import annotations

import gc
import importlib
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from headrace.envs.global_rng import seed_global_generators
from headrace.errors import EnvContractError, headline
from headrace.processes.affinity import Affinity, pin, set_torch_threads
from headrace.processes.child import Channel
from headrace.processes.status import Phase
from headrace.rng import GeneratorSeeds, Stream, generator_seeds
from headrace.samplers.collection.evaluation import EvalReport
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.collection.slice import SliceReport
from headrace.samplers.traj_info import Episodes
from headrace.types import EnvSpaces

__all__ = ["Worker", "initialize_worker", "process_seeds", "reply", "sampling_process"]

_log = logging.getLogger("headrace.samplers")

_ROLES = ("worker", "sampler process", "evaluation process")


class Worker(Protocol):
    """What a process runs. The other public methods of a class are its commands.

    A command is sent as the function itself, which pickle writes as its name, followed by its arguments.
    """

    @property
    def spaces(self) -> list[EnvSpaces]:
        """The spaces of each slice, sent as the first reply."""

    def prepare(self) -> None:
        """Does work ahead of the next command; called after every reply."""

    def close(self) -> None:
        """Closes everything; raises the first failure after the last is closed."""


def sampling_process(channel: Channel, make: Callable[[Channel], Worker]) -> None:
    """Makes a worker and executes its commands until it receives None::

        (start)                → the spaces of each slice
        (method, *arguments)   → what `method(worker, *arguments)` returns
        None                   → None, everything closed

    Args:
        channel: connection to the process that started this one.
        make: makes the worker with its environments.
    """
    worker = make(channel)
    try:
        channel.status.enter(Phase.WAITING)
        _reply_spaces(channel, worker.spaces)
        while (command := channel.receive()) is not None:
            method, *arguments = command
            reply(channel, method(worker, *arguments))
            worker.prepare()
    except BaseException as error:
        if not isinstance(error, EOFError):  # EOFError: the parent has exited
            channel.fail(error)  # report before closing, which may hang or fail for the same reason
        worker.close()
        return
    worker.close()
    channel.leave()


def initialize_worker(affinity: Affinity, loads_torch: bool, seeds: Sequence[GeneratorSeeds], rank: int) -> None:
    """Initializes a worker process: its CPUs, threads, global generators and garbage collector. Called first.

    torch gets one thread unless the affinity says otherwise, whatever the parent used, even if only the environment
    uses torch. The parent's objects are frozen, because a garbage collection that visits them would copy their memory
    pages.

    Args:
        affinity: where workers run.
        loads_torch: whether this process itself will use torch.
        seeds: seeds of each worker, for environments that draw from global generators; without them, all forked workers
            would continue the parent's generators.
        rank: rank of this worker.
    """
    gc.freeze()
    cpus = affinity.cpus_of(rank)
    if cpus is not None:
        pin(cpus)
    if loads_torch:
        importlib.import_module("torch")
    set_torch_threads(affinity.worker_torch_threads)
    seed_global_generators(seeds[rank])


def process_seeds(config: SliceConfig, role: str, number: int) -> GeneratorSeeds:
    """Returns the seeds of a process's global generators.

    Args:
        config: configuration of a slice of the process.
        role: "worker", "sampler process" or "evaluation process".
        number: env id of the process's first environment, which is unique even among samplers that share a seed.
    """
    return generator_seeds(config.seed, Stream.PROCESS, _ROLES.index(role), number, config.incarnation)


def _reply_spaces(channel: Channel, spaces: Sequence[EnvSpaces]) -> None:
    try:
        channel.reply(spaces)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise EnvContractError(
            f"the spaces of the environment cannot be pickled: {headline(error)}; if their classes are made at run "
            "time, use a wrapper that has Gymnasium's own spaces with the same bounds"
        ) from error


def reply(channel: Channel, answer: Any) -> None:
    """Sends a result, without the entries of infos that cannot be pickled."""
    try:
        channel.reply(answer)
    except (pickle.PicklingError, TypeError, AttributeError):
        for episodes in _episodes_in(answer):
            episodes.infos = [_portable(info) for info in episodes.infos]
        channel.reply(answer)


def _episodes_in(answer: Any) -> Iterator[Episodes]:
    """Yields the episodes in a result; their info dicts may contain objects that cannot be pickled."""
    match answer:
        case Episodes():
            yield answer
        case SliceReport():
            yield answer.episodes
        case EvalReport():
            yield answer.finished
        case list() | tuple():
            for part in answer:
                yield from _episodes_in(part)


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
