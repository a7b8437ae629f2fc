"""`load_agent`: from a file to actions, and from a file to nothing else."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import headrace
from headrace.agents.base import Agent
from headrace.agents.pg import (
    CategoricalPgAgent,
    GaussianPgAgent,
    RecurrentCategoricalPgAgent,
    RecurrentGaussianPgAgent,
)
from headrace.algos.pg import A2C
from headrace.envs.plain_spaces import plain_space, space_of
from headrace.errors import CheckpointError
from headrace.models import ActorCritic
from headrace.policy import Policy
from headrace.rng import Stream, env_seeds
from headrace.runners import MinibatchRl, RunnerConfig, load_checkpoint, save_checkpoint
from headrace.runners.logging import Logger
from headrace.samplers import SerialSampler
from headrace.types import EnvSpaces
from tests.environments import SHAPELESS, SPACES, AnySpaces
from tests.walk import Walk


def trained(log_dir: Path, agent: Agent, env: Any = Walk, env_kwargs: Any = None) -> Path:
    config = RunnerConfig(n_steps=96, seed=0)
    sampler = SerialSampler(env, env_kwargs, batch_T=8, batch_B=4)
    MinibatchRl(A2C(), agent, sampler, config, log_dir=log_dir, logger=Logger()).train()
    return log_dir / "checkpoint.pt"


def episode(policy: Policy, env: gym.Env[Any, Any]) -> float:
    """The return of one episode, played as a user would, in an environment as evaluation seeds its first."""
    observation, _ = env.reset(seed=env_seeds(5, 0, Stream.EVAL_ENV)[0])
    policy.reset()
    total, reward, ended = 0.0, 0.0, False
    while not ended:
        observation, reward, terminated, truncated, _ = env.step(policy(observation, reward))
        ended = terminated or truncated
        total += float(np.float32(reward))
    env.close()
    return total


AGENTS: dict[str, tuple[Callable[[], Agent], Any]] = {
    "categorical": (
        lambda: CategoricalPgAgent(model_kwargs={"hidden_sizes": (8,), "normalize_observation": True}),
        Walk,
    ),
    "recurrent": (lambda: RecurrentCategoricalPgAgent(model_kwargs={"cell": "gru"}), Walk),
    "gaussian": (lambda: GaussianPgAgent(state_dependent_std=True, init_log_std=-1.0), "Pendulum-v1"),
    "recurrent gaussian": (RecurrentGaussianPgAgent, "Pendulum-v1"),
}


@pytest.mark.parametrize("kind", AGENTS)
def test_a_loaded_agent_acts_as_evaluation_does(kind: str, tmp_path: Path) -> None:
    make, env = AGENTS[kind]
    agent = make()
    path = trained(tmp_path, agent, env)
    evaluation = SerialSampler(env, batch_T=1, batch_B=1, eval_n_envs=1, max_decorrelation_steps=0)
    with evaluation.initialize(agent, seed=5) as sampler:
        (info,) = sampler.evaluate_agent(0)
    for place in (path, tmp_path, str(path)):
        policy = headrace.load_agent(place)
        assert type(policy.agent) is type(agent)
        assert episode(policy, gym.make(env) if isinstance(env, str) else env()) == pytest.approx(info.Return, rel=1e-5)


def test_memory_ends_with_the_episode(tmp_path: Path) -> None:
    policy = headrace.load_agent(trained(tmp_path, RecurrentCategoricalPgAgent()))
    state: list[Any] = []
    for _ in range(2):
        policy.reset()
        for _ in range(3):
            policy(np.ones(3, np.float32), 2.0)
        state.append(policy._state)
    assert all(torch.equal(a, b) for a, b in zip(*(_leaves(one) for one in state), strict=True))
    policy(np.ones(3, np.float32), 2.0)
    assert not all(torch.equal(a, b) for a, b in zip(_leaves(policy._state), _leaves(state[0]), strict=True))


def _leaves(tree: Any) -> list[torch.Tensor]:
    from headrace.buffers.tree import tree_leaves

    return tree_leaves(tree)


class Answers(Walk):
    """Walk, with other actions."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        super().__init__()
        self.action_space = action_space

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), repr(action)
        return super().step(np.int64(1))


