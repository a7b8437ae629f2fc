"""`progress.csv` with full disks, changed directories, and missing or damaged rows."""

import csv
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import A2C
from headrace.runners import Callback, MinibatchRl, RunFolder, RunnerConfig
from headrace.runners.logging import CsvLogger, Logger, TensorBoardLogger, WandbLogger
from headrace.samplers import SerialSampler
from tests.light import Wanders
from tests.test_checkpoint import files_of_at_most
from tests.walk import Walk

pytestmark = pytest.mark.usefixtures("copies_tried_here")

DEADLINE = 60


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a file that is whole: each has a value for each column."""
    content = path.read_bytes()
    assert not content or content.endswith(b"\r\n")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(None not in row and None not in row.values() for row in rows)
    return rows


def trained(log_dir: Path, n_itr: int = 4, env: Any = Walk, callbacks: Any = (), **place: Any) -> MinibatchRl:
    runner = MinibatchRl(
        A2C(),
        CategoricalPgAgent(model_kwargs={"hidden_sizes": (4,)}),
        SerialSampler(env, batch_T=8, batch_B=2),
        RunnerConfig(n_steps=16 * n_itr, seed=0, log_interval_steps=16),
        logger=Logger(),
        callbacks=callbacks,
        **(place or {"log_dir": log_dir}),
    )
    runner.train()
    return runner


@pytest.fixture(scope="module")
def three_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run; to be copied."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    trained(folder, 3)
    return folder


@pytest.mark.parametrize("columns", ["the same", "more"])
def test_rows_are_kept_while_the_disk_is_full(columns: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "progress.csv"
    more = {"b": 0.5} if columns == "more" else {}
    with CsvLogger(path) as logger, caplog.at_level(logging.WARNING, "headrace"):
        logger.row({"a": 1.0})
        before = path.read_bytes()
        for taken in range(4):  # bytes of a row that the disk still takes
            with files_of_at_most(len(before) + taken):
                logger.row({"a": float(10**6 + taken), **more})
                logger.progress(1)
            assert path.read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["progress.csv"]
        logger.progress(2)
        assert [float(row["a"]) for row in rows_of(path)] == [1, 10**6, 10**6 + 1, 10**6 + 2, 10**6 + 3]
        assert len(caplog.records) == 1, "one warning for all of it"
        assert f"{path}: a row was not written" in caplog.text
        logger.row({"a": 7.0})
        with files_of_at_most(path.stat().st_size):
            logger.row({"a": 8.0})
        assert len(caplog.records) == 2, "another time, another warning"
    assert [float(row["a"]) for row in rows_of(path)][-2:] == [7, 8], "the last is written when it is closed"


def test_rows_that_were_never_written_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "progress.csv"
    logger = CsvLogger(path)
    logger.row({"a": 1.0})
    with files_of_at_most(path.stat().st_size + 2), caplog.at_level(logging.WARNING, "headrace"):
        logger.row({"a": 2.0})
        logger.close()
        logger.close()
    assert f"{path} lacks its last 1 rows" in caplog.text
    assert len(rows_of(path)) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False, timeout=DEADLINE).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=DEADLINE)


def test_run_loses_no_row_to_a_temporarily_full_disk(small_disk: Path) -> None:
    class Fills(Callback):
        """The disk, for some batches."""

        def on_batch(self, runner: Any, itr: int, samples: Any, traj_infos: Any) -> None:
            if itr == 5:
                with (small_disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
                    while True:
                        file.write(b"x" * 512)
            if itr == 20:
                assert len(rows_of(small_disk / "progress.csv")) < 20, "the disk was full"
                (small_disk / "ballast").unlink()

    MinibatchRl(
        A2C(),
        CategoricalPgAgent(model_kwargs={"hidden_sizes": (4,)}),
        SerialSampler(Walk, batch_T=8, batch_B=2),
        RunnerConfig(n_steps=16 * 40, seed=0, log_interval_steps=16),
        logger=CsvLogger(small_disk / "progress.csv"),
        callbacks=[Fills()],
    ).train()
    assert [row["Iteration"] for row in rows_of(small_disk / "progress.csv")] == [str(itr) for itr in range(1, 41)]


# ---- resumed ----


def damage(path: Path, what: str) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    match what:
        case "gone":
            path.unlink()
        case "a row gone":
            path.write_bytes(b"".join(lines[:3]))
        case "no UTF-8":
            lines[2] = lines[2].replace(b",", b"\xff\xfe,", 1)
            path.write_bytes(b"".join(lines))
        case "torn":
            path.write_bytes(b"".join(lines)[:-9])
        case "another's":
            path.write_bytes(b"\x00\x01\x02\n,,,\n")
        case "a pipe":
            path.unlink()
            os.mkfifo(path)


@pytest.mark.parametrize(
    ("what", "says", "itrs"),
    [
        ("gone", "does not exist: it begins without the 3 rows", "4 5 6"),
        ("a row gone", "has 2 rows, but the checkpoint was written after 3", "1 2 4 5 6"),
        pytest.param(
            "no UTF-8",
            "has 1 damaged rows, which are left out; see",
            "1 3 4 5 6",
            marks=pytest.mark.slow,
        ),
        ("torn", "has 1 damaged rows, which are left out; see", "1 2 4 5 6"),
        ("another's", "has 1 damaged rows, which are left out; see", "4 5 6"),
        ("a pipe", "has 0 rows, but the checkpoint was written after 3", "4 5 6"),
    ],
)
def test_rows_of_the_checkpoint_that_the_file_lacks_are_logged(
    what: str, says: str, itrs: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, three_rows: Path
) -> None:
    run = shutil.copytree(three_rows, tmp_path / "run")
    path = run / "progress.csv"
    damage(path, what)
    before = path.read_bytes() if path.is_file() else b""
    with caplog.at_level(logging.WARNING, "headrace"):
        trained(run, 6, resume_from=run)
    assert f"{path} {says}" in caplog.text
    assert [row["Iteration"] for row in rows_of(path)] == itrs.split()
    if "damaged" in says:
        assert (run / "progress.csv.damaged").read_bytes() == before


def test_removed_file_is_created_again(tmp_path: Path) -> None:
    class Removes(Callback):
        def on_batch(self, runner: Any, itr: int, samples: Any, traj_infos: Any) -> None:
            if itr == 2:
                (tmp_path / "progress.csv").unlink()

    trained(tmp_path, 4, callbacks=[Removes()])
    assert [row["Iteration"] for row in rows_of(tmp_path / "progress.csv")] == ["3", "4"]


def test_symbolic_link_is_replaced_and_its_target_unchanged(tmp_path: Path, three_rows: Path) -> None:
    run, precious = shutil.copytree(three_rows, tmp_path / "run"), tmp_path / "precious"
    precious.write_text("kept\n")
    for name in ("progress.csv.tmp", "config.json.tmp", "run.json.tmp", "config.json", "run.json", "git-0.diff"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(precious)
    (run / "lock").symlink_to(precious)
    with pytest.raises(OSError, match="lock"):
        trained(run, 6, resume_from=run)
    (run / "lock").unlink()
    trained(run, 6, resume_from=run)
    RunFolder(run).note_start(["headrace"], {"seed": 1})
    assert precious.read_text() == "kept\n"


# ---- directories ----


def test_files_stay_in_the_run_folder_when_an_environment_changes_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained(Path("run"), 3, Wanders)
    assert {"progress.csv", "checkpoint.pt"} <= {path.name for path in (tmp_path / "run").iterdir()}
    os.chdir(tmp_path)
    trained(Path("run"), 5, Wanders, resume_from="run")
    assert len(rows_of(tmp_path / "run" / "progress.csv")) == 5
    assert not Path("/run/progress.csv").exists()


def test_relative_paths_are_resolved_when_loggers_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    events, rows, folder = TensorBoardLogger("events"), CsvLogger("rows.csv"), RunFolder.create("run", {}, [])
    monkeypatch.chdir("/")
    events.start(3)
    events.close()
    rows.row({"a": 1.0})
    folder.note_start([], {})
    assert {path.name for path in tmp_path.iterdir()} == {"events", "rows.csv", "run"}
    assert len(rows_of(tmp_path / "rows.csv")) == 1
    assert folder.config() == {}


def test_wandb_gets_the_absolute_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

    told: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=told.update))
    monkeypatch.chdir(tmp_path)
    logger = WandbLogger(folder="here")
    monkeypatch.chdir("/")
    logger.start(1)
    assert told["dir"] == str(tmp_path / "here")


@pytest.mark.programs
def test_command_finds_its_files_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from headrace.cli.main import main

    def wanders() -> gymnasium.Env[np.ndarray, np.int64]:
        return Wanders()

    monkeypatch.setattr("tests.walk.wanders", wanders, raising=False)
    monkeypatch.chdir(tmp_path)
    options = ["--sampler", "serial", "--batch-T", "8", "--batch-B", "2", "--n-steps", "64", "--eval-episodes", "2"]
    assert main(["train", "--env", "tests.walk:wanders", *options, "--log-dir", "run"]) == 0
    assert Path.cwd() == Path("/")
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    os.chdir(tmp_path)
    assert main(["train", "--resume", "run", "--n-steps", "128"]) == 0
    assert capsys.readouterr().out.count("mean return") == 2
