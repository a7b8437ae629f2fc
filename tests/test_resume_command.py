"""`headrace train --resume`: a run continues in its folder as if it had never stopped."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.cli.main import main
from headrace.runners import load_checkpoint
from tests.test_cli import SMALL

pytestmark = pytest.mark.programs

# Without schedules a short run is the beginning of a long one.
OPTIONS = ["--sampler", "serial", "--log-interval-steps", "256", "--ppo.no-linear-lr-schedule", "--seed", "4", *SMALL]


def train(folder: Path, n_steps: int, *options: str) -> None:
    assert main(["train", *OPTIONS, "--n-steps", str(n_steps), "--log-dir", str(folder), *options]) == 0


def returns(folder: Path) -> list[str]:
    with (folder / "progress.csv").open(newline="") as file:
        return [row["ReturnAverage"] for row in csv.DictReader(file)]


def test_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "whole", 1536)
    expected = capsys.readouterr().out.splitlines()[0]
    train(tmp_path / "run", 768)
    assert capsys.readouterr().out.splitlines()[0] != expected
    assert main(["train", "--resume", str(tmp_path / "run"), "--n-steps", "1536"]) == 0
    heard = capsys.readouterr()
    assert heard.out.splitlines()[0] == expected
    assert "resumed from" in heard.err
    assert returns(tmp_path / "run") == returns(tmp_path / "whole")
    ours, theirs = (load_checkpoint(tmp_path / name / "checkpoint.pt")["agent"]["model"] for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    _, second = json.loads((tmp_path / "run" / "run.json").read_text())
    assert second["command"] == ["headrace", "train", "--resume", str(tmp_path / "run"), "--n-steps", "1536"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["runner"]["n_steps"] == 1536, "the next resumption knows"
    assert config == json.loads((tmp_path / "whole" / "config.json").read_text())


def test_run_resumes_from_a_checkpoint_file_and_with_other_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, 512)
    options = ["--sampler", "cpu", "--n-workers", "2", "--n-steps", "768"]
    assert main(["train", "--resume", str(tmp_path / "checkpoint.pt"), *options]) == 0
    assert load_checkpoint(tmp_path / "checkpoint.pt")["steps"] == 768


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (["--resume", "nowhere"], 2, "nowhere does not exist; give the folder of a run"),
        (["--resume", "RUN", "--log-dir", "other"], 2, "a resumed run continues in its own folder"),
        (["--resume", "RUN", "--ppo.epochs", "9"], 1, "algo.config.epochs: 2 then, 9 now"),
        (["--resume", "RUN", "--env", "Acrobot-v1"], 1, "Acrobot-v1"),
        (["--resume", "RUN", "--seed", "5"], 1, "seed: 4 then, 5 now"),
        (["--resume", "RUN", "--algo", "dqn"], 2, "this run was trained with ppo, not dqn; leave --algo out"),
        (["--resume", "RUN", "--n-steps", "128"], 1, "has 256 steps already"),
        (["--resume", "RUN/progress.csv"], 1, "progress.csv is not a headrace checkpoint; give the folder of a run"),
        (["--log-dir", "RUN"], 2, "choose another --log-dir, or --resume "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refused_resume_changes_no_file_of_the_run(
    args: list[str],
    status: int,
    says: str,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path.name: path.read_bytes() for path in run_folder.iterdir()}
    assert main(["train", *(arg.replace("RUN", str(run_folder)) for arg in args)]) == status
    complaint = capsys.readouterr().err
    assert complaint.startswith("headrace: ")
    assert complaint.count("\n") == 1
    assert says in complaint
    assert {path.name: path.read_bytes() for path in run_folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(folder, 256)
    return folder


DAMAGED: dict[str, Any] = {
    "a list": [1],
    "a number": 3,
    "a text": "settings",
    "nothing": None,
    "nested settings are a number": {"runner": 3},
    "nested settings are a list": {"ppo": []},
    "a number is a text": {"batch_T": "32"},
    "a number is true": {"batch_B": True},
    "a number is a list": {"ppo": {"learning_rate": [1e-3]}},
    "a number is a fraction": {"batch_T": 1.5},
    "a number is nothing": {"eval_episodes": None},
    "a number is negative": {"batch_B": -1},
    "a text is a number": {"env": 3},
    "a switch is a number": {"tensorboard": 1},
    "a list holds a text": {"model": {"hidden_sizes": [64, "x"]}},
    "a list is a number": {"model": {"hidden_sizes": 64}},
    "a choice is none of them": {"model": {"recurrent": "rnn"}},
    "arguments are a list": {"env_kwargs": [1]},
    "a seed is a text": {"runner": {"seed": "x"}},
    "steps are negative": {"runner": {"n_steps": -1}},
    "a program's are damaged": {"sampler": {"class": 3, "batch_B": "x"}},
    "a program's are empty": {"sampler": {}, "env": 3, "runner": []},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_settings_are_a_one_line_error(
    name: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, damage = json.loads((run_folder / "config.json").read_text()), DAMAGED[name]
    (tmp_path / "config.json").write_text(json.dumps({**config, **damage} if isinstance(damage, dict) else damage))
    (tmp_path / "checkpoint.pt").write_bytes((run_folder / "checkpoint.pt").read_bytes())
    for command, status in ((["train", "--resume", str(tmp_path)], 2), (["eval", str(tmp_path)], 1)):
        assert main(command) == status
        complaint = capsys.readouterr().err
        assert complaint.startswith("headrace: ")
        assert complaint.count("\n") == 1
        assert "config.json" in complaint


def test_damaged_run_json_is_put_aside(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{")
    assert main(["train", "--resume", str(tmp_path / "run"), "--n-steps", "384"]) == 0
    (start,) = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "--resume" in start["command"]
    assert (tmp_path / "run" / "run-damaged-0.json").read_text() == "{"
