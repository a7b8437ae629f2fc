"""`WorkerGroup` by itself: starting, exchanging messages, failures, and what is left."""

import itertools
import os
import random
import re
import resource
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.errors import SamplerClosed, SamplerError, WorkerCrashed
from headrace.processes.affinity import Affinity, usable_cores
from headrace.processes.group import WorkerGroup
from headrace.processes.start_method import choose_start_method
from headrace.samplers import CpuSampler, GpuSampler, SerialSampler, TrajInfo
from headrace.samplers.workers.main import initialize_worker
from tests.group_targets import echo, matmul, nothing
from tests.leftovers import DEADLINE, descriptors, other_processes
from tests.walk import Walk

METHODS = ["fork", "forkserver", "spawn"]


def group_of(target: Any, arguments: list[Any], start_method: str = "fork", **options: Any) -> WorkerGroup:
    return WorkerGroup(
        target,
        arguments,
        **{"start_method": start_method, "prologue": nothing, "name": "test", "timeout": DEADLINE, **options},
    )


@pytest.mark.parametrize("start_method", METHODS)
def test_workers_get_their_arguments_and_reply_in_order(start_method: str) -> None:
    group = group_of(echo, ["a", "b", "c"], start_method)
    group.send("hello")
    answers = group.replies()
    assert [(argument, command) for argument, command, _, _ in answers] == [(x, "hello") for x in "abc"]
    assert len({pid for _, _, pid, _ in answers}) == 3
    group.stop()
    group.stop()


def test_a_forkserver_worker_does_not_load_torch() -> None:
    """So that workers that only step environments start quickly and stay small."""
    group = group_of(echo, [None], "forkserver")
    group.send(0)
    assert group.replies()[0][3] is False
    group.stop()


def test_message_larger_than_the_pipe_buffer_arrives() -> None:
    group = group_of(echo, [None])
    group.send(bytes(10_000_000))
    assert len(group.replies()[0][1]) == 10_000_000
    group.stop()


