"""Runners: the loop, its log, its checkpoints, and every way it can end."""

import csv
import io
import math
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
import torch

from headrace.agents.base import Agent
from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import A2C, PPO, PPOConfig
from headrace.buffers.samples import Samples
from headrace.errors import EnvFailed, SamplerClosed, SamplerError
from headrace.processes.affinity import Affinity
from headrace.runners import (
    Callback,
    MinibatchRl,
    MinibatchRlEval,
    Runner,
    RunnerConfig,
    load_checkpoint,
    save_checkpoint,
    threads,
)
from headrace.runners.logging import ConsoleLogger, CsvLogger, Logger, plot_learning_curve, statistics
from headrace.samplers import BaseSampler, CpuSampler, SerialSampler
from headrace.types import BatchSpec
from tests.leftovers import DEADLINE
from tests.light import Breaks
from tests.walk import Walk

pytestmark = pytest.mark.usefixtures("copies_tried_here")

ROOT = Path(__file__).parent.parent
QUIET = Logger()


def sampler_of(env: Any = "CartPole-v1", batch_T: int = 16, batch_B: int = 4, **more: Any) -> SerialSampler:
    return SerialSampler(env, batch_T=batch_T, batch_B=batch_B, **more)


def rows_of(log_dir: Path) -> list[dict[str, float]]:
    with (log_dir / "progress.csv").open(newline="") as file:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]


def closed(sampler: BaseSampler) -> bool:
    with pytest.raises(SamplerClosed):
        sampler.obtain_samples(0)
    return True


# ---- MinibatchRl ----


def test_runner_trains_logs_and_writes_a_checkpoint(tmp_path: Path) -> None:
    agent, sampler = CategoricalPgAgent(), sampler_of(batch_B=8)
    runner = MinibatchRl(
        A2C(),
        agent,
        sampler,
        RunnerConfig(n_steps=1000, seed=3, log_interval_steps=256, log_traj_window=7),
        log_dir=tmp_path / "new",
        logger=QUIET,
    )
    episodes = runner.train()
    assert closed(sampler)
    rows = rows_of(tmp_path / "new")
    assert [row["Iteration"] for row in rows] == [2, 4, 6, 8]  # 1000 steps are 8 batches of 128
    assert [row["CumSteps"] for row in rows] == [256, 512, 768, 1024]
    last = rows[-1]
    assert last["CumCompletedTrajs"] == sum(row["NewCompletedTrajs"] for row in rows)
    assert len(episodes) == 7
    returns = np.array([info.Return for info in episodes])
    for kind, value in (
        ("Average", returns.mean()),
        ("Std", returns.std()),
        ("Median", np.median(returns)),
        ("Min", returns.min()),
        ("Max", returns.max()),
    ):
        assert last["Return" + kind] == pytest.approx(value)
    assert last["StepsInTrajWindow"] == sum(info.Length for info in episodes)
    assert last["DiscountedReturnMax"] < last["ReturnMax"], "the algorithm's discount is the statistics'"
    for name in ("lossAverage", "gradNormMax", "entropyMin", "perplexityMedian", "LengthStd", "NonzeroRewardsMin"):
        assert math.isfinite(last[name])
    assert last["StepsPerSecond"] > 0
    assert rows[0]["CumTime"] < last["CumTime"]

    state = load_checkpoint(tmp_path / "new" / "checkpoint.pt")
    assert (state["itr"], state["steps"], state["seed"]) == (8, 1024, 3)
    for name, value in agent.model.state_dict().items():
        assert torch.equal(state["agent"]["model"][name], value)
    again = A2C()
    again.initialize(agent, n_itr=1, batch_spec=sampler.batch_spec)
    again.load_state_dict(state["algo"])


def test_the_same_seed_trains_the_same_agent() -> None:
    def train(seed: int | None, sampler: BaseSampler) -> tuple[int | None, torch.Tensor]:
        agent = CategoricalPgAgent()
        runner = MinibatchRl(
            PPO(PPOConfig(epochs=2)), agent, sampler, RunnerConfig(n_steps=256, seed=seed), logger=QUIET
        )
        runner.train()
        return runner.seed, torch.cat([value.detach().flatten() for value in agent.parameters()])

    seed, weight = train(None, sampler_of(deterministic=True))
    assert seed is not None
    cpu = CpuSampler("CartPole-v1", batch_T=16, batch_B=4, n_workers=2, deterministic=True)
    assert torch.equal(weight, train(seed, cpu)[1])
    assert not torch.equal(weight, train(seed + 1, sampler_of(deterministic=True))[1])


