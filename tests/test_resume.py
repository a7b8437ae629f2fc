"""Runs that are stopped, killed or fail, and are resumed: they end like uninterrupted ones."""

import csv
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from headrace import compiled
from headrace.agents.pg import CategoricalPgAgent, GaussianPgAgent, RecurrentCategoricalPgAgent
from headrace.algos.pg import A2C, PPO, PPOConfig
from headrace.checkpoints import resume
from headrace.checkpoints.resume import Resumed
from headrace.errors import CheckpointError
from headrace.models import ActorCritic
from headrace.runners import Callback, MinibatchRl, MinibatchRlEval, Runner, RunnerConfig, load_checkpoint
from headrace.runners.logging import Logger
from headrace.samplers import BaseSampler, CpuSampler, SerialSampler, TrajInfo
from headrace.samplers.collection.snapshot import SamplerState
from headrace.types import EnvSpaces
from tests.leftovers import DEADLINE
from tests.walk import Walk

pytestmark = pytest.mark.usefixtures("copies_tried_here")

#: Columns that say how long something took.
TIMES = {"CumTime", "StepsPerSecond", "CumSampleTime", "CumOptimizeTime", "CumEvalTime"}


class KeepsMessages(Logger):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


class StopAt(Callback):
    """Stops after so many batches."""

    def __init__(self, itr: int) -> None:
        self._itr = itr

    def on_optimize(self, runner: Runner, itr: int, opt_info: Any) -> None:
        if runner.counters.itr >= self._itr:
            runner.stop()


def serial(env: Any = "CartPole-v1", **more: Any) -> BaseSampler:
    return SerialSampler(env, batch_T=8, batch_B=4, deterministic=True, **more)


def workers(n: int) -> Callable[..., BaseSampler]:
    def make(env: Any = "CartPole-v1", **more: Any) -> BaseSampler:
        return CpuSampler(env, batch_T=8, batch_B=4, deterministic=True, n_workers=n, **more)

    return make


def train(
    log_dir: Path,
    sampler: BaseSampler,
    *,
    n_itr: int = 9,
    stop_at: int = 1000,
    resume: bool = False,
    Runners: Any = MinibatchRl,
    agent: Any = None,
    algo: Any = None,
    logger: Logger | None = None,
    callbacks: Sequence[Callback] = (),
    seed: int | None = 4,
) -> Any:
    config = RunnerConfig(n_steps=32 * n_itr, seed=seed, log_interval_steps=64, log_traj_window=5)
    runner = Runners(
        PPO(PPOConfig(epochs=2, minibatches=1, normalize_reward=True)) if algo is None else algo,
        CategoricalPgAgent(model_kwargs={"normalize_observation": True}) if agent is None else agent,
        sampler,
        config,
        log_dir=None if resume else log_dir,
        resume_from=log_dir if resume else None,
        logger=Logger() if logger is None else logger,
        callbacks=[StopAt(stop_at), *callbacks],
    )
    runner.train()
    return runner


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run; only read."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(folder, serial())
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped after 5 batches; copied before use."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    train(folder, serial(), stop_at=5)
    return folder


def rows_of(log_dir: Path) -> list[dict[str, str]]:
    with (log_dir / "progress.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def assert_same_end(one: Path, other: Path) -> None:
    assert rows_of(one) == rows_of(other)
    states = [load_checkpoint(log_dir / "checkpoint.pt") for log_dir in (one, other)]
    for part in ("agent", "algo"):
        assert_equal(*(state[part] for state in states))
    assert states[0]["steps"] == states[1]["steps"]


def assert_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Mapping):
        assert list(one) == list(other)
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


