"""`LocalRunner`: epochs, episodes, snapshots, and algorithms with garage's contract and of the library."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.agents.pg import CategoricalPgAgent, RecurrentCategoricalPgAgent
from headrace.algos.pg import A2C, IMPALA, PPO
from headrace.errors import CheckpointError, EnvFailed
from headrace.runners import EpisodeAlgo, LocalRunner, NotSetupError, SnapshotConfig, TrainArgs, Trainer
from headrace.runners.logging import Logger
from headrace.samplers import LocalSampler, MultiprocessingSampler, VecWorker
from headrace.samplers.episodes import EpisodeBatch
from tests.episode_worlds import Lengths
from tests.grid_world import GridWorld, ScriptedPolicy


class Rows(Logger):
    """Keeps the rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def row(self, row: Mapping[str, float]) -> None:
        self.rows.append(dict(row))


class Watches:
    """An algorithm with garage's contract, which only counts."""

    def __init__(self, max_path_length: int | None = 16) -> None:
        self.policy = ScriptedPolicy()
        self.max_path_length = max_path_length
        self.seen: list[tuple[int, int, int]] = []

    def train(self, runner: LocalRunner) -> float:
        last = math.nan
        for epoch in runner.step_epochs():
            runner.step_episode = runner.obtain_episodes()
            self.seen.append((epoch, runner.step_itr, len(runner.step_episode)))
            runner.record({"seen": float(len(self.seen))})
            last = float(runner.step_episode.returns.mean())
            runner.step_itr += 1
        return last


def silent(folder: Path | SnapshotConfig | None = None, seed: int = 0) -> LocalRunner:
    return LocalRunner(folder, seed=seed, logger=Logger())


def test_an_algorithm_with_garages_contract(tmp_path: Path) -> None:
    rows, algo = Rows(), Watches()
    runner = LocalRunner(tmp_path, seed=0, logger=rows)
    runner.setup(algo, GridWorld, n_workers=2)
    assert runner.train(n_epochs=3, batch_size=60) == 1.0
    assert algo.seen == [(0, 0, 10), (1, 1, 10), (2, 2, 10)]
    assert runner.total_env_steps == 180
    assert runner.step_episode is None
    assert [row["Iteration"] for row in rows.rows] == [1, 2, 3]
    assert [row["CumSteps"] for row in rows.rows] == [60, 120, 180]
    assert [row["seenAverage"] for row in rows.rows] == [1, 2, 3]
    assert rows.rows[0]["ReturnAverage"] == 1.0
    assert rows.rows[0]["LengthMax"] == 6
    assert len((tmp_path / "progress.csv").read_text().splitlines()) == 4
    with pytest.raises(FileExistsError):
        runner.train(1, 6)


def test_each_sampler_by_changing_sampler_cls_alone() -> None:
    found = []
    for sampler_cls in (LocalSampler, MultiprocessingSampler):
        batches: list[EpisodeBatch] = []

        class Keeps(Watches):
            def train(self, runner: LocalRunner) -> float:
                for _ in runner.step_epochs():
                    batches.append(runner.obtain_trajectories())  # noqa: B023
                return 0.0

        algo = Keeps()
        algo.policy = CategoricalPgAgent()  # type: ignore[assignment]
        runner = silent()
        runner.setup(
            algo,
            Lengths,
            sampler_cls=sampler_cls,
            n_workers=2,
            worker_class=VecWorker,
            worker_args={"n_envs": 3},
            sampler_args={"deterministic": True},
        )
        runner.train(2, 50)
        found.append(batches)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one.observations, other.observations)
        np.testing.assert_array_equal(one.actions, other.actions)
        assert one.env_spec.max_episode_length == 16


