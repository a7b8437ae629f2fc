"""`--model module:Class`: custom models on the command line, and which files may name code to import."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import headrace
from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import A2C
from headrace.cli.main import main
from headrace.runners import AsyncRlEval, MinibatchRl, RunnerConfig, load_checkpoint
from headrace.runners.logging import Logger
from headrace.samplers import AsyncSerialSampler, CpuSampler, SerialSampler
from tests import own_models
from tests.walk import Walk

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("copies_tried_here")]

QUICK = ["--sampler", "serial", "--n-steps", "256", "--batch-T", "16", "--batch-B", "8", "--eval-episodes", "5"]


@pytest.mark.parametrize(
    ("options", "model"),
    [
        (["--model", "tests.own_models:Narrow", "--model-kwargs", '{"width": 3}'], own_models.Narrow),
        (["--model", "tests.own_models:Leaky", "--recurrent", "gru"], own_models.Leaky),
        (["--model", "tests.own_models:NarrowQ", "--algo", "dqn", "--dqn.min-steps-learn", "64"], own_models.NarrowQ),
    ],
    ids=["feed-forward", "with memory", "action values"],
)
def test_custom_model_is_trained_resumed_and_evaluated_by_name(
    options: list[str], model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "run")
    assert main(["train", *QUICK, *options, "--log-dir", folder]) == 0
    assert main(["train", "--resume", folder, "--n-steps", "384"]) == 0, "the run remembers"
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["steps"] == 384
    line = capsys.readouterr().out.splitlines()[4]
    assert main(["eval", folder]) == 0
    assert capsys.readouterr().out == line + "\n"
    policy = headrace.load_agent(folder, ModelCls=model)
    assert type(policy.agent.model) is model
    if model is own_models.Narrow:
        assert isinstance(policy.agent.model, own_models.Narrow)
        assert policy.agent.model.body.out_features == 3


def test_unsigned_settings_cannot_name_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    assert main(["train", *QUICK, "--model", "tests.own_models:Narrow", "--log-dir", str(folder)]) == 0
    capsys.readouterr()
    config = json.loads((folder / "config.json").read_text())
    evil = tmp_path / "evil.py"
    evil.write_text("raise SystemExit('code of a stranger ran')")
    monkeypatch.chdir(tmp_path)

    def refused(changed: dict[str, Any], *args: str) -> str:
        (folder / "config.json").write_text(json.dumps(config | changed))
        assert main([*args]) == 2
        assert "evil" not in sys.modules
        complaint = capsys.readouterr().err
        assert complaint.count("\n") == 1
        return complaint

    touched = tmp_path / "touched"
    for env, kwargs in (("evil:Env-v0", {}), ("os:system", {"command": f"touch {touched}"}), ("gym:evil:Env-v0", {})):
        for args in (("eval", str(folder)), ("train", "--resume", str(folder))):
            complaint = refused({"env": env, "env_kwargs": kwargs}, *args)
            assert f"names code to import, {env}, but was not written by this user" in complaint
            assert f"add --env {env}" in complaint
    assert not touched.exists()
    for args in (("eval", str(folder)), ("train", "--resume", str(folder))):
        stolen = {"model": config["model"] | {"model": "evil:Net"}}
        assert "if you trust that code, add --model evil:Net" in refused(stolen, *args)
    # What is given on the command line is meant.
    model = ["--model", "tests.own_models:Narrow"]
    (folder / "config.json").write_text(json.dumps(config | {"eval_episodes": 3}))
    assert main(["eval", str(folder), *model]) == 0
    assert " over 3 episodes " in capsys.readouterr().out
    assert main(["train", "--resume", str(folder), *model, "--n-steps", "300"]) == 0


def test_checkpoint_without_folder_needs_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with SerialSampler("CartPole-v1", batch_T=4, batch_B=2).initialize(
        agent := CategoricalPgAgent(ModelCls=own_models.Narrow), seed=0
    ):
        agent.save(tmp_path / "agent.pt")
    always = ["eval", str(tmp_path / "agent.pt"), "--env", "CartPole-v1", "--sampler", "serial", "--episodes", "2"]
    assert main(always) == 1
    assert "tests.own_models.Narrow is a model of your own" in capsys.readouterr().err
    assert main([*always, "--model", "tests.own_models:Narrow"]) == 0
    assert " over 2 episodes " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (["--model", "Narrow"], 2, "--model must be module:Class, got 'Narrow'"),
        (["--model", "tests.own_models:"], 2, "--model must be module:Class"),
        (["--model", "nowhere:Net"], 1, "--model nowhere:Net could not be imported: ModuleNotFoundError"),
        (["--model", "tests.own_models:Narow"], 2, "did you mean 'tests.own_models:Narrow'?"),
        (["--model", "tests.own_models:zzz"], 2, "tests.own_models has no zzz"),
        (["--model", "tests.own_models:Any"], 2, "Any cannot be instantiated"),
        (["--model", "tests.own_models:EnvSpaces"], 2, "unexpected keyword argument 'n_outputs'"),
        (["--model", "tests.own_models:Breaks"], 1, "the model cannot be built: RuntimeError: no two alike"),
        (["--model", "tests.own_models:Narrow", "--hidden-sizes", "8"], 2, "use --model-kwargs"),
        (["--model", "tests.own_models:Narrow", "--model-kwargs", '{"depth": 1}'], 2, "argument 'depth'"),
        (["--model-kwargs", '{"width": 1}'], 2, "add --model module:Class"),
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
    assert main(["train", *args]) == status
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert says in stderr
    assert list(tmp_path.iterdir()) == []


def test_torch_threads_sets_the_number_of_threads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_models.Narrow.threads.clear()
    folder = str(tmp_path / "run")
    options = ["--model", "tests.own_models:Narrow", "--torch-threads", "3"]
    assert main(["train", *QUICK, *options, "--log-dir", folder]) == 0
    own_models.Narrow.threads.discard(1)  # looked at once before it is built in earnest
    assert own_models.Narrow.threads == {3}
    own_models.Narrow.threads.clear()
    assert main(["eval", folder, "--torch-threads", "2"]) == 0
    assert own_models.Narrow.threads == {2}


# ---- runs of one's own program ----


def make_walk(steps: int = 0) -> Walk:
    return Walk()


def trained(folder: Path, env: Any, sampler: Any = SerialSampler, model: Any = None, **kwargs: Any) -> MinibatchRl:
    own = {} if model is None else {"ModelCls": model}
    runner = MinibatchRl(
        A2C(),
        CategoricalPgAgent(**own),
        sampler(env, batch_T=8, batch_B=4, **kwargs),
        RunnerConfig(n_steps=256, log_interval_steps=64),
        log_dir=folder,
        logger=Logger(),
    )
    runner.train()
    return runner


@pytest.mark.parametrize(
    ("env", "kwargs", "name"),
    [
        ("CartPole-v1", {"env_kwargs": {"sutton_barto_reward": True}}, "CartPole-v1"),
        (make_walk, {"env_kwargs": {"steps": 3}}, "tests.test_own_model_command:make_walk"),
        ("tests.walk:Walk", {}, "tests.walk:Walk"),
    ],
    ids=["id", "function", "text"],
)
def test_eval_and_plot_need_only_the_run_folder(
    env: Any, kwargs: Any, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runners = [trained(tmp_path / str(k), env, CpuSampler if k else SerialSampler, **kwargs) for k in range(2)]
    config = json.loads((tmp_path / "0" / "config.json").read_text())
    assert (config["env"], config["env_kwargs"]) == (name, kwargs.get("env_kwargs", {}))
    assert config["runner"]["seed"] == runners[0].seed
    assert config["runner"]["n_steps"] == 256
    assert config["algo"]["config"]["learning_rate"] == runners[0].algo.config.learning_rate
    assert config["sampler"]["batch_T"] == 8
    assert config["agent"]["class"] == "headrace.agents.pg.categorical.CategoricalPgAgent"
    (start,) = json.loads((tmp_path / "0" / "run.json").read_text())
    assert start["command"] == sys.argv
    assert "torch" in start["packages"]
    for k in range(2):
        assert main(["eval", str(tmp_path / str(k)), "--episodes", "4"]) == 0
        assert " over 4 episodes " in capsys.readouterr().out
    picture = str(tmp_path / "both.png")
    assert main(["plot", str(tmp_path / "0"), str(tmp_path / "1"), "--out", picture]) == 0
    heard = capsys.readouterr().out
    assert "sampler=SerialSampler: 1 run" in heard
    assert main(["train", "--resume", str(tmp_path / "0")]) == 2
    assert "is a run of a program of your own; resume it in that program" in capsys.readouterr().err


def test_every_runner_writes_the_same_files_and_a_resume_adds_to_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def runner(n_steps: int, **where: Any) -> AsyncRlEval:
        return AsyncRlEval(
            A2C(),
            CategoricalPgAgent(),
            AsyncSerialSampler(Walk, batch_T=8, batch_B=4, eval_n_envs=2),
            RunnerConfig(n_steps=n_steps, seed=0, log_interval_steps=64),
            logger=Logger(),
            **where,
        )

    runner(128, log_dir=tmp_path).train()
    runner(256, resume_from=tmp_path).train()
    assert len(json.loads((tmp_path / "run.json").read_text())) == 2
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["runner"]["n_steps"], config["env"]) == (256, "tests.walk:Walk")
    assert main(["eval", str(tmp_path), "--episodes", "2"]) == 0
    assert " over 2 episodes " in capsys.readouterr().out


def test_eval_names_the_missing_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "run", lambda: Walk(), model=own_models.Narrow)
    assert main(["eval", str(tmp_path / "run")]) == 2
    complaint = capsys.readouterr().err
    assert "<lambda>', has no name that another program can import; add --env module:factory" in complaint
    assert main(["eval", str(tmp_path / "run"), "--env", "tests.walk:Walk", "--episodes", "2"]) == 0
    assert " over 2 episodes " in capsys.readouterr().out, "the model has a name"


def test_environment_registered_by_the_program_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gymnasium

    gymnasium.register("Registered-Here-v0", Walk, disable_env_checker=True)  # type: ignore[arg-type]
    try:
        trained(tmp_path / "run", "Registered-Here-v0")
    finally:
        del gymnasium.registry["Registered-Here-v0"]
    assert main(["eval", str(tmp_path / "run")]) == 2
    assert "--env module:Registered-Here-v0" in capsys.readouterr().err