def test_the_algorithm_gets_the_seed_and_the_length_of_training() -> None:
    class Told(A2C):
        def initialize(self, agent: Agent, n_itr: int, batch_spec: BatchSpec, seed: int = 0) -> None:
            self.told = (n_itr, batch_spec, seed)
            super().initialize(agent, n_itr, batch_spec, seed)

    algo = Told()
    MinibatchRl(algo, CategoricalPgAgent(), sampler_of(), RunnerConfig(n_steps=129, seed=8), logger=QUIET).train()
    assert algo.told == (3, BatchSpec(16, 4), 8)


def test_checkpoint_is_written_after_every_row(tmp_path: Path) -> None:
    class ReadsBack(Logger):
        found: ClassVar[list[int]] = []

        def progress(self, steps: int, mean_return: float = math.nan) -> None:
            path = tmp_path / "checkpoint.pt"
            self.found.append(load_checkpoint(path)["itr"] if path.exists() else 0)

    MinibatchRl(
        A2C(),
        CategoricalPgAgent(),
        sampler_of(),
        RunnerConfig(n_steps=384, log_interval_steps=128),
        log_dir=tmp_path,
        logger=ReadsBack(),
    ).train()
    assert ReadsBack.found == [0, 0, 2, 2, 4, 4]


def test_padding_is_not_counted_as_steps(tmp_path: Path) -> None:
    sampler = sampler_of(Walk, reset_mode="wait")
    MinibatchRl(
        A2C(), CategoricalPgAgent(), sampler, RunnerConfig(n_steps=192, seed=0), log_dir=tmp_path, logger=QUIET
    ).train()
    row = rows_of(tmp_path)[-1]
    assert row["Iteration"] == 3
    assert row["CumSteps"] < 192


def test_a_stopped_runner_ends_after_the_batch(tmp_path: Path) -> None:
    class StopsItself(A2C):
        def optimize_agent(self, itr: int, samples: Samples) -> dict[str, float]:
            if itr == 4:
                runner.stop()
            return super().optimize_agent(itr, samples)

    sampler = sampler_of()
    runner = MinibatchRl(
        StopsItself(), CategoricalPgAgent(), sampler, RunnerConfig(n_steps=1e6, seed=0), log_dir=tmp_path, logger=QUIET
    )
    runner.train()
    assert closed(sampler)
    assert rows_of(tmp_path)[-1]["Iteration"] == load_checkpoint(tmp_path / "checkpoint.pt")["itr"] == 5