def test_the_algorithm_may_choose_the_sampler_and_another_policy_to_explore() -> None:
    used: list[Any] = []

    class Own(LocalSampler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            used.append(args[0])
            super().__init__(*args, **kwargs)

    algo = Watches()
    algo.sampler_cls = Own  # type: ignore[attr-defined]
    algo.exploration_policy = ScriptedPolicy([1] * 16)  # type: ignore[attr-defined]
    runner = silent()
    runner.setup(algo, GridWorld, n_workers=1)
    runner.train(1, 10)
    assert used == [algo.exploration_policy]  # type: ignore[attr-defined]


@pytest.mark.parametrize("algo", [A2C(), PPO(), IMPALA()], ids=["A2C", "PPO", "IMPALA"])
@pytest.mark.parametrize("agent_cls", [CategoricalPgAgent, RecurrentCategoricalPgAgent], ids=["mlp", "recurrent"])
def test_the_librarys_algorithms_learn_from_episodes(algo: Any, agent_cls: Any) -> None:
    rows, agent = Rows(), agent_cls()
    runner = LocalRunner(seed=0, logger=rows)
    runner.setup(EpisodeAlgo(type(algo)(), agent), "CartPole-v1", worker_class=VecWorker, n_workers=1)
    assert runner.train(2, 200) > 0
    assert all(math.isfinite(row["lossAverage"]) for row in rows.rows)


def test_samples_as_dicts() -> None:
    class AsDicts(Watches):
        def train(self, runner: LocalRunner) -> float:
            for _ in runner.step_epochs():
                paths = runner.obtain_samples(0, 6)
                assert [path["rewards"].tolist() for path in paths] == [[0, 0, 0, 0, 0, 1]]
                assert runner.get_env_copy().observation_space == GridWorld.observation_space
                with pytest.raises(ValueError, match="batch_size is missing"):
                    runner.obtain_episodes()
            return 0.0

    env = GridWorld(goal=15)
    runner = silent()
    runner.setup(AsDicts(), env, n_workers=1)
    runner.train(1)
    assert runner.get_env_copy() is not env


# ---- snapshots ----


def test_resume(tmp_path: Path) -> None:
    runner = silent(tmp_path)
    runner.setup(EpisodeAlgo(PPO(), CategoricalPgAgent()), "CartPole-v1", worker_class=VecWorker, n_workers=1)
    runner.train(3, 300)
    agent = runner_agent(runner)

    again = LocalRunner(logger=(rows := Rows()))
    assert again.restore(tmp_path) == TrainArgs(3, 300, start_epoch=3)
    assert again.total_env_steps == runner.total_env_steps
    assert again.seed == 0
    for one, other in zip(agent.parameters(), runner_agent(again).parameters(), strict=True):
        assert (one == other).all()
    again.resume(n_epochs=5)
    assert [row["Iteration"] for row in rows.rows] == [4, 5]
    assert again.total_env_steps >= runner.total_env_steps + 600
    pairs = zip(agent.parameters(), runner_agent(again).parameters(), strict=True)
    assert any((one != other).any() for one, other in pairs)


def runner_agent(runner: LocalRunner) -> Any:
    """Returns the agent of the runner's algorithm."""
    return runner.algo.policy


def test_a_resumed_run_does_not_repeat_the_first_episodes(tmp_path: Path) -> None:
    class Lengthy(Watches):
        def train(self, runner: LocalRunner) -> Any:
            return [runner.obtain_episodes().lengths.tolist() for _ in runner.step_epochs()]

    runner = silent(tmp_path)
    algo = Lengthy(max_path_length=50)
    algo.policy = CategoricalPgAgent()  # type: ignore[assignment]
    runner.setup(algo, Lengths, n_workers=1)
    (first,) = runner.train(1, 100)
    again = silent()
    again.restore(tmp_path)
    (second,) = again.resume(n_epochs=2)
    assert first != second


@pytest.mark.parametrize(
    ("mode", "files"),
    [
        ("all", ["itr_0.pkl", "itr_1.pkl", "itr_2.pkl", "itr_3.pkl"]),
        ("last", ["params.pkl"]),
        ("gap", ["itr_0.pkl", "itr_2.pkl"]),
        ("gap_overwrite", ["params.pkl"]),
        ("gap_and_last", ["itr_0.pkl", "itr_2.pkl", "params.pkl"]),
        ("none", []),
    ],
)
def test_snapshot_modes(tmp_path: Path, mode: str, files: list[str]) -> None:
    runner = silent(SnapshotConfig(tmp_path, mode, snapshot_gap=2))
    runner.setup(Watches(), GridWorld, n_workers=1)
    runner.train(4, 12)
    assert sorted(path.name for path in tmp_path.glob("*.pkl")) == files
    if not files:
        with pytest.raises(FileNotFoundError, match="has no snapshot"):
            silent().restore(tmp_path)
        return
    starts = {name: silent().restore(tmp_path, name).start_epoch for name in ("first", "last")}
    assert starts["last"] == {"gap": 3, "gap_overwrite": 3}.get(mode, 4)
    assert starts["first"] == (1 if len(files) > 1 else starts["last"])
    if mode == "all":
        assert silent().restore(tmp_path, 1).start_epoch == 2
    with pytest.raises(FileNotFoundError, match="no snapshot of epoch 9"):
        silent().restore(tmp_path, 9)


def test_a_snapshot_of_somebody_else_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = silent(tmp_path / "run")
    runner.setup(Watches(), GridWorld, n_workers=1)
    runner.train(1, 12)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    with pytest.raises(CheckpointError, match="was not written by this user"):
        silent().restore(tmp_path / "run")
    (tmp_path / "run" / "params.pkl").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="is not a snapshot"):
        silent().restore(tmp_path / "run")


# ---- refusals ----


def test_calls_in_the_wrong_order(tmp_path: Path) -> None:
    runner = silent(tmp_path)
    with pytest.raises(NotSetupError, match="call setup"):
        runner.train(1, 1)
    with pytest.raises(NotSetupError, match="call setup"):
        runner.save(0)
    with pytest.raises(NotSetupError, match="call restore"):
        runner.resume()
    runner.setup(Watches(), GridWorld)
    with pytest.raises(NotSetupError, match="not training"):
        runner.obtain_episodes(0, 1)
    assert Trainer is LocalRunner
    with pytest.raises(ValueError, match="snapshot_mode must be one of"):
        SnapshotConfig(tmp_path, "sometimes")


def test_the_sampler_is_closed_after_an_error() -> None:
    class Broken(GridWorld):
        def step(self, action: Any) -> Any:
            raise ZeroDivisionError

    runner = silent()
    runner.setup(Watches(), Broken, sampler_cls=MultiprocessingSampler, n_workers=1)
    with pytest.raises(EnvFailed, match="ZeroDivisionError"):
        runner.train(1, 10)
    with pytest.raises(NotSetupError):
        runner.obtain_episodes()
