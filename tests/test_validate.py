"""Wrong arguments are TypeErrors and ValueErrors that name the argument, before an environment or a process is made."""

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace import Affinity
from headrace.agents.pg import CategoricalPgAgent
from headrace.samplers import BaseSampler, CpuSampler, SerialSampler, TrajInfo
from tests.environments import SEED, EpisodeStep
from tests.leftovers import other_processes

SAMPLERS = pytest.mark.parametrize("cls", [SerialSampler, CpuSampler])
NAN, INF = float("nan"), float("inf")

Expected = type[Exception] | tuple[type[Exception], ...]
#: (argument, wrong value, error)
Wrong = tuple[str, Any, Expected]

CONSTRUCTOR: list[Wrong] = [
    ("batch_T", 0, ValueError),
    ("batch_T", -1, ValueError),
    ("batch_T", 2.5, TypeError),
    ("batch_T", NAN, TypeError),
    ("batch_T", INF, TypeError),
    ("batch_T", None, TypeError),
    ("batch_T", "64", TypeError),
    ("batch_T", True, TypeError),
    ("batch_T", [64], TypeError),
    ("batch_T", np.array([4]), TypeError),
    ("batch_B", 0, ValueError),
    ("batch_B", -4, ValueError),
    ("batch_B", 0.5, TypeError),
    ("batch_B", None, TypeError),
    ("batch_B", "8", TypeError),
    ("batch_B", np.bool_(True), TypeError),
    ("batch_B", (8,), TypeError),
    ("n_workers", 0, ValueError),
    ("n_workers", -1, ValueError),
    ("n_workers", 1.5, TypeError),
    ("n_workers", "2", TypeError),
    ("n_workers", False, TypeError),
    ("n_workers", [0, 1], TypeError),
    ("max_decorrelation_steps", -1, ValueError),
    ("max_decorrelation_steps", None, TypeError),
    ("max_decorrelation_steps", 10.5, TypeError),
    ("max_decorrelation_steps", "100", TypeError),
    ("max_decorrelation_steps", True, TypeError),
    ("TrajInfoCls", None, TypeError),
    ("TrajInfoCls", dict, TypeError),
    ("TrajInfoCls", TrajInfo(), TypeError),
    ("TrajInfoCls", "TrajInfo", TypeError),
    ("TrajInfoCls", lambda: TrajInfo(), TypeError),
    ("eval_n_envs", -1, ValueError),
    ("eval_n_envs", 1.5, TypeError),
    ("eval_n_envs", None, TypeError),
    ("eval_n_envs", "4", TypeError),
    ("eval_n_envs", True, TypeError),
    ("eval_max_steps", 0, ValueError),
    ("eval_max_steps", -100, ValueError),
    ("eval_max_steps", 0.5, TypeError),
    ("eval_max_steps", "1000", TypeError),
    ("eval_max_steps", INF, TypeError),
    ("eval_max_trajectories", 0, ValueError),
    ("eval_max_trajectories", -1, ValueError),
    ("eval_max_trajectories", 2.5, TypeError),
    ("eval_max_trajectories", "10", TypeError),
    ("env_kwargs", 5, TypeError),
    ("env_kwargs", [("lengths", ((3,),))], TypeError),
    ("env_kwargs", "lengths", TypeError),
    ("env_kwargs", {1: 2}, TypeError),
    ("eval_env_kwargs", 5, TypeError),
    ("eval_env_kwargs", [], TypeError),
    ("eval_env_kwargs", {None: 2}, TypeError),
    ("reset_mode", "midbatch", ValueError),
    ("reset_mode", "", ValueError),
    ("reset_mode", None, ValueError),
    ("reset_mode", True, ValueError),
    ("reset_mode", ["wait"], ValueError),
    ("start_method", "thread", ValueError),
    ("start_method", None, ValueError),
    ("start_method", 0, ValueError),
    ("start_method", "Fork", ValueError),
    ("timeout", 0, ValueError),
    ("timeout", -1.0, ValueError),
    ("timeout", NAN, ValueError),
    ("timeout", INF, ValueError),
    ("timeout", None, TypeError),
    ("timeout", "60", TypeError),
    ("timeout", True, TypeError),
    ("timeout", 1j, TypeError),
    ("start_timeout", 0.0, ValueError),
    ("start_timeout", -INF, ValueError),
    ("start_timeout", None, TypeError),
    ("start_timeout", [120], TypeError),
    ("device", "gpu", ValueError),
    ("device", 1.5, ValueError),
    ("samples_device", "nowhere", ValueError),
    ("deterministic", None, TypeError),
    ("deterministic", 1, TypeError),
    ("deterministic", "yes", TypeError),
    ("env_info_keys", ["speed"], TypeError),
    ("env_info_keys", "speed", TypeError),
    ("env_info_keys", {"speed"}, TypeError),
    ("env_info_keys", {"speed": "float32"}, TypeError),
    ("env_info_keys", {"speed": ("float32",)}, TypeError),
    ("env_info_keys", {"speed": ("float32", (), 1)}, TypeError),
    ("env_info_keys", {"speed": ("float32", 3)}, TypeError),
    ("env_info_keys", {"speed": ("float99", ())}, TypeError),
    ("env_info_keys", {"speed": None}, TypeError),
    ("env_info_keys", {"speed": (None, ())}, (TypeError, ValueError)),
    ("env_info_keys", {"speed": ("float32", (-1,))}, ValueError),
    ("env_info_keys", {"speed": ("float32", (1.5,))}, ValueError),
    ("env_info_keys", {"speed": ("float32", "12")}, ValueError),
    ("env_info_keys", {"speed": ("object", ())}, ValueError),
    ("env_info_keys", {"speed": ("U8", ())}, ValueError),
    ("env_info_keys", {"speed": ("complex64", ())}, ValueError),
    ("env_info_keys", {"speed": ("datetime64[s]", ())}, ValueError),
    ("env_info_keys", {3: ("float32", ())}, ValueError),
    ("EnvCls", None, TypeError),
    ("EnvCls", 5, TypeError),
    ("EnvCls", EpisodeStep(), TypeError),
    ("EnvCls", ["CartPole-v1"], TypeError),
    ("EnvCls", "NoSuchEnv-v0", ValueError),
    ("EnvCls", "CartPole-v99", ValueError),
    ("EnvCls", "", ValueError),
    ("EnvCls", "not a name!", ValueError),
    ("EnvCls", "no_such_module:Env-v0", ValueError),
    ("batch_t", 5, TypeError),
    ("gpu", True, TypeError),
]

