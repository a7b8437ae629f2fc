"""Where the ranks of a training run: in processes started here, or in those of `torchrun`."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from headrace.agents.device import device_here
from headrace.config import checked_names
from headrace.processes.affinity import Affinity, AffinityLike, core_shares, pin
from headrace.processes.status import Status
from headrace.runners.config import RunnerConfig
from headrace.runners.ranks import DistributedRanks

__all__ = [
    "SyncConfig",
    "Team",
    "connected",
    "ending_by_signal",
    "own_store",
    "pinned",
    "reached_store",
    "store_of_launcher",
]

#: How many times `rank_timeout` a rank waits for another that works but does not come to an exchange.
PATIENCE = 10
#: The environment variables of `torchrun`, which other launchers set as well.
_OF_LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@checked_names
@dataclass(frozen=True, kw_only=True)
class SyncConfig(RunnerConfig):
    """The settings of `SyncRl` and `SyncRlEval`: those of every runner, and how many learners there are, and where."""

    world_size: int | None = None
    """Number of learners, each a process with its own sampler. None: one for each of `devices` or of the affinities;
    under `torchrun`, as many as it started."""
    devices: Sequence[str] | None = None
    """Torch device of each learner, such as ("cuda:0", "cuda:1"); of fewer devices than learners, some get several.
    None: the CPU; under `torchrun`, the GPU of LOCAL_RANK if there is one."""
    rank_timeout: float = 60.0
    """Seconds without progress, within one time step or one update, after which a learner counts as hung."""
    start_method: str = "auto"
    """How learners start: "fork", "forkserver", "spawn", or "auto": fork on Linux while CUDA is not initialised."""

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.world_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
            raise TypeError(f"world_size must be a whole number, got {type(size).__name__} {size!r}")
        if size is not None and size < 1:
            raise ValueError(f"world_size must be at least 1, got {size}")
        if self.devices is not None:
            if isinstance(self.devices, str) or not self.devices:
                raise ValueError(f'devices must be a sequence such as ("cuda:0", "cuda:1"), got {self.devices!r}')
            object.__setattr__(self, "devices", tuple(str(torch.device(device)) for device in self.devices))
        if not self.rank_timeout > 0:
            raise ValueError(f"rank_timeout must be more than 0, got {self.rank_timeout!r}")
        if self.start_method not in ("auto", "fork", "forkserver", "spawn"):
            raise ValueError(f'start_method must be "auto", "fork", "forkserver" or "spawn", got {self.start_method!r}')


@dataclass(frozen=True)
class Team:
    """The ranks of a training.

    Args:
        world_size: number of ranks.
        config: the settings; devices are set.
        affinities: one per rank; empty: each rank of this machine gets its share of the cores.
        launched: whether another program, such as `torchrun`, started this process as one of the ranks.
    """

    world_size: int
    config: SyncConfig
    affinities: tuple[Affinity, ...] = ()
    launched: bool = False

    @staticmethod
    def of(config: RunnerConfig, affinity: AffinityLike) -> Team:
        """Returns the team that the settings, the affinities and the environment variables ask for.

        Args:
            config: settings of the runner.
            affinity: of the only rank, or a sequence with that of each.

        Raises:
            ValueError: if they disagree about the number of ranks.
        """
        if not isinstance(config, SyncConfig):
            config = SyncConfig(**vars(config))
        one = affinity is None or isinstance(affinity, Affinity | Mapping)
        given = ([] if affinity is None else [affinity]) if one else list(affinity)  # type: ignore[arg-type]
        affinities = tuple(Affinity.of(each) for each in given)  # type: ignore[arg-type]
        launched = all(name in os.environ for name in _OF_LAUNCHER)
        asked = {
            "world_size": config.world_size,
            "affinity": len(affinities) or None,
            "WORLD_SIZE, of torchrun,": int(os.environ["WORLD_SIZE"]) if launched else None,
        }
        numbers = {name: number for name, number in asked.items() if number is not None}
        if len(set(numbers.values())) > 1:
            said = " and ".join(f"{name} is for {number}" for name, number in numbers.items())
            raise ValueError(f"the number of learners is not clear: {said}; make them the same")
        world_size = next(iter(numbers.values()), len(config.devices or ()) or 1)
        if config.devices is not None and len(config.devices) > world_size:
            raise ValueError(f"devices has {len(config.devices)} devices for {world_size} learners; leave some out")
        return Team(world_size, config, affinities, launched)

    def placed(self, rank: int, part: int) -> Affinity:
        """Returns where a rank runs, in its process.

        Args:
            rank: number of the rank.
            part: its number among the ranks of its machine.
        """
        affinity = self.affinities[rank] if self.affinities else Affinity()
        devices, number = self.config.devices, rank
        if devices is None and self.launched and affinity.cuda_idx is None and torch.cuda.is_available():
            devices, number = [f"cuda:{each}" for each in range(torch.cuda.device_count())], part
        if devices is None:
            return affinity
        device = device_here(devices[number % len(devices)], "a device of SyncRl")
        return affinity if device.type != "cuda" else replace(affinity, cuda_idx=device.index or 0)

    def pin(self, part: int, n_parts: int) -> None:
        """Pins this process, and those that it starts, to its share of the cores, unless there are affinities.

        Args:
            part: number of the rank among the ranks of its machine.
            n_parts: number of these.
        """
        share = core_shares(n_parts)
        if share and not self.affinities:
            pin(share[part])


@contextmanager
def connected(store: Any, rank: int, team: Team, status: Status) -> Iterator[DistributedRanks]:
    """Initializes the process group of `torch.distributed` inside the context, unless the program has done so.

    Args:
        store: a store that all ranks share.
        rank: number of this one.
        team: the ranks.
        status: where this process records what it is doing.

    Yields:
        The ranks.
    """
    patience = team.config.rank_timeout * PATIENCE
    begun = not dist.is_initialized()
    if begun:
        nccl = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
        # Longer than our own deadline, which says who did not come.
        limit = timedelta(seconds=2 * patience)
        dist.init_process_group(backend, store=store, rank=rank, world_size=team.world_size, timeout=limit)
    try:
        yield DistributedRanks(store, status, patience)
    finally:
        if begun:
            dist.destroy_process_group()


def store_of_launcher(timeout: float) -> tuple[Any, int]:
    """Returns the store of `torchrun`, and the rank of this process. timeout: seconds to wait for the others."""
    store, rank, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=timeout))))
    store.set_timeout(timedelta(seconds=timeout))
    return PrefixStore("headrace", store), rank


def own_store(timeout: float) -> tuple[Any, int]:
    """Returns a new store in this process that other processes of this machine can reach, and its port."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))  # the store itself would listen on every interface
    listening.listen(128)
    port = listening.getsockname()[1]
    limit = timedelta(seconds=timeout)
    store = TCPStore("127.0.0.1", port, None, True, limit, wait_for_workers=False, master_listen_fd=listening.detach())
    return store, port


def reached_store(port: int, timeout: float) -> Any:
    """Returns the store of the process that started the ranks."""
    return TCPStore("127.0.0.1", port, None, False, timedelta(seconds=timeout), wait_for_workers=False)


@contextmanager
def pinned(team: Team, part: int, n_parts: int) -> Iterator[None]:
    """Pins this process as `Team.pin` does inside the context."""
    before = os.sched_getaffinity(0) if sys.platform == "linux" else None
    team.pin(part, n_parts)
    try:
        yield
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)


@contextmanager
def ending_by_signal(stop: Callable[[], None], signals: Sequence[int]) -> Iterator[list[int]]:
    """Calls `stop` in place of the default action of these signals inside the context, in the main thread.

    Yields:
        The signals that came. A second one of a kind has its default action.
    """
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, before[number])
        stop()

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, handle)
    try:
        yield came
    finally:
        for number, action in before.items():
            signal.signal(number, action)