# ---- bit for bit ----


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("first", "second", "Runners"),
    [
        pytest.param(serial, workers(3), MinibatchRl, id="serial to 3"),
        pytest.param(workers(2), serial, MinibatchRlEval, id="evaluating, 2 to serial"),
        slow(serial, serial, MinibatchRl, id="serial"),
        slow(workers(2), workers(2), MinibatchRl, id="workers"),
        slow(workers(3), serial, MinibatchRl, id="3 to serial"),
        slow(serial, serial, MinibatchRlEval, id="evaluating, serial"),
        slow(workers(2), workers(2), MinibatchRlEval, id="evaluating, workers"),
        slow(serial, workers(3), MinibatchRlEval, id="evaluating, serial to 3"),
    ],
)
def test_stopped_and_resumed_run_ends_like_an_uninterrupted_one(
    first: Any, second: Any, Runners: Any, tmp_path: Path, whole: Path
) -> None:
    more = {"eval_n_envs": 2, "eval_max_steps": 60} if Runners is MinibatchRlEval else {}
    if Runners is MinibatchRlEval:
        whole = tmp_path / "one"
        train(whole, serial(**more), Runners=Runners)
    train(tmp_path / "two", first(**more), Runners=Runners, stop_at=5)
    assert load_checkpoint(tmp_path / "two" / "checkpoint.pt")["itr"] == 5
    hears = KeepsMessages()
    runner = train(tmp_path / "two", second(**more), Runners=Runners, resume=True, logger=hears)
    assert hears.messages == [
        f"resumed from {tmp_path / 'two' / 'checkpoint.pt'}, 160 steps, 5 batches; all episodes continue"
    ]
    assert runner.counters.itr == 9
    assert_same_end(whole, tmp_path / "two")


