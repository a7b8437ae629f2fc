"""Settings: an unknown name is answered with the right one, and `repr` shows what differs from the defaults."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch

from headrace.agents.dqn import CategoricalDqnAgent, DqnAgent
from headrace.agents.pg import CategoricalPgAgent, GaussianPgAgent, RecurrentCategoricalPgAgent
from headrace.algos.adam import FlatAdam
from headrace.algos.dqn import DQN, CategoricalDQN, CategoricalDQNConfig, DQNConfig
from headrace.algos.pg import A2C, IMPALA, PPO, VPG, A2CConfig, IMPALAConfig, PPOConfig, VPGConfig
from headrace.config import SYNONYMS, nearest_name
from headrace.models import ActorCritic, QNetwork, RecurrentActorCritic
from headrace.runners import RunnerConfig
from headrace.samplers import AsyncCpuSampler, SamplerOptions, SerialSampler


@pytest.mark.parametrize(
    ("cls", "name", "says"),
    [
        (PPOConfig, "lr", "PPOConfig has no setting 'lr'; it is called learning_rate"),
        (PPOConfig, "gamma", "it is called discount"),
        (PPOConfig, "ent_coef", "it is called entropy_loss_coeff"),
        (PPOConfig, "clip_range", "it is called ratio_clip"),
        (PPOConfig, "n_epochs", "it is called epochs"),
        (PPOConfig, "learnign_rate", "it is called learning_rate"),
        (A2CConfig, "vf_coef", "it is called value_loss_coeff"),
        (IMPALAConfig, "max_grad_norm", "it is called clip_grad_norm"),
        (VPGConfig, "train_v_iters", "it is called value_epochs"),
        (DQNConfig, "tau", "it is called target_update_tau"),
        (DQNConfig, "n_step_return", "it is called n_step"),
        (CategoricalDQNConfig, "buffer_size", "it is called replay_size"),
        (RunnerConfig, "total_timesteps", "it is called n_steps"),
        (RunnerConfig, "zebra", "its settings are n_steps, seed, log_interval_steps"),
        (PPO, "learning_rate", "settings are given as PPO(PPOConfig(learning_rate=...))"),
        (A2C, "lr", "A2C(A2CConfig(learning_rate=...))"),
        (IMPALA, "rho_cilp", "IMPALA(IMPALAConfig(rho_clip=...))"),
        (VPG, "lr", "VPG(VPGConfig(learning_rate=...))"),
        (DQN, "buffer_size", "DQN(DQNConfig(replay_size=...))"),
        (CategoricalDQN, "zebra", "CategoricalDQN(CategoricalDQNConfig(...)); its settings are learning_rate, "),
        (DqnAgent, "epsilon", "it is called eps_final"),
        (CategoricalDqnAgent, "v_max", "it is called V_max"),
        (CategoricalPgAgent, "hidden_sizes", "its settings are ModelCls, model_kwargs"),
        (RecurrentCategoricalPgAgent, "model_kwarg", "it is called model_kwargs"),
        (GaussianPgAgent, "log_std_init", "it is called init_log_std"),
        (ActorCritic, "net_arch", "it is called hidden_sizes"),
        (QNetwork, "duelling", "it is called dueling"),
        (RecurrentActorCritic, "hidden_sizes", "it is called hidden_size"),
    ],
)
def test_unknown_setting_error_names_the_right_one(cls: Callable[..., Any], name: str, says: str) -> None:
    with pytest.raises(TypeError) as caught:
        cls(**{name: 1})
    assert says in str(caught.value)
    assert cls.__name__ in str(caught.value)


@pytest.mark.parametrize("given", [DQNConfig(), 3e-4, {"learning_rate": 3e-4}])
def test_config_of_another_class_is_refused(given: Any) -> None:
    for make in (lambda: PPO(given), lambda: PPO(config=given)):
        with pytest.raises(TypeError, match=r"PPO takes its settings as a PPOConfig, got .*PPO\(PPOConfig\(\.\.\.\)\)"):
            make()


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("num_envs", "batch_B"),
        ("n_envs", "batch_B"),
        ("num_workers", "n_workers"),
        ("n_processes", "n_workers"),
        ("n_steps", "batch_T"),
        ("num_steps", "batch_T"),
        ("rollout_length", "batch_T"),
        ("env_id", "EnvCls"),
        ("mp_context", "start_method"),
        ("batch_t", "batch_T"),
        ("eval_n_env", "eval_n_envs"),
    ],
)
def test_unknown_keyword_of_a_sampler_names_the_setting_that_was_meant(name: str, setting: str) -> None:
    construct: Callable[..., Any] = AsyncCpuSampler
    with pytest.raises(TypeError) as caught:
        construct("CartPole-v1", **{name: 1})
    assert str(caught.value) == f"AsyncCpuSampler has no setting {name!r}; it is called {setting}"


def test_unknown_keyword_without_similar_setting_lists_all_settings() -> None:
    says = (
        r"no setting 'zebra'; arguments of the environment go into env_kwargs=\{'zebra': ...\}; the settings are EnvCls"
    )
    with pytest.raises(TypeError, match=says):
        SerialSampler("CartPole-v1", batch_T=1, batch_B=1, zebra=1)  # type: ignore[call-arg]


def test_configs_can_still_be_copied_pickled_and_replaced() -> None:
    config = PPOConfig(learning_rate=3e-4, value_clip=0.2)
    assert pickle.loads(pickle.dumps(config)) == config == copy.deepcopy(config)
    assert replace(config, epochs=3).epochs == 3
    assert PPOConfig(**asdict(config)) == config
    with pytest.raises(TypeError, match="learning_rate"):
        replace(config, lr=1.0)  # type: ignore[call-arg]


def test_synonyms_map_to_existing_settings() -> None:
    from headrace.cli.build import TrainOptions
    from headrace.cli.options import flags_of

    flags = {flag.rpartition(".")[2].lstrip("-").replace("-", "_") for flag in flags_of(TrainOptions())}
    agents, samplers = {"eps_itr_max", "random_itr_max"}, {field.name for field in fields(SamplerOptions)}
    for theirs, ours in SYNONYMS.items():
        assert set(ours) <= flags | agents | samplers, theirs
        assert nearest_name(theirs, flags) in flags or nearest_name(theirs, samplers) in samplers


def test_repr_shows_only_settings_that_differ_from_the_defaults() -> None:
    assert repr(PPOConfig()) == "PPOConfig()"
    assert repr(PPOConfig(learning_rate=3e-4, epochs=4)) == "PPOConfig(learning_rate=0.0003, epochs=4)"
    assert repr(RunnerConfig(seed=3)) == "RunnerConfig(seed=3)"
    assert repr(CategoricalPgAgent()) == "CategoricalPgAgent()"
    assert repr(CategoricalPgAgent(torch.nn.Linear, {"bias": False})) == (
        "CategoricalPgAgent(ModelCls=Linear, model_kwargs={'bias': False})"
    )
    assert repr(GaussianPgAgent(init_log_std=-1.0)) == "GaussianPgAgent(init_log_std=-1.0)"
    assert repr(CategoricalDqnAgent(V_max=5.0, eps_final=0.1)) == "CategoricalDqnAgent(eps_final=0.1, V_max=5.0)"
    assert repr(PPO(PPOConfig(epochs=4))) == "PPO(PPOConfig(epochs=4))"
    assert repr(DQN()) == "DQN(DQNConfig())"


def halves(progress: float) -> float:
    return 0.5 if progress < 0.5 else 0.25


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (PPOConfig(learning_rate=1.0), [1.0, 0.75, 0.25]),
        (PPOConfig(learning_rate=1.0, linear_lr_schedule=False), [1.0, 1.0, 1.0]),
        (PPOConfig(learning_rate=1.0, lr_schedule=halves), [0.5, 0.5, 0.25]),
        (DQNConfig(learning_rate=2.0, lr_schedule=lambda progress: progress), [0.0, 0.5, 1.5]),
    ],
    ids=["line", "constant", "function", "lambda"],
)
def test_function_of_progress_is_a_learning_rate_schedule(config: Any, expected: list[float]) -> None:
    optimizer = FlatAdam([torch.nn.Parameter(torch.zeros(3))], config)
    for progress, rate in zip((0.0, 0.25, 0.75), expected, strict=True):
        assert optimizer.set_progress(progress) == rate
        assert optimizer.learning_rate == rate


def test_invalid_learning_rate_schedule_is_refused() -> None:
    with pytest.raises(TypeError, match="lr_schedule must be a function from progress"):
        PPOConfig(lr_schedule=3e-4)  # type: ignore[arg-type]
    config = PPOConfig(lr_schedule=lambda progress: float("nan"))
    with pytest.raises(ValueError, match=r"lr_schedule\(0.5\) is nan"):
        FlatAdam([torch.nn.Parameter(torch.zeros(3))], config).set_progress(0.5)
