"""Callbacks: which methods are called, in which order, and how they end training."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.base import OptInfo
from headrace.algos.pg import A2C
from headrace.buffers.samples import Samples
from headrace.errors import SamplerClosed
from headrace.runners import (
    Callback,
    EarlyStop,
    MinibatchRl,
    MinibatchRlEval,
    Runner,
    RunnerConfig,
    StopAtReturn,
    load_checkpoint,
)
from headrace.runners.logging import Logger
from headrace.samplers import SerialSampler, TrajInfo
from tests.light import Pays
from tests.walk import Walk

pytestmark = pytest.mark.usefixtures("copies_tried_here")

QUIET = Logger()
HOOKS = [
    "on_batch",
    "on_eval",
    *(pytest.param(hook, marks=pytest.mark.slow) for hook in ("on_optimize", "on_checkpoint")),
]


class KeepsMessages(Callback):
    """Keeps all messages."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_batch(self, runner: Runner, itr: int, samples: Samples, traj_infos: Sequence[TrajInfo]) -> None:
        self.events.append(("batch", itr, tuple(samples.env.reward.shape), runner.counters.itr))

    def on_optimize(self, runner: Runner, itr: int, opt_info: OptInfo) -> None:
        self.events.append(("optimize", itr, "loss" in opt_info, runner.counters.itr))

    def on_eval(self, runner: Runner, episodes: Sequence[TrajInfo], row: Mapping[str, float]) -> None:
        self.events.append(("eval", row["Iteration"], len(episodes), runner.counters.rows))

    def on_checkpoint(self, runner: Runner, path: Path) -> None:
        self.events.append(("checkpoint", load_checkpoint(path)["itr"]))

    def on_end(self, runner: Runner, error: BaseException | None) -> None:
        with pytest.raises(SamplerClosed):
            runner.sampler.obtain_samples(0)
        self.events.append(("end", error))


def train(callbacks: Sequence[Callback], log_dir: Path | None = None, n_itr: int = 4, **more: Any) -> MinibatchRlEval:
    sampler = SerialSampler(Walk, batch_T=8, batch_B=2, eval_n_envs=3)
    config = RunnerConfig(n_steps=16 * n_itr, seed=0, log_interval_steps=32, **more)
    runner = MinibatchRlEval(
        A2C(), CategoricalPgAgent(), sampler, config, log_dir=log_dir, logger=QUIET, callbacks=callbacks
    )
    runner.train()
    return runner