@pytest.mark.parametrize(
    ("space", "make"),
    [
        (spaces.MultiDiscrete([3, 2], dtype=np.int32), CategoricalPgAgent),
        (spaces.MultiDiscrete([3, 2], dtype=np.int32, start=np.array([1, 4], np.int32)), CategoricalPgAgent),
        (spaces.MultiBinary(3), CategoricalPgAgent),
        (spaces.Box(-1, 1, (2,), np.float16), GaussianPgAgent),
        (spaces.Box(-1, 1, (2,), np.float64), GaussianPgAgent),
    ],
)
@pytest.mark.filterwarnings("error")
def test_actions_are_in_their_space_in_training_and_after(space: spaces.Space[Any], make: Any) -> None:
    agent = make()
    with SerialSampler(Answers, {"action_space": space}, batch_T=8, batch_B=2).initialize(agent, seed=0) as sampler:
        sampler.obtain_samples(0)
    action = Policy(agent, greedy=False, seed=0)(np.zeros(3, np.float32))
    assert space.contains(action), repr(action)


def test_drawn_actions_come_from_the_seed(tmp_path: Path) -> None:
    path = trained(tmp_path, CategoricalPgAgent())

    def actions(greedy: bool, seed: int | None) -> list[int]:
        policy = headrace.load_agent(path, greedy=greedy, seed=seed)
        return [int(policy(np.zeros(3, np.float32))) for _ in range(40)]

    assert len(set(actions(True, None))) == 1
    assert len(set(actions(False, 1))) > 1
    assert actions(False, 1) == actions(False, 1) != actions(False, 2)


@pytest.mark.parametrize("name", SPACES)
def test_spaces_survive_as_plain_data(name: str, tmp_path: Path) -> None:
    from headrace.agents.description import _as_tensors

    save_checkpoint(tmp_path / "c.pt", {"space": _as_tensors(plain_space(SPACES[name]))})
    came = space_of(load_checkpoint(tmp_path / "c.pt")["space"])
    assert came == SPACES[name]
    assert repr(came) == repr(SPACES[name])


def test_bounds_survive_bit_by_bit() -> None:
    low = np.array([-np.inf, -0.0, 1e-45, np.nextafter(1.0, 2.0)])
    for dtype in (np.float16, np.float32, np.float64):
        space = spaces.Box(low.astype(dtype), np.full(4, np.inf, dtype), dtype=dtype)
        came = space_of(plain_space(space))
        assert isinstance(came, spaces.Box)
        assert came.low.tobytes() == space.low.tobytes()
        assert came.high.tobytes() == space.high.tobytes()
        assert came.dtype == space.dtype
    image = plain_space(spaces.Box(0, 255, (210, 160, 3), np.uint8))
    assert len(image["high"]) == 1, "bounds that are all alike are one number"
    ordered = spaces.Dict([("z", spaces.Discrete(2)), ("a", spaces.Discrete(3, dtype=np.int32))])
    came = space_of(plain_space(ordered))
    assert isinstance(came, spaces.Dict)
    assert list(came.spaces) == ["z", "a"]
    assert came["a"].dtype == np.int32


@pytest.mark.parametrize("name", SHAPELESS)
def test_spaces_without_a_shape_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match="have no plain form"):
        plain_space(SHAPELESS[name])


@pytest.mark.parametrize("name", ["dict", "image", "discrete from 7", "nested"])
def test_observations_and_actions_are_the_environments_own(name: str, tmp_path: Path) -> None:
    kwargs = {"observation_space": SPACES[name], "action_space": SPACES["discrete from -2"]}
    policy = headrace.load_agent(trained(tmp_path, CategoricalPgAgent(), AnySpaces, kwargs), greedy=False, seed=0)
    SPACES[name].seed(0)
    actions = [policy(SPACES[name].sample()) for _ in range(20)]
    assert all(SPACES["discrete from -2"].contains(action) for action in actions)
    assert min(actions) < 0


