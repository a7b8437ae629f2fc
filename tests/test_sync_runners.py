"""Several learners: equal to one learner with all environments, ended together, stopped, resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from headrace.agents.dqn import DqnAgent
from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.base import Algo
from headrace.algos.dqn import DQN, DQNConfig
from headrace.algos.pg import A2C, PPO, PPOConfig
from headrace.algos.ranks import Ranks, moments, same_buffers
from headrace.cli.main import main
from headrace.errors import EnvFailed, WorkerCrashed, WorkerHung
from headrace.models import RunningNorm
from headrace.processes.affinity import Affinity
from headrace.runners import (
    Callback,
    RunnerConfig,
    StopAtReturn,
    SyncConfig,
    SyncRl,
    SyncRlEval,
    load_checkpoint,
)
from headrace.runners.logging.logger import Logger
from headrace.samplers import BaseSampler, CpuSampler, GpuSampler, SerialSampler
from headrace.types import Tree
from tests.leftovers import DEADLINE, until
from tests.ranks import Drift, Exact, Failing, Faulty

pytestmark = pytest.mark.usefixtures("copies_tried_here")

B = 12  # environments of all ranks


class Normalizing(CategoricalPgAgent):
    """Updates the statistics of `Exact`."""

    def update_statistics(self, observation: Tree) -> None:
        self.model.norm.update(observation)  # type: ignore[operator, union-attr]


def settings(world_size: int, n_batches: int = 20, **options: Any) -> SyncConfig:
    steps = 8 * B
    return SyncConfig(
        **{
            "n_steps": n_batches * steps,
            "seed": 3,
            "log_interval_steps": 5 * steps,
            "world_size": world_size,
            **options,
        }
    )


def sampler(
    world_size: int, cls: type[BaseSampler] = SerialSampler, EnvCls: Any = Drift, **options: Any
) -> BaseSampler:
    options = {"max_decorrelation_steps": 5, "start_method": "fork", "n_workers": 2, **options}
    return cls(EnvCls, batch_T=8, batch_B=B // world_size, **options)


def learned(algo: Algo, world_size: int, cls: type[BaseSampler] = SerialSampler) -> tuple[Any, SyncRl]:
    """Trains with ranks that have B environments together; returns the model's state, and the runner."""
    agent = Normalizing(ModelCls=Exact)
    runner = SyncRl(algo, agent, sampler(world_size, cls), settings(world_size), logger=Logger())
    runner.train()
    return agent.state_dict()["model"], runner


ALGOS: dict[str, Callable[[], Algo]] = {
    "a2c": A2C,
    "ppo": lambda: PPO(PPOConfig(minibatches=1, epochs=2)),
}


@pytest.mark.parametrize(
    ("algo", "world_size", "cls"),
    [
        ("a2c", 2, SerialSampler),
        ("ppo", 2, SerialSampler),
        ("ppo", 3, CpuSampler),
        pytest.param("a2c", 2, GpuSampler, marks=pytest.mark.slow),
    ],
)
def test_ranks_learn_what_one_learner_with_all_environments_does(
    algo: str, world_size: int, cls: type[BaseSampler]
) -> None:
    one, alone = learned(ALGOS[algo](), 1)
    several, together = learned(ALGOS[algo](), world_size, cls)
    new = Normalizing(ModelCls=Exact)
    assert alone.agent.spaces is not None
    new.initialize(alone.agent.spaces, seed=3)
    for name, value in several.items():
        assert (value - one[name]).abs().max() < 1e-8, name
        assert (value - new.state_dict()["model"][name]).abs().max() > 1e-3, f"{name} was not learned"
    assert (together.counters.steps, together.counters.trajs) == (alone.counters.steps, alone.counters.trajs)


def test_ranks_with_a_replay_keep_equal_parameters(tmp_path: Path) -> None:
    """Each rank draws from its own replay, so they do not learn what one learner with one replay would."""
    algo = DQN(DQNConfig(batch_size=16, replay_ratio=2, min_steps_learn=60, replay_size=600))
    runner = SyncRl(algo, DqnAgent(), sampler(2), settings(2), logger=Logger(), log_dir=tmp_path)
    runner.train()
    first, second = (load_checkpoint(tmp_path / part / "checkpoint.pt") for part in ("", "rank-1"))
    for name, value in first["agent"]["model"].items():
        assert torch.equal(value, second["agent"]["model"][name]), name
        assert torch.equal(value, runner.agent.state_dict()["model"][name])
    assert first["algo"]["n_updates"] == second["algo"]["n_updates"] > 50


