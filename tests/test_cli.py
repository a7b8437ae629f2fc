"""The command line: the files it writes, and its errors."""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest
import torch

from headrace.cli.main import main
from headrace.runners import load_checkpoint, run_folder
from tests.leftovers import DEADLINE

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("copies_tried_here")]

PROGRAM = [sys.executable, "-c", "from headrace.cli.main import main; raise SystemExit(main())"]
NO_GPU = pytest.mark.skipif(torch.cuda.device_count() > 0, reason="there is a GPU")
SMALL = ["--batch-T", "16", "--batch-B", "8", "--eval-episodes", "5", "--ppo.epochs", "2"]


def said(stderr: str) -> list[str]:
    """The lines of standard error that are not progress and its tables, which are indented."""
    return [line for line in stderr.splitlines() if not line.startswith(" ")]


def test_training_writes_a_checkpoint_and_a_log(tmp_path: Path) -> None:
    log_dir = tmp_path / "run"
    options = ["--algo", "ppo", "--n-workers", "2", "--n-steps", "2000", "--log-interval-steps", "500", "--seed", "3"]
    done = subprocess.run(
        [*PROGRAM, "train", *options, *SMALL, "--log-dir", str(log_dir)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("steps/s") == 6  # 2048 steps are 16 batches of 128; a row every 3
    first, *paths = done.stdout.splitlines()
    assert first.startswith("mean return ")
    assert " over 5 episodes " in first
    names = ["checkpoint.pt", "progress.csv"]
    assert [line.split()[-1] for line in paths[:2]] == [str(log_dir / name) for name in names]
    assert "learning curve" in paths[2]
    left = {
        path.name for path in log_dir.iterdir() if not (path.match("git-*.diff") or path.match("environments-*.pkl"))
    }
    left.discard("learning_curve.png")  # a machine that has other work may take long enough
    assert left == {*names, "config.json", "run.json", "best.pt", "checkpoint-previous.pt"}
    assert load_checkpoint(log_dir / "checkpoint.pt")["steps"] == 2048
    config = json.loads((log_dir / "config.json").read_text())
    assert (config["algo"], config["runner"]["seed"], config["batch_T"], config["ppo"]["epochs"]) == ("ppo", 3, 16, 2)
    (start,) = json.loads((log_dir / "run.json").read_text())
    assert start["command"] == ["headrace", "train", *options, *SMALL, "--log-dir", str(log_dir)]


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        ([], 2, "give a command"),
        (["trian"], 2, "unknown command 'trian'; did you mean 'train'?"),
        (["train", "--algo", "pppo"], 2, "unknown algo 'pppo'; did you mean 'ppo'?"),
        (
            ["train", "--algo", "x"],
            2,
            "unknown algo 'x'; choose one of a2c, categorical-dqn, ddpg, dqn, impala, ppo, r2d1, sac, td3, vpg",
        ),
        (["train", "--sampler", "cpuu"], 2, "unknown sampler 'cpuu'; did you mean 'cpu'?"),
        (["train", "--sampler", "alternate"], 2, "unknown sampler 'alternate'; did you mean 'alternating'?"),
        (["train", "--algo", "droq"], 2, "headrace has no droq; the nearest is sac with --layer-norm, --dropout 0.01"),
        (["train", "--lr", "1e-3"], 2, "unknown option '--lr'; did you mean --ppo.learning-rate?"),
        (["train", "--algo", "dqn", "--lr", "1e-3"], 2, "did you mean --dqn.learning-rate?"),
        (["train", "--gpu"], 2, "did you mean --device?"),
        (["train", "--dqn.n-step", "3"], 2, "--dqn.n-step is for --algo dqn, but this run trains ppo"),
        (["train", "--sampler", "serial", "--start-method", "spawn"], 2, "--sampler serial has none"),
        (["train", "--start-method", "thread"], 2, "--start-method must be one of "),
        pytest.param(
            ["train", "--sampler", "cpu", "--device", "cuda:0"],
            2,
            "device='cuda:0' does not exist (torch sees 0 GPUs here",
            marks=NO_GPU,
        ),
        pytest.param(
            ["train", "--sampler", "gpu", "--device", "cuda"], 2, "device='cuda' does not exist", marks=NO_GPU
        ),
        (["train", "--sampler", "gpu", "--device", "cuda-0"], 2, "device must be a torch device such as 'cuda:0'"),
        (["train", "--env", "tests.walk:Wark"], 2, "environment 'tests.walk:Wark'; did you mean 'tests.walk:Walk'?"),
        (
            ["train", "--env", "tests.walk:zebra"],
            2,
            "environment 'tests.walk:zebra'; tests.walk neither has nor registers zebra",
        ),
        (["train", "--env", "CartPol-v1"], 2, "unknown environment 'CartPol-v1'; did you mean 'CartPole-v1'?"),
        (["train", "--env", "not an id"], 2, "pprint_registry()"),
        (["train", "--env", "nowhere:Env-v0"], 1, "No module named 'nowhere'"),
        (["train", "--env", "nowhere:make"], 1, "No module named 'nowhere'"),
        (["train", "--env", "tests.registered:Brakes"], 2, "unknown environment 'tests.registered:Brakes'"),
        (["train", "--env-kwargs", '{"sutton": 1'], 2, "--env-kwargs"),
        (["train", "--env-kwargs", "[1]"], 2, "expected a JSON object"),
        (["train", "--env-kwargs", '{"gravity": 1}'], 2, "unexpected keyword argument 'gravity'"),
        (["train", "--recurrent", "rnn"], 2, "--recurrent must be one of 'None', "),
        (["train", "--recurrent", "gru", "--hidden-sizes", "8"], 2, "its width is --memory-size"),
        (["train", "--recurrent", "gru", "--memory-size", "0"], 2, "--memory-size must be at least 1, got 0"),
        (["train", "--bach-T", "4"], 2, "unknown option '--bach-T'; did you mean --batch-T?"),
        (["train", "--ppo.epoch", "4"], 2, "did you mean --ppo.epochs?"),
        (["train", "--n-step", "4"], 2, "unknown option '--n-step'; did you mean --n-steps?"),
        (["train", "--hidden_size", "4"], 2, "did you mean --hidden-sizes?"),
        (["train", "--no-seperate-value"], 2, "did you mean --no-separate-value?"),
        (["train", "--ppo.normalise-reward"], 2, "did you mean --ppo.normalize-reward?"),
        (["train", "--batch-T", "x"], 2, "--batch-T"),
        (["train", "--batch-T"], 2, "--batch-T"),
        (["train", "--batch-T", "0"], 2, "batch_T must be at least 1, got 0"),
        (["train", "--n-steps", "0"], 2, "n_steps must be at least 1, got 0"),
        (["train", "--n-workers", "0"], 2, "n_workers must be at least 1, got 0"),
        (["train", "--eval-episodes", "0"], 2, "--eval-episodes must be at least 1, got 0"),
        (["train", "--seed", "-1"], 2, "seed must be at least 0, got -1"),
        (["train", "--ppo.discount", "2"], 2, "discount must be between 0 and 1, got 2"),
        (
            ["train", "--log-dir", "/proc/nothing"],
            1,
            "/proc/nothing, cannot be made (No such file or directory); choose",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_error_is_one_line_with_the_remedy(
    args: list[str],
    status: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == status
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert stderr.startswith("headrace: ")
    assert says in stderr
    assert "--- " not in stderr, "no remains of a box"
    assert list(tmp_path.iterdir()) == [], "a command that did not start leaves nothing"


def test_parse_error_is_one_sentence_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a terminal that shows UTF-8."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
    assert main(["train", "--n-steps", "0"]) == 2
    complaint = "headrace: n_steps must be at least 1, got 0.0; see headrace train --help\n"
    assert capsys.readouterr().err == complaint


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("headrace.cli.") and name != "headrace.cli.main"]:
        monkeypatch.delitem(sys.modules, name)  # as in a new process
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["train"]) == 1
    assert capsys.readouterr().err == 'headrace: the command line needs tyro; pip install "headrace[cli]"\n'


def test_log_dir_of_an_earlier_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "progress.csv").write_text("precious")
    assert main(["train", "--log-dir", str(tmp_path)]) == 2
    assert "choose another --log-dir" in capsys.readouterr().err
    assert (tmp_path / "progress.csv").read_text() == "precious"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "train" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("headrace 0.")
    with pytest.raises(SystemExit) as leaving:
        main(["train", "--algo", "a2c", "--help"])
    assert not leaving.value.code
    text = capsys.readouterr().out
    assert "--n-workers" in text
    assert "(default: a2c)" in text


def test_error_during_training_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--n-steps", "1000", "--sampler", "serial", "--ppo.learning-rate", "1e30"]
    assert main(["train", *options, *SMALL, "--log-dir", str(tmp_path / "run")]) == 1
    complaint = said(capsys.readouterr().err)
    assert len(complaint) == 1
    assert complaint[0].startswith("headrace: PPO: ")
    assert "Lower learning_rate" in complaint[0]


def test_learning_curve_is_drawn_once_with_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float | None] = []
    monkeypatch.setattr(run_folder, "_DRAWN_FROM", 0.0)
    monkeypatch.setattr(run_folder, "plot_learning_curve", lambda csv, png, final_return: drawn.append(final_return))
    options = ["--n-steps", "256", "--sampler", "serial", *SMALL]
    assert main(["train", *options, "--log-dir", str(tmp_path / "run")]) == 0
    assert len(drawn) == 1
    assert drawn[0] is not None


