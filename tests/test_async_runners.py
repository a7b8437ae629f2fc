"""Asynchronous runners: replays that a sampler process fills, the replay ratio of both sides, and resuming after a
kill.
"""

import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from headrace.agents.dqn import DqnAgent
from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.dqn import DQN, DQNConfig
from headrace.algos.pg import PPO
from headrace.buffers.tree import tree_leaves
from headrace.errors import NotEnoughMemory
from headrace.replays import ReplaySink, ReplayWriter, replay_spec, shared_ring
from headrace.runners import AsyncRl, AsyncRlEval, MinibatchRl, RunnerConfig, load_checkpoint
from headrace.runners.logging.logger import Logger
from headrace.samplers import (
    AsyncAlternatingSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncSerialSampler,
    BaseSampler,
    CpuSampler,
    SerialSampler,
)
from tests.leftovers import DEADLINE, all_gone, until
from tests.light import Counts
from tests.walk import Walk

pytestmark = pytest.mark.usefixtures("copies_tried_here")

SETTINGS: dict[str, Any] = {"batch_T": 8, "batch_B": 6, "n_workers": 2, "start_method": "fork"}
QUICK: dict[str, Any] = {"batch_size": 16, "replay_ratio": 2.5, "min_steps_learn": 100, "n_step": 2}


def dqn(**options: Any) -> DQN:
    return DQN(DQNConfig(**{**QUICK, "replay_size": 3000, **options}))


def runner(n_steps: int, cls: type[BaseSampler] = AsyncCpuSampler, algo: Any = None, **options: Any) -> AsyncRl:
    config = RunnerConfig(n_steps=n_steps, seed=0, log_interval_steps=480)
    return AsyncRl(algo or dqn(), DqnAgent(), cls(Walk, **SETTINGS), config, logger=Logger(), **options)


@pytest.mark.parametrize(
    ("cls", "start_method"),
    [
        (AsyncCpuSampler, "fork"),
        (AsyncAlternatingSampler, "fork"),
        *(pytest.param(cls, "fork", marks=pytest.mark.slow) for cls in (AsyncSerialSampler, AsyncGpuSampler)),
        *(
            pytest.param(cls, "forkserver", marks=pytest.mark.slow)
            for cls in (AsyncCpuSampler, AsyncGpuSampler, AsyncAlternatingSampler)
        ),
    ],
)
def test_sampler_process_fills_the_ring_as_the_learner_would(cls: Any, start_method: str) -> None:
    sink = ReplaySink(1000)
    sampler = cls(Walk, **{**SETTINGS, "start_method": start_method})
    sampler.feed(sink)
    agent = DqnAgent()
    with sampler.initialize(agent, seed=3):
        spec = replay_spec(sampler.batch_spec, sink.spec.observation, sink.spec.action, 1000)
        assert spec.size == sink.spec.size
        arena, own = shared_ring(spec)
        arena.close_fd()
        writer = ReplayWriter(spec, own)
        assert len(pickle.dumps(sink)) < 1000, "another process attaches to the ring, it gets no copy of it"
        for itr in range(25):  # once round
            writer.append(sampler.obtain_samples(itr)[0])
        rows = slice(0, 8)
        recent = np.arange(own.cursor[0] - 100, own.cursor[0]) % spec.n_rows
        for ours, theirs in zip(
            tree_leaves((own.observation, own.action, own.reward, own.flags)),
            tree_leaves((sink.ring.observation, sink.ring.action, sink.ring.reward, sink.ring.flags)),
            strict=True,
        ):
            assert np.array_equal(ours[recent][rows], theirs[recent][rows])
    assert sink.ring.cursor[0] == 26 * 8, "shutdown loses no batch"


def test_learner_and_sampler_keep_the_replay_ratio() -> None:
    run = runner(48 * 60)
    run.train()
    algo = run.algo
    assert isinstance(algo, DQN)
    learned = algo._n_updates * QUICK["batch_size"]
    collected = algo._n_steps
    assert collected >= 48 * 60 - 100 - 48
    assert abs(learned / collected - QUICK["replay_ratio"]) < 0.05 * QUICK["replay_ratio"]
    # The sampler is no further ahead than a batch.
    assert 48 * 60 <= algo._replay.n_appended <= 48 * 61


def test_learner_does_not_append_to_the_replay() -> None:
    run = runner(48 * 10)
    run.train()
    assert isinstance(run.algo, DQN)
    assert run.algo._writer is None
    with_learner = MinibatchRl(
        dqn(), DqnAgent(), AsyncCpuSampler(Walk, **SETTINGS), RunnerConfig(n_steps=480, seed=0), logger=Logger()
    )
    with_learner.train()
    assert isinstance(with_learner.algo, DQN)
    assert with_learner.algo._writer is not None
    assert with_learner.algo._replay.n_appended == 480