class Sums(TrajInfo):
    """Has a column of its own."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.Drift = 0.0

    def step(self, observation: Any, action: Any, reward: float, *_: Any) -> None:
        self.Drift = 0.9 * self.Drift + float(observation[0])


@pytest.mark.parametrize(
    ("env", "Agents", "more"),
    [
        pytest.param(
            Walk, RecurrentCategoricalPgAgent, {"reset_mode": "wait", "TrajInfoCls": Sums}, id="wait, objects"
        ),
        slow("Pendulum-v1", GaussianPgAgent, {}, id="pendulum"),
        slow("HalfCheetah-v5", GaussianPgAgent, {}, id="mujoco"),
    ],
)
def test_all_state_of_a_run_is_resumed(
    env: Any, Agents: Any, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if env == "HalfCheetah-v5":
        pytest.importorskip("mujoco")
        monkeypatch.chdir(tmp_path)  # MuJoCo writes a log where it stands
    train(tmp_path / "one", serial(env, **more), agent=Agents())
    train(tmp_path / "two", serial(env, **more), agent=Agents(), stop_at=4)
    train(tmp_path / "two", serial(env, **more), agent=Agents(), resume=True, stop_at=7)
    assert (tmp_path / "two" / "environments-7.pkl").exists()
    train(tmp_path / "two", serial(env, **more), agent=Agents(), resume=True)
    assert_same_end(tmp_path / "one", tmp_path / "two")


def test_ended_run_can_be_prolonged(tmp_path: Path) -> None:
    train(tmp_path / "one", serial(), algo=A2C(), n_itr=9)
    rows = rows_of(tmp_path / "one")
    train(tmp_path / "one", serial(), algo=A2C(), resume=True, n_itr=9)
    assert rows_of(tmp_path / "one") == rows
    train(tmp_path / "one", serial(), algo=A2C(), resume=True, n_itr=12)
    assert [row["Iteration"] for row in rows_of(tmp_path / "one")] == ["2", "4", "6", "8", "10", "12"]


def test_csv_rows_after_the_checkpoint_are_removed(tmp_path: Path, whole: Path, stopped: Path) -> None:
    two = shutil.copytree(stopped, tmp_path / "two")
    path = two / "progress.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n7,7,7")
    train(two, serial(), resume=True)
    assert_same_end(whole, two)


def test_drawn_seed_is_kept(tmp_path: Path) -> None:
    first = train(tmp_path, serial(), seed=None, stop_at=3)
    assert train(tmp_path, serial(), seed=None, resume=True).seed == first.seed


def trains_noting(log_dir: Path, resume: bool) -> None:
    """A run in a process of its own that notes each batch it learned from."""
    noted = os.open(log_dir.with_suffix(".noted"), os.O_WRONLY | os.O_CREAT)

    class Notes(Callback):
        def on_optimize(self, runner: Runner, itr: int, opt_info: Any) -> None:
            os.pwrite(noted, b"%6d" % runner.counters.itr, 0)
            time.sleep(0.005)  # so that there is time to be killed in

    train(log_dir, workers(2)(), n_itr=60, resume=resume, callbacks=[Notes()])


@pytest.mark.programs
def test_five_kills_at_random_times_change_nothing(tmp_path: Path) -> None:
    train(tmp_path / "one", serial(), n_itr=60)  # first, so that the processes below have loaded all of torch
    fork, killed, interval = multiprocessing.get_context("fork"), tmp_path / "killed", 2
    chance = random.Random()
    for attempt in range(6):
        process = fork.Process(target=trains_noting, args=(killed, attempt > 0))
        process.start()
        deadline = time.monotonic() + DEADLINE
        before = noted(killed)
        while attempt < 5 and noted(killed) < before + 4 and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if attempt < 5:
            process.join(chance.uniform(0.001, 0.05))
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        process.join(DEADLINE)
        assert process.exitcode == (-signal.SIGKILL if attempt < 5 else 0)
        found = newest(killed)
        assert noted(killed) - found <= interval
        assert found >= before
        process.close()
    assert_same_end(tmp_path / "one", killed)
    assert not list(killed.glob("*.tmp"))


def noted(log_dir: Path) -> int:
    path = log_dir.with_suffix(".noted")
    return int(path.read_text() or 0) if path.exists() else 0


def newest(log_dir: Path) -> int:
    path = log_dir / "checkpoint.pt"
    return int(load_checkpoint(path)["itr"]) if path.exists() else 0


class Forgetful(ActorCritic):
    """A model that draws random numbers while it learns."""

    def __init__(self, spaces: EnvSpaces, n_outputs: int) -> None:
        super().__init__(spaces, n_outputs, hidden_sizes=(16, 16))
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, observation: Any, prev_action: Any, prev_reward: Any) -> Any:
        return super().forward(self.drop(observation.float()), prev_action, prev_reward)


def test_random_numbers_of_a_learning_model_come_from_the_seed(tmp_path: Path) -> None:
    """However torch's generator was used before, also after a resume; its state is not changed."""

    def learned(seed: int, *stops: int) -> list[torch.Tensor]:
        folder = tmp_path / f"{seed}-{len(stops)}"
        for n_itr in stops:
            torch.manual_seed(n_itr)
            before = torch.random.get_rng_state()
            place: dict[str, Any] = {"resume_from" if (folder / "checkpoint.pt").exists() else "log_dir": folder}
            agent = CategoricalPgAgent(ModelCls=Forgetful)
            MinibatchRl(
                PPO(PPOConfig(epochs=2, linear_lr_schedule=False)),
                agent,
                SerialSampler(Walk, batch_T=8, batch_B=4),
                RunnerConfig(n_steps=32 * n_itr, seed=seed, log_interval_steps=32),
                logger=Logger(),
                **place,
            ).train()
            assert torch.equal(torch.random.get_rng_state(), before)
        return list(agent.parameters())

    straight, stopped, other = learned(0, 4), learned(0, 2, 4), learned(1, 4)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(straight, stopped, strict=True))
    assert not all(torch.equal(mine, theirs) for mine, theirs in zip(straight, other, strict=True))


# ---- where environments are not there ----


class HoldsALock(Walk):
    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()


def test_run_resumed_with_other_acting_code_logs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, serial(), stop_at=5)
    for now, says in ((compiled.implementation, False), ("another", True)):
        shutil.copytree(tmp_path, tmp_path / now)
        monkeypatch.setattr(resume, "implementation", now)
        hears = KeepsMessages()
        train(tmp_path / now, serial(), resume=True, logger=hears)
        (message,) = hears.messages
        assert (f"{compiled.implementation} code acted so far and {now} code does now" in message) == says


def test_unpicklable_environments_start_new_episodes_and_the_log_says_so(tmp_path: Path) -> None:
    hears = KeepsMessages()
    train(tmp_path, workers(2)(HoldsALock), stop_at=5, logger=hears)
    assert hears.messages == [
        "checkpoints contain no environments, so a resumed run begins new episodes: HoldsALock cannot be pickled "
        "(TypeError: cannot pickle '_thread.lock' object)"
    ]
    assert not list(tmp_path.glob("environments-*"))
    hears = KeepsMessages()
    train(tmp_path, workers(2)(HoldsALock), resume=True, logger=hears)
    (message,) = hears.messages
    assert message.startswith(f"resumed from {tmp_path / 'checkpoint.pt'}, 160 steps, 5 batches; new episodes begin")
    assert [row["Iteration"] for row in rows_of(tmp_path)] == ["2", "4", "6", "8", "9"]