@pytest.mark.parametrize("algo", ["dqn", pytest.param("ppo", marks=pytest.mark.slow)])
def test_ranks_with_different_numbers_of_steps_take_as_many_updates(algo: str, tmp_path: Path) -> None:
    replay = DQNConfig(batch_size=16, replay_ratio=3, min_steps_learn=60, replay_size=600)
    learner: tuple[Algo, Any] = (DQN(replay), DqnAgent())
    if algo == "ppo":
        learner = PPO(PPOConfig(epochs=1)), CategoricalPgAgent()
    environments = sampler(2, reset_mode="wait")  # padding, of another length in each rank
    SyncRl(*learner, environments, settings(2), logger=Logger(), log_dir=tmp_path).train()
    first, second = (load_checkpoint(tmp_path / part / "checkpoint.pt") for part in ("", "rank-1"))
    for name, value in first["agent"]["model"].items():
        assert torch.equal(value, second["agent"]["model"][name]), name


class Recorded(Ranks):
    """Rank 0 of two, of which the other sent `sent`; records what this one sends."""

    world_size = 2

    def __init__(self, sent: torch.Tensor | None = None) -> None:
        self.sent = sent

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        other, self.sent = self.sent, tensor.clone()
        return torch.stack([tensor, tensor if other is None else other])


@pytest.mark.parametrize("n_other", [0, 1, 9])
def test_moments_are_those_of_the_values_of_all_ranks(n_other: int) -> None:
    here, there = torch.randn(5, generator=torch.Generator().manual_seed(0)) + 1e3, torch.arange(float(n_other))
    other = Recorded()
    moments(other, there)
    n, mean, var = moments(Recorded(other.sent), here)
    together = torch.cat([here, there])
    assert n == len(together)
    torch.testing.assert_close(mean, together.mean())
    torch.testing.assert_close(var, together.var(correction=0))


@pytest.mark.parametrize("n_other", [0, 1, 9])
def test_statistics_contain_the_observations_of_all_ranks(n_other: int) -> None:
    generator = torch.Generator().manual_seed(0)
    before, here, there = (1e4 + torch.randn(n, 3, generator=generator) for n in (7, 5, n_other))
    norms = [torch.nn.Sequential(RunningNorm(3)) for _ in range(3)]
    for norm in norms:
        norm[0].update(before)  # type: ignore[operator]
    other = Recorded()
    with same_buffers(norms[1], other):
        norms[1][0].update(there)  # type: ignore[operator]
    with same_buffers(norms[0], Recorded(other.sent)):
        norms[0][0].update(here)  # type: ignore[operator]
    norms[2][0].update(torch.cat([here, there]))  # type: ignore[operator]
    for name, value in norms[2].state_dict().items():
        torch.testing.assert_close(norms[0].state_dict()[name], value, rtol=1e-7, atol=1e-7)


# ---- ranks that fail ----


@pytest.mark.parametrize(
    ("env", "algo", "error", "said"),
    [
        ("kill at start", "", WorkerCrashed, r"rank 1 was killed by SIGKILL[\s\S]*pid \d+, .*(construct|start)"),
        ("kill", "", WorkerCrashed, r"rank 1 was killed by SIGKILL[\s\S]*pid \d+, .*stepping"),
        ("raise", "", EnvFailed, r"rank 1: .*ArithmeticError: no such place[\s\S]*env 6, stepping"),
        ("", "kill", WorkerCrashed, r"rank 1 was killed by SIGKILL[\s\S]*pid \d+, learning"),
        ("", "exchange", WorkerCrashed, r"rank 1 was killed by SIGKILL[\s\S]*pid \d+, exchanging"),
        ("", "stop", WorkerHung, r"rank 1 made no progress for 6 s .*SIGSTOP[\s\S]*pid \d+, learning"),
        ("", "nan", FloatingPointError, r"rank \d: Failing: .*gradNorm=nan"),
    ],
)
def test_rank_that_fails_ends_all_with_its_name(env: str, algo: str, error: type[Exception], said: str) -> None:
    learner = Failing() if algo else A2C()
    vars(learner)["how"] = algo
    environments = sampler(2, EnvCls=Faulty, env_kwargs={"how": env}, max_decorrelation_steps=0)
    runner = SyncRl(
        learner, Normalizing(ModelCls=Exact), environments, settings(2, 10_000, rank_timeout=6.0), logger=Logger()
    )
    with pytest.raises(error, match=said):
        runner.train()


