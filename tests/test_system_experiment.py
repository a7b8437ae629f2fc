"""Configurations of experiments: what is wrong is named before anything starts."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from headrace.agents.dqn import DqnAgent
from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import IMPALA
from headrace.cli.main import main
from headrace.system import (
    ActorConfig,
    EvaluationConfig,
    Experiment,
    ExperimentConfig,
    PolicyConfig,
    TrainerConfig,
    make_experiment,
    register_experiment,
)
from headrace.system.picture import draw_experiment, experiment_graph

TRAINER = TrainerConfig(agent=CategoricalPgAgent(), algo=IMPALA(), n_steps=1000, batch_B=16)
GOOD = ExperimentConfig(
    actors=[ActorConfig(n_envs=8)] * 2,
    policies=[PolicyConfig()],
    trainers=[TRAINER],
    eval_managers=[EvaluationConfig()],
)


def test_a_good_configuration_gets_its_defaults() -> None:
    checked = GOOD.checked()
    assert checked.eval_managers[0].env == "CartPole-v1"
    assert checked.n_chunks(TRAINER) == 2
    assert checked.n_itr(TRAINER) == 2  # of 16 · 32 steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actors": []}, "actors is empty"),
        ({"actors": [PolicyConfig()]}, r"actors\[0\] is a PolicyConfig, expected ActorConfig"),
        ({"policies": PolicyConfig()}, "policies is a PolicyConfig, expected a list"),
        ({"timeout": 0}, "timeout is 0, expected seconds above 0"),
        ({"actors": [ActorConfig(n_envs=0)]}, r"actors\[0\].n_envs is 0, expected at least 1"),
        ({"actors": [ActorConfig(ring_size=0)]}, r"actors\[0\].ring_size is 0"),
        ({"actors": [ActorConfig(policy="blue")]}, r"actors\[0\].policy is 'blue', and trainers has \['default'\]"),
        ({"actors": [ActorConfig(inference_stream="x")]}, r"actors\[0\].inference_stream is 'x', and policies has"),
        ({"actors": [ActorConfig(sample_streams=["x"])]}, r"trainers\[0\].sample_stream is 'default', to which no"),
        ({"actors": [ActorConfig(sample_streams="default")]}, r"actors\[0\].sample_streams is 'default', expected a"),
        ({"policies": [PolicyConfig(policy="x")]}, r"policies\[0\].policy is 'x', and trainers has"),
        ({"policies": [PolicyConfig(max_batch=0)]}, r"policies\[0\].max_batch is 0"),
        ({"eval_managers": [EvaluationConfig(n_envs=0)]}, r"eval_managers\[0\].n_envs is 0"),
        ({"trainers": [TRAINER, TRAINER]}, r"trainers\[0\].policy is 'default', which another trainer has"),
        ({"trainers": [replace(TRAINER, batch_B=12)]}, r"trainers\[0\].batch_B is 12, expected a multiple of .* 8"),
        ({"trainers": [replace(TRAINER, n_steps=0)]}, r"trainers\[0\].n_steps is 0"),
        ({"trainers": [replace(TRAINER, max_staleness=-1)]}, r"trainers\[0\].max_staleness is -1"),
        (
            {"trainers": [replace(TRAINER, algo=cast(Any, "ppo"))]},
            r"trainers\[0\].algo is a str, expected an Algo object",
        ),
        ({"trainers": [replace(TRAINER, agent=DqnAgent())]}, r"trainers\[0\].agent: IMPALA trains"),
        (
            {"actors": [ActorConfig(n_envs=8), ActorConfig(n_envs=4)]},
            "whose actors have different n_envs or sample_steps",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        replace(GOOD, **changes).checked()


def test_workers_of_one_stream_have_one_policy() -> None:
    blue = replace(TRAINER, policy="blue")
    config = replace(GOOD, trainers=[TRAINER, blue], policies=[PolicyConfig(), PolicyConfig(policy="blue")])
    with pytest.raises(ValueError, match=r"inference_stream is 'default', whose workers have the policies \['blue'"):
        config.checked()


class Small(Experiment):
    def initial_setup(self) -> ExperimentConfig:
        return GOOD


def test_experiments_have_names() -> None:
    register_experiment("small", Small)
    register_experiment("small", Small)  # a file that is imported twice
    assert isinstance(make_experiment("small"), Small)
    with pytest.raises(ValueError, match="there is an experiment 'small' already"):
        register_experiment("small", lambda: Small())
    with pytest.raises(ValueError, match="there is no experiment 'smal'"):
        make_experiment("smal")


def test_the_picture_has_every_kind_of_worker() -> None:
    graph = experiment_graph(GOOD)
    for text in ("2 × actor", "1 × policy worker", "trainer of default", "1 × evaluation worker", "parameter database"):
        assert text in graph
    assert "chunks of 32 steps" in graph


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    import shutil

    if shutil.which("dot") is None:
        pytest.skip("graphviz is not installed")
    draw_experiment(GOOD, tmp_path / "run.svg")
    assert "<svg" in (tmp_path / "run.svg").read_text()
    with pytest.raises(OSError, match="graphviz says"):
        draw_experiment(GOOD, tmp_path / "run.nothing")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "registers 0 experiments and defines 0"),
        ("1 / 0", "could not be imported: ZeroDivisionError"),
        (
            "from tests.test_system_experiment import *\n"
            "class Wrong(Experiment):\n"
            "    def initial_setup(self):\n"
            "        return replace(GOOD, trainers=[replace(TRAINER, batch_B=12)])\n",
            "trainers[0].batch_B is 12",
        ),
    ],
    ids=["empty", "raises", "wrong"],
)
def test_headrace_launch_names_what_is_wrong_with_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = tmp_path / "experiment.py"
    path.write_text(content)
    assert main(["launch", str(path), "--folder", str(tmp_path / "run")]) in (1, 2)
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_headrace_launch_without_its_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["launch"]) == 2
    assert "give the file of an experiment" in capsys.readouterr().err
    assert main(["launch", str(tmp_path / "none.py")]) == 2
    assert "none.py does not exist" in capsys.readouterr().err


def test_headrace_top_wants_the_folder_of_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["top"]) == 2
    assert main(["top", str(tmp_path)]) == 1
    assert "no run of headrace launch" in capsys.readouterr().err