def test_no_log_dir_means_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    MinibatchRl(A2C(), CategoricalPgAgent(), sampler_of(), RunnerConfig(n_steps=64), logger=QUIET).train()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["n_steps", "log_interval_steps"])
def test_invalid_numbers_are_named(name: str) -> None:
    steps: dict[str, Any] = {"n_steps": 100.0, "log_interval_steps": 100.0, name: 0.0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        MinibatchRl(A2C(), CategoricalPgAgent(), sampler_of(), RunnerConfig(**steps))


# ---- MinibatchRlEval ----


def test_eval_runner_evaluates_before_training_and_at_every_row(tmp_path: Path) -> None:
    sampler = sampler_of(eval_n_envs=3, eval_max_trajectories=6)
    runner = MinibatchRlEval(
        PPO(),
        CategoricalPgAgent(),
        sampler,
        RunnerConfig(n_steps=256, seed=0, log_interval_steps=128),
        log_dir=tmp_path,
        logger=QUIET,
    )
    episodes = runner.train()
    rows = rows_of(tmp_path)
    assert [row["CumSteps"] for row in rows] == [0, 128, 256]
    assert [row["TrajsInEval"] for row in rows] == [6, 6, 6]
    assert len(episodes) == 6
    assert rows[-1]["ReturnAverage"] == pytest.approx(np.mean([info.Return for info in episodes]))
    assert rows[-1]["StepsInEval"] == sum(info.Length for info in episodes)
    assert rows[-1]["CumEvalTime"] > rows[0]["CumEvalTime"] > 0
    assert math.isnan(rows[0]["lossAverage"])
    assert math.isfinite(rows[1]["lossAverage"])


def test_eval_runner_without_eval_environments_is_refused() -> None:
    sampler = sampler_of()
    with pytest.raises(SamplerError, match="eval_n_envs"):
        MinibatchRlEval(A2C(), CategoricalPgAgent(), sampler, RunnerConfig(n_steps=64), logger=QUIET).train()
    assert closed(sampler)


# ---- how it ends ----


def test_environment_error_leaves_the_last_weights_and_the_log(tmp_path: Path) -> None:
    sampler = CpuSampler(Breaks, batch_T=10, batch_B=4, n_workers=2, max_decorrelation_steps=0)
    agent = CategoricalPgAgent()
    runner = MinibatchRl(
        A2C(), agent, sampler, RunnerConfig(n_steps=1e6, seed=0, log_interval_steps=40), log_dir=tmp_path, logger=QUIET
    )
    with pytest.raises(EnvFailed, match="out of coffee"):
        runner.train()
    assert closed(sampler)
    assert [row["Iteration"] for row in rows_of(tmp_path)] == [1, 2, 3, 4]
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state["itr"] == 4
    for name, value in agent.model.state_dict().items():
        assert torch.equal(state["agent"]["model"][name], value)


def test_non_finite_loss_closes_the_sampler() -> None:
    sampler = sampler_of()
    with pytest.raises(FloatingPointError, match="itr"):
        MinibatchRl(
            PPO(PPOConfig(learning_rate=1e30)),
            CategoricalPgAgent(),
            sampler,
            RunnerConfig(n_steps=1e4, seed=0),
            logger=QUIET,
        ).train()
    assert closed(sampler)


@pytest.mark.programs
def test_ctrl_c_writes_a_checkpoint_and_a_short_traceback(tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.runner_script", str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert program.stderr is not None
        rows_seen = 0
        while rows_seen < 3:
            line = program.stderr.readline()
            assert line, "the program ended"
            rows_seen += "steps/s" in line
        workers = psutil.Process(program.pid).children(recursive=True)
        assert len(workers) == 2
        os.killpg(program.pid, signal.SIGINT)  # a terminal sends it to every process of the group
        _, stderr = program.communicate(timeout=DEADLINE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    complaint = stderr[stderr.index("Traceback") :].splitlines()
    assert len(complaint) <= 10, stderr
    assert complaint[-1].startswith("KeyboardInterrupt: interrupted after ")
    assert complaint[-1].endswith(f"checkpoint: {tmp_path / 'checkpoint.pt'}")
    assert not psutil.wait_procs(workers, timeout=DEADLINE)[1]
    rows = rows_of(tmp_path)
    assert [row["Iteration"] for row in rows] == list(range(1, len(rows) + 1))
    assert load_checkpoint(tmp_path / "checkpoint.pt")["itr"] >= len(rows) >= 3
    kept = {
        path.name for path in tmp_path.iterdir() if not (path.match("environments-*.pkl") or path.match("git-*.diff"))
    }
    written = {"config.json", "run.json", "progress.csv"}
    assert kept == {"best.pt", "checkpoint.pt", "checkpoint-previous.pt"} | written


# ---- where it runs ----


class Placed(Walk):
    """Reports the CPUs that it may run on."""

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, _ = super().step(action)
        return observation, reward, terminated, truncated, {"cpus": tuple(psutil.Process().cpu_affinity())}


@pytest.mark.skipif(not psutil.LINUX, reason="needs CPU affinity")
def test_affinity_pins_the_master_only_if_given_and_never_its_workers() -> None:
    before = psutil.Process().cpu_affinity()

    def placed(affinity: Affinity | None) -> tuple[list[int], set[tuple[int, ...]]]:
        sampler = CpuSampler(Placed, batch_T=30, batch_B=4, n_workers=2)
        episodes = MinibatchRl(
            A2C(), CategoricalPgAgent(), sampler, RunnerConfig(n_steps=120, seed=0), affinity=affinity, logger=QUIET
        ).train()
        workers = {info.info["cpus"] for info in episodes}
        return psutil.Process().cpu_affinity(), workers

    try:
        assert placed(None) == (before, {tuple(before)})
        assert placed(Affinity(master_cpus=(before[-1],))) == ([before[-1]], {tuple(before)})
        psutil.Process().cpu_affinity(before)
        assert placed(Affinity(master_cpus=(before[-1],), set_affinity=False))[0] == before
    finally:
        psutil.Process().cpu_affinity(before)


class Threads(Callback):
    """Records the number of torch threads while it learns."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def on_optimize(self, runner: Runner, itr: int, opt_info: Any) -> None:
        self.seen.add(torch.get_num_threads())


class Said(Logger):
    """Keeps the sentences."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def message(self, text: str) -> None:
        self.sentences.append(text)


#: Above what counts as small.
LARGE = {"hidden_sizes": (1024, 1024)}
TORCH_CHOSE = 5


@pytest.mark.parametrize(
    ("set_by_hand", "environment", "affinity", "model_kwargs", "expected"),
    [
        (TORCH_CHOSE, {}, None, {}, 1),
        (TORCH_CHOSE, {}, Affinity(worker_torch_threads=1), {}, 1),
        (TORCH_CHOSE, {}, None, LARGE, TORCH_CHOSE),
        (TORCH_CHOSE, {}, Affinity(master_torch_threads=3), {}, 3),
        (TORCH_CHOSE, {}, {"master_torch_threads": 3}, LARGE, 3),
        (TORCH_CHOSE, {"OMP_NUM_THREADS": "5"}, None, {}, TORCH_CHOSE),
        (TORCH_CHOSE, {"MKL_NUM_THREADS": "5"}, None, {}, TORCH_CHOSE),
        (2, {}, None, {}, 2),
        (1, {}, None, LARGE, 1),
    ],
    ids=["small", "workers", "large", "affinity", "dict", "OMP", "MKL", "by hand", "one by hand"],
)
def test_small_models_learn_with_one_thread_unless_the_user_chose(
    set_by_hand: int,
    environment: dict[str, str],
    affinity: Any,
    model_kwargs: Any,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(threads, "_AT_IMPORT", TORCH_CHOSE)
    noted, said, before = Threads(), Said(), torch.get_num_threads()
    try:
        torch.set_num_threads(set_by_hand)
        runner = MinibatchRl(
            A2C(),
            CategoricalPgAgent(model_kwargs=model_kwargs),
            sampler_of(batch_T=4, batch_B=2),
            RunnerConfig(n_steps=16, seed=0),
            affinity,
            logger=said,
            callbacks=[noted],
        )
        runner.train()
        assert torch.get_num_threads() == set_by_hand, "put back"
    finally:
        torch.set_num_threads(before)
    assert noted.seen == {expected}
    chosen = affinity is None or affinity == Affinity()
    if chosen and expected != set_by_hand:
        (sentence,) = said.sentences
        assert "1 thread" in sentence
        assert f"Affinity(master_torch_threads={TORCH_CHOSE})" in sentence
    else:
        assert said.sentences == []


def test_torch_threads_are_restored_after_an_error() -> None:
    before = torch.get_num_threads()
    asked = Affinity(master_torch_threads=before + 1)
    with pytest.raises(EnvFailed):
        MinibatchRl(
            A2C(),
            CategoricalPgAgent(),
            SerialSampler(Breaks, batch_T=10, batch_B=4, max_decorrelation_steps=0),
            RunnerConfig(n_steps=1e6, seed=0),
            asked,
            logger=QUIET,
        ).train()
    assert torch.get_num_threads() == before


@pytest.mark.programs
def test_folder_of_a_run_without_checkpoint_can_be_used_again(tmp_path: Path) -> None:
    def train(env: Any, n_steps: float) -> None:
        config = RunnerConfig(n_steps=n_steps, seed=0, log_interval_steps=64, checkpoint_interval_steps=1e6)
        MinibatchRl(A2C(), CategoricalPgAgent(), sampler_of(env), config, log_dir=tmp_path, logger=QUIET).train()

    def make_nothing() -> Any:
        raise RuntimeError("misspelt")

    for _ in range(2):
        with pytest.raises(EnvFailed, match="misspelt"):
            train(make_nothing, 64)
    assert [path.name for path in tmp_path.iterdir()] == ["progress.csv"], "it did not begin"
    # Killed before its first checkpoint.
    killed = subprocess.run(
        [sys.executable, "-m", "tests.runner_script", str(tmp_path), "kill"], cwd=ROOT, check=False, timeout=DEADLINE
    )
    assert killed.returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("*.pt"))
    lost = (tmp_path / "progress.csv").read_text()
    train("CartPole-v1", 64)
    assert (tmp_path / "earlier-0" / "progress.csv").read_text() == lost
    assert (tmp_path / "earlier-0" / "run.json").exists()
    assert len(rows_of(tmp_path)) == 1
    with pytest.raises(FileExistsError, match="from another run"):
        train("CartPole-v1", 64)


# ---- checkpoints ----


STATE = {"weights": {"w": torch.arange(1000.0)}, "itr": 3, "name": "x", "rates": [0.1, 0.2]}


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"itr": 0})
    save_checkpoint(tmp_path / "c.pt", STATE)
    state = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(state["weights"]["w"], STATE["weights"]["w"])  # type: ignore[index]
    assert {key: state[key] for key in ("itr", "name", "rates")} == {"itr": 3, "name": "x", "rates": [0.1, 0.2]}
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, STATE)
    old = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"itr": 4})
    assert path.read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_checkpoint_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: events.append("sync") or fsync(fd))  # type: ignore[func-returns-value]
    monkeypatch.setattr(os, "replace", lambda a, b: events.append("rename") or replace(a, b))  # type: ignore[func-returns-value]
    save_checkpoint(tmp_path / "c.pt", STATE)
    assert events == ["sync", "rename", "sync"]


