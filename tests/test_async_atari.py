"""Atari games with asynchronous samplers: counters, stacked frames in the replay, learning, resuming."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from headrace.agents.dqn import CategoricalDqnAgent, DqnAgent
from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.base import Algo
from headrace.algos.dqn import DQN, CategoricalDQN, CategoricalDQNConfig, DQNConfig, QLearningAlgo
from headrace.algos.pg import IMPALA, PPO, IMPALAConfig, PPOConfig
from headrace.buffers.samples import Samples
from headrace.envs import make_atari
from headrace.runners import AsyncRl, Callback, MinibatchRl, Runner, RunnerConfig
from headrace.runners.logging.logger import Logger
from headrace.samplers import (
    AsyncAlternatingSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncNoOverlapAlternatingSampler,
    AsyncSerialSampler,
    BaseSampler,
    SerialSampler,
)
from tests.test_examples import FOLDER, ran

pytestmark = pytest.mark.slow

T, B = 8, 6
BATCH = T * B
CLASSES = [
    AsyncSerialSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncAlternatingSampler,
    AsyncNoOverlapAlternatingSampler,
]
LEARNING: dict[str, Any] = {
    "batch_size": 16,
    "replay_ratio": 1.0,
    "min_steps_learn": 10 * BATCH,
    "replay_size": 3000,
    "target_update_interval": 20,
    "n_step": 2,
    "frames": 4,
}


class Notes(Callback):
    """Copies of the batches and the diagnostics of each update."""

    def __init__(self, copies: bool = False) -> None:
        self.batches: list[Samples] = []
        self.said: list[dict[str, float]] = []
        self._copies = copies

    def on_batch(self, runner: Runner, itr: int, samples: Samples, traj_infos: Any) -> None:
        if self._copies:
            self.batches.append(samples.copy())

    def on_optimize(self, runner: Runner, itr: int, opt_info: Any) -> None:
        self.said.append(dict(opt_info))


def sampler_of(cls: type[BaseSampler]) -> BaseSampler:
    """Makes a sampler of games so short that each is truncated several times."""
    return cls(
        make_atari,
        {"max_frames": 100, "noop_max": 10},
        batch_T=T,
        batch_B=B,
        n_workers=2,
        max_decorrelation_steps=20,
        deterministic=True,
        start_method="fork",
    )


def trained(Runners: type[Runner], cls: type[BaseSampler], algo: Algo, agent: Any, n_itr: int, notes: Notes) -> Runner:
    config = RunnerConfig(n_steps=n_itr * BATCH, seed=0, log_interval_steps=20 * BATCH)
    runner = Runners(algo, agent, sampler_of(cls), config, logger=Logger(), callbacks=[notes])
    before = set(psutil.Process().children(recursive=True))
    runner.train()
    assert set(psutil.Process().children(recursive=True)) <= before
    assert runner.counters.steps == n_itr * BATCH
    assert len(notes.said) == n_itr
    return runner


def all_finite(said: list[dict[str, float]]) -> bool:
    return all(math.isfinite(value) for info in said for value in info.values())


def learns(cls: type[BaseSampler], algo: QLearningAlgo, agent: DqnAgent, n_itr: int) -> None:
    """Trains and checks the counters of both sides."""
    notes = Notes()
    trained(AsyncRl, cls, algo, agent, n_itr, notes)
    first = LEARNING["min_steps_learn"] // BATCH - 1
    assert [bool(info) for info in notes.said] == [itr >= first for itr in range(n_itr)]
    assert all_finite(notes.said)
    assert {"loss", "gradNorm"} <= set(notes.said[-1])
    steps = (n_itr - first) * BATCH
    learned = algo._n_updates * algo.config.batch_size
    assert abs(learned / steps - algo.config.replay_ratio) < 0.05 * algo.config.replay_ratio
    # The sampler stored every step, and was a batch ahead at most.
    assert n_itr * BATCH <= algo._replay.n_appended <= (n_itr + 1) * BATCH


@pytest.mark.parametrize("cls", CLASSES)
def test_dqn_learns_from_frames_stored_once(cls: type[BaseSampler]) -> None:
    learns(cls, DQN(DQNConfig(**LEARNING)), DqnAgent(eps_itr_max=20), n_itr=20)


@pytest.mark.parametrize("n_itr", [60])
@pytest.mark.parametrize(
    ("algo", "agent"),
    [
        (
            lambda: DQN(DQNConfig(**{**LEARNING, "prioritized_replay": True, "replay_ratio": 2.5})),
            lambda: DqnAgent(model_kwargs={"dueling": True}, eps_final=0.3, eps_final_min=0.01, eps_itr_max=20),
        ),
        (
            lambda: CategoricalDQN(CategoricalDQNConfig(**LEARNING)),
            lambda: CategoricalDqnAgent(eps_itr_max=20),
        ),
    ],
    ids=["prioritized", "categorical"],
)
def test_other_dqn_algorithms_learn_from_frames_stored_once(
    algo: Callable[[], QLearningAlgo], agent: Callable[[], DqnAgent], n_itr: int
) -> None:
    learns(AsyncCpuSampler, algo(), agent(), n_itr)


@pytest.mark.parametrize(
    "algo",
    [lambda: PPO(PPOConfig(epochs=2, minibatches=2)), lambda: IMPALA(IMPALAConfig())],
    ids=["ppo", "impala"],
)
@pytest.mark.parametrize("cls", [AsyncCpuSampler, AsyncAlternatingSampler])
def test_algorithms_without_a_replay_learn_from_every_batch(algo: Callable[[], Algo], cls: type[BaseSampler]) -> None:
    notes = Notes()
    trained(AsyncRl, cls, algo(), CategoricalPgAgent(), 40, notes)
    assert all(notes.said), "each batch was learned from"
    assert all_finite(notes.said)


@pytest.mark.parametrize("cls", CLASSES)
def test_stacks_from_the_replay_equal_those_of_a_synchronous_sampler(cls: type[BaseSampler]) -> None:
    """Without learning, so that both act alike; exploration differs in every environment."""
    n_itr = 12
    never = DQNConfig(**{**LEARNING, "min_steps_learn": 3000, "n_step": 1})

    def agent() -> DqnAgent:
        return DqnAgent(eps_final=0.5, eps_final_min=0.1, eps_itr_max=10)

    algo = DQN(never)
    trained(AsyncRl, cls, algo, agent(), n_itr, Notes())
    notes = Notes(copies=True)
    trained(MinibatchRl, SerialSampler, DQN(never), agent(), n_itr + 1, notes)  # one was collected ahead
    observation = torch.cat([samples.env.observation for samples in notes.batches])
    action = torch.cat([samples.agent.action for samples in notes.batches])
    after = torch.cat([observation[1:], observation[-1:]])
    n_finals = 0
    for number, samples in enumerate(notes.batches):
        time, column = number * T + samples.final.time, samples.final.column
        after[time, column] = samples.final.observation
        n_finals += len(samples.final)
    assert n_finals > 10
    assert algo._replay.n_appended == len(observation) * B

    transitions = algo._replay.sample(4000)
    row, column = torch.from_numpy(transitions.indices // B), torch.from_numpy(transitions.indices % B)
    assert len(set(transitions.indices.tolist())) > 0.9 * (len(observation) - 1) * B
    assert torch.equal(transitions.inputs.observation, observation[row, column])
    assert torch.equal(transitions.next_inputs.observation, after[row, column])
    assert torch.equal(transitions.action, action[row, column])


@pytest.mark.parametrize("sampler", ["cpu", "gpu", "alternating", "serial"])
def test_example_trains_and_resumes(sampler: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        return ran(FOLDER / "atari_dqn_async.py", tmp_path, "--sampler", sampler, *arguments)

    assert "loss" in run("--n-steps", "1600", "--log-dir", "pong")
    again = run("--n-steps", "1984", "--resume", "pong")
    assert "/pong/checkpoint.pt, 1,600 steps" in again
    assert "1,984 steps  100%" in again
    assert "loss" in again, "the replay is there again, so that learning goes on at once"