def test_on_policy_algorithms_learn_from_the_batches() -> None:
    config = RunnerConfig(n_steps=480, seed=0, log_interval_steps=240)
    sampler = AsyncCpuSampler(Walk, eval_n_envs=2, **SETTINGS)
    run = AsyncRlEval(PPO(), CategoricalPgAgent(), sampler, config, logger=Logger())
    run.train()
    assert run.counters.steps == 480


def test_synchronous_samplers_are_refused() -> None:
    run = runner(480, cls=CpuSampler)
    with pytest.raises(TypeError, match="need an asynchronous sampler, got a CpuSampler; use AsyncCpuSampler"):
        run.train()


def test_replay_too_large_for_memory_is_refused_before_training() -> None:
    run = runner(480, algo=dqn(replay_size=10**13))
    with pytest.raises(NotEnoughMemory, match="a replay of"):
        run.train()


@pytest.mark.parametrize("cls", [AsyncCpuSampler, pytest.param(AsyncSerialSampler, marks=pytest.mark.slow)])
def test_resumed_run_continues_with_its_replay(tmp_path: Path, cls: type[BaseSampler]) -> None:
    runner(480, cls, log_dir=tmp_path).train()
    state = load_checkpoint(tmp_path / "checkpoint.pt")["algo"]
    assert state["n_rows"] == 88, "ten batches, and the one that was collected ahead"
    longer = runner(960, cls, resume_from=tmp_path)
    longer.train()
    assert isinstance(longer.algo, DQN)
    assert longer.algo._replay.n_appended >= 960
    assert longer.counters.steps == 960


@pytest.mark.parametrize(
    ("Runner", "cls", "n_slots", "frames"),
    [
        (MinibatchRl, AsyncSerialSampler, 2, 4),
        (AsyncRl, AsyncSerialSampler, 3, 0),
        *(
            pytest.param(*case, frames, marks=pytest.mark.slow)
            for case, frames in (
                ((MinibatchRl, SerialSampler, 1), 0),
                ((MinibatchRl, SerialSampler, 1), 4),
                ((MinibatchRl, AsyncSerialSampler, 2), 0),
                ((MinibatchRl, AsyncSerialSampler, 5), 0),
                ((MinibatchRl, AsyncSerialSampler, 5), 4),
                ((AsyncRl, AsyncSerialSampler, 3), 4),
            )
        ),
    ],
)
def test_no_transition_crosses_a_gap_left_by_a_resume(
    tmp_path: Path, Runner: type[MinibatchRl], cls: type[BaseSampler], n_slots: int, frames: int
) -> None:
    """Batches collected ahead when the checkpoint was written are missing in a replay that the learner fills."""
    places: tuple[tuple[int, dict[str, Any]], ...] = ((160, {"log_dir": tmp_path}), (320, {"resume_from": tmp_path}))
    for n_steps, options in places:
        sampler = cls(Counts, batch_T=4, batch_B=4, n_slots=n_slots, max_decorrelation_steps=3)
        config = RunnerConfig(n_steps=n_steps, seed=0, log_interval_steps=160)
        algo = dqn(replay_size=4096, frames=frames, n_step=2)
        Runner(algo, DqnAgent(), sampler, config, logger=Logger(), **options).train()
    transitions = algo._replay.sample(4000)
    went_on = transitions.discount > 0
    assert went_on.sum() > 2000
    moved = transitions.next_inputs.observation[:, -1, 0].int() - transitions.inputs.observation[:, -1, 0].int()
    assert (moved[went_on] == 2).all()
    n_ahead = 0 if Runner is MinibatchRl else 2 * (n_slots - 1) * 16
    assert algo._replay.n_appended == 320 + n_ahead


def train_for_ever(folder: Path) -> None:
    torch.set_num_threads(1)
    runner(10**8, log_dir=folder).train()


@pytest.mark.programs
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_run_resumes_from_its_last_checkpoint(tmp_path: Path, seed: int) -> None:
    process = multiprocessing.get_context("fork").Process(target=train_for_ever, args=(tmp_path,))
    process.start()
    assert until((tmp_path / "checkpoint.pt").exists)
    time.sleep(np.random.default_rng(seed).uniform(0.2, 1.0))
    family = psutil.Process(process.pid).children(recursive=True)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(DEADLINE)
    assert all_gone(family)
    checkpoint = load_checkpoint(tmp_path / "checkpoint.pt")
    steps = checkpoint["runner"]["counters"]["steps"]
    longer = runner(steps + 480, resume_from=tmp_path)
    longer.train()
    assert longer.counters.steps >= steps + 480
    assert isinstance(longer.algo, DQN)
    assert longer.algo._replay.n_appended >= steps + 480, "what the replay held is there again"
