"""`headrace eval`: the agent of a run, evaluated as in training, with other options, and on video."""

import json
import sys
from pathlib import Path

import pytest

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import A2C
from headrace.cli.main import main
from headrace.runners import MinibatchRl, RunnerConfig
from headrace.runners.logging import Logger
from headrace.samplers import SerialSampler
from tests.test_cli import SMALL

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("copies_tried_here")]


def train(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Trains a little; returns the line on its final evaluation."""
    always = ["--sampler", "serial", "--n-steps", "1000", *SMALL, "--log-dir", str(folder)]
    assert main(["train", *always, *options]) == 0
    return capsys.readouterr().out.splitlines()[0]


def test_evaluation_of_training_can_be_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = train(tmp_path / "run", capsys, "--seed", "5")
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoint.pt"):
        assert main(["eval", str(path)]) == 0
        assert capsys.readouterr().out == line + "\n"
    assert main(["eval", str(tmp_path / "run"), "--sampler", "cpu", "--n-workers", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == line, "the same with any sampler"
    assert main(["eval", str(tmp_path / "run"), "--seed", "6"]) == 0
    assert capsys.readouterr().out.splitlines()[0] != line
    assert main(["eval", str(tmp_path / "run"), "--episodes", "3"]) == 0
    assert " over 3 episodes " in capsys.readouterr().out


def test_run_of_a_program_needs_only_the_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = MinibatchRl(
        A2C(),
        CategoricalPgAgent(model_kwargs={"hidden_sizes": (7,)}),
        SerialSampler("CartPole-v1", batch_T=8, batch_B=4),
        RunnerConfig(n_steps=64, seed=0, log_interval_steps=32),
        log_dir=tmp_path,
        logger=Logger(),
    )
    runner.train()
    assert main(["eval", str(tmp_path), "--env", "CartPole-v1", "--sampler", "serial", "--episodes", "4"]) == 0
    assert " over 4 episodes " in capsys.readouterr().out


def test_missing_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(tmp_path / "nothing")]) == 2
    assert "nothing does not exist; give the folder of a run" in capsys.readouterr().err


def test_a_checkpoint_without_its_folder_needs_an_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", capsys)
    alone = tmp_path / "elsewhere" / "alone.pt"
    alone.parent.mkdir()
    alone.write_bytes((tmp_path / "run" / "checkpoint.pt").read_bytes())
    assert main(["eval", str(alone)]) == 2
    assert "names the environment of the training; add --env" in capsys.readouterr().err
    assert main(["eval", str(alone), "--env", "CartPole-v1", "--episodes", "3", "--sampler", "serial"]) == 0
    assert " over 3 episodes " in capsys.readouterr().out


def test_stochastic_evaluation_samples_actions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = train(tmp_path / "run", capsys, "--recurrent", "gru")
    assert main(["eval", str(tmp_path / "run"), "--stochastic"]) == 0
    drawn = capsys.readouterr().out.splitlines()[0]
    assert drawn != line
    assert " over 5 episodes " in drawn


def test_environment_with_the_same_spaces_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "run", capsys)
    options = ["--env", "CartPole-v0", "--env-kwargs", '{"max_episode_steps": 7}']
    assert main(["eval", str(tmp_path / "run"), *options]) == 0
    assert "mean return 7 over 5 episodes" in capsys.readouterr().out
    assert main(["eval", str(tmp_path / "run"), "--env", "Acrobot-v1"]) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "give the --env of the training, or one with the same" in complaint


def test_videos_show_whole_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("pygame")
    train(tmp_path / "run", capsys)
    options = ["--env-kwargs", '{"max_episode_steps": 8}', "--video", str(tmp_path / "videos"), "--video-episodes", "2"]
    assert main(["eval", str(tmp_path / "run"), *options]) == 0
    *_, first, second = capsys.readouterr().out.splitlines()
    for number, line in enumerate((first, second)):
        path = tmp_path / "videos" / f"episode-{number}.mp4"
        assert line.split() == ["video", str(path), "(return", "8)"]
        with imageio.get_reader(path) as reader:
            assert reader.count_frames() == 9, "the first picture and one for each step"
            assert reader.get_meta_data()["size"] == (600, 400)
            assert reader.get_meta_data()["fps"] == 50
    assert len(list((tmp_path / "videos").iterdir())) == 2


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    always = ["--sampler", "serial", "--n-steps", "100", *SMALL, "--log-dir", str(folder)]
    assert main(["train", *always]) == 0
    return folder


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (["nowhere"], 2, "nowhere does not exist; give the folder of a run, or a checkpoint in it"),
        ([], 2, "give the folder of a run, or a checkpoint in it, for example: headrace eval runs/first"),
        (["."], 1, ". contains no checkpoint; give the folder of a run that saved one"),
        (["--episods", "3"], 2, "did you mean --episodes?"),
        (["--checkpoint", "RUN"], 2, "unknown option '--checkpoint'; its value stands alone: headrace eval CHECKPOINT"),
        (["RUN", "RUN"], 2, "stands without an option; see headrace eval --help"),
        (["nowhere", "--env", "CartPole-v1"], 2, "nowhere does not exist"),
        (["RUN", "--episodes", "0"], 2, "--episodes must be at least 1, got 0"),
        (["RUN", "--video-episodes", "2"], 2, "--video-episodes is for videos; add --video FOLDER"),
        (["RUN", "--video", "videos", "--video-episodes", "0"], 2, "--video-episodes must be at least 1, got 0"),
        (["RUN", "--seed", "-1"], 2, "--seed must be at least 0, got -1"),
        (["RUN", "--episods", "3"], 2, "did you mean --episodes?"),
        (["RUN", "--sampler", "cpu", "--n-workers", "0"], 2, "n_workers must be at least 1, got 0"),
        (["RUN", "--env", "CartPol-v1"], 2, "did you mean 'CartPole-v1'?"),
        (["RUN/worst.pt"], 2, "did you mean RUN/best.pt?"),
        (["RUN/progress.csv"], 1, "is not a headrace checkpoint"),
        (["RUN", "--env", "tests.registered:Breaks-v0", "--video", "videos"], 1, "cannot be rendered"),
        (["RUN", "--env", "tests.registered:Breaks-v0"], 1, "or one with the same spaces"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_error_is_one_line_with_the_remedy(
    args: list[str],
    status: int,
    says: str,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *(arg.replace("RUN", str(run_folder)) for arg in args)]) == status
    complaint = capsys.readouterr().err
    assert complaint.startswith("headrace: ")
    assert complaint.count("\n") == 1
    assert says.replace("RUN", str(run_folder)) in complaint
    assert list(tmp_path.iterdir()) == []


def test_config_of_another_version_is_named(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((run_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"flavour": "vanilla"}))
    assert main(["eval", str(tmp_path)]) == 1
    assert "config.json: unknown setting 'flavour'; another version of headrace wrote it" in capsys.readouterr().err


def test_missing_extra_is_named(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert main(["eval", str(run_folder), "--video", "videos"]) == 1
    assert capsys.readouterr().err == 'headrace: videos need imageio and ffmpeg; pip install "headrace[video]"\n'
