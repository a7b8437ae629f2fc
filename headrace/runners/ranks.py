"""The ranks of a training in processes of `torch.distributed`, and what runners exchange between them."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from typing import Any

import psutil
import torch
import torch.distributed as dist

from headrace.agents.base import Agent
from headrace.algos.ranks import Ranks, least_of
from headrace.checkpoints.run_settings import plain
from headrace.errors import WorkerCrashed, WorkerHung, one_line
from headrace.processes.status import TICK, Phase, Status
from headrace.samplers.base import BaseSampler
from headrace.samplers.traj_info import TrajInfo

__all__ = [
    "BatchReport",
    "DistributedRanks",
    "LostRank",
    "any_rank",
    "exchanged",
    "others_first",
    "over_ranks",
    "same_agent",
    "values_of",
]

#: Bytes of the first message of an exchange, with its length; a longer text needs a second one.
_FIRST = 2048
_LENGTH = 8
#: Seconds between two looks at an exchange of GPUs.
_GPU_LOOK = 2e-5
#: Seconds within which ranks that notice a failure tell each other that they live.
_ROLL_CALL = 1.0


class LostRank(WorkerCrashed):
    """Raised if another rank ended during an exchange; why, only the process that watches it knows."""


class DistributedRanks(Ranks):
    """The ranks of the default process group of `torch.distributed`, which must be initialized.

    Every wait is cut into pieces of 50 ms, between which signals are handled and this process notes that it lives.

    Args:
        store: a `torch.distributed` store that all ranks share.
        status: where this process records what it is doing.
        deadline: seconds that this rank waits for another one.
    """

    def __init__(self, store: Any, status: Status, deadline: float) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._store = store
        self._status = status
        self._deadline = deadline
        self._n = 0  # exchanges so far, the same number on all ranks
        store.set(f"rank/{self.rank}", json.dumps([os.getpid(), socket.gethostname()]))

    def mean_(self, tensor: torch.Tensor) -> None:
        """See `Ranks`."""
        self._wait(dist.all_reduce(tensor, async_op=True), tensor.is_cuda)
        tensor.div_(self.world_size)

    def broadcast_(self, tensor: torch.Tensor) -> None:
        """See `Ranks`."""
        self._wait(dist.broadcast(tensor, 0, async_op=True), tensor.is_cuda)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `Ranks`."""
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        self._wait(dist.all_gather(gathered, tensor, async_op=True), tensor.is_cuda)
        return torch.stack(gathered)

    def _wait(self, work: Any, on_gpu: bool) -> None:
        """Waits until all ranks have come to an exchange.

        Raises:
            LostRank: if one of them ended.
            WorkerHung: if one of them does not come.
        """
        self._n += 1
        line = self._status.line
        before, line[Status.PHASE] = line[Status.PHASE], Phase.EXCHANGING
        end = time.monotonic() + self._deadline
        while not self._ended(work, on_gpu):
            line[Status.PROGRESS] += 1  # waiting for living ranks is progress
            if time.monotonic() > end:
                raise WorkerHung(
                    f"{self._absent()} did not come to an exchange within {self._deadline:g} s, for which rank "
                    f"{self.rank} waits; it hangs, or the ranks do not take the same number of updates"
                )
        line[Status.PHASE] = before
        line[Status.PROGRESS] += 1

    def _ended(self, work: Any, on_gpu: bool) -> bool:
        """Returns whether an exchange has ended, after waiting for it for at most a tick."""
        if on_gpu:  # where a wait that ends before the exchange would abort it
            end = time.monotonic() + TICK
            while not work.is_completed():
                if time.monotonic() > end:
                    return False
                time.sleep(_GPU_LOOK)
        for _ in range(2):  # the tick may end just before the exchange does
            try:
                work.wait(timedelta(seconds=TICK))
                return True
            except RuntimeError as error:
                if not work.is_completed():
                    return False
                lost = error
        raise LostRank(f"rank {self.rank} lost {self._absent()} in an exchange: {one_line(lost)}")

    def _absent(self) -> str:
        """Returns the names of the ranks that do not wait in this exchange, with their PIDs and machines."""
        names = []
        try:
            self._store.set(f"waits/{self._n}/{self.rank}", "")
            time.sleep(_ROLL_CALL)
            for rank in range(self.world_size):
                if rank != self.rank and not self._store.check([f"waits/{self._n}/{rank}"]):
                    pid, host = json.loads(self._store.get(f"rank/{rank}"))
                    gone = host == socket.gethostname() and not psutil.pid_exists(pid)
                    names.append(f"rank {rank} (pid {pid} on {host}{', which has ended' if gone else ''})")
        except RuntimeError:  # the store is gone, with the process that had it
            return "another rank"
        return " and ".join(names) or "another rank"


