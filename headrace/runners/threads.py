"""Places the learner on CPUs and a GPU, and sets the number of threads of its torch operations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from headrace.agents.base import Agent
from headrace.processes.affinity import Affinity, pin

__all__ = ["learner_threads", "place_learner", "torch_threads"]

#: Number of threads that torch chose, unless it was changed before this import.
_AT_IMPORT = torch.get_num_threads()
#: Models with fewer parameters train with one thread. Two threads can at best halve an update of some milliseconds; if
#: other processes needed a core, updates took 4 to 16 times as long (benchmarks/torch_threads.py, docs/performance.md).
SMALL = 1_000_000


def place_learner(affinity: Affinity, agent: Agent) -> None:
    """Pins this process and moves the agent to its device, as `affinity` says.

    Start the workers before: workers forked from a pinned process would inherit its CPUs, and a process that has used
    CUDA cannot be forked.
    """
    if affinity.master_cpus is not None and affinity.set_affinity:
        pin(affinity.master_cpus)
    if affinity.device is not None:
        agent.to_device(affinity.device)


@contextmanager
def learner_threads(affinity: Affinity, agent: Agent) -> Iterator[str]:
    """Sets torch's threads inside the context to `affinity.master_torch_threads`, or to one for a small model.

    Another number that the user chose is kept: by `torch.set_num_threads` since headrace was imported, or by
    OMP_NUM_THREADS or MKL_NUM_THREADS.

    Args:
        affinity: affinity of the run.
        agent: initialized agent.

    Yields:
        A message for the log; empty if nothing was chosen for the user.
    """
    before = torch.get_num_threads()
    threads, sentence = affinity.master_torch_threads, ""
    if threads is None and before > 1 and not _user_chose(before) and (n := _n_parameters(agent)) < SMALL:
        threads = 1
        sentence = (
            f"torch: 1 thread for learning instead of {before}, because the model is small ({n:,} parameters, less "
            f"than {SMALL:,}) and threads would wait for each other; Affinity(master_torch_threads={before}) keeps "
            f"{before}"
        )
    if threads is None:
        threads = before
        if affinity.master_cpus is not None and not _user_chose(before):  # it has only its share of the cores
            threads = min(before, len(affinity.master_cpus))
    with torch_threads(threads):
        yield sentence


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Sets torch's threads to `n` inside the context, and restores the number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _user_chose(threads: int) -> bool:
    return threads != _AT_IMPORT or any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))


def _n_parameters(agent: Agent) -> int:
    return sum(parameter.numel() for parameter in agent.parameters())