class MakesADirectory:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        ("another file", "does not belong to this checkpoint"),
        ("another user", "was not signed by this user on this machine for this checkpoint"),
        ("a key for all", "could be read by other users"),
        ("gone", "No such file"),
        ("another checkpoint", "was not signed by this user on this machine for this checkpoint"),
    ],
)
def test_environments_without_own_signature_are_not_read(
    harm: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: Path
) -> None:
    from headrace.runners import save_checkpoint

    state_home = shutil.copytree(os.environ["XDG_STATE_HOME"], tmp_path / "state")
    monkeypatch.setenv("XDG_STATE_HOME", str(state_home))
    run = shutil.copytree(stopped, tmp_path / "run")
    key = tmp_path / "state" / "headrace" / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    path = run / "environments-5.pkl"
    if harm == "another file":
        path.write_bytes(pickle.dumps(MakesADirectory(tmp_path / "evil")))
    elif harm == "another user":
        key.unlink()
    elif harm == "a key for all":
        key.chmod(0o644)
    elif harm == "gone":
        path.unlink()
    else:
        state = load_checkpoint(run / "checkpoint.pt")
        state["runner"]["seconds"] += 1.0  # whole, but another one
        save_checkpoint(run / "checkpoint.pt", state)
    hears = KeepsMessages()
    train(run, serial(), resume=True, logger=hears)
    assert says in hears.messages[0]
    assert "new episodes begin" in hears.messages[0]
    assert not (tmp_path / "evil").exists()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"algo": PPO(PPOConfig(epochs=3, minibatches=1, normalize_reward=True))}, "algo.config.epochs: 2 then, 3 now"),
        ({"agent": CategoricalPgAgent()}, "agent.settings.model_kwargs"),
        ({"seed": 5}, "seed: 4 then, 5 now"),
        ({"sampler": SerialSampler("CartPole-v1", batch_T=16, batch_B=4)}, "sampler.batch_T: 8 then, 16 now"),
        ({"sampler": serial("Acrobot-v1")}, "sampler.environment: 'CartPole-v1' then, 'Acrobot-v1' now"),
        ({"Runners": MinibatchRlEval}, "runner: "),
    ],
    ids=["algo", "agent", "seed", "batch", "environment", "runner"],
)
def test_other_settings_are_refused_by_name(change: dict[str, Any], says: str, stopped: Path) -> None:
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    with pytest.raises(CheckpointError, match="written with other settings") as refused:
        train(stopped, resume=True, **{"sampler": serial(), **change})
    assert says in str(refused.value)
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before


def test_a_run_of_another_algorithm_or_with_more_steps_is_one_sentence() -> None:
    settings = {"algo.class": "headrace.algos.pg.ppo.PPO", "agent.class": "own.Agent", "algo.config.epochs": 3}
    run = Resumed(Path("run"), {"settings": settings, "itr": 4, "steps": 512}, SamplerState(0, 0, 0, 0))
    run.require(settings, 4)
    for changed, n_itr, says in (
        ({"algo.class": "headrace.algos.dqn.dqn.DQN"}, 4, "run was trained with PPO, not DQN; resume it with PPO, or "),
        ({"agent.class": "own.Other"}, 4, "run was trained with Agent, not Other; resume it with Agent, or "),
        ({}, 3, r"run has 512 steps already \(4 batches\).*n_steps counts from the start.*give more than 512"),
    ):
        with pytest.raises(CheckpointError, match=says) as refused:
            run.require({**settings, **changed, **({"algo.config.tau": 1} if changed else {})}, n_itr)
        assert "tau" not in str(refused.value)


