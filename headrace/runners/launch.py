"""Starts the ranks of a training on this machine, watches them, and ends them together."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from headrace.algos.ranks import Ranks
from headrace.errors import CheckpointError, SamplerError, WorkerCrashed, headline, shortened, traceback_of
from headrace.processes.affinity import Affinity
from headrace.processes.child import Channel
from headrace.processes.group import WorkerGroup
from headrace.processes.start_method import choose_start_method
from headrace.processes.status import TICK, Phase, Status
from headrace.runners.ranks import LostRank
from headrace.runners.row import Counters
from headrace.runners.team import Team, connected, ending_by_signal, own_store, reached_store
from headrace.types import EnvSpaces

__all__ = ["Learned", "RankRunner", "on_cpu", "rank_main", "train_on_ranks"]

_STOP = "stop"
#: Seconds that a rank which lost another gives the watching process to find out why that one ended.
_GRACE = 3.0
#: Errors that are raised by name where training was started; others become a SamplerError.
_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        CheckpointError,
        FileExistsError,
        FileNotFoundError,
        FloatingPointError,
        MemoryError,
        OSError,
        TypeError,
        ValueError,
    )
}


class RankRunner(Protocol):
    """The parts of a runner that a rank needs."""

    def become_rank(self, ranks: Ranks, affinity: Affinity, status: Status) -> None:
        """Makes the runner that of one learner."""

    def train_here(self, stops: Callable[[], bool]) -> Learned:
        """Trains in this process; `stops` says whether training is to end after the current batch."""


@dataclass(frozen=True)
class Learned:
    """The result of a training.

    Args:
        seed: the seed.
        spaces: spaces of the environments.
        agent: state of the agent, on the CPU.
        traj_infos: plain fields of the episodes of the last log row.
        counters: progress of the run.
        sentence: how far it came, for a training that was interrupted.
    """

    seed: int
    spaces: EnvSpaces
    agent: Mapping[str, Any]
    traj_infos: Sequence[Mapping[str, Any]]
    counters: Counters
    sentence: str


def on_cpu(value: Any) -> Any:
    """Returns the state of an agent with its tensors on the CPU."""
    if isinstance(value, Mapping):
        return {name: on_cpu(item) for name, item in value.items()}
    return value.cpu() if isinstance(value, torch.Tensor) else value


@dataclass(frozen=True)
class _Raised:
    """An error of a rank, as text."""

    kind: str
    message: str
    traceback_text: str

    def error(self) -> Exception:
        """Returns the exception to raise where training was started."""
        if self.kind not in _KINDS:
            return SamplerError(self.message, traceback_text=self.traceback_text)
        error = _KINDS[self.kind](self.message)
        error.add_note(self.traceback_text)
        return error


@dataclass(frozen=True)
class _Post:
    """What a rank is given by the process that starts it."""

    runner: RankRunner
    team: Team
    rank: int


def train_on_ranks(runner: RankRunner, team: Team, asked_to_stop: Callable[[], bool]) -> tuple[Learned, bool]:
    """Trains with all ranks in processes of this machine; returns what they learned, and whether Ctrl-C ended it.

    After Ctrl-C or SIGTERM, the ranks finish their batch, save and end; a second Ctrl-C kills them.

    Args:
        runner: the runner, of which each rank gets a copy.
        team: the ranks.
        asked_to_stop: says whether training is to end after the current batch.

    Raises:
        SamplerError: if a rank fails, dies or hangs; all others are killed.
        Exception: what the runner raises, if it is an error of the standard library, with the message of the rank.
    """
    timeout = team.config.rank_timeout
    posts = [_Post(runner, team, rank) for rank in range(team.world_size)]
    group = WorkerGroup(
        rank_main,
        posts,
        start_method=choose_start_method(team.config.start_method),
        prologue=partial(_prologue, team),
        name="headrace-rank",
        timeout=timeout,
        names=[f"rank {rank}" for rank in range(team.world_size)],
    )
    stopping: list[bool] = []
    try:
        # In this process, which outlives every rank, and only now, because the store has threads.
        store, port = own_store(timeout)
        group.send(port)
        with ending_by_signal(lambda: stopping.append(True), [signal.SIGINT, signal.SIGTERM]) as came:
            learned = _awaited(group, lambda: bool(stopping) or asked_to_stop())
        group.stop()
        del store
    except BaseException as error:
        group.kill()
        raise shortened(error) from error.__cause__
    return learned, signal.SIGINT in came


def _awaited(group: WorkerGroup, asked_to_stop: Callable[[], bool]) -> Learned:
    """Waits for the answers of all ranks, or for an error of one; tells rank 0 when to stop. Returns the answer of rank
    0.
    """
    watch, told = group.watch(), False
    answers: dict[int, Any] = {}
    while len(answers) < len(group):
        time.sleep(TICK)
        for rank in range(len(group)):
            if rank not in answers and group.answered(rank, watch):
                (answers[rank],) = group.replies(ranks=[rank])
                if isinstance(answers[rank], _Raised):
                    raise answers[rank].error()
        if not told and 0 not in answers and asked_to_stop():
            group.send_to(0, _STOP)
            told = True
    learned: Learned = answers[0]
    return learned


def _prologue(team: Team, rank: int) -> None:
    """Initializes the process of a rank: its CPUs, and the network interface, which is that of this machine alone."""
    gc.freeze()
    team.pin(rank, team.world_size)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")


def rank_main(channel: Channel, post: _Post) -> None:
    """Runs a rank; the main function of its process. Replies with what it learned, or with its error."""
    name, status = f"rank {post.rank}", channel.status
    status.enter(Phase.STARTING)
    port = channel.receive()
    try:
        channel.reply(_trained(channel, post, port))
    except LostRank as error:
        time.sleep(_GRACE)  # the process that watches all ranks knows more, and kills this one meanwhile
        raise WorkerCrashed(error.message, status.where()) from None
    except SamplerError as error:
        raise type(error)(f"{name}: {error.message}", error.where, error.traceback_text) from None
    except Exception as error:
        kind = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS), "")
        channel.reply(_Raised(kind, f"{name}: {error if kind else headline(error)}", traceback_of(error)))
    while channel.receive() is not None:  # a command to stop that came late
        pass
    channel.leave()


def _trained(channel: Channel, post: _Post, port: int) -> Learned | None:
    """Trains as one rank of the team; returns what it learned if it is rank 0."""
    team, rank = post.team, post.rank
    store = reached_store(port, team.config.rank_timeout)
    with connected(store, rank, team, channel.status) as ranks:
        post.runner.become_rank(ranks, team.placed(rank, rank), channel.status)
        learned = post.runner.train_here(channel.has_command)
    return None if rank else learned
