"""`headrace train --algo ddpg`, `td3` and `sac`."""

import json
from pathlib import Path
from typing import Any

import pytest

import headrace
from headrace.agents.qpg import QpgAgent, SacAgent
from headrace.cli.main import main
from headrace.runners import load_checkpoint

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("copies_tried_here")]

TINY = ["--n-steps", "320", "--batch-T", "8", "--batch-B", "4", "--eval-episodes", "2", "--log-interval-steps", "160"]


def trained(log_dir: Path, algo: str, *options: str) -> dict[str, Any]:
    """The configuration of a training on Pendulum-v1 that came to its end."""
    learn = {"min-steps-learn": 64, "batch-size": 16, "replay-ratio": 4, "replay-size": 999}
    args = [word for name, value in learn.items() for word in (f"--{algo}.{name}", str(value))]
    args += ["--env", "Pendulum-v1", "--random-steps", "64", "--hidden-sizes", "16", "16", "--log-dir", str(log_dir)]
    assert main(["train", "--algo", algo, *TINY, *args, *options]) == 0
    config: dict[str, Any] = json.loads((log_dir / "config.json").read_text())
    return config


@pytest.mark.parametrize("algo", ["ddpg", "td3", "sac"])
def test_algorithm_trains_evaluates_and_resumes(algo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = trained(tmp_path, algo, "--layer-norm", "--dropout", "0.01")
    assert config[algo]["clip_grad_norm"] is None
    assert config["acting"]["random_steps"] == 64
    # From the second batch of 32 steps: 9 · 32 · 4 / 16 updates.
    assert load_checkpoint(tmp_path / "checkpoint.pt")["algo"]["n_updates"] == 72
    policy = headrace.load_agent(tmp_path)
    assert isinstance(policy.agent, QpgAgent)
    assert policy.agent.random_itr_max == 2
    assert main(["eval", str(tmp_path), "--episodes", "2", "--sampler", "serial"]) == 0
    assert main(["train", "--resume", str(tmp_path), "--n-steps", "640"]) == 0
    assert load_checkpoint(tmp_path / "checkpoint.pt")["algo"]["n_updates"] == 72 + 80
    assert capsys.readouterr().out.count("mean return") == 3


@pytest.mark.slow
def test_sampler_process_fills_the_replay(tmp_path: Path) -> None:
    trained(tmp_path, "sac", "--sampler", "async-cpu", "--sac.alpha", "0.1")
    assert isinstance(headrace.load_agent(tmp_path).agent, SacAgent)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ["--env", "CartPole-v1"],
            "SacAgent acts in Box action spaces [d] of floats, but the environment has Disc",
        ),
        (["--recurrent", "lstm"], "--recurrent, --separate-value and --dueling are not for sac"),
        (["--exploration-std", "0.2"], "--exploration-std is for ddpg and td3; sac draws its actions from its policy"),
        (["--eps-final", "0.1"], "--eps-final is for dqn, categorical-dqn and r2d1; sac begins with --random-steps"),
        (["--init-log-std", "-1"], "--init-log-std is for ppo, a2c, impala and vpg"),
        (["--sac.pri-alpha", "0.5"], "add --sac.prioritized-replay"),
        (["--sac.alpha", "-1"], "alpha must be between 0 and inf, got -1.0"),
        (["--td3.policy-update-interval", "1"], "--td3.policy-update-interval is for --algo td3"),
        (["--policy-delay", "1", "--algo", "td3"], "did you mean --td3.policy-update-interval?"),
        (["--ent-coef", "0.1"], "did you mean --sac.alpha?"),
        (["--algo", "ppo", "--random-steps", "10"], "--random-steps is for ddpg, td3 and sac"),
        (["--algo", "dqn", "--env", "CartPole-v1", "--layer-norm"], "--layer-norm is for ddpg, td3 and sac"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_options_that_do_not_fit_are_a_one_line_error(
    args: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--algo", "sac", "--env", "Pendulum-v1", *args]) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert says in stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("algo", ["ddpg", "td3", "sac"])
def test_default_settings_solve_pendulum(algo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--algo", algo, "--env", "Pendulum-v1", "--log-dir", str(tmp_path), "--torch-threads", "1"]
    assert main(["train", *args]) == 0
    said = capsys.readouterr().out
    assert float(said.partition("mean return ")[2].split()[0]) >= -200.0