def same_agent(agent: Agent, ranks: Ranks) -> None:
    """Gives the agents of all ranks the parameters and buffers of rank 0."""
    if ranks.world_size > 1:
        with torch.no_grad():
            for tensor in chain(agent.model.parameters(), agent.model.buffers()):
                ranks.broadcast_(tensor.data)


def exchanged(ranks: Ranks, text: str) -> list[str]:
    """Returns the texts of all ranks, by rank."""
    content = text.encode()
    sent = torch.zeros(_FIRST, dtype=torch.uint8)
    own = len(content).to_bytes(_LENGTH, "little") + content[: _FIRST - _LENGTH]
    sent[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
    heads = [bytes(head.numpy()) for head in ranks.gather(sent)]
    lengths = [int.from_bytes(head[:_LENGTH], "little") for head in heads]
    texts = [head[_LENGTH : _LENGTH + length] for head, length in zip(heads, lengths, strict=True)]
    rest = max(lengths) - (_FIRST - _LENGTH)
    if rest > 0:
        sent = torch.zeros(rest, dtype=torch.uint8)
        if left := content[_FIRST - _LENGTH :]:
            sent[: len(left)] = torch.frombuffer(bytearray(left), dtype=torch.uint8)
        tails = [bytes(tail.numpy()) for tail in ranks.gather(sent)]
        texts = [(head + tail)[:length] for head, tail, length in zip(texts, tails, lengths, strict=True)]
    return [one.decode() for one in texts]


@dataclass(frozen=True)
class BatchReport:
    """The numbers of a batch, or of an evaluation.

    Args:
        traj_infos: the episodes that ended.
        steps: environment steps.
        opt_info: what `optimize_agent` returned.
    """

    traj_infos: Sequence[TrajInfo]
    steps: int = 0
    opt_info: Mapping[str, float] = field(default_factory=dict)


def over_ranks(ranks: Ranks, sampler: BaseSampler, own: BatchReport) -> BatchReport:
    """Returns the report of all ranks: their episodes and steps, and the means of what their optimizers say.

    Args:
        ranks: the ranks, each of which calls this with its own report.
        sampler: the sampler, which makes the `TrajInfo`s; those of other ranks have no `info`.
        own: the report of this rank.
    """
    if ranks.world_size == 1:
        return own
    told = {
        "trajs": [values_of(info) for info in own.traj_infos],
        "steps": own.steps,
        "opt_info": {name: float(value) for name, value in own.opt_info.items()},
    }
    reports = [json.loads(text) for text in exchanged(ranks, json.dumps(told))]
    infos: list[TrajInfo] = []
    for rank, report in enumerate(reports):
        infos += own.traj_infos if rank == ranks.rank else map(sampler.traj_info, report["trajs"])
    names = dict.fromkeys(chain.from_iterable(report["opt_info"] for report in reports))
    learned = {name: [report["opt_info"][name] for report in reports if name in report["opt_info"]] for name in names}
    return BatchReport(
        infos,
        sum(report["steps"] for report in reports),
        {name: sum(values) / len(values) for name, values in learned.items()},
    )


def values_of(info: TrajInfo) -> dict[str, Any]:
    """Returns the plain fields of a `TrajInfo`, without `info`, which may contain anything."""
    return {name: plain(value) for name, value in vars(info).items() if isinstance(value, bool | int | float | str)}


def any_rank(ranks: Ranks, here: bool) -> bool:
    """Returns whether a condition holds on any rank."""
    return here if ranks.world_size == 1 else not least_of(ranks, int(not here))[0]


@contextmanager
def others_first(ranks: Ranks) -> Iterator[None]:
    """Runs the block on rank 0 after it ended on all others, whether it raised there or not."""
    if ranks.rank == 0:
        least_of(ranks, 0)
    try:
        yield
    finally:
        if ranks.rank != 0:
            least_of(ranks, 0)