def test_what_is_no_observation_is_refused(tmp_path: Path) -> None:
    policy = headrace.load_agent(trained(tmp_path, CategoricalPgAgent()))
    with pytest.raises(ValueError, match=r"observation is .*float32 \[4\], expected shape \[3\]"):
        policy(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="NaN"):
        policy(np.array([0, np.nan, 0], np.float32))


class OwnModel(ActorCritic):
    """A model of a user."""


class OwnAgent(CategoricalPgAgent):
    """An agent of a user."""


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CategoricalPgAgent(ModelCls=OwnModel), "tests.test_policy.OwnModel is a class of your own"),
        (OwnAgent, "tests.test_policy.OwnAgent is a class of your own"),
        (
            lambda: CategoricalPgAgent(ModelCls=lambda *a, **k: ActorCritic(*a, **k)),
            "a setting of the agent is no plain value: <function",
        ),
    ],
    ids=["model", "agent", "function"],
)
def test_an_agent_of_ones_own_must_be_given(make: Any, says: str, tmp_path: Path) -> None:
    agent = make()
    path = trained(tmp_path, agent)
    with pytest.raises(CheckpointError, match=r"Make one like it: load_agent\(path, agent=MyAgent") as error:
        headrace.load_agent(path)
    assert says in str(error.value)
    policy = headrace.load_agent(path, agent=make())
    for name, value in agent.model.state_dict().items():
        assert torch.equal(policy.agent.model.state_dict()[name], value)


def test_other_spaces_and_other_weights_are_refused(tmp_path: Path) -> None:
    path = trained(tmp_path, CategoricalPgAgent())
    other = CategoricalPgAgent()
    other.initialize(EnvSpaces(spaces.Box(0, 1, (7,), np.float32), spaces.Discrete(2)), seed=0)
    with pytest.raises(CheckpointError, match=r"is of environments with [\s\S]*\(3,\)[\s\S]*is for [\s\S]*\(7,\)"):
        headrace.load_agent(path, agent=other)
    with pytest.raises(CheckpointError, match="are not of this CategoricalPgAgent"):
        headrace.load_agent(path, agent=CategoricalPgAgent(model_kwargs={"hidden_sizes": (5,)}))
    with pytest.raises(FileNotFoundError):
        headrace.load_agent(tmp_path / "nothing.pt")
    with pytest.raises(ValueError, match="no model yet"):
        Policy(CategoricalPgAgent())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"class": "os:system"}, "'os:system', which is not one of headrace"),
        ({"class": "antigravity:Agent"}, "which is not one of headrace"),
        ({"class": "headrace.policy:os"}, "no such Agent"),
        ({"class": "headrace.policy:Agent"}, "no such Agent"),
        ({"class": "headrace.agents.base:torch"}, "no such Agent"),
        ({"class": "headrace.samplers.serial:SerialSampler"}, "no such Agent"),
        ({"class": "headrace.agents.nothing:Agent"}, "no such Agent"),
        ({"class": "headrace..os:system"}, "which is not one of headrace"),
        ({"class": "headrace_evil:Agent"}, "which is not one of headrace"),
        ({"settings": ["dict", {"ModelCls": ["class", "antigravity:x"]}]}, "which is not one of headrace"),
        ({"settings": ["dict", {"ModelCls": ["class", "headrace.agents.base:Agent"]}]}, "no such Module"),
        ({"settings": ["dict", {"nonsense": 3}]}, "does not take what the checkpoint says"),
        ({"settings": 3}, "does not take what the checkpoint says"),
    ],
)
def test_a_file_cannot_name_foreign_code(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = trained(tmp_path, CategoricalPgAgent())
    state = load_checkpoint(path)
    save_checkpoint(path, {**state, "about": {**state["about"], **change}})
    with pytest.raises(CheckpointError) as error:
        headrace.load_agent(path)
    assert says in str(error.value)
    assert not {"antigravity", "headrace_evil"} & set(sys.modules)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    for state in ({"agent": {}}, {"about": 3, "agent": {}}, {"about": {"observation": {"kind": "Box"}}, "agent": {}}):
        save_checkpoint(tmp_path / "c.pt", state)
        with pytest.raises(CheckpointError, match="not one that a runner wrote"):
            headrace.load_agent(tmp_path / "c.pt")
