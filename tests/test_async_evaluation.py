"""Evaluation in a separate process: the same episodes as between batches, training meanwhile, and failures."""

import csv
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch

from headrace.agents.base import Agent
from headrace.agents.pg import CategoricalPgAgent, RecurrentCategoricalPgAgent
from headrace.algos.pg import PPO, PPOConfig
from headrace.errors import EnvContractError, EnvFailed, SamplerClosed, SamplerError, WorkerCrashed, WorkerHung
from headrace.runners import AsyncRlEval, Callback, RunnerConfig, StopAtReturn, load_checkpoint
from headrace.runners.logging.logger import Logger
from headrace.samplers import AsyncCpuSampler, AsyncGpuSampler, AsyncSamplerBase, AsyncSerialSampler, SerialSampler
from tests.faulty import BAD_ENV, SEED, FaultyEnv
from tests.leftovers import DEADLINE, all_gone, descriptors
from tests.light import Peaks
from tests.test_async_samplers import ASYNC, differences, learn
from tests.walk import Walk

pytestmark = pytest.mark.usefixtures("copies_tried_here")

SETTINGS: dict[str, Any] = {
    "batch_T": 8,
    "batch_B": 4,
    "n_workers": 2,
    "eval_n_envs": 3,
    "deterministic": True,
    "start_method": "fork",
}


def sampler_of(cls: type[AsyncSamplerBase], EnvCls: Any = Walk, *, beside: bool = True, **kwargs: Any) -> Any:
    return cls(EnvCls, **{**SETTINGS, "eval_process": beside, **kwargs})


def evaluator_of(sampler: Any) -> psutil.Process:
    return psutil.Process(sampler._engine.workers.pids[-1])


def processes_of(sampler: Any) -> list[psutil.Process]:
    own = [psutil.Process(pid) for pid in sampler._engine.workers.pids]
    return [*own, *(child for process in own for child in process.children(recursive=True))]


def run(cls: type[AsyncSamplerBase], make: Callable[[], Agent], beside: bool, **kwargs: Any) -> tuple[Any, Any]:
    """Batches of an agent that learns, and evaluations: all of them taken at the end of the batch after."""
    agent, batches, evaluations = make(), [], []
    with sampler_of(cls, beside=beside, **kwargs).initialize(agent, seed=5) as sampler:
        for itr in range(6):
            samples, _ = sampler.obtain_samples(itr)
            batches.append(samples.copy())
            begun = itr in (0, 2, 3)
            if begun and not beside:
                evaluations.append(sampler.evaluate_agent(itr))
            elif begun:
                sampler.begin_evaluation(itr)
            learn(agent)
            if begun and beside:
                evaluations.append(sampler.evaluation())
        evaluations.append(sampler.evaluate_agent(6))
    return batches, [[vars(info) for info in infos] for infos in evaluations]


@pytest.mark.parametrize(
    ("cls", "make", "start_method"),
    [
        (AsyncSerialSampler, CategoricalPgAgent, "fork"),
        (AsyncCpuSampler, RecurrentCategoricalPgAgent, "fork"),
        pytest.param(AsyncCpuSampler, CategoricalPgAgent, "spawn", marks=pytest.mark.slow),
        *(pytest.param(cls, RecurrentCategoricalPgAgent, "fork", marks=pytest.mark.slow) for cls in ASYNC),
        *(pytest.param(cls, CategoricalPgAgent, "forkserver", marks=pytest.mark.slow) for cls in ASYNC),
    ],
)
def test_batches_and_episodes_equal_those_of_evaluations_between_batches(
    cls: type[AsyncSamplerBase], make: Callable[[], Agent], start_method: str
) -> None:
    settings = {"start_method": start_method, "eval_max_trajectories": 6, "max_decorrelation_steps": 20}
    ours, theirs = (run(cls, make, beside, **settings) for beside in (True, False))
    assert [differences(mine, other) for mine, other in zip(ours[0], theirs[0], strict=True)] == [[]] * 6
    assert ours[1] == theirs[1]
    assert [len(infos) for infos in ours[1]] == [6] * 4