# ---- logs ----


def test_statistics_ignore_nan() -> None:
    assert statistics("x", [1.0, math.nan, 3.0, 8.0]) == {
        "xAverage": 4.0,
        "xStd": pytest.approx(np.std([1, 3, 8])),
        "xMedian": 3.0,
        "xMin": 1.0,
        "xMax": 8.0,
    }
    assert all(math.isnan(value) for value in statistics("x", []).values())


def test_csv_is_complete_after_every_row_and_accepts_new_columns(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path / "progress.csv")
    logger.row({"a": 1, "b": 2.5})
    assert rows_of(tmp_path) == [{"a": 1, "b": 2.5}]
    logger.row({"a": 3, "c": 4, "b": 5})
    logger.row({"c": 6})
    nan = pytest.approx(math.nan, nan_ok=True)
    expected = [{"a": 1, "b": 2.5, "c": nan}, {"a": 3, "b": 5, "c": 4}, {"a": nan, "b": nan, "c": 6}]
    assert rows_of(tmp_path) == expected
    logger.close()
    logger.close()
    assert [path.name for path in tmp_path.iterdir()] == ["progress.csv"]


def test_existing_log_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "progress.csv").write_text("precious")
    sampler = sampler_of()
    with pytest.raises(FileExistsError, match="choose another"):
        MinibatchRl(
            A2C(), CategoricalPgAgent(), sampler, RunnerConfig(n_steps=64), log_dir=tmp_path, logger=QUIET
        ).train()
    assert (tmp_path / "progress.csv").read_text() == "precious"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