INITIALIZE: list[Wrong] = [
    ("agent", None, TypeError),
    ("agent", CategoricalPgAgent, TypeError),
    ("agent", "ppo", TypeError),
    ("agent", torch.nn.Linear(2, 2), TypeError),
    ("seed", -1, ValueError),
    ("seed", 1.5, TypeError),
    ("seed", NAN, TypeError),
    ("seed", "0", TypeError),
    ("seed", True, TypeError),
    ("seed", [0], TypeError),
    ("seed", np.random.default_rng(0), TypeError),
    ("rank", -1, ValueError),
    ("rank", 1, ValueError),
    ("rank", None, TypeError),
    ("rank", 0.5, TypeError),
    ("rank", "0", TypeError),
    ("world_size", 0, ValueError),
    ("world_size", -2, ValueError),
    ("world_size", None, TypeError),
    ("world_size", 1.5, TypeError),
    ("bootstrap_value", None, TypeError),
    ("bootstrap_value", 1, TypeError),
    ("bootstrap_value", "yes", TypeError),
    ("traj_info_kwargs", 0.99, TypeError),
    ("traj_info_kwargs", [("discount", 0.9)], TypeError),
    ("traj_info_kwargs", {"discuont": 0.9}, (TypeError, ValueError)),
    ("traj_info_kwargs", {1: 0.9}, (TypeError, ValueError)),
    ("affinity", 5, TypeError),
    ("affinity", "0,1", TypeError),
    ("affinity", [0, 1], TypeError),
    ("affinity", {"worker_cpus": [0, 1]}, ValueError),
    ("workers_cpus", {"workers_cpus": [-1, 0]}, ValueError),
    ("workers_cpus", {"workers_cpus": [[0], ["1"]]}, ValueError),
    ("workers_cpus", {"workers_cpus": [0.5, 1]}, (TypeError, ValueError)),
    ("workers_cpus", {"workers_cpus": 0}, (TypeError, ValueError)),
    ("workers_cpus", {"workers_cpus": []}, ValueError),
    ("workers_cpus", {"workers_cpus": [[], [0]]}, ValueError),
    ("master_cpus", {"master_cpus": [-1]}, ValueError),
    ("master_cpus", {"master_cpus": 1.5}, (TypeError, ValueError)),
    ("worker_torch_threads", {"worker_torch_threads": 0}, ValueError),
    ("worker_torch_threads", {"worker_torch_threads": "1"}, (TypeError, ValueError)),
    ("worker_torch_threads", {"worker_torch_threads": -1}, ValueError),
    ("master_torch_threads", {"master_torch_threads": 0}, ValueError),
]

#: Arguments inside `affinity`.
INSIDE_AFFINITY = {"workers_cpus", "master_cpus", "worker_torch_threads", "master_torch_threads"}


def identify(case: Wrong) -> str:
    """Names a case without addresses, because every process that collects the tests must give it the same name."""
    return re.sub(r" at 0x\w+", "", f"{case[0]}={case[1]!r}")[:60]


def arguments(**changes: Any) -> dict[str, Any]:
    sizes = {"EnvCls": EpisodeStep, "batch_T": 4, "batch_B": 4, "n_workers": 2, "start_method": "fork"}
    return sizes | changes


@SAMPLERS
@pytest.mark.parametrize(("name", "value", "kind"), CONSTRUCTOR, ids=map(identify, CONSTRUCTOR))
def test_the_constructor_names_a_wrong_argument(cls: type[BaseSampler], name: str, value: Any, kind: Expected) -> None:
    with pytest.raises(kind, match=rf"\b{name}\b"):
        cls(**arguments(**{name: value}))
    assert other_processes() == set()