def test_evaluation_uses_the_parameters_at_begin_evaluation() -> None:
    """However late the process starts it, and however many versions are published meanwhile."""
    agent = CategoricalPgAgent()
    with sampler_of(AsyncSerialSampler, n_slots=2).initialize(agent, seed=1) as sampler:
        sampler.obtain_samples(0)
        evaluator = evaluator_of(sampler)
        evaluator.suspend()
        sampler.begin_evaluation(0)
        for itr in range(1, 8):
            learn(agent)
            sampler.obtain_samples(itr)
        assert sampler.evaluation(wait=False) is None
        evaluator.resume()
        ours = [vars(info) for info in sampler.evaluation()]
    agent = CategoricalPgAgent()
    with sampler_of(AsyncSerialSampler, beside=False).initialize(agent, seed=1) as sampler:
        sampler.obtain_samples(0)
        assert ours == [vars(info) for info in sampler.evaluate_agent(0)]
        learn(agent)
        assert ours != [vars(info) for info in sampler.evaluate_agent(1)]


class Gated(Walk):
    """With a path, every step waits until that file is there."""

    def __init__(self, gate: str = "") -> None:
        super().__init__()
        self._gate = gate

    def step(self, action: np.int64) -> Any:
        while self._gate and not os.path.exists(self._gate):
            time.sleep(0.005)
        return super().step(action)