def test_worker_of_a_rank_that_is_killed_ends_all() -> None:
    runner = SyncRl(
        A2C(),
        Normalizing(ModelCls=Exact),
        sampler(2, CpuSampler, n_workers=1),
        settings(2, 10**6),
        logger=Logger(),
    )

    before = {*psutil.Process().children()}

    def kill() -> None:
        def ranks() -> list[psutil.Process]:
            return sorted({*psutil.Process().children()} - before, key=lambda one: one.pid)

        assert until(lambda: len(ranks()) == 2 and all(rank.children() for rank in ranks()))
        ranks()[1].children()[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(WorkerCrashed, match=r"rank 1: worker 0 was killed by SIGKILL"):
        runner.train()
    killer.join(DEADLINE)


def test_ranks_that_disagree_about_the_number_of_updates_end() -> None:
    learner = Failing()
    learner.how = "other number"
    config = settings(2, 6, rank_timeout=1.0)
    with pytest.raises((WorkerHung, WorkerCrashed), match=r"did not take the same number of updates|rank \d lost rank"):
        SyncRl(learner, Normalizing(ModelCls=Exact), sampler(2), config, logger=Logger()).train()


# ---- stopping, saving, resuming ----


class StopAfter(Callback):
    """Stops after a number of batches."""

    def __init__(self, n: int) -> None:
        self._n = n

    def on_optimize(self, runner: Any, itr: int, opt_info: Mapping[str, float]) -> None:
        if itr + 1 == self._n:
            runner.stop()


@pytest.mark.parametrize("cls", [SerialSampler, pytest.param(CpuSampler, marks=pytest.mark.slow)])
def test_resumed_ranks_end_as_if_never_interrupted(cls: type[BaseSampler], tmp_path: Path) -> None:
    def runner(folder: Path, **options: Any) -> SyncRl:
        algo = PPO(PPOConfig(minibatches=2, epochs=2))
        agent = Normalizing(ModelCls=Exact)
        return SyncRl(algo, agent, sampler(2, cls), settings(2), logger=Logger(), **{"log_dir": folder, **options})

    whole = runner(tmp_path / "whole")
    whole.train()
    stopped = runner(tmp_path / "parts", callbacks=[StopAfter(7)])
    stopped.train()
    assert stopped.counters.itr == 7
    rest = runner(tmp_path / "parts", resume_from=tmp_path / "parts")
    rest.train()
    assert rest.counters.itr == 20
    for name, value in rest.agent.state_dict()["model"].items():
        assert torch.equal(value, whole.agent.state_dict()["model"][name]), name
    rows = [(tmp_path / name / "progress.csv").read_text().count("\n") for name in ("whole", "parts")]
    assert rows[0] == 5
    assert rows[1] >= 5
    assert not (tmp_path / "parts" / "rank-1" / "progress.csv").exists()


def test_rank_without_its_checkpoint_begins_new_episodes(tmp_path: Path) -> None:
    def runner(**options: Any) -> SyncRl:
        return SyncRl(A2C(), Normalizing(ModelCls=Exact), sampler(2), settings(2), logger=Logger(), **options)

    runner(log_dir=tmp_path, callbacks=[StopAfter(7)]).train()
    for path in (tmp_path / "rank-1").glob("*"):
        path.unlink()
    rest = runner(resume_from=tmp_path)
    rest.train()
    assert rest.counters.itr == 20


def test_run_of_another_number_of_ranks_is_not_resumed(tmp_path: Path) -> None:
    SyncRl(A2C(), CategoricalPgAgent(), sampler(2), settings(2, 2), logger=Logger(), log_dir=tmp_path).train()
    other = SyncRl(A2C(), CategoricalPgAgent(), sampler(2), settings(3, 9), logger=Logger(), resume_from=tmp_path)
    with pytest.raises(Exception, match=r"world_size: 2 then, 3 now"):
        other.train()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_batch_and_saves(number: int, tmp_path: Path) -> None:
    runner = SyncRl(
        A2C(), Normalizing(ModelCls=Exact), sampler(2), settings(2, 10**6), logger=Logger(), log_dir=tmp_path
    )

    def send() -> None:
        assert until(lambda: (tmp_path / "checkpoint.pt").exists())
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt, match=r"interrupted after [\d,]+ of .*; checkpoint: "):
            runner.train()
    else:
        runner.train()
    sender.join(DEADLINE)
    saved = [load_checkpoint(tmp_path / part / "checkpoint.pt")["itr"] for part in ("", "rank-1")]
    assert saved == [runner.counters.itr] * 2
    assert 0 < runner.counters.itr < 10**6


def test_callback_of_rank_0_stops_all() -> None:
    runner = SyncRl(
        A2C(), CategoricalPgAgent(), sampler(3), settings(3, 10**6), logger=Logger(), callbacks=[StopAtReturn(-1e9)]
    )
    runner.train()
    assert runner.counters.itr == 5


def test_evaluation_is_that_of_all_ranks() -> None:
    environments = sampler(2, eval_n_envs=3, eval_max_steps=300)
    runner = SyncRlEval(A2C(), CategoricalPgAgent(), environments, settings(2, 5), logger=Logger())
    infos = runner.train()
    assert sorted(info.env_id for info in infos) == [0, 1, 2, 3, 4, 5]