def test_a_worker_forked_after_a_threaded_matrix_product_does_not_hang() -> None:
    """A pool of OpenMP threads does not survive a fork; the worker must not wait for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.ones(700, 700) @ torch.ones(700, 700)
        group = group_of(matmul, [700], prologue=partial(initialize_worker, Affinity(), True, [(1, 2, 3)]))
        group.send(0)
        assert group.replies() == [pytest.approx(700.0**3)]
        group.stop()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_unpicklable_arguments_are_refused_before_a_process_starts(start_method: str) -> None:
    lock = threading.Lock()
    sampler = CpuSampler(lambda: Walk() if lock else None, batch_T=4, batch_B=2, start_method=start_method)
    before = psutil.Process().children()
    with pytest.raises(SamplerError, match=r"cannot be pickled.*lock.*fork"):
        sampler.initialize(CategoricalPgAgent(), seed=0)
    assert psutil.Process().children() == before


def test_fork_needs_no_pickling() -> None:
    lock = threading.Lock()
    sampler = CpuSampler(lambda: Walk() if lock else None, batch_T=4, batch_B=2, start_method="fork", n_workers=2)
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        sampler.obtain_samples(0)


@pytest.mark.parametrize("start_method", ["spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_id_registered_only_in_this_process_works_in_workers(start_method: str) -> None:
    import gymnasium

    gymnasium.register("OnlyHere-v0", entry_point="tests.walk:Walk", max_episode_steps=7)
    try:
        sampler = GpuSampler("OnlyHere-v0", batch_T=10, batch_B=2, n_workers=1, start_method=start_method)
        with sampler.initialize(CategoricalPgAgent(), seed=0):
            _, traj_infos = sampler.obtain_samples(0)
        assert traj_infos
    finally:
        del gymnasium.registry["OnlyHere-v0"]


def test_fork_after_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert choose_start_method("auto") == "forkserver"
    with pytest.raises(ValueError, match="after CUDA was initialised"):
        choose_start_method("fork")


def test_start_method_auto_is_fork_on_linux_without_cuda() -> None:
    assert choose_start_method("auto") == ("fork" if sys.platform == "linux" else "forkserver")


@pytest.mark.parametrize("trial", [0, 1, *(pytest.param(trial, marks=pytest.mark.slow) for trial in range(2, 12))])
def test_worker_killed_at_any_moment_is_an_error_and_leaves_nothing(trial: int) -> None:
    sampler = CpuSampler(Walk, batch_T=32, batch_B=4, n_workers=2, start_method="fork")
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        victims = sorted(other_processes())
        assert len(victims) == 2
        delay = random.Random(trial).random() * 0.1
        timer = threading.Timer(delay, os.kill, (victims[trial % 2], signal.SIGKILL))
        timer.start()
        with pytest.raises(WorkerCrashed, match="SIGKILL") as caught:  # noqa: PT012
            for itr in range(1_000_000):
                sampler.obtain_samples(itr)
        timer.join(10)
        assert caught.value.where is not None
        assert caught.value.where.pid == victims[trial % 2]
        assert other_processes() == set()


def test_start_and_stop_leave_no_descriptor_and_no_thread() -> None:
    def cycle() -> None:
        sampler = CpuSampler(Walk, batch_T=4, batch_B=2, n_workers=2, start_method="fork", eval_n_envs=2)
        with sampler.initialize(CategoricalPgAgent(), seed=0):
            sampler.obtain_samples(0)

    cycle()
    before, threads = descriptors(), set(threading.enumerate())
    for _ in range(4):
        cycle()
    assert descriptors() <= before
    assert set(threading.enumerate()) <= threads


def test_many_workers_need_few_descriptors() -> None:
    """Five per worker (pipe, bell, dump, two of Python's process object) and a few for all, not one per array."""
    before = descriptors()
    sampler = CpuSampler(Walk, batch_T=4, batch_B=8, n_workers=8, start_method="fork")
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        sampler.obtain_samples(0)
        assert len(descriptors() - before) <= 5 * 8 + 6


@contextmanager
def descriptors_left(n: int) -> Iterator[None]:
    """Only so many more can be opened. The limit is on their numbers, so there must be no gaps below it."""
    highest = max(fd for fd, _ in descriptors())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open("/dev/null", os.O_RDONLY)]
    while taken[-1] <= highest:
        taken.append(os.open("/dev/null", os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1 + n, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


def test_failed_start_reaps_the_started_processes() -> None:
    sampler = CpuSampler(Walk, batch_T=4, batch_B=30, n_workers=30, start_method="fork")
    with (
        descriptors_left(20),
        pytest.raises(SamplerError, match=r"no file descriptors are left.*ulimit -n"),
    ):
        sampler.initialize(CategoricalPgAgent(), seed=0)
    assert other_processes() == set()


@pytest.mark.parametrize("step", [7, pytest.param(3, marks=pytest.mark.slow)])
def test_running_out_of_descriptors_is_not_blamed_on_a_worker(step: int) -> None:
    """At any moment while a served sampler starts."""

    def refusal(left: int) -> str:
        sampler = GpuSampler(Walk, batch_T=4, batch_B=2, n_workers=2, start_method="fork")
        with descriptors_left(left), suppress(SamplerError):
            with sampler.initialize(CategoricalPgAgent(), seed=0):
                return ""
        assert other_processes() == set()
        with pytest.raises(SamplerClosed) as closed:
            sampler.obtain_samples(0)
        return str(closed.value.__cause__)

    refusals = list(itertools.takewhile(bool, map(refusal, range(1, 200, step))))
    assert len(refusals) > 15 // step  # it needs at least 16
    for text in refusals:
        assert re.search(r"no file descriptors.*ulimit -n", text)


def test_garbage_collected_sampler_is_cleaned_up() -> None:
    sampler = CpuSampler(Walk, batch_T=4, batch_B=2, n_workers=2, start_method="fork")
    sampler.initialize(CategoricalPgAgent(), seed=0)
    assert len(other_processes()) == 2
    del sampler
    assert other_processes() == set()


def test_script_that_runs_inside_another_program_may_start_workers(tmp_path: Path) -> None:
    """As by IPython's `%run`, which puts the script in the place of the module `__main__`."""
    script = tmp_path / "script.py"
    script.write_text(
        "from headrace.agents.pg import CategoricalPgAgent\n"
        "from headrace.samplers import CpuSampler\n"
        "sampler = CpuSampler('CartPole-v1', batch_T=2, batch_B=2, n_workers=1)\n"
        "with sampler.initialize(CategoricalPgAgent()):\n"
        "    shape = sampler.obtain_samples(0)[0].env.reward.shape\n"
    )
    assert runpy.run_path(str(script), run_name="__main__")["shape"] == (2, 2)


SAMPLES = "sampler.initialize(CategoricalPgAgent(), seed=0)\n"
TRAINS = "MinibatchRl(PPO(), CategoricalPgAgent(), sampler, RunnerConfig(n_steps=16, seed=0), log_dir='run').train()\n"
UNGUARDED = 'put what it does under `if __name__ == "__main__":`'


@pytest.mark.programs
@pytest.mark.parametrize(
    ("start_method", "program", "says"),
    [
        ("spawn", SAMPLES, UNGUARDED),
        ("forkserver", TRAINS, UNGUARDED),
        pytest.param("forkserver", SAMPLES, UNGUARDED, marks=pytest.mark.slow),
        pytest.param("spawn", TRAINS, UNGUARDED, marks=pytest.mark.slow),
        pytest.param(
            "spawn", "if __name__ != '__main__': 1 / 0\n" + SAMPLES, "the error above", marks=pytest.mark.slow
        ),
    ],
)
def test_script_without_main_guard_is_explained_once(
    tmp_path: Path, start_method: str, program: str, says: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from headrace.agents.pg import CategoricalPgAgent\n"
        "from headrace.algos.pg import PPO\n"
        "from headrace.runners import MinibatchRl, RunnerConfig\n"
        "from headrace.samplers import CpuSampler\n"
        f"sampler = CpuSampler('CartPole-v1', batch_T=4, batch_B=4, n_workers=2, start_method='{start_method}')\n"
        + program
    )
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, check=False, timeout=DEADLINE, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert says in done.stderr.splitlines()[-2], done.stderr  # the last line is the place
    assert done.stderr.count("Traceback") == (1 if says == UNGUARDED else 1 + done.stderr.count("ZeroDivisionError"))


@pytest.mark.programs
def test_program_on_standard_input_gets_an_explaining_error() -> None:
    program = (
        "from headrace.agents.pg import CategoricalPgAgent\n"
        "from headrace.samplers import CpuSampler\n"
        "if __name__ == '__main__':\n"
        "    sampler = CpuSampler('CartPole-v1', batch_T=4, batch_B=2, n_workers=1, start_method='spawn')\n"
        "    sampler.initialize(CategoricalPgAgent(), seed=0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-"], input=program, check=False, timeout=DEADLINE, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "<stdin>, which is not a file; save the program to a file" in done.stderr
    assert "env 0" not in done.stderr


# ---- where workers run ----


def test_workers_run_on_their_pinned_cpus() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    affinity = Affinity(workers_cpus=((cpus[0],), (cpus[-1],)))
    sampler = CpuSampler(Walk, batch_T=4, batch_B=2, start_method="fork")
    with sampler.initialize(CategoricalPgAgent(), seed=0, affinity=affinity):
        workers = sorted(other_processes())
        assert [psutil.Process(pid).cpu_affinity() for pid in workers] == [[cpus[0]], [cpus[-1]]]


def test_rlpyt_affinity_dict_is_accepted() -> None:
    given = {
        "all_cpus": (0, 1),
        "master_cpus": (0, 1),
        "workers_cpus": (0, (0, 1)),
        "worker_torch_threads": 1,
        "cuda_idx": None,
    }
    assert Affinity.of(given) == Affinity(workers_cpus=((0,), (0, 1)), master_cpus=(0, 1))
    with pytest.raises(ValueError, match="worker_cpus"):
        Affinity.of({"worker_cpus": (0,)})


def test_affinity_and_n_workers_must_agree() -> None:
    sampler = CpuSampler(Walk, batch_T=4, batch_B=4, n_workers=3, start_method="fork")
    with pytest.raises(ValueError, match="workers_cpus for 2 workers, but n_workers is 3"):
        sampler.initialize(CategoricalPgAgent(), affinity={"workers_cpus": (0, 0)}, seed=0)


def test_missing_cpus_are_logged(capfd: pytest.CaptureFixture[str]) -> None:
    sampler = GpuSampler(Walk, batch_T=4, batch_B=1, start_method="spawn")
    with sampler.initialize(CategoricalPgAgent(), affinity={"workers_cpus": ((4000,),)}, seed=0):
        sampler.obtain_samples(0)
    assert "to CPUs [4000]" in capfd.readouterr().err


def test_default_n_workers_is_usable_cores_but_at_most_batch_b() -> None:
    allowed = os.sched_getaffinity(0)
    for batch_B, expected in ((8, usable_cores()), (1, 1)):
        sampler = CpuSampler(Walk, batch_T=4, batch_B=batch_B, start_method="fork")
        with sampler.initialize(CategoricalPgAgent(), seed=0):
            assert len(other_processes()) == expected
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


# ---- what a worker's last words may hold ----


class BadInfo(Walk):
    """Its infos contain something that cannot be pickled."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, "self": threading.Lock(), "fine": 1}


def test_unpicklable_info_entry_is_dropped_alone() -> None:
    sampler = CpuSampler(BadInfo, batch_T=30, batch_B=2, n_workers=1, start_method="fork")
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        _, traj_infos = sampler.obtain_samples(0)
    assert traj_infos
    assert all(set(info.info) == {"n", "fine"} for info in traj_infos)


def test_timing_reports_shares_of_time() -> None:
    for cls in (SerialSampler, CpuSampler):
        sampler = cls(Walk, batch_T=64, batch_B=4, n_workers=2)
        with sampler.initialize(CategoricalPgAgent(), seed=0):
            for itr in range(4):
                sampler.obtain_samples(itr)
            report = sampler.timing()
        assert report.steps == 4 * 64 * 4
        assert report.steps_per_second == pytest.approx(report.steps / report.seconds)
        shares = (report.env, report.reset, report.acting, report.recording)
        assert sum(shares) == pytest.approx(1.0)
        assert all(0 < share < 1 for share in shares)
        assert 0 <= report.idle < 1


@pytest.mark.parametrize("start_method", METHODS)
def test_local_traj_info_class_works_in_workers(start_method: str) -> None:
    """A class of a script or a notebook is pickled by value."""

    @dataclass
    class Sum(TrajInfo):
        Total: float = 0.0

        def step(self, observation, action, reward, terminated, truncated, env_info):  # type: ignore[no-untyped-def]
            self.Total += reward

    sampler = GpuSampler(
        Walk, batch_T=30, batch_B=2, n_workers=1, start_method=start_method, TrajInfoCls=Sum, max_decorrelation_steps=5
    )
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        _, traj_infos = sampler.obtain_samples(0)
    assert traj_infos
    for info in traj_infos:
        assert type(info) is Sum
        assert info.Total == pytest.approx(info.Return, rel=1e-5)


def test_sigterm_to_all_processes_does_not_end_workers() -> None:
    """A scheduler sends it to every process of a job, and the program wants to finish its batch first."""
    sampler = CpuSampler(Walk, batch_T=16, batch_B=2, n_workers=2, start_method="fork")
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        for pid in other_processes():
            os.kill(pid, signal.SIGTERM)
        sampler.obtain_samples(0)


def test_programs_started_by_an_environment_can_be_terminated() -> None:
    """Ignored signals are inherited by programs; a handler is not."""
    sampler = CpuSampler(StartsAProgram, batch_T=4, batch_B=1, n_workers=1, start_method="fork")
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        pass


class StartsAProgram(Walk):
    def __init__(self) -> None:
        super().__init__()
        self._program = subprocess.Popen(["sleep", "100"])

    def close(self) -> None:
        self._program.terminate()
        assert self._program.wait(10) == -signal.SIGTERM


def test_an_id_may_name_the_module_that_registers_it() -> None:
    sampler = SerialSampler("tests.registered:Breaks-v0", batch_T=2, batch_B=1)
    with pytest.raises(ValueError, match=r"EnvCls='tests\.nothing:Breaks-v0'.*No module"):
        SerialSampler("tests.nothing:Breaks-v0", batch_T=2, batch_B=1)
    assert sampler.batch_spec.size == 2


class Multiplies(Walk):
    """Uses torch in a worker that has no agent: a product large enough for several threads."""

    def step(self, action: Any) -> Any:
        import torch

        torch.ones(700, 700) @ torch.ones(700, 700)
        return super().step(action)

    def threads(self) -> int:
        return torch.get_num_threads()


@pytest.mark.parametrize("start_method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_environment_of_a_served_worker_may_use_torch(start_method: str) -> None:
    """Also where its parent had used threads before the fork, or where it loads torch itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.ones(700, 700) @ torch.ones(700, 700)
        sampler = GpuSampler(
            Multiplies,
            batch_T=4,
            batch_B=2,
            n_workers=1,
            max_decorrelation_steps=0,
            start_method=start_method,
            timeout=DEADLINE,
        )
        with sampler.initialize(CategoricalPgAgent(), seed=0):
            sampler.obtain_samples(0)
            assert sampler.call_envs("threads") == [1, 1]
    finally:
        torch.set_num_threads(before)
