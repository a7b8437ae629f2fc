"""Loggers: what TensorBoard, Weights & Biases and the terminal get."""

import io
import math
import os
import pty
import select
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import A2C
from headrace.runners import MinibatchRl, RunnerConfig
from headrace.runners.logging import ConsoleLogger, Loggers, TensorBoardLogger, WandbLogger
from headrace.samplers import SerialSampler
from headrace.text import significant

ROW = {
    "CumSteps": 250,
    "CumTime": 5.0,
    "StepsPerSecond": 50.0,
    "ReturnAverage": 12.34,
    "ReturnStd": 2.5,
    "ReturnMin": 9.0,
    "ReturnMax": 71.0,
    "LengthAverage": 12.0,
    "LengthStd": 1.0,
    "entropyAverage": 0.69312,
    "approxKlAverage": -1.2345e-05,
    "lossAverage": math.nan,
}


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads from a folder: by tag, (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def test_tensorboard_reads_a_scalar_per_column_grouped_by_quantity(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with TensorBoardLogger(tmp_path) as logger:
        logger.start(1000)
        logger.row(ROW)
        ((step, value),) = events(tmp_path)["Return/Average"]
        assert step == 250, "a row is on disk at once"
        assert value == pytest.approx(12.34)
        logger.row(ROW | {"CumSteps": 500, "ReturnAverage": 20.0, "lossAverage": 1.0})
    logger.close()
    found = events(tmp_path)
    assert found["Return/Average"] == [(250, pytest.approx(12.34)), (500, 20.0)]
    assert found["loss/Average"] == [(500, 1.0)], "NaN is left out"
    assert {"StepsPerSecond", "Return/Min", "Return/Max", "Length/Std"} <= found.keys()


def test_tensorboard_logs_a_run_and_leaves_no_thread(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    sampler = SerialSampler("CartPole-v1", batch_T=16, batch_B=4)
    logger = Loggers(TensorBoardLogger(tmp_path / "events"), ConsoleLogger(io.StringIO()))
    config = RunnerConfig(n_steps=128, seed=0, log_interval_steps=64)
    MinibatchRl(A2C(), CategoricalPgAgent(), sampler, config, logger=logger).train()
    assert [step for step, _ in events(tmp_path / "events")["CumSteps"]] == [64, 128]


def test_event_file_is_created_when_training_starts(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    threads = threading.active_count()
    TensorBoardLogger(tmp_path / "events").close()
    assert threading.active_count() == threads
    assert list(tmp_path.iterdir()) == []


class Wandb:
    """Stands in for the module and records the calls."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def init(self, **settings: Any) -> "Wandb":
        self.told.append(settings)
        return self

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.told.append((step, numbers))

    def finish(self) -> None:
        self.told.append("finished")


def test_wandb_gets_settings_rows_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=wandb.init))
    with WandbLogger("mill", "first", {"seed": 3}, tmp_path, "offline") as logger:
        assert wandb.told == [], "nothing is sent before training begins"
        logger.start(1000)
        logger.row({"CumSteps": 10, "ReturnAverage": 1.5, "lossAverage": math.nan})
    logger.close()
    own = WandbLogger("mill")
    own.settings({"seed": 4})
    own.start(1000)
    assert wandb.told.pop()["config"] == {"seed": 4}, "the settings of the run, where none were given"
    settings = {"project": "mill", "name": "first", "config": {"seed": 3}, "dir": str(tmp_path), "mode": "offline"}
    assert wandb.told == [settings, (10, {"CumSteps": 10, "ReturnAverage": 1.5}), "finished"]


@pytest.mark.parametrize(
    ("module", "logger", "extra"),
    [
        ("tensorboard.summary.writer.event_file_writer", TensorBoardLogger, "tensorboard"),
        ("wandb", WandbLogger, "wandb"),
    ],
    ids=["tensorboard", "wandb"],
)
def test_missing_extra_is_named(module: str, logger: Any, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"headrace\[{extra}\]"):
        logger("folder")


@pytest.mark.parametrize("width", [30, 80, 150])
def test_the_table_below_a_line_is_aligned_and_no_wider_than_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    stream = io.StringIO()
    with ConsoleLogger(stream) as logger:
        logger.start(1000)
        logger.row(ROW)
    line, *table = stream.getvalue().splitlines()
    assert line.startswith("  return     12.34 "), "the return comes first"
    assert "".join(table).split() == [
        *("ReturnStd", "2.5", "ReturnMin", "9", "ReturnMax", "71"),
        *("Length", "12", "entropy", "0.6931", "approxKl", "-1.23e-05"),
    ]
    assert len({len(row) for row in table}) == 1, "numbers stand below each other"
    assert max(map(len, table)) <= width
    assert len(table) == {30: 6, 80: 2, 150: 1}[width], "as many columns as fit"


def test_table_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl
    import struct
    import termios

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(sys.modules, "tqdm", None)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    with os.fdopen(theirs, "w") as stream, ConsoleLogger(stream) as logger:
        logger.start(1000)
        logger.row(ROW)
        shown = b""
        while shown.count(b"\n") < 1 + 3 and select.select([ours], [], [], 5.0)[0]:
            shown += os.read(ours, 10_000)
    os.close(ours)
    assert len(shown.splitlines()) == 1 + 3, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.05, "0.05"),
        (0.0, "0"),
        (475.31, "475.3"),
        (500.0, "500"),
        (123456.7, "123457"),
        (-1.23456, "-1.235"),
        (0.00098765, "0.0009877"),
        (1.2341e-7, "1.234e-07"),
        (2.5e20, "2.5e+20"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_have_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_settings_of_a_run_are_tensorboard_hyperparameters(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    sampler = SerialSampler("CartPole-v1", batch_T=16, batch_B=4)
    logger = TensorBoardLogger(tmp_path)
    config = RunnerConfig(n_steps=64, seed=3)
    MinibatchRl(A2C(), CategoricalPgAgent(), sampler, config, logger=logger).train()
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    found: dict[str, Any] = {}
    for content in accumulator.summary_metadata.values():
        data = plugin_data_pb2.HParamsPluginData.FromString(content.plugin_data.content)
        assert content.plugin_data.plugin_name == metadata.PLUGIN_NAME or not data.HasField("session_start_info")
        found |= {name: value for name, value in data.session_start_info.hparams.items()}
    assert found["runner.seed"].number_value == 3
    assert found["algo.config.learning_rate"].number_value == A2C().config.learning_rate
    assert found["algo.config.linear_lr_schedule"].bool_value is True
    assert found["sampler.class"].string_value == "headrace.samplers.presets.SerialSampler"