def test_learners_start_with_forkserver(tmp_path: Path) -> None:
    config = settings(2, 4, start_method="forkserver")
    runner = SyncRl(A2C(), CategoricalPgAgent(), sampler(2), config, logger=Logger(), log_dir=tmp_path)
    runner.train()
    assert runner.counters.itr == 4


# ---- arguments ----


def test_one_rank_trains_in_this_process() -> None:
    pids: list[int] = []

    class Notes(Callback):
        def on_batch(self, runner: Any, itr: int, samples: Any, traj_infos: Any) -> None:
            pids.append(os.getpid())

    SyncRl(
        A2C(),
        CategoricalPgAgent(),
        sampler(1),
        RunnerConfig(n_steps=192, seed=0),
        logger=Logger(),
        callbacks=[Notes()],
    ).train()
    assert pids == [os.getpid()] * 2


@pytest.mark.parametrize(
    ("options", "affinity", "said"),
    [
        ({"world_size": 0}, None, "world_size must be at least 1"),
        ({"world_size": 2.0}, None, "world_size must be a whole number"),
        ({"rank_timeout": 0.0}, None, "rank_timeout must be more than 0"),
        ({"devices": "cuda:0"}, None, "devices must be a sequence"),
        ({"start_method": "thread"}, None, "start_method must be"),
        ({"world_size": 1, "devices": ("cpu", "cpu")}, None, "devices has 2 devices for 1 learners"),
        ({"world_size": 2}, [Affinity()] * 3, "world_size is for 2 and affinity is for 3"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], affinity: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        SyncRl(A2C(), CategoricalPgAgent(), sampler(1), SyncConfig(**options), affinity)


def test_affinities_and_devices_say_how_many_ranks_there_are() -> None:
    def size(config: RunnerConfig, affinity: Any = None) -> int:
        return SyncRl(A2C(), CategoricalPgAgent(), sampler(1), config, affinity).world_size

    assert size(RunnerConfig(), [{"workers_cpus": [[0]]}] * 2) == 2
    assert size(SyncConfig(devices=("cpu", "cpu", "cpu"))) == 3
    assert size(SyncConfig(devices=("cpu",), world_size=2)) == 2
    assert size(RunnerConfig()) == 1


# ---- programs ----

#: So that a script finds the package of the tests.
HERE = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


@pytest.mark.programs
def test_torchrun_starts_ranks_that_learn_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = Path(__file__).parent / "sync_script.py"
    done = subprocess.run(
        [*command, str(program), str(tmp_path)],
        env=HERE,
        check=False,
        timeout=DEADLINE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    one, _ = learned(A2C(), 1)
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            assert (value - one[name]).abs().max() < 1e-8, name
    assert (tmp_path / "run" / "rank-1" / "checkpoint.pt").exists()


@pytest.mark.programs
def test_torchrun_names_a_rank_that_hangs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = Path(__file__).parent / "sync_script.py"
    done = subprocess.run(
        [*command, str(program), str(tmp_path), "hang"],
        env=HERE,
        check=False,
        timeout=DEADLINE,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "rank 1 (pid " in done.stderr
    assert "did not come to an exchange" in done.stderr


@pytest.mark.programs
def test_command_trains_with_several_learners(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--env", "CartPole-v1", "--n-steps", "2048", "--batch-B", "16", "--eval-episodes", "2"]
    assert main([*words, "--ranks", "2", "--log-dir", str(tmp_path)]) == 0
    assert (tmp_path / "rank-1" / "checkpoint.pt").exists()
    assert "mean return" in capsys.readouterr().out
    for wrong, said in (
        (["--ranks", "2", "--sampler", "async-cpu"], "leave async- out"),
        (["--ranks", "2", "--device", "cpu"], "give several their --devices"),
        (["--ranks", "0"], "world_size must be at least 1"),
    ):
        assert main([*words, *wrong, "--log-dir", str(tmp_path / "other")]) != 0
        assert said in capsys.readouterr().err


@pytest.mark.programs
@pytest.mark.slow
def test_two_learners_solve_cartpole() -> None:
    environments = CpuSampler("CartPole-v1", batch_T=32, batch_B=32, n_workers=1, eval_n_envs=10)
    config = SyncConfig(n_steps=400_000, seed=0, log_interval_steps=50_000, world_size=2)
    infos = SyncRlEval(PPO(), CategoricalPgAgent(), environments, config, logger=Logger()).train()
    assert len(infos) == 20
    assert sum(info.Return for info in infos) / len(infos) >= 475
