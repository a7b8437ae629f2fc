"""Options of the command line: none is ignored silently, and names of other libraries suggest the right ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces

import headrace
from headrace.algos.dqn import DQNConfig
from headrace.cli.agents import ModelOptions
from headrace.cli.build import (
    ALGORITHMS,
    TrainOptions,
    algorithm_named,
    evaluation_sampler,
    of_training,
    placement,
    training_sampler,
)
from headrace.cli.errors import UsageError, no_such_file, unknown
from headrace.cli.idle import refuse_idle
from headrace.cli.options import flags_of, nearest_flag
from headrace.cli.place import SAMPLERS
from headrace.config import nearest_name
from headrace.processes.affinity import Affinity
from headrace.types import EnvSpaces

FLAGS = flags_of(TrainOptions())
OBSERVATION = spaces.Box(-1.0, 1.0, (3,))
DISCRETE = EnvSpaces(OBSERVATION, spaces.Discrete(2))
BOX = EnvSpaces(OBSERVATION, spaces.Box(-1.0, 1.0, (2,)))


@pytest.mark.parametrize(
    ("option", "algo", "flag"),
    [
        ("--lr", "ppo", "--ppo.learning-rate"),
        ("--lr=1e-3", "dqn", "--dqn.learning-rate"),
        ("--learning_rate", "a2c", "--a2c.learning-rate"),
        ("--dqn.lr", "ppo", "--dqn.learning-rate"),
        ("--gamma", "ppo", "--ppo.discount"),
        ("--clip-range", "ppo", "--ppo.ratio-clip"),
        ("--ppo.lr-schedule", "ppo", "--ppo.linear-lr-schedule"),  # a function, for Python only
        ("--n-step", "dqn", "--dqn.n-step"),
        ("--n-step", "ppo", "--n-steps"),
        ("--tau", "dqn", "--dqn.target-update-tau"),
        ("--total-timesteps", "ppo", "--n-steps"),
        ("--gpu", "ppo", "--device"),
        ("--num_envs", "ppo", "--batch-B"),
        ("--BATCH-t", "ppo", "--batch-T"),
        ("--no-seperate-value", "ppo", "--no-separate-value"),
        ("--zebra-crossing", "ppo", ""),
    ],
)
def test_option_names_of_other_libraries_suggest_the_option(option: str, algo: str, flag: str) -> None:
    assert nearest_flag(option, FLAGS, algo) == flag


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("trpo", "headrace has no trpo; the nearest is ppo"),
        ("Rainbow", "the nearest is categorical-dqn with --dueling"),
        ("REINFORCE", "headrace has no REINFORCE; the nearest is vpg"),
        ("PPO", "did you mean 'ppo'?"),
        ("zebra", "choose one of a2c, categorical-dqn, ddpg, dqn, impala, ppo, r2d1, sac, td3, vpg"),
    ],
)
def test_unknown_algorithm_suggests_the_nearest(name: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        algorithm_named(name)
    assert says in str(caught.value)


def test_every_module_of_an_algorithm_is_in_the_table() -> None:
    modules = Path(headrace.__file__).parent.glob("cli/algorithms/*.py")
    names = {module.stem.replace("_", "-") for module in modules if "\nALGORITHM = " in module.read_text()}
    assert names == ALGORITHMS.keys()
    elsewhere = [name for algorithm in ALGORITHMS.values() for name in algorithm.stands_for]
    assert len(elsewhere) == len({*elsewhere} - ALGORITHMS.keys()) > 10


@pytest.mark.parametrize(
    ("name", "near"),
    [("cuda", None), ("Alternating_No_Overlap", "alternating-no-overlap"), ("async_gpus", "async-gpu"), ("x", None)],
)
def test_unknown_name_suggests_the_most_similar(name: str, near: str | None) -> None:
    assert nearest_name("X_y_z_w", ["a", "x-y-z-W"]) == "x-y-z-W", "whatever the case and the hyphens"
    text = str(unknown("sampler", name, SAMPLERS))
    assert text.startswith(f"unknown sampler {name!r}; ")
    assert text.endswith(f"did you mean {near!r}?") if near else "choose one of alternating, " in text


def test_missing_file_suggests_the_most_similar(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    missing = tmp_path / "frist"
    assert str(no_such_file(missing, "give a run")) == f"{missing} does not exist; did you mean {tmp_path / 'first'}?"
    for path in (tmp_path / "zebra", tmp_path / "nowhere" / "first"):
        assert str(no_such_file(path, "give a run")) == f"{path} does not exist; give a run"


OWN = ModelOptions(model="module:Model")


@pytest.mark.parametrize(
    ("args", "options", "space", "says"),
    [
        (
            ["--dqn.n-step", "3"],
            {},
            DISCRETE,
            "--dqn.n-step is for --algo dqn, but this run trains ppo, which has",
        ),
        (["--dqn.n-step", "3"], {}, DISCRETE, "add --algo dqn"),
        (["--dqn.no-double-dqn"], {}, DISCRETE, "--dqn.double-dqn is for --algo dqn"),
        (["--a2c.learning_rate=1"], {}, DISCRETE, "this run trains ppo, which has --ppo.learning-rate"),
        (["--categorical-dqn.n-step", "1"], {"algo": "dqn"}, DISCRETE, "this run trains dqn, which has --dqn.n-step"),
        (["--eps-final", "0.1"], {}, DISCRETE, "--ppo.entropy-loss-coeff makes it explore"),
        (["--n-atoms", "7"], {"algo": "dqn"}, DISCRETE, "add --algo categorical-dqn"),
        (["--dqn.pri-alpha", "0.5"], {"algo": "dqn"}, DISCRETE, "add --dqn.prioritized-replay"),
        (["--init-log-std", "-1"], {}, DISCRETE, "for Box actions"),
        (["--memory-size", "32"], {}, DISCRETE, "add --recurrent lstm"),
        (["--normalize-observation"], {"model": OWN}, DISCRETE, "not for --model"),
        (["--no-separate-value"], {"model": OWN}, DISCRETE, "not for --model"),
        (["--wandb-project", "x"], {}, DISCRETE, "add --wandb"),
        (["--n-workers", "2"], {"sampler": "serial"}, DISCRETE, "--sampler serial has none; add --sampler cpu"),
        (["--start-method", "spawn"], {"sampler": "serial"}, DISCRETE, "--sampler serial has none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_option_without_effect_is_refused(
    args: list[str], options: dict[str, Any], space: EnvSpaces, says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        refuse_idle(args, of_training(TrainOptions(**options), space))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("args", "options", "space"),
    [
        (["--ppo.epochs", "3", "--batch-T=8", "--no-separate-value", "--n-workers", "2"], {}, DISCRETE),
        (["--init-log-std", "-1", "--state-dependent-std"], {}, BOX),
        (["--memory-size", "8"], {"model": ModelOptions(recurrent="gru")}, DISCRETE),
        (["--dqn.pri-alpha", "0.5"], {"algo": "dqn", "dqn": DQNConfig(prioritized_replay=True)}, DISCRETE),
        (["--n-atoms", "7", "--eps-final", "0.1"], {"algo": "categorical-dqn"}, DISCRETE),
        (["--start-method", "spawn"], {"sampler": "async-serial"}, DISCRETE),
        (["--wandb-project", "x"], {"wandb": True}, DISCRETE),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_option_with_effect_is_accepted(args: list[str], options: dict[str, Any], space: EnvSpaces) -> None:
    refuse_idle(args, of_training(TrainOptions(**options), space))


def test_every_setting_of_another_algorithm_is_refused() -> None:
    for flag in FLAGS:
        if "." in flag and not flag.startswith("--ppo."):
            with pytest.raises(UsageError, match="this run trains ppo"):
                refuse_idle([flag], of_training(TrainOptions(), DISCRETE))


@pytest.mark.parametrize(
    ("options", "acts_on", "learns_on"),
    [
        ({"sampler": "cpu", "device": "cuda:1"}, None, 1),
        ({"sampler": "async-cpu", "device": "cuda"}, None, 0),
        ({"sampler": "async-serial", "device": "cuda:0"}, None, 0),
        ({"sampler": "cpu", "device": "cpu"}, None, None),
        ({"sampler": "cpu"}, None, None),
        ({"sampler": "gpu", "device": "cuda:1"}, "cuda:1", None),  # the server's agent is the learner's
        ({"sampler": "serial", "device": "cuda:1"}, "cuda:1", None),
    ],
)
def test_device_is_for_learning_and_for_acting_unless_workers_act(
    options: dict[str, Any], acts_on: str | None, learns_on: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    given = TrainOptions(**options)
    assert given.acting_device == acts_on
    assert placement(given) == Affinity(master_torch_threads=1, cuda_idx=learns_on)


def test_a_device_that_workers_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="with --sampler cpu the agent learns on a CUDA GPU or on the CPU"):
        placement(TrainOptions(sampler="cpu", device="mps"))


@pytest.mark.parametrize("method", ["auto", "fork", "forkserver", "spawn"])
def test_start_method_is_passed_to_the_samplers(method: Any) -> None:
    options = TrainOptions(start_method=method)
    assert training_sampler(options)._config.options.start_method == method
    assert evaluation_sampler(options, None, 2, 2)._config.options.start_method == method