def test_environments_of_other_spaces_are_refused(tmp_path: Path) -> None:
    class Grows(Walk):
        size = 3

        def __init__(self) -> None:
            super().__init__()
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, (Grows.size,), np.float32)

        def reset(self, **more: Any) -> Any:
            return np.resize(super().reset(**more)[0], Grows.size), {}

        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            return np.resize(observation, Grows.size), *rest

    train(tmp_path, serial(Grows), stop_at=3)
    (tmp_path / "environments-3.pkl").unlink()
    Grows.size = 4
    with pytest.raises(CheckpointError, match=r"environments with [\s\S]*\(3,\)[\s\S]*these have [\s\S]*\(4,\)"):
        train(tmp_path, serial(Grows), resume=True)


def test_new_run_does_not_overwrite_another(tmp_path: Path, stopped: Path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    (run / "progress.csv").unlink()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(FileExistsError, match=r"checkpoint\.pt already exists.*resume_from"):
        train(run, serial())
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_resume_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    def make(**more: Any) -> MinibatchRl:
        return MinibatchRl(A2C(), CategoricalPgAgent(), serial(), RunnerConfig(), logger=Logger(), **more)

    with pytest.raises(FileNotFoundError, match="resume_from="):
        make(resume_from=tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="contains no checkpoint"):
        make(resume_from=tmp_path).train()
    with pytest.raises(ValueError, match="leave log_dir out"):
        make(resume_from=tmp_path, log_dir=tmp_path / "other")
    torch_only = tmp_path / "checkpoint.pt"
    from headrace.runners import save_checkpoint

    save_checkpoint(torch_only, {"weights": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="this runner of this headrace did not write it"):
        make(resume_from=tmp_path).train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


# ---- damage ----


def test_damaged_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, whole: Path, stopped: Path
) -> None:
    two = shutil.copytree(stopped, tmp_path / "two")
    content = bytearray((two / "checkpoint.pt").read_bytes())
    content[len(content) // 3] ^= 4
    (two / "checkpoint.pt").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        train(two, serial(), resume=True)
    assert f"{two / 'checkpoint.pt'} is damaged" in caplog.text
    assert f"{two / 'checkpoint-previous.pt'} is used instead" in caplog.text
    assert_same_end(whole, two)
    assert load_checkpoint(two / "checkpoint-previous.pt")["itr"] == 8

    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        (two / name).write_bytes(b"headrace checkpoint 2\n")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is damaged.*checkpoint-previous\.pt is damaged"):
        train(two, serial(), resume=True)


def test_run_resumes_from_a_given_checkpoint_file(tmp_path: Path, whole: Path, stopped: Path) -> None:
    two = shutil.copytree(stopped, tmp_path / "two")
    path = two / "checkpoint-previous.pt"
    assert load_checkpoint(path)["itr"] == 4
    config = RunnerConfig(n_steps=32 * 9, seed=4, log_interval_steps=64, log_traj_window=5)
    MinibatchRl(
        PPO(PPOConfig(epochs=2, minibatches=1, normalize_reward=True)),
        CategoricalPgAgent(model_kwargs={"normalize_observation": True}),
        serial(),
        config,
        resume_from=path,
        logger=Logger(),
    ).train()
    assert_same_end(whole, two)


def test_non_finite_loss_leaves_the_last_good_state(tmp_path: Path) -> None:
    algo = PPO(PPOConfig(learning_rate=1e30, epochs=2))
    with pytest.raises(FloatingPointError, match=r"in itr \d+, update \d+ \((not finite: |the batch)"):
        train(tmp_path, serial(), algo=algo, n_itr=50)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert all(bool(value.isfinite().all()) for value in state["agent"]["model"].values())


def test_interrupted_batch_is_saved_without_environments(tmp_path: Path) -> None:
    class Interrupts(Callback):
        def on_batch(self, runner: Runner, itr: int, samples: Any, traj_infos: Any) -> None:
            if itr == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"after 160 of 288 steps \(a resumed run begins new episodes\); check"):
        train(tmp_path, serial(), callbacks=[Interrupts()])
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert (state["itr"], state["environments"]) == (5, {"why_not": "training was interrupted within a batch"})
    hears = KeepsMessages()
    assert train(tmp_path, serial(), resume=True, logger=hears).counters.itr == 9
    assert "because there are no environments: training was interrupted within a batch" in hears.messages[0]