def test_environment_error_is_one_line_and_its_traceback_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--env", "tests.registered:Breaks-v0", "--sampler", "cpu", "--n-workers", "2"]
    assert main(["train", *options, *SMALL, "--log-dir", str(tmp_path / "run")]) == 1
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert "EnvFailed" in stderr
    assert "out of coffee" in stderr
    assert str(tmp_path / "run" / "error.txt") in stderr
    assert "in step" in (tmp_path / "run" / "error.txt").read_text()


@pytest.mark.parametrize(
    ("number", "to_all", "status", "says"),
    [
        (signal.SIGINT, True, 130, "headrace: interrupted after "),  # as a terminal does
        (signal.SIGTERM, False, 143, "stopped by SIGTERM; checkpoint: "),
        pytest.param(  # as service managers do
            signal.SIGTERM, True, 143, "stopped by SIGTERM; checkpoint: ", marks=pytest.mark.slow
        ),
    ],
    ids=["ctrl-c", "sigterm", "sigterm-to-all"],
)
def test_signal_ends_training_with_a_checkpoint(
    tmp_path: Path, number: int, to_all: bool, status: int, says: str
) -> None:
    options = ["--n-steps", "100000000", "--log-interval-steps", "128", "--n-workers", "2"]
    program = subprocess.Popen(
        [*PROGRAM, "train", *options, *SMALL, "--log-dir", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert program.stderr is not None
        assert "steps/s" in program.stderr.readline()
        workers = psutil.Process(program.pid).children(recursive=True)
        assert len(workers) == 2
        (os.killpg if to_all else os.kill)(program.pid, number)
        stdout, stderr = program.communicate(timeout=DEADLINE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    complaint = said(stderr)
    assert program.returncode == status, stderr
    assert len(complaint) == 1, stderr
    assert complaint[0].startswith(says)
    assert complaint[0].endswith(f"resume it with: headrace train --resume {tmp_path / 'run'}")
    assert stdout == ""
    assert not psutil.wait_procs(workers, timeout=DEADLINE)[1]
    steps = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["steps"]
    assert steps >= 128
    assert main(["train", "--resume", str(tmp_path / "run"), "--n-steps", str(steps + 128)]) == 0
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["steps"] == steps + 128


@pytest.mark.parametrize("sampler", ["cpu", pytest.param("async-cpu", marks=pytest.mark.slow)])
def test_repeated_ctrl_c_is_one_line(tmp_path: Path, sampler: str) -> None:
    options = ["--sampler", sampler, "--n-steps", "100000000", "--log-interval-steps", "128", "--n-workers", "2"]
    program = subprocess.Popen(
        [*PROGRAM, "train", *options, *SMALL, "--log-dir", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert program.stderr is not None
        assert "steps/s" in program.stderr.readline()
        workers = psutil.Process(program.pid).children(recursive=True)
        until = monotonic() + DEADLINE
        while program.poll() is None and monotonic() < until:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGINT)
            sleep(0.005)
        stdout, stderr = program.communicate(timeout=DEADLINE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    (complaint,) = said(stderr)
    assert complaint.startswith("headrace: interrupted")
    assert (program.returncode, stdout) == (130, "")
    assert not psutil.wait_procs(workers, timeout=DEADLINE)[1]
