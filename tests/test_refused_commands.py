"""A command that is refused before anything starts says in one line what came, what was expected and what to write."""

from pathlib import Path
from typing import Any

import gymnasium
import pytest

from headrace.cli.main import main
from headrace.envs.factory import EnvFactory
from headrace.storage import framed

SAYS = {
    "train CartPole-v1": "'CartPole-v1' stands without an option; write --env CartPole-v1",
    "train tests.walk:Walk": "write --env tests.walk:Walk",
    "train PPO": "write --algo ppo",
    "train async-cpu": "write --sampler async-cpu",
    "train zebra": "'zebra' stands without an option; see headrace train --help",
    "train --tensorboard True": "'True' stands without an option; --tensorboard takes no value",
    "train --env lane.py": "for a class or a function in lane.py, write lane:Class",
    "train --env ./lane.py": "write lane:Class",
    "train --env sub/lane.py:Lane": "for a class or a function in sub/lane.py, write sub.lane:Lane",
    "train --env lane": "for a class or a function in lane.py, write lane:Class",
    "train --env lane.Lane": "for a class or a function in lane.py, write lane:Lane",
    "train --env sub.lane.Lane": "for a class or a function in sub/lane.py, write sub.lane:Lane",
    "check-env lane.py": "unknown environment 'lane.py'; for a class or a function in lane.py, write lane:Class",
    "check-env --env CartPole-v1": "unknown option '--env'; its value stands alone: headrace check-env ENV",
    "train --n-workers x": "--n-workers must be a whole number or None, got 'x'; see headrace train --help",
    "train --batch-T 1e3": "--batch-T must be a whole number, got '1e3'",
    "train --n-steps 1e6x": "--n-steps must be a number, got '1e6x'",
    "train --ppo.value-clip x": "--ppo.value-clip must be a number or None, got 'x'",
    "train --hidden-sizes 64 x": "--hidden-sizes must be whole numbers or None, got '64', 'x'",
    "train --recurrent LSTM": "--recurrent must be one of 'None', 'gru', 'lstm', got 'LSTM'",
    "train --device": "--device needs a value",
    "train --n-steps 0": "n_steps must be at least 1, got 0",
    "train --pad x": "--pad: expected place=n such as mission=48, got x",
    "train --env-kwargs x=1": "--env-kwargs: expected a JSON object such as '{\"continuous\": true}', got x=1",
    "eval": "give the folder of a run, or a checkpoint in it, for example: headrace eval runs/first",
    "eval .": ". contains no checkpoint; give the folder of a run that saved one",
    "eval --bla 1": "unknown option '--bla'; see headrace eval --help",
    "eval lane.py": "lane.py is not a headrace checkpoint; give the folder of a run, its checkpoint.pt, or a file that",
    "train --resume lane.py": "lane.py is not a headrace checkpoint; give the folder of a run",
    "eval picture.png": "picture.png is not a headrace checkpoint, but a picture; give",
    "eval rows.bin": "rows.bin is not a headrace checkpoint, but a part of the replay of a run; give",
    "eval model.pt": "model.pt is not a headrace checkpoint, but a zip archive, as torch.save writes; give",
    "plot lane.py": "lane.py is a file; give folders of runs",
    "plot .": ". contains no progress.csv; give folders of runs",
}


@pytest.mark.parametrize("command", SAYS)
def test_a_refused_command_says_what_to_write(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("lane.py", "sub/lane.py"):
        (tmp_path / name).write_text("raise AssertionError('only named')")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "rows.bin").write_bytes(b"".join(framed(b"headrace replay 2\n\n")))
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04")
    before = sorted(tmp_path.rglob("*"))
    assert main(command.split()) in (1, 2)
    line = capsys.readouterr().err
    assert line.startswith("headrace: ")
    assert line.count("\n") == 1
    assert SAYS[command] in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("gymnasiums", "ours"),
    [
        (
            "Box2D is not installed, you can install it by run `pip install swig` followed by "
            '`pip install "gymnasium[box2d]"`',
            'Box2D is not installed; pip install "headrace[box2d]"',
        ),
        ('pygame is not installed, run `pip install "gymnasium[toy_text]"`', 'pip install "headrace[video]"'),
        ('jax is not installed, run `pip install "gymnasium[jax]"`', 'run `pip install "gymnasium[jax]"`'),
    ],
)
def test_a_package_that_gymnasium_misses_is_installed_by_our_extra(gymnasiums: str, ours: str) -> None:
    def raises(**kwargs: Any) -> Any:
        raise gymnasium.error.DependencyNotInstalled(gymnasiums)

    spec = gymnasium.envs.registration.EnvSpec("Needs-v0", entry_point=raises)
    with pytest.raises(gymnasium.error.DependencyNotInstalled) as caught:
        EnvFactory(spec)()
    assert ours in str(caught.value)
