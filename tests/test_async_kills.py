"""Asynchronous trainings of which a process is killed at a random moment: the error names it, and nothing is left."""

import json
import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from headrace.agents.dqn import DqnAgent
from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.dqn import DQN, DQNConfig
from headrace.algos.pg import PPO, PPOConfig
from headrace.runners import AsyncRlEval, RunnerConfig
from headrace.runners.logging.logger import Logger
from headrace.samplers import (
    AsyncAlternatingSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncNoOverlapAlternatingSampler,
    AsyncSerialSampler,
    BaseSampler,
)
from tests.leftovers import DEADLINE, until

pytestmark = pytest.mark.programs

ASYNC: list[type[BaseSampler]] = [
    AsyncSerialSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncAlternatingSampler,
    AsyncNoOverlapAlternatingSampler,
]


def train_for_ever(cls: type[BaseSampler], algo: str, eval_process: bool, outcome: Path) -> None:
    """Trains in a separate process; writes how it ended and which processes were left then."""
    torch.set_num_threads(1)
    # An evaluation after every fourth batch, and long enough to be killed in.
    sampler = cls(
        "CartPole-v1",
        batch_T=8,
        batch_B=4,
        n_workers=2,
        eval_n_envs=2,
        eval_max_steps=60,
        eval_process=eval_process,
        start_method="fork",
    )
    config = RunnerConfig(n_steps=10**8, seed=0, log_interval_steps=4 * 32)
    learner: tuple[Any, Any] = (PPO(PPOConfig(epochs=2)), CategoricalPgAgent())
    if algo == "dqn":
        settings = DQNConfig(batch_size=32, replay_ratio=4, min_steps_learn=64, replay_size=2000)
        learner = DQN(settings), DqnAgent(eps_itr_max=20)
    try:
        AsyncRlEval(*learner, sampler, config, logger=Logger()).train()
    except BaseException as error:
        told = {"kind": type(error).__name__, "message": str(error), "left": len(living(family(psutil.Process())[1:]))}
        outcome.write_text(json.dumps(told))
        os._exit(1)


def family(learner: psutil.Process) -> list[psutil.Process]:
    """A process and its descendants; none once it is gone."""
    try:
        return [learner, *learner.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def member(learner: psutil.Process, role: str, number: int) -> psutil.Process | None:
    """Returns a process of the training if it exists (yet): the learner, its children in order, or a child of the
    first.
    """
    with suppress(psutil.NoSuchProcess, IndexError):
        if role == "learner":
            return learner
        own = in_order(learner)
        return in_order(own[0])[number] if role == "worker" else own[role == "evaluation process"]
    return None


def in_order(parent: psutil.Process) -> list[psutil.Process]:
    return sorted(parent.children(), key=lambda one: (one.create_time(), one.pid))


def living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """A killed orphan is reaped by whoever adopts it."""
    alive = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def shared_memory(pids: Iterable[int]) -> set[int]:
    """The numbers of the memory without a name that these processes have mapped or hold descriptors of."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                if "/memfd:" in line:
                    found.add(int(line.split()[4]))
        with suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    if "/memfd:" in os.readlink(entry):
                        found.add(entry.stat().st_ino)
    return found


def kill_one(cls: type[BaseSampler], role: str, rng: random.Random, outcome: Path) -> None:
    """Starts a training, kills one of its processes, and checks what is left."""
    algo, number = rng.choice(["dqn", "ppo"]), rng.randrange(2)
    eval_process = role == "evaluation process" or rng.random() < 0.5
    # From the first moment of the victim: half of them while everything starts, half in the run.
    moment = rng.uniform(0.0, 0.1) if rng.random() < 0.5 else rng.uniform(0.1, 1.5)
    about = f"{cls.__name__}, {algo}, {role} {number} after {moment:.3f} s"
    own = shared_memory([os.getpid()])
    process = multiprocessing.get_context("fork").Process(
        target=train_for_ever, args=(cls, algo, eval_process, outcome)
    )
    process.start()
    learner, processes = psutil.Process(process.pid), []
    try:
        assert until(lambda: member(learner, role, number)), about
        time.sleep(moment)
        victim = member(learner, role, number)
        assert victim is not None, about
        memory = shared_memory(one.pid for one in family(learner)) - own
        assert memory or role == "learner", about
        processes = family(learner)
        victim.kill()
        end_of(process, role, processes, about)
        assert not shared_memory(psutil.pids()) & memory, about
    finally:
        for one in [*family(learner), *processes]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.join(DEADLINE)
    if role != "learner":
        told = json.loads(outcome.read_text())
        assert told["kind"] == "WorkerCrashed", (about, told)
        name = {"worker": f"worker {number}", "sampler process": "sampler process 0"}.get(role, role)
        assert re.search(rf"\b{name}\b.* killed by SIGKILL", told["message"]), (about, told)
        assert told["left"] == 0, (about, told)
    process.close()


def end_of(process: BaseProcess, role: str, processes: list[psutil.Process], about: str) -> None:
    """Processes that lost their learner end soon; a learner that lost another process raises an error and has none
    left.
    """
    if role == "learner":
        assert until(lambda: not living(processes)), (about, living(processes))
        process.join(DEADLINE)
        assert process.exitcode == -signal.SIGKILL, about
    else:
        process.join(DEADLINE)
        assert process.exitcode == 1, about
        assert until(lambda: not living(processes)), (about, living(processes))


@pytest.mark.parametrize("cls", ASYNC)
@pytest.mark.parametrize("n_kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_training_resumes_after_any_process_is_killed(cls: type[BaseSampler], n_kills: int, tmp_path: Path) -> None:
    rng = random.Random(f"{cls.__name__} {n_kills}")
    roles = ["learner", "sampler process", "evaluation process", "worker"][: 3 if cls is AsyncSerialSampler else 4]
    for number, role in enumerate(rng.sample(roles * 5, n_kills)):
        kill_one(cls, role, rng, tmp_path / f"outcome-{number}")
