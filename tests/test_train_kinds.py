"""`headrace train`: defaults that depend on the environment, and the options for agents and logs."""

import ast
import json
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

import headrace
from headrace.cli.main import main
from headrace.runners import RunFolder, load_checkpoint
from tests.test_logging import Wandb, events
from tests.walk import Walk

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("copies_tried_here")]

slow = partial(pytest.param, marks=pytest.mark.slow)
TINY = ["--batch-T", "8", "--batch-B", "4", "--n-steps", "64", "--eval-episodes", "2", "--sampler", "serial"]
#: Nobody has measured settings for it, so it gets those of its kind.
CONTINUOUS = ["--env", "MountainCarContinuous-v0", "--env-kwargs", '{"max_episode_steps": 20}']


class Pictures(Walk):
    """A walk that nobody sees: its observations are noise, its actions what `action_space` says."""

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]

    def __init__(self, in_dict: bool = False, continuous: bool = False) -> None:
        super().__init__()
        image = gymnasium.spaces.Box(0, 255, (40, 40, 1), np.uint8)
        self.observation_space = gymnasium.spaces.Dict({"camera": image}) if in_dict else image
        if continuous:
            self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(0)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        _, reward, terminated, truncated, info = super().step(np.int64(np.sum(action) > 0))
        return self.observation_space.sample(), reward, terminated, truncated, info


class Bits(Walk):
    """A walk pushed by the sum of bits."""

    action_space: gymnasium.Space[Any]

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gymnasium.spaces.MultiBinary(3)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return super().step(np.int64(np.sum(action)))


def trained(folder: Path, *options: str) -> dict[str, Any]:
    """The settings of a tiny training; what is not in `TINY` is the default."""
    assert main(["train", *TINY, "--log-dir", str(folder), *options]) == 0
    assert load_checkpoint(folder / "checkpoint.pt")["steps"] == 64
    return RunFolder.open(folder).config()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        slow(["--env", "FrozenLake-v1"], (False, 4, 1e-3, True)),
        (["--env", f"{__name__}:Bits"], (False, 4, 1e-3, True)),
        slow([*CONTINUOUS], (True, 32, 3e-4, True)),
        ([*CONTINUOUS, "--recurrent", "lstm"], (True, 4, 3e-4, True)),
        slow(["--env", f"{__name__}:Pictures"], (False, 4, 2.5e-4, False)),
        (
            ["--env", f"{__name__}:Pictures", "--env-kwargs", '{"in_dict": true, "continuous": true}'],
            (False, 4, 2.5e-4, False),
        ),
        slow([*CONTINUOUS, "--no-normalize-observation", "--ppo.minibatches", "3"], (False, 3, 3e-4, True)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_defaults_depend_on_the_environment(
    options: list[str], expected: tuple[bool, int, float, bool], tmp_path: Path
) -> None:
    config = trained(tmp_path, *options)
    assert expected == (
        config["model"]["normalize_observation"],
        config["ppo"]["minibatches"],
        config["ppo"]["learning_rate"],
        config["ppo"]["normalize_reward"],
    )


@pytest.mark.parametrize("env", [slow("CartPole-v1"), "Pendulum-v1", slow(f"{__name__}:Pictures")])
@pytest.mark.parametrize("algo", ["a2c", slow("vpg")])
def test_other_algorithms_have_defaults_too(algo: str, env: str, tmp_path: Path) -> None:
    config = trained(tmp_path, "--algo", algo, "--env", env)
    assert config[algo]["normalize_reward"] == (env != f"{__name__}:Pictures")


def test_agent_options_determine_the_agent(tmp_path: Path) -> None:
    trained(tmp_path / "gru", "--recurrent", "gru", "--memory-size", "12")
    weights = load_checkpoint(tmp_path / "gru" / "checkpoint.pt")["agent"]["model"]
    assert weights["rnn.weight_hh_l0"].shape == (3 * 12, 12)
    trained(tmp_path / "wide", "--hidden-sizes", "5", "6", "7", "--separate-value")
    weights = load_checkpoint(tmp_path / "wide" / "checkpoint.pt")["agent"]["model"]
    assert [weights[f"value.layers.{index}.weight"].shape[0] for index in range(3)] == [5, 6, 7]
    trained(tmp_path / "gauss", *CONTINUOUS, "--init-log-std", "-1.5", "--ppo.learning-rate", "0")
    weights = load_checkpoint(tmp_path / "gauss" / "checkpoint.pt")["agent"]["model"]
    assert weights["log_std"].tolist() == [-1.5]


def test_help_shows_the_defaults_of_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    def helped(*options: str) -> str:
        with pytest.raises(SystemExit) as leaving:
            main(["train", *options, "--help"])
        assert not leaving.value.code
        return " ".join(capsys.readouterr().out.split())

    text = helped(*CONTINUOUS[:2])
    for words in (
        "(default: MountainCarContinuous-v0)",
        "--ppo.minibatches",
        "--n-steps",
        "--recurrent",
    ):
        assert words in text

    def rate_of(said: str) -> str:
        found = re.search(r"--ppo\.learning-rate.*?\(default: ([^)]*)\)", said)
        assert found is not None
        return found[1]

    assert rate_of(text) == "0.0003"
    assert rate_of(helped()) != "0.0003"


def test_every_option_has_a_help_text() -> None:
    package = Path(headrace.__file__).parent
    sources = [*package.glob("cli/*.py"), *package.glob("algos/pg/*.py"), package / "runners" / "config.py"]
    names = []
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Options", "Config")):
                for entry, after in zip(node.body, [*node.body[1:], None], strict=True):
                    if isinstance(entry, ast.AnnAssign):
                        names.append(ast.unparse(entry.target))
                        assert isinstance(after, ast.Expr), f"{node.name}.{names[-1]} has no docstring"
                        assert isinstance(ast.literal_eval(after.value), str)
    assert len(names) > 60


def test_tensorboard_option_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trained(tmp_path, "--tensorboard")
    assert [step for step, _ in events(tmp_path / "tensorboard")["CumSteps"]] == [64]


def test_wandb_option_sends_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=wandb.init))
    config = trained(tmp_path / "first", "--wandb", "--wandb-project", "mill")
    settings, (step, row), last = wandb.told
    assert (settings["project"], settings["name"]) == ("mill", "first")
    assert json.loads(json.dumps(settings["config"])) == config
    assert (step, row["CumSteps"], last) == (64, 64, "finished")


@pytest.mark.parametrize(
    ("module", "option"),
    [("tensorboard.summary.writer.event_file_writer", "tensorboard"), ("wandb", "wandb")],
    ids=["tensorboard", "wandb"],
)
def test_missing_extra_is_named_before_training(
    module: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["train", *TINY, "--log-dir", str(tmp_path / "run"), f"--{option}"]) == 1
    complaint = capsys.readouterr().err
    assert f'pip install "headrace[{option}]"' in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_modules_are_imported_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_mill.py").write_text(
        "import gymnasium\n\ndef make(length):\n    return gymnasium.make('CartPole-v1', max_episode_steps=length)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = trained(tmp_path / "run", "--env", "my_mill:make", "--env-kwargs", '{"length": 6}')
    assert config["env_kwargs"] == {"length": 6}
    assert "my_mill" in sys.modules