def test_checkpoint_of_a_run_stopped_by_a_row_has_that_row(tmp_path: Path) -> None:
    """The checkpoint of the same batch was written before the row."""

    class Stops(Callback):
        def on_eval(self, runner: Runner, episodes: Sequence[TrajInfo], row: Mapping[str, float]) -> None:
            if row["Iteration"]:
                runner.stop()

    train([Stops()], tmp_path, n_itr=10)
    counters = load_checkpoint(tmp_path / "checkpoint.pt")["runner"]["counters"]
    with (tmp_path / "progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert counters["rows"] == len(rows)
    assert float(rows[-1]["Iteration"]) == counters["itr"] == 2


def test_callbacks_are_called_in_order(tmp_path: Path) -> None:
    hears = KeepsMessages()
    train([hears], tmp_path)
    batch = [[("batch", itr, (8, 2), itr), ("optimize", itr, True, itr + 1)] for itr in range(4)]
    assert hears.events == [
        ("eval", 0, 3, 1),
        *batch[0],
        *batch[1],
        ("checkpoint", 2),
        ("eval", 2, 3, 2),
        *batch[2],
        *batch[3],
        ("eval", 4, 3, 3),
        ("checkpoint", 4),
        ("end", None),
    ]


def test_checkpoint_interval_is_independent_of_log_interval(tmp_path: Path) -> None:
    hears = KeepsMessages()
    train([hears], tmp_path, n_itr=8, checkpoint_interval_steps=48)
    assert [event[1] for event in hears.events if event[0] == "checkpoint"] == [3, 6, 8]


@pytest.mark.parametrize("hook", HOOKS)
def test_callback_that_raises_ends_training_with_its_error(hook: str, tmp_path: Path) -> None:
    def fails(self: Callback, runner: Runner, *_: Any) -> None:
        if runner.counters.itr >= 2:
            raise LookupError(f"no use for {hook}")

    Fails = type("Fails", (Callback,), {hook: fails})
    hears = KeepsMessages()
    with pytest.raises(LookupError, match=f"no use for {hook}"):
        train([hears, Fails()], tmp_path)
    assert hears.events[-1][0] == "end"
    assert isinstance(hears.events[-1][1], LookupError)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["itr"] == 2


@pytest.mark.parametrize("hook", HOOKS)
def test_callback_can_stop_training_after_the_batch(hook: str, tmp_path: Path) -> None:
    def stops(self: Callback, runner: Runner, *_: Any) -> None:
        if runner.counters.itr >= 2:
            runner.stop()

    runner = train([type("Stops", (Callback,), {hook: stops})()], tmp_path, n_itr=40)
    assert runner.counters.itr == (3 if hook == "on_batch" else 2)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["itr"] == runner.counters.itr
    rows = (tmp_path / "progress.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == ([0, 2, 3] if hook == "on_batch" else [0, 2])


def rows_until(callback: Callback, returns: Sequence[float]) -> int:
    sampler = SerialSampler(Pays, {"returns": returns}, batch_T=4, batch_B=1, eval_n_envs=1)
    config = RunnerConfig(n_steps=80, seed=0, log_interval_steps=4)
    runner = MinibatchRlEval(A2C(), CategoricalPgAgent(), sampler, config, logger=QUIET, callbacks=[callback])
    runner.train()
    return runner.counters.rows


def test_early_stop_ends_training_without_a_better_return() -> None:
    assert rows_until(EarlyStop(patience=3), [1, 2, 2, 2, 2, 2]) == 5
    assert rows_until(EarlyStop(patience=3), [1, 2, 2, 1, 3, 3, 3, 3]) == 8
    assert rows_until(EarlyStop(patience=30), [1]) == 21
    with pytest.raises(ValueError, match="patience"):
        EarlyStop(patience=0)


def test_stop_at_return_ends_training() -> None:
    assert rows_until(StopAtReturn(3), [1, 2, 2.75, 3, 9]) == 4
    assert rows_until(StopAtReturn(10), [1, 2, 2.75, 3, 9]) == 21
    with pytest.raises(ValueError, match="mean_return"):
        StopAtReturn(float("nan"))


def test_object_that_is_not_a_callback_is_refused() -> None:
    with pytest.raises(TypeError, match="callbacks must be Callback objects, got"):
        MinibatchRl(
            A2C(),
            CategoricalPgAgent(),
            SerialSampler(Walk, batch_T=8, batch_B=2),
            RunnerConfig(),
            callbacks=[EarlyStop],  # type: ignore[list-item]
        )


def test_best_agent_is_saved(tmp_path: Path) -> None:
    sampler = SerialSampler(Pays, {"returns": [1, 2, 7, 3, 4]}, batch_T=4, batch_B=1, eval_n_envs=1)
    config = RunnerConfig(n_steps=40, seed=0, log_interval_steps=4)
    MinibatchRlEval(A2C(), CategoricalPgAgent(), sampler, config, log_dir=tmp_path, logger=QUIET).train()
    best = load_checkpoint(tmp_path / "best.pt")
    assert (best["itr"], best["runner"]["counters"]["best_return"]) == (2, 7.0)
    newest = load_checkpoint(tmp_path / "checkpoint.pt")
    assert (newest["itr"], newest["runner"]["counters"]["best_return"]) == (10, 7.0)
    assert load_checkpoint(tmp_path / "checkpoint-previous.pt")["itr"] == 9
