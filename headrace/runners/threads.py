"""Where the learner runs, and how many threads its torch operations get."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from headrace.agents.base import Agent
from headrace.processes.affinity import Affinity, pin

__all__ = ["learner_threads", "place_learner", "torch_threads"]

#: What torch chose itself, unless somebody was quicker.
_AT_IMPORT = torch.get_num_threads()
#: Models with fewer parameters learn with one thread. Two can at best halve an update of some milliseconds; where
#: others want a core they made it 4 to 16 times as long (benchmarks/torch_threads.py, docs/performance.md).
SMALL = 1_000_000


def place_learner(affinity: Affinity, agent: Agent) -> None:
    """Pins this process and moves the agent, as `affinity` says.

    Workers are to be there already: those forked from a pinned process would inherit its CPUs, and a process that has
    used CUDA cannot be forked.
    """
    if affinity.master_cpus is not None and affinity.set_affinity:
        pin(affinity.master_cpus)
    if affinity.device is not None:
        agent.to_device(affinity.device)


@contextmanager
def learner_threads(affinity: Affinity, agent: Agent) -> Iterator[str]:
    """Inside, torch's threads are `affinity.master_torch_threads`, or one for a small model; outside as before.

    A number that the user chose otherwise stays: by `torch.set_num_threads` since headrace was imported, or by
    OMP_NUM_THREADS or MKL_NUM_THREADS. Gives a sentence for the log, empty where nothing was chosen for the user.
    """
    before = torch.get_num_threads()
    threads, sentence = affinity.master_torch_threads, ""
    if threads is None and before > 1 and not _user_chose(before) and (n := _n_parameters(agent)) < SMALL:
        threads = 1
        sentence = (
            f"torch: 1 thread for learning, in place of {before}: the model is small ({n:,} parameters, less than "
            f"{SMALL:,}), and more would wait for each other; Affinity(master_torch_threads={before}) has {before}"
        )
    with torch_threads(before if threads is None else threads):
        yield sentence


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Inside, torch has `n` threads; outside as many as before."""
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