def test_batches_are_collected_during_an_evaluation(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    sampler = sampler_of(AsyncCpuSampler, Gated, eval_env_kwargs={"gate": str(gate)})
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        sampler.begin_evaluation(0)
        for itr in range(5):
            sampler.obtain_samples(itr)
            assert sampler.evaluation(wait=False) is None
        gate.touch()
        assert len(sampler.evaluation()) == 3


def taken(sampler: Any, wait: bool) -> Any:
    deadline = time.monotonic() + DEADLINE
    while (infos := sampler.evaluation(wait)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return infos


def test_evaluation_can_be_polled_without_waiting() -> None:
    with sampler_of(AsyncCpuSampler).initialize(CategoricalPgAgent(), seed=0) as sampler:
        sampler.begin_evaluation(0)
        assert len(taken(sampler, wait=False)) == 3
        with pytest.raises(SamplerError, match="call begin_evaluation"):
            sampler.evaluation(wait=False)
        sampler.obtain_samples(0)


def test_unsupported_evaluation_process_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="SerialSampler has no separate evaluation process; eval_process=True is for"):
        SerialSampler(Walk, batch_T=2, batch_B=2, eval_process=True)
    with pytest.raises(TypeError, match="eval_process must be True or False, got int 1"):
        sampler_of(AsyncCpuSampler, eval_process=1)
    for settings in ({"beside": False}, {"eval_n_envs": 0}):
        with sampler_of(AsyncSerialSampler, **settings).initialize(CategoricalPgAgent(), seed=0) as sampler:
            with pytest.raises(SamplerError, match="pass eval_process=True and eval_n_envs"):
                sampler.begin_evaluation(0)
            assert not sampler.evaluates_beside
    with sampler_of(AsyncSerialSampler).initialize(CategoricalPgAgent(), seed=0) as sampler:
        with pytest.raises(SamplerError, match=r"call begin_evaluation\(itr\) first"):
            sampler.evaluation()
        with pytest.raises(TypeError, match="itr must be a whole number"):
            sampler.begin_evaluation("0")
        sampler.begin_evaluation(0)
        with pytest.raises(SamplerError, match="were not collected; call evaluation"):
            sampler.begin_evaluation(1)
        with pytest.raises(SamplerError, match="were not collected; call evaluation"):
            sampler.evaluate_agent(1)
        assert len(sampler.evaluation()) == 3, "it is there as if nothing had been said"


class Casts(Walk):
    """Returns float64 observations if asked to."""

    def __init__(self, wide: bool = False) -> None:
        super().__init__()
        self._wide = wide

    def step(self, action: np.int64) -> Any:
        observation, *rest = super().step(action)
        return observation.astype(np.float64) if self._wide else observation, *rest


def test_notes_of_evaluation_environments_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    sampler = sampler_of(AsyncSerialSampler, Casts, eval_env_kwargs={"wide": True})
    with sampler.initialize(CategoricalPgAgent(), seed=0), caplog.at_level(logging.WARNING, "headrace"):
        sampler.obtain_samples(0)
        assert not caplog.records
        sampler.evaluate_agent(0)
        sampler.evaluate_agent(1)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "observation is float64" in said[0]


class Wider(Walk):
    """Has other spaces if asked to."""

    def __init__(self, wide: bool = False) -> None:
        super().__init__()
        if wide:
            self.action_space = gym.spaces.Discrete(7)


def test_evaluation_environments_with_other_spaces_are_refused() -> None:
    sampler = sampler_of(AsyncCpuSampler, Wider, eval_env_kwargs={"wide": True})
    with pytest.raises(EnvContractError, match=r"evaluation environments have .* change eval_env_kwargs so that"):
        sampler.initialize(CategoricalPgAgent(), seed=0)


def faulty(fault: str, **kwargs: Any) -> Any:
    return sampler_of(AsyncCpuSampler, FaultyEnv, env_kwargs={"fault": fault, "phase": "evaluation"}, **kwargs)


@pytest.mark.parametrize("taken", ["evaluation", "obtain_samples"])
def test_failing_evaluation_environment_is_named_in_the_error(taken: str) -> None:
    """Raised by the next call that notices: `evaluation`, or `obtain_samples`."""
    sampler = faulty("raise").initialize(CategoricalPgAgent(), seed=SEED)
    sampler.begin_evaluation(0)
    with pytest.raises(EnvFailed, match="the simulator is unhappy") as caught:
        sampler.evaluation() if taken == "evaluation" else sample_for_long(sampler)
    where = caught.value.where
    assert where is not None
    assert (where.worker, where.env_id) == (None, BAD_ENV)
    assert "this process" not in str(caught.value)
    assert f"pid {where.pid}" in str(caught.value)
    with pytest.raises(SamplerClosed):
        sampler.evaluation()
    sampler.shutdown()


def sample_for_long(sampler: Any) -> None:
    deadline, itr = time.monotonic() + DEADLINE, 0
    while time.monotonic() < deadline:
        sampler.obtain_samples(itr)
        itr += 1


@pytest.mark.parametrize("evaluating", [True, False])
def test_dead_evaluation_process_is_reported_by_the_next_batch(evaluating: bool) -> None:
    sampler = sampler_of(AsyncCpuSampler).initialize(CategoricalPgAgent(), seed=0)
    sampler.obtain_samples(0)
    processes = processes_of(sampler)
    if evaluating:
        sampler.begin_evaluation(0)
    evaluator_of(sampler).send_signal(signal.SIGKILL)
    with pytest.raises(WorkerCrashed, match="evaluation process was killed by SIGKILL"):
        sample_for_long(sampler)
    assert all_gone(processes)
    sampler.shutdown()


@pytest.mark.parametrize("wait", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_hanging_evaluation_process_is_reported(wait: bool) -> None:
    sampler = faulty("python loop", timeout=1.5).initialize(CategoricalPgAgent(), seed=SEED)
    sampler.begin_evaluation(0)
    with pytest.raises(WorkerHung, match=r"evaluation process made no progress for 1\.5 s") as caught:
        taken(sampler, wait)
    assert caught.value.where is not None
    assert caught.value.where.env_id == BAD_ENV
    sampler.shutdown()


def test_shutdown_waits_for_a_running_evaluation() -> None:
    before = descriptors()
    sampler = sampler_of(AsyncCpuSampler).initialize(CategoricalPgAgent(), seed=0)
    processes = processes_of(sampler)
    assert len(processes) == 4
    sampler.obtain_samples(0)
    sampler.begin_evaluation(0)
    sampler.shutdown()
    assert all_gone(processes)
    del sampler
    assert descriptors() <= before


def test_sampler_state_has_the_evaluation_environments() -> None:
    agent = CategoricalPgAgent()
    with sampler_of(AsyncCpuSampler).initialize(agent, seed=3, resumable=True) as sampler:
        sampler.obtain_samples(0)
        sampler.evaluate_agent(0)
        state = sampler.state()
        assert not state.why_not
        assert sorted(state.evaluation) == [0, 1, 2]
        expected = [vars(info) for info in sampler.evaluate_agent(1)]
        sampler.begin_evaluation(2)
        assert sampler.state().why_not == "an evaluation was running"
        sampler.evaluation()
        assert not sampler.state().why_not
    for beside in (True, False):
        other = sampler_of(AsyncCpuSampler, beside=beside)
        with other.initialize(agent, seed=3, resume=state) as again:
            assert [vars(info) for info in again.evaluate_agent(1)] == expected


def test_state_says_why_evaluation_environments_cannot_be_saved() -> None:
    class Evaluation(Walk):
        def __init__(self, keeps: bool = False) -> None:
            super().__init__()
            self._lock = threading.Lock() if keeps else None

    sampler = sampler_of(AsyncSerialSampler, Evaluation, eval_env_kwargs={"keeps": True})
    with sampler.initialize(CategoricalPgAgent(), seed=3, resumable=True):
        sampler.obtain_samples(0)
        assert "cannot be pickled" in sampler.state().why_not
        sampler.evaluate_agent(0)


def test_timing_includes_action_servers_in_other_processes() -> None:
    for cls, devices in ((AsyncGpuSampler, ["cpu", "cpu"]), (AsyncSerialSampler, None)):
        with sampler_of(cls, device=devices).initialize(CategoricalPgAgent(), seed=0) as sampler:
            for itr in range(4):
                sampler.obtain_samples(itr)
            report = sampler.timing()
        if cls is AsyncSerialSampler:
            assert report.server_acting is None
        else:
            assert 0 < report.server_acting < 1
            assert 0 < report.server_waiting < 1


# ---- runners ----


def runner(beside: bool, n_steps: int = 32 * 12, log: int = 32 * 3, save: int = 32 * 2, **options: Any) -> AsyncRlEval:
    config = RunnerConfig(n_steps=n_steps, seed=0, log_interval_steps=log, checkpoint_interval_steps=save)
    sampler = sampler_of(AsyncCpuSampler, beside=beside)
    algo = PPO(PPOConfig(epochs=1, minibatches=1))
    return AsyncRlEval(algo, CategoricalPgAgent(), sampler, config, logger=Logger(), **options)


def rows(folder: Path) -> list[dict[str, str]]:
    """Returns the log rows without columns that depend on the clock."""
    with (folder / "progress.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if "Time" not in name and name != "StepsPerSecond"}
            for row in csv.DictReader(file)
        ]


def same(ours: Any, theirs: Any) -> bool:
    """Compares nested dicts and lists with tensors in them."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(value, theirs[name]) for name, value in ours.items())
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs) or (isinstance(ours, float) and math.isnan(ours) and math.isnan(theirs))


def test_log_rows_best_agent_and_final_state_equal_those_of_a_waiting_run(tmp_path: Path) -> None:
    for beside in (True, False):
        runner(beside, n_steps=32 * 13, log_dir=tmp_path / str(beside)).train()
    ours, theirs = tmp_path / "True", tmp_path / "False"
    assert rows(ours) == rows(theirs)
    assert [row["Iteration"] for row in rows(ours)] == ["0", "3", "6", "9", "12", "13"]
    for name in ("checkpoint.pt", "best.pt"):
        mine, other = load_checkpoint(ours / name), load_checkpoint(theirs / name)
        assert mine["itr"] == other["itr"]
        assert same(mine["agent"], other["agent"])
        assert same(mine["algo"], other["algo"])


def test_checkpoint_waits_for_the_row_and_best_agent_is_the_evaluated_one(tmp_path: Path) -> None:
    """The second evaluation, at itr 3, has the best return, and takes longer than the updates meanwhile."""

    class KeepsMessages(Callback):
        def __init__(self) -> None:
            self.checkpoints: list[tuple[int, int]] = []
            self.learned: dict[int, list[torch.Tensor]] = {}

        def on_optimize(self, runner: Any, itr: int, opt_info: Any) -> None:
            self.learned[itr + 1] = [tensor.clone() for tensor in runner.agent.acting_state()]

        def on_checkpoint(self, runner: Any, path: Path) -> None:
            self.checkpoints.append((runner.counters.itr, runner.counters.rows))

    hears = KeepsMessages()
    sampler = sampler_of(AsyncCpuSampler, Peaks, eval_env_kwargs={"peak": 2})
    config = RunnerConfig(n_steps=32 * 7, seed=0, log_interval_steps=32 * 3, checkpoint_interval_steps=32 * 5)
    run = AsyncRlEval(
        PPO(), CategoricalPgAgent(), sampler, config, logger=Logger(), callbacks=[hears], log_dir=tmp_path
    )
    run.train()
    assert hears.checkpoints == [(5, 2), (7, 3)], "rows of 0 and 3, then of 6"
    assert load_checkpoint(tmp_path / "checkpoint-previous.pt")["environments"].get("file")
    best = load_checkpoint(tmp_path / "best.pt")
    assert best["itr"] == 3
    saved = list(best["agent"]["model"].values())
    assert [torch.equal(*pair) for pair in zip(saved, hears.learned[3], strict=True)] == [True] * len(saved)


def test_training_continues_during_an_evaluation_and_waits_before_the_next(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    class Opens(Callback):
        """Opens the gate after some batches; hears when rows come."""

        def __init__(self) -> None:
            self.heard: list[tuple[int, int]] = []

        def on_optimize(self, runner: Any, itr: int, opt_info: Any) -> None:
            if itr == 1:
                gate.touch()

        def on_eval(self, runner: Any, episodes: Any, row: Any) -> None:
            self.heard.append((row["Iteration"], runner.counters.itr))

    opens = Opens()
    sampler = sampler_of(AsyncCpuSampler, Gated, eval_env_kwargs={"gate": str(gate)})
    config = RunnerConfig(n_steps=32 * 6, seed=0, log_interval_steps=32 * 3)
    AsyncRlEval(PPO(), CategoricalPgAgent(), sampler, config, logger=Logger(), callbacks=[opens]).train()
    assert [row for row, _ in opens.heard] == [0, 3, 6]
    assert opens.heard[0][1] >= 2, "the first row's evaluation lasted that long"


def test_stop_at_return_ends_training_once_the_evaluation_is_done() -> None:
    run = runner(True, n_steps=10**6, callbacks=[StopAtReturn(-1e9)])
    run.train()
    assert run.counters.rows >= 1
    assert run.counters.itr < 10


class Stopped(Exception):
    pass


class StopsAfter(Callback):
    """Raises when checkpoint number `n` has been written."""

    def __init__(self, n: int) -> None:
        self._left = n

    def on_checkpoint(self, runner: Any, path: Path) -> None:
        self._left -= 1
        if not self._left:
            raise Stopped


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path, n: int) -> None:
    """Checkpoints come before the row of the same batch: 2, 4, 6 with a row, 8."""
    runner(True, log_dir=tmp_path / "whole").train()
    with pytest.raises(Stopped):
        runner(True, log_dir=tmp_path / "cut", callbacks=[StopsAfter(n)]).train()
    # What an error leaves is newer than the checkpoint it came in; a kill would leave that.
    assert load_checkpoint(tmp_path / "cut" / "checkpoint.pt")["itr"] == 2 * n
    runner(True, resume_from=tmp_path / "cut").train()
    ours, theirs = rows(tmp_path / "cut"), rows(tmp_path / "whole")
    assert [row["Iteration"] for row in ours] == [row["Iteration"] for row in theirs]
    # Batches that were collected ahead are gone, so what comes after differs; what is before does not.
    known = [row for row in theirs if int(row["Iteration"]) <= 2 * n]
    assert ours[: len(known)] == known


def test_failing_evaluation_environment_ends_training_with_its_error(tmp_path: Path) -> None:
    config = RunnerConfig(n_steps=1e6, seed=SEED, log_interval_steps=96)
    before = psutil.Process().children(recursive=True)
    run = AsyncRlEval(PPO(), CategoricalPgAgent(), faulty("raise"), config, logger=Logger(), log_dir=tmp_path)
    with pytest.raises(EnvFailed, match="the simulator is unhappy"):
        run.train()
    assert set(psutil.Process().children(recursive=True)) <= set(before)