ROW = {"CumSteps": 250, "CumTime": 5.0, "StepsPerSecond": 50.0, "ReturnAverage": 12.34}


def test_console_line_has_return_steps_rate_and_eta() -> None:
    stream = io.StringIO()
    with ConsoleLogger(stream) as logger:
        logger.start(1000)
        logger.progress(100, 1.0)
        logger.row(ROW)
    assert stream.getvalue().split() == ["return", "12.34", "250", "steps", "25%", "50", "steps/s", "ETA", "0:00:15"]


def test_progress_bar_leaves_no_thread() -> None:
    stream, threads = Terminal(), threading.active_count()
    with ConsoleLogger(stream) as logger:
        logger.start(1000)
        assert threading.active_count() == threads
        logger.progress(500, 77.7)
        logger.row(ROW)
    text = stream.getvalue()
    assert "50%" in text
    assert "return 77.7:  50%" in text, "the return comes first"
    assert "ETA 0:00:15" in text


def test_terminal_without_tqdm_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    stream = Terminal()
    with ConsoleLogger(stream) as logger:
        logger.start(1000)
        logger.progress(500, 77.7)
        logger.row(ROW)
    assert stream.getvalue().count("\n") == 1
    assert "return     12.34" in stream.getvalue()


def test_learning_curve_is_an_image_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, picture = tmp_path / "progress.csv", tmp_path / "curve.png"
    log.write_text("CumSteps,ReturnAverage,ReturnMin,ReturnMax\n0,nan,nan,nan\n10,1,0,2\n20,3,1,4\n")
    plot_learning_curve(log, picture, final_return=3.5)
    assert picture.read_bytes().startswith(b"\x89PNG")
    other = tmp_path / "other.csv"
    for nothing in ("CumSteps\n10\n", "CumSteps,ReturnAverage,ReturnMin,ReturnMax\n10,nan,nan,nan\n"):
        other.write_text(nothing)
        with pytest.raises(ValueError, match=r"no row with a return.*no episode ended"):
            plot_learning_curve(other, picture)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"headrace\[plot\]"):
        plot_learning_curve(log, picture)


def test_custom_logger_gets_every_event() -> None:
    class KeepsEvents(Logger):
        def __init__(self) -> None:
            self.events: list[str] = []

        def start(self, n_steps: int) -> None:
            self.events.append(f"start {n_steps}")

        def progress(self, steps: int, mean_return: float = math.nan) -> None:
            self.events.append(f"progress {steps}")

        def row(self, row: Any) -> None:
            self.events.append(f"row {row['CumSteps']}")

        def close(self) -> None:
            self.events.append("close")

    logger = KeepsEvents()
    runner: Runner = MinibatchRl(
        A2C(),
        CategoricalPgAgent(),
        sampler_of(),
        RunnerConfig(n_steps=128, seed=0, log_interval_steps=64),
        logger=logger,
    )
    runner.train()
    assert logger.events == ["start 128", "progress 64", "row 64", "progress 128", "row 128", "close"]
