"""`headrace train --algo dqn`, `categorical-dqn` and `impala`."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.agents.dqn import CategoricalDqnAgent, DqnAgent, R2d1Agent
from headrace.algos.pg import IMPALA
from headrace.cli.build import TrainOptions, agent_for, algo_for, defaults_for
from headrace.cli.environments import factory_of, spaces_of
from headrace.cli.main import main
from headrace.policy import load_agent
from headrace.runners import load_checkpoint

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("copies_tried_here")]

TINY = ["--n-steps", "320", "--batch-T", "8", "--batch-B", "4", "--eval-episodes", "2", "--log-interval-steps", "160"]
LEARN = ["--dqn.min-steps-learn", "64", "--dqn.batch-size", "16", "--dqn.replay-ratio", "2", "--dqn.replay-size", "999"]


def trained(log_dir: Path, *options: str) -> dict[str, Any]:
    """The configuration of a training that came to its end."""
    assert main(["train", *TINY, "--sampler", "serial", "--log-dir", str(log_dir), *options]) == 0
    config: dict[str, Any] = json.loads((log_dir / "config.json").read_text())
    return config


def test_dqn_trains_evaluates_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    config = trained(run, "--algo", "dqn", *LEARN, "--dueling", "--eps-steps", "160", "--eps-final-min", "0.01")
    assert (config["dqn"]["replay_ratio"], config["acting"]["eps_final"], config["model"]["dueling"]) == (2, 0.05, True)
    state = load_checkpoint(run / "checkpoint.pt")
    # From the second batch of 32 steps: 9 · 32 · 2 / 16 updates.
    assert (state["steps"], state["algo"]["n_updates"]) == (320, 36)
    policy = load_agent(run, greedy=False, seed=0)
    assert isinstance(policy.agent, DqnAgent)
    assert policy.agent.schedule.eps_itr_max == 5
    assert policy.itr == 10
    # ε is that of the end, where it was trained to: 0.05, not 1. Greedy actions are nearly all.
    greedy = load_agent(run)
    rows = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    same = np.mean([policy(row) == greedy(row) for row in rows])
    assert same > 0.9
    assert main(["eval", str(run), "--stochastic", "--episodes", "2", "--sampler", "serial"]) == 0
    assert main(["train", "--resume", str(run), "--n-steps", "640"]) == 0
    # With the replay it had, learning goes on in the first batch.
    assert load_checkpoint(run / "checkpoint.pt")["algo"]["n_updates"] == 36 + 40
    assert capsys.readouterr().out.count("mean return") == 3


def test_categorical_dqn_trains(tmp_path: Path) -> None:
    quick = [option.replace("--dqn.", "--categorical-dqn.") for option in LEARN]
    trained(tmp_path, "--algo", "categorical-dqn", *quick, "--n-atoms", "7", "--V-min", "-2", "--V-max", "4")
    agent = load_agent(tmp_path).agent
    assert isinstance(agent, CategoricalDqnAgent)
    assert agent.atoms.tolist() == [-2, -1, 0, 1, 2, 3, 4]


def test_r2d1_trains_evaluates_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"batch-size": 4, "batch-T": 6, "warmup-T": 2, "n-step": 2, "min-steps-learn": 64, "replay-size": 999}
    quick = [word for name, value in sizes.items() for word in (f"--r2d1.{name}", str(value))]
    run = tmp_path / "run"
    options = [*quick, "--r2d1.replay-ratio", "2", "--state-interval", "4", "--recurrent", "gru", "--dueling"]
    config = trained(run, "--algo", "r2d1", *options, "--memory-size", "7")
    assert (config["state_interval"], config["model"]["recurrent"], config["r2d1"]["warmup_T"]) == (4, "gru", 2)
    # From the second batch of 32 steps: 9 · 32 · 2 / (4 · 6) updates.
    assert load_checkpoint(run / "checkpoint.pt")["algo"]["n_updates"] == 24
    policy = load_agent(run)
    assert isinstance(policy.agent, R2d1Agent)
    assert policy.agent.initial_state(1)[0].shape == (1, 7)
    assert main(["train", "--resume", str(run), "--n-steps", "640"]) == 0
    # With the sequences it had, learning goes on in the first batch.
    assert load_checkpoint(run / "checkpoint.pt")["algo"]["n_updates"] == 19 * 32 * 2 // 24
    assert capsys.readouterr().out.count("mean return") == 2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--batch-T", "8"], "state_interval must divide batch_T, so that every batch has as many states, got"),
        (["--r2d1.warmup-T", "20000"], "warmup_T=20000"),
        (["--hidden-sizes", "8"], "its width is --memory-size"),
        (["--env", "Pendulum-v1"], "R2d1Agent acts in Discrete action spaces, but the environment has Box"),
        (["--algo", "dqn", "--state-interval", "4"], "--state-interval is for r2d1"),
        (["--algo", "r2d2"], "headrace has no r2d2; the nearest is r2d1, which has one learner"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_options_that_do_not_fit_r2d1_are_a_one_line_error(
    args: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--algo", "r2d1", *args]) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert says in stderr
    assert list(tmp_path.iterdir()) == []


def test_impala_trains(tmp_path: Path) -> None:
    config = trained(tmp_path, "--algo", "impala", "--impala.rho-clip", "2")
    assert config["impala"]["rho_clip"] == 2.0


@pytest.mark.parametrize("algo", ["dqn", "categorical-dqn", "r2d1", "impala"])
def test_images_have_their_own_defaults(algo: str) -> None:
    spaces = spaces_of(factory_of("tests.test_train_kinds:Pictures", {}))
    options = defaults_for(algo, "tests.test_train_kinds:Pictures", spaces, None)
    small = defaults_for(algo, "CartPole-v1", spaces_of(factory_of("CartPole-v1", {})), None)
    assert (options.algo, small.algo) == (algo, algo)
    assert algo_for(options).config != algo_for(small).config
    agent = agent_for(spaces, options)
    if algo == "r2d1":
        agent.initialize(spaces, seed=0)
        assert agent.initial_state(1)[0].shape == (1, 512)
    elif isinstance(agent, DqnAgent):
        assert agent.schedule.eps_itr_max == math.ceil(250_000 / 64)
    else:
        assert isinstance(algo_for(options), IMPALA)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--env", "Pendulum-v1"], "DqnAgent acts in Discrete action spaces, but the environment has Box"),
        (["--recurrent", "lstm"], "--recurrent and --separate-value are not for dqn"),
        (["--separate-value"], "for separate layers, use --dueling"),
        (["--eps-final", "2"], "eps_final must be between 0 and 1"),
        (["--dqn.n-step", "0"], "n_step must be between 1 and inf, got 0"),
        (["--dqn.n-stp", "3"], "did you mean --dqn.n-step?"),
        (["--algo", "ppo", "--dueling"], "--dueling is for dqn, categorical-dqn and r2d1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_options_that_do_not_fit_are_a_one_line_error(
    args: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--algo", "dqn", *args]) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert says in stderr
    assert list(tmp_path.iterdir()) == []


def test_options_default_to_the_settings_of_the_classes() -> None:
    assert algo_for(TrainOptions(algo="dqn")).config == TrainOptions().dqn


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("algo", "env", "least"),
    [
        ("dqn", "CartPole-v1", 475.0),
        ("categorical-dqn", "Acrobot-v1", -100.0),
        ("impala", "CartPole-v1", 475.0),
        ("vpg", "CartPole-v1", 475.0),
    ],
)
def test_default_settings_reach_the_goal(
    algo: str, env: str, least: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--algo", algo, "--env", env, "--log-dir", str(tmp_path), "--sampler", "serial"]) == 0
    assert float(capsys.readouterr().out.split()[2]) >= least