@SAMPLERS
@pytest.mark.parametrize("name", ["EnvCls", "batch_T", "batch_B"])
def test_the_constructor_names_a_missing_argument(cls: type[BaseSampler], name: str) -> None:
    given = arguments()
    del given[name]
    with pytest.raises(TypeError, match=name):
        cls(**given)


#: How many workers there are is nothing to a sampler without any.
FOR_WORKERS = [
    *INITIALIZE,
    ("affinity", {"workers_cpus": [0, 1, 0]}, ValueError),  # three, and n_workers=2
    ("affinity", Affinity(workers_cpus=((0,),)), ValueError),
]
ON_INITIALIZE = [(SerialSampler, *case) for case in INITIALIZE] + [(CpuSampler, *case) for case in FOR_WORKERS]


@pytest.mark.parametrize(
    ("cls", "name", "value", "kind"),
    ON_INITIALIZE,
    ids=[f"{case[0].__name__}-{identify(case[1:])}" for case in ON_INITIALIZE],
)
def test_initialize_names_a_wrong_argument_before_environments_are_made(
    cls: type[BaseSampler], name: str, value: Any, kind: Expected, tmp_path: Path
) -> None:
    mark = tmp_path / "made"

    def make() -> EpisodeStep:
        mark.touch()
        return EpisodeStep()

    sampler = cls(**arguments(EnvCls=make))
    given: dict[str, Any] = {"agent": CategoricalPgAgent(), "seed": SEED}
    given |= {"affinity": value} if name in INSIDE_AFFINITY else {name: value}
    try:
        with pytest.raises(kind, match=rf"\b{name}\b"):
            sampler.initialize(**given)
        assert other_processes() == set()
    finally:
        sampler.shutdown()
    assert not mark.exists()


@SAMPLERS
def test_a_rank_beyond_the_world_is_named_with_both_numbers(cls: type[BaseSampler]) -> None:
    with pytest.raises(ValueError, match="rank=3, world_size=3"):
        cls(**arguments()).initialize(CategoricalPgAgent(), rank=3, world_size=3)


def test_contradicting_numbers_of_workers_are_both_named() -> None:
    with pytest.raises(ValueError, match="3 workers, but n_workers is 2"):
        CpuSampler(**arguments()).initialize(CategoricalPgAgent(), {"workers_cpus": [0, 0, 0]})


@SAMPLERS
def test_a_wrong_argument_of_initialize_does_not_close_the_sampler(cls: type[BaseSampler]) -> None:
    sampler = cls(**arguments())
    with pytest.raises(TypeError):
        sampler.initialize(CategoricalPgAgent(), seed="0")  # type: ignore[arg-type]
    with sampler.initialize(CategoricalPgAgent(), seed=SEED):
        sampler.obtain_samples(0)


@SAMPLERS
def test_unknown_argument_of_an_environment_raises_env_failed(cls: type[BaseSampler]) -> None:
    """The environment's constructor refuses the keyword."""
    from headrace.errors import EnvFailed

    sampler = cls(**arguments(env_kwargs={"lenghts": ((3,),)}))
    with pytest.raises(EnvFailed, match="unexpected keyword argument 'lenghts'"):
        sampler.initialize(CategoricalPgAgent(), seed=SEED)


WHOLE = ["batch_T", "batch_B", "n_workers", "max_decorrelation_steps", "eval_n_envs", "eval_max_steps"]


@SAMPLERS
@pytest.mark.parametrize("make", [float, np.int32, np.float64, np.uint8], ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", [*WHOLE, "eval_max_trajectories", "seed", "rank", "world_size"])
def test_integers_of_any_type_are_accepted(cls: type[BaseSampler], name: str, make: Any) -> None:
    """Floats without a fraction too, such as 1e5."""
    changes: dict[str, Any] = {"eval_n_envs": 2, "max_decorrelation_steps": 3}
    given: dict[str, Any] = {"seed": SEED, "rank": 0, "world_size": 1}
    value = make({"rank": 0, "seed": SEED, "world_size": 1}.get(name, 2))
    (given if name in given else changes)[name] = value
    sampler = cls(**arguments(**changes))
    with sampler.initialize(CategoricalPgAgent(), **given):
        samples, _ = sampler.obtain_samples(0)
        assert samples.batch_spec == sampler.batch_spec
        assert type(sampler.batch_spec.T) is type(sampler.batch_spec.B) is int
        assert len(sampler.evaluate_agent(0)) == 2
    assert type(sampler.seed) is int


class TwoActions(gym.Env[Any, Any]):
    """Acts in a Box."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)


@SAMPLERS
def test_agent_for_another_action_space_names_itself_and_the_space(cls: type[BaseSampler]) -> None:
    with pytest.raises(
        TypeError,
        match=re.escape("CategoricalPgAgent acts in Discrete, MultiDiscrete [k] and MultiBinary [n] action spaces"),
    ):
        cls(**arguments(EnvCls=TwoActions)).initialize(CategoricalPgAgent(), seed=SEED)
    assert other_processes() == set()
