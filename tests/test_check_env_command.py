"""`headrace check-env`: one line for each violation, two if there is none, and the exit status."""

import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli.main import main
from tests.leftovers import DEADLINE

pytestmark = pytest.mark.programs

PROGRAM = "import sys; sys.path.remove(''); from headrace.cli.main import main; raise SystemExit(main())"
MODULE = """
import gymnasium
import numpy as np

class Env(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, width=2, reward=1.0):
        self._width, self._reward = width, reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(self._width, np.float32), self._reward, False, False, {}

    def close(self):
        if self._width != 2:
            raise OSError("stuck")

def make_env(width=2):
    return Env(width)
"""


@pytest.mark.parametrize(
    "env", ["CartPole-v1", "gym:CartPole-v1", "tests.walk:Walk", "gymnasium.envs.classic_control:CartPole-v1"]
)
def test_valid_environment_is_reported_as_valid(env: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", env, "--steps", "50", "--seed", "3"]) == 0
    lines = [f"{env} keeps the contract (50 steps, seed 3)", "note: a resumed run continues its episodes"]
    assert capsys.readouterr() == ("\n".join(lines) + "\n", "")


def test_note_says_that_a_resumed_run_begins_new_episodes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", "tests.forgetful:ForgetsItsGenerator", "--steps", "50"]) == 0
    note = capsys.readouterr().out.splitlines()[1]
    assert note.startswith(
        "note: a resumed run begins new episodes: a pickled copy of ForgetsItsGenerator gave a different"
    )


@pytest.mark.parametrize(
    ("args", "lines"),
    [
        (["tests.broken:ClosesOnce"], ["close: the second close(): raised RuntimeError: no window any more"]),
        (["tests.broken:Limited", "--env-kwargs", '{"limit": 3, "terminated": true}'], ["time-limit: step() 3 of"]),
        (["tests.broken:SeveralThings"], ["spaces: env.action_space: ", "close: close(): raised OSError: stuck"]),
    ],
    ids=["one", "with arguments", "two"],
)
def test_each_violation_is_one_line(args: list[str], lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", *args, "--steps", "50"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert len(out.splitlines()) == len(lines)
    for line, words in zip(out.splitlines(), lines, strict=True):
        assert line.startswith(words)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "give an environment, for example: headrace check-env CartPole-v1"),
        (["CartPol-v1"], "unknown environment 'CartPol-v1'; did you mean 'CartPole-v1'?"),
        (["gym:CartPol-v1"], "unknown environment 'gym:CartPol-v1'; did you mean 'gym:CartPole-v1'?"),
        (["tests.walk:Wlak"], "unknown environment 'tests.walk:Wlak'; did you mean 'tests.walk:Walk'?"),
        (["tests.registered:Breks-v0"], "did you mean 'tests.registered:Breaks-v0'?"),
        (["not an id"], "pprint_registry()"),
        (["CartPole-v1", "--steps", "0"], "steps must be at least 1"),
        (["CartPole-v1", "--seed", "-1"], "seed at least 0"),
        (["CartPole-v1", "--timeout", "0"], "timeout positive"),
        (["CartPole-v1", "--stesp", "3"], "did you mean --steps?"),
        (["CartPole-v1", "--env-kwargs", "x"], "--env-kwargs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_is_one_line_with_the_remedy(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-env", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("headrace: ")
    assert says in err


def test_module_that_cannot_be_imported_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", "nowhere:Env-v0"]) == 1
    assert "No module named 'nowhere'" in capsys.readouterr().err


def test_help_names_the_forms_of_an_environment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["check-env", "--help"])
    assert not leaving.value.code
    text = capsys.readouterr().out
    assert all(words in text for words in ("module:factory", "gym:Id-v0", "--steps", "--timeout", "--env-kwargs"))
    main(["--help"])
    assert "check-env" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (["my_env:make_env"], 0, "my_env:make_env keeps the contract (60 steps, seed 0)\n"),
        (["my_env:Env", "--env-kwargs", '{"reward": null}'], 1, "reward: step() 1 of episode 1: NoneType"),
        (["my_env:make_env", "--env-kwargs", '{"width": 3}'], 1, "observation: step() 1 of episode 1: observation = "),
    ],
)
def test_installed_program_finds_modules_in_the_current_folder(
    tmp_path: Path, args: list[str], status: int, says: str
) -> None:
    (tmp_path / "my_env.py").write_text(MODULE)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "check-env", *args, "--steps", "60"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.startswith(says)
    assert done.stdout.count("\n") == (2 if status == 0 or "width" in args[-1] else 1)


DRAWS_FROM_TORCH = """
from gymnasium import Wrapper, make

class Env(Wrapper):
    def __init__(self):
        import torch
        super().__init__(make("CartPole-v1"))
        self._draw = torch.rand

    def step(self, action):
        self._draw(1)
        return super().step(action)
"""


@pytest.mark.slow
def test_draws_from_a_torch_loaded_by_the_environment_are_reported(tmp_path: Path) -> None:
    (tmp_path / "my_env.py").write_text(DRAWS_FROM_TORCH)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "check-env", "my_env:Env", "--steps", "20"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("global-rng: step() 1 of episode 1: draws from the global generator of torch")
