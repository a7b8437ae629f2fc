"""Run by test_odd_programs.py: programs that treat their children, threads or descriptors in unusual ways.

Each prints its results, one per line.
"""

import atexit
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import weakref
from typing import Any

import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.errors import SamplerError, WorkerCrashed, WorkerHung
from headrace.samplers import AsyncCpuSampler, BaseSampler, CpuSampler, GpuSampler
from tests.faulty import SEED, FaultyEnv
from tests.walk import Walk

KEPT: list[BaseSampler] = []
KINDS: dict[str, type[BaseSampler]] = {"cpu": CpuSampler, "gpu": GpuSampler, "async": AsyncCpuSampler}


def said(error: BaseException) -> None:
    print(f"{type(error).__name__}: {error}".splitlines()[0], flush=True)


def use(cls: type[BaseSampler], fault: str, start_method: str) -> None:
    """Uses a valid sampler, then one whose environment fails."""
    options: dict[str, Any] = {"batch_T": 8, "batch_B": 4, "n_workers": 2, "max_decorrelation_steps": 0}
    with cls(Walk, **options, start_method=start_method).initialize(CategoricalPgAgent(), seed=SEED) as sampler:
        sampler.obtain_samples(0)
    print("well", flush=True)
    kwargs = {"fault": fault, "phase": "step"}
    sampler = cls(FaultyEnv, kwargs, **options, start_method=start_method, timeout=2.0)
    try:
        with sampler.initialize(CategoricalPgAgent(), seed=SEED):
            for itr in range(3):
                sampler.obtain_samples(itr)
    except (WorkerCrashed, WorkerHung) as error:
        said(error)
    print("done", flush=True)


def reaps(signum: int, frame: Any) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def in_a_daemon(cls: type[BaseSampler]) -> None:
    try:
        cls(Walk, batch_T=4, batch_B=2).initialize(CategoricalPgAgent(), seed=0)
    except SamplerError as error:
        said(error)


class Slow(Walk):
    def step(self, action: Any) -> Any:
        time.sleep(0.02)
        return super().step(action)


def from_two_threads(cls: type[BaseSampler]) -> None:
    with cls(Slow, batch_T=16, batch_B=2, n_workers=1).initialize(CategoricalPgAgent(), seed=0) as sampler:
        first = threading.Thread(target=sampler.obtain_samples, args=(0,))
        first.start()
        time.sleep(0.1)
        for call in (lambda: sampler.obtain_samples(0), sampler.shutdown, sampler.state):
            try:
                call()
            except SamplerError as error:
                said(error)
        first.join(60)
        sampler.obtain_samples(1)
    print("well", flush=True)


def without_descriptors(cls: type[BaseSampler], stage: str) -> None:
    """Runs out of descriptors at one stage, for every number of descriptors left."""
    for left in range(1, 40, 3):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(60)]  # the limit is on numbers: no gaps below it
        sampler = cls(Walk, batch_T=4, batch_B=2, n_workers=2, eval_n_envs=2)
        try:
            if stage != "start":
                sampler.initialize(CategoricalPgAgent(), seed=0)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1 + (left if stage == "start" else 0), hard))
            if stage == "start":
                sampler.initialize(CategoricalPgAgent(), seed=0)
            sampler.obtain_samples(0)
            sampler.evaluate_agent(0)
            sampler.state()
            sampler.shutdown()
            print("well", flush=True)
        except SamplerError as error:
            text = str(error)
            print("named" if "ulimit -n" in text else f"not named: {text}", flush=True)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)
            sampler.shutdown()
        if stage != "start":
            break


def interrupts() -> None:
    raise KeyboardInterrupt


def interrupted_at_exit(cls: type[BaseSampler]) -> None:
    """Leaves a sampler open; a Ctrl-C comes in the first finalizer that runs when Python exits."""
    sampler = cls(Walk, batch_T=4, batch_B=4, n_workers=2).initialize(CategoricalPgAgent(), seed=0)
    sampler.obtain_samples(0)
    weakref.finalize(sampler, interrupts)
    KEPT.append(sampler)


class Closes(Walk):
    def close(self) -> None:
        os.write(1, b"closed\n")


def shut_down_at_exit(cls: type[BaseSampler]) -> None:
    """The program shuts its sampler down at exit, by a handler from before the sampler."""
    atexit.register(lambda: KEPT[0].shutdown())
    KEPT.append(cls(Closes, batch_T=4, batch_B=4, n_workers=2).initialize(CategoricalPgAgent(), seed=0))
    KEPT[0].obtain_samples(0)


def main() -> None:
    what, kind, *more = sys.argv[1:]
    torch.set_num_threads(1)
    cls = KINDS[kind]
    match what:
        case "ignores":
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            use(cls, *more)
        case "reaps":
            signal.signal(signal.SIGCHLD, reaps)
            use(cls, *more)
        case "daemon":
            process = multiprocessing.get_context("fork").Process(target=in_a_daemon, args=(cls,), daemon=True)
            process.start()
            process.join(60)
        case "threads":
            from_two_threads(cls)
        case "interrupted at exit":
            interrupted_at_exit(cls)
        case "shut down at exit":
            shut_down_at_exit(cls)
        case "descriptors":
            without_descriptors(cls, *more)


if __name__ == "__main__":
    main()
