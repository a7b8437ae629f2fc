"""`load_agent`: policies from files, and refusal of all other files."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
from gymnasium import spaces

import headrace
from headrace.agents.base import Agent
from headrace.agents.dqn import DqnAgent
from headrace.agents.pg import (
    CategoricalPgAgent,
    GaussianPgAgent,
    RecurrentCategoricalPgAgent,
    RecurrentGaussianPgAgent,
)
from headrace.algos.pg import A2C
from headrace.buffers.tree import tree_map
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

pytestmark = pytest.mark.usefixtures("copies_tried_here")

WALK = EnvSpaces(Walk().observation_space, Walk().action_space)


def trained(log_dir: Path, agent: Agent, env: Any = Walk, env_kwargs: Any = None) -> Path:
    config = RunnerConfig(n_steps=96, seed=0)
    sampler = SerialSampler(env, env_kwargs, batch_T=8, batch_B=4)
    MinibatchRl(A2C(), agent, sampler, config, log_dir=log_dir, logger=Logger()).train()
    return log_dir / "checkpoint.pt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a `CategoricalPgAgent` for `Walk`; to be read only."""
    return trained(tmp_path_factory.mktemp("run"), CategoricalPgAgent())


def episode(policy: Policy, env: gym.Env[Any, Any]) -> float:
    """The return of one episode, played as a user would, in an environment as evaluation seeds its first."""
    observation, _ = env.reset(seed=env_seeds(5, 0, Stream.EVAL_ENV)[0])
    policy.reset()
    total, ended = 0.0, False
    reward: SupportsFloat = 0.0
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
def test_loaded_agent_acts_as_in_evaluation(kind: str, tmp_path: Path) -> None:
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


MANY: dict[str, tuple[Callable[[], Agent], Any]] = {
    **AGENTS,
    "explores in evaluations too": (lambda: DqnAgent(eps_eval=0.5, eps_final=0.5, eps_final_min=0.1), Walk),
}


@pytest.mark.parametrize("kind", MANY)
def test_policy_acts_for_several_environments_as_in_evaluation(kind: str) -> None:
    make, env = MANY[kind]
    agent = make()
    sampler = SerialSampler(
        env, batch_T=1, batch_B=1, eval_n_envs=3, eval_max_trajectories=6, max_decorrelation_steps=0
    )
    with sampler.initialize(agent, seed=5):
        expected: dict[int, list[Any]] = {env_id: [] for env_id in range(3)}
        for info in sampler.evaluate_agent(0):
            expected[info.env_id].append(pytest.approx(info.Return, rel=1e-5))
    policy = Policy(agent, seed=5)
    envs = [gym.make(env) if isinstance(env, str) else env() for _ in range(3)]
    first = [one.reset(seed=env_seeds(5, k, Stream.EVAL_ENV)[0])[0] for k, one in enumerate(envs)]
    observation, reward, total = np.stack(first), np.zeros(3), np.zeros(3)
    returns: dict[int, list[float]] = {env_id: [] for env_id in range(3)}
    policy.reset()
    while min(map(len, returns.values())) < 2:
        ended = np.zeros(3, np.bool_)
        for k, (one, action) in enumerate(zip(envs, policy(observation, reward), strict=True)):
            observation[k], reward[k], terminated, truncated, _ = one.step(action)
            total[k] += np.float32(reward[k])
            if terminated or truncated:
                ended[k] = True
                returns[k].append(total[k])
                total[k] = 0.0
                observation[k] = one.reset()[0]
        policy.reset(ended)
    for one in envs:
        one.close()
    assert {k: found[:2] for k, found in returns.items()} == expected


def acting(observation: spaces.Space[Any], action: spaces.Space[Any] | None = None) -> Policy:
    agent = CategoricalPgAgent()
    agent.initialize(EnvSpaces(observation, action or spaces.Discrete(7)), seed=3)
    return Policy(agent)


def stacked(values: list[Any]) -> Any:
    """Stacks observations as vector environments do."""
    return tree_map(lambda *leaves: np.stack(leaves), values[0], *values[1:])


@pytest.mark.parametrize("name", SPACES)
def test_space_determines_whether_there_are_one_or_several_observations(name: str) -> None:
    space = SPACES[name]
    space.seed(1)
    values = [space.sample() for _ in range(5)]
    one, many = acting(space), acting(space)
    alone = []
    for value in values:
        one.reset()
        alone.append(one(value))
        assert np.ndim(alone[-1]) == 0
    for n in (5, 1):
        many.reset()
        actions = many(stacked(values[:n]))
        assert isinstance(actions, np.ndarray)
        assert actions.dtype == np.int64
        assert actions.tolist() == alone[:n]


def test_scalar_and_array_of_discrete_observations_are_distinguished() -> None:
    policy = acting(spaces.Discrete(4, start=2))
    for number in (2, np.int64(2), np.asarray(2)):
        policy.reset()
        assert np.ndim(policy(number)) == 0
    policy.reset()
    assert policy(np.array([2, 5])).shape == (2,)
    for wrong in (np.array([2, 6]), np.array([[2]]), np.array([2.0, 5.0]), [2, 5]):
        policy.reset()
        with pytest.raises(ValueError, match=r"observation = .*, expected"):
            policy(wrong)


def test_actions_of_several_environments_are_arrays_of_their_space() -> None:
    space = spaces.MultiDiscrete([3, 2], dtype=np.int32, start=np.array([1, 4], np.int32))
    policy = acting(spaces.Box(-1, 1, (2,), np.float32), space)
    first = policy(np.ones((4, 2), np.float32))
    assert (first.shape, first.dtype) == ((4, 2), np.int32)
    assert all(space.contains(row) for row in first)
    kept = first.copy()
    policy(-np.ones((4, 2), np.float32))
    assert (first == kept).all(), "the caller may keep them"


def test_observation_parts_of_different_numbers_of_environments_are_refused() -> None:
    pair = spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Discrete(3)})
    policy = acting(pair)
    two = np.zeros((2, 2), np.float32)
    for parts in ({"a": two, "b": 1}, {"a": two, "b": np.zeros(3, np.int64)}):
        with pytest.raises(ValueError, match=r"parts of the observation .*\['a'\] is of 2 environments"):
            policy(parts)
    with pytest.raises(ValueError, match="a dict with the keys"):
        policy({"a": two})
    with pytest.raises(ValueError, match="of no environments, expected at least one"):
        policy({"a": two[:0], "b": np.zeros(0, np.int64)})
    policy.reset()
    policy({"a": two, "b": np.zeros(2, np.int64)})
    with pytest.raises(
        ValueError, match=r"got observations of one environment after those of 2 environments, \[2, ...\]; call reset"
    ):
        policy({"a": two[0], "b": 0})
    with pytest.raises(ValueError, match=r"prev_reward has the shape \[3\], expected one number or \[2\]"):
        policy({"a": two, "b": np.zeros(2, np.int64)}, np.zeros(3))
    for rows in ([2], np.ones(3, np.bool_), 0.5, "x"):
        with pytest.raises(ValueError, match=r"rows must be a mask \[2\] or indices below 2"):
            policy.reset(rows)


def test_reset_of_some_environments_clears_only_their_state() -> None:
    agent = RecurrentCategoricalPgAgent()
    agent.initialize(EnvSpaces(spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3)), seed=0)
    observation = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)

    def memory(*calls: Any) -> np.ndarray:
        """Returns the state of the last environment after these resets, with an observation after each."""
        policy = Policy(agent)
        for rows in calls:
            policy.reset(rows)
            policy(observation, np.ones(3))
        return policy._state[0].numpy()

    fresh, kept = memory(None), memory(None, [])
    for rows in ([1], 1, np.array([False, True, False])):
        some = memory(None, rows)
        np.testing.assert_allclose(some[1], fresh[1], atol=1e-6)
        np.testing.assert_allclose(some[[0, 2]], kept[[0, 2]], atol=1e-6)
        assert not np.allclose(kept[1], fresh[1])


def test_an_agent_is_saved_and_loaded_without_a_runner(tmp_path: Path) -> None:
    agent = DqnAgent(model_kwargs={"hidden_sizes": (8,), "dueling": True}, eps_eval=0.25)
    with pytest.raises(ValueError, match="no model yet"):
        agent.save(tmp_path / "agent.pt")
    with SerialSampler(Walk, batch_T=4, batch_B=2).initialize(agent, seed=0) as sampler:
        sampler.obtain_samples(0)
    agent.save(tmp_path / "agent.pt", itr=7)
    policy = headrace.load_agent(tmp_path / "agent.pt")
    assert (type(policy.agent), policy.itr, policy.spaces) == (DqnAgent, 7, agent.spaces)
    assert policy.agent.settings() == agent.settings()
    for name, value in agent.model.state_dict().items():
        assert torch.equal(policy.agent.model.state_dict()[name], value)
    content = bytearray((tmp_path / "agent.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "agent.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        headrace.load_agent(tmp_path / "agent.pt")


def test_policy_reset_clears_the_recurrent_state(tmp_path: Path) -> None:
    agent = RecurrentCategoricalPgAgent(model_kwargs={"input_size": 16, "hidden_size": 16})
    policy = headrace.load_agent(trained(tmp_path, agent))
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
def test_actions_are_in_their_space_during_and_after_training(space: spaces.Space[Any], make: Any) -> None:
    agent = make()
    with SerialSampler(Answers, {"action_space": space}, batch_T=8, batch_B=2).initialize(agent, seed=0) as sampler:
        sampler.obtain_samples(0)
    action = Policy(agent, greedy=False, seed=0)(np.zeros(3, np.float32))
    assert space.contains(action), repr(action)


def test_sampled_actions_come_from_the_seed(checkpoint: Path) -> None:
    def actions(greedy: bool, seed: int | None) -> list[int]:
        policy = headrace.load_agent(checkpoint, greedy=greedy, seed=seed)
        return [int(policy(np.zeros(3, np.float32))) for _ in range(40)]

    assert len(set(actions(True, None))) == 1
    assert len(set(actions(False, 1))) > 1
    assert actions(False, 1) == actions(False, 1) != actions(False, 2)


@pytest.mark.parametrize("name", SPACES)
def test_spaces_survive_conversion_to_plain_data(name: str, tmp_path: Path) -> None:
    from headrace.agents.description import _as_tensors

    save_checkpoint(tmp_path / "c.pt", {"space": _as_tensors(plain_space(SPACES[name]))})
    came = space_of(load_checkpoint(tmp_path / "c.pt")["space"])
    assert came == SPACES[name]
    assert repr(came) == repr(SPACES[name])


def test_bounds_survive_conversion_bit_for_bit() -> None:
    low = np.array([-np.inf, -0.0, 1e-45, np.nextafter(1.0, 2.0)])
    for dtype in (np.float16, np.float32, np.float64):
        space: spaces.Box[Any] = spaces.Box(low.astype(dtype), np.full(4, np.inf, dtype), dtype=dtype)
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


def test_large_space_is_refused_before_it_is_made() -> None:
    small = plain_space(spaces.MultiBinary(2))
    many = {"kind": "Tuple", "spaces": [{**small, "n": 2**23}, {**small, "n": 2**23 + 1}]}
    with pytest.raises(ValueError, match="the space has 16,777,217 numbers, expected at most 16,777,216"):
        space_of(many)


@pytest.mark.parametrize("name", SHAPELESS)
def test_spaces_without_fixed_shape_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match="cannot be saved as plain data"):
        plain_space(SHAPELESS[name])


@pytest.mark.parametrize(
    "name", ["nested", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dict", "image", "discrete from 7"))]
)
def test_policy_takes_observations_and_returns_actions_of_the_environment(name: str, tmp_path: Path) -> None:
    kwargs = {"observation_space": SPACES[name], "action_space": SPACES["discrete from -2"]}
    policy = headrace.load_agent(trained(tmp_path, CategoricalPgAgent(), AnySpaces, kwargs), greedy=False, seed=0)
    SPACES[name].seed(0)
    actions = [policy(SPACES[name].sample()) for _ in range(20)]
    assert all(SPACES["discrete from -2"].contains(action) for action in actions)
    assert min(actions) < 0


def test_invalid_observation_is_refused(checkpoint: Path) -> None:
    policy = headrace.load_agent(checkpoint)
    with pytest.raises(ValueError, match=r"observation = .*float32 \[4\], expected shape \[3\]"):
        policy(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="observation = nan, expected finite"):
        policy(np.array([0, np.nan, 0], np.float32))


class OwnModel(ActorCritic):
    """A custom model."""


class OwnAgent(CategoricalPgAgent):
    """A custom agent."""


def own_function(*args: Any, **kwargs: Any) -> ActorCritic:
    return ActorCritic(*args, **kwargs)


@pytest.mark.parametrize(
    ("make", "says", "remedy"),
    [
        (
            lambda: CategoricalPgAgent(ModelCls=OwnModel),
            "tests.test_policy.OwnModel is a model of your own",
            "ModelCls=",
        ),
        (lambda: CategoricalPgAgent(ModelCls=own_function), "tests.test_policy.own_function is a model", "ModelCls="),
        (OwnAgent, "tests.test_policy.OwnAgent is a class of your own", "agent="),
        (
            lambda: CategoricalPgAgent(ModelCls=OwnModel, model_kwargs={"hidden_sizes": {8}}),
            "a setting of the agent is not a plain value: {8}",
            "agent=",
        ),
    ],
    ids=["model", "function", "agent", "setting"],
)
def test_custom_agent_must_be_passed(make: Any, says: str, remedy: str, tmp_path: Path) -> None:
    agent = make()
    agent.initialize(WALK, seed=0)
    path = tmp_path / "agent.pt"
    agent.save(path)
    with pytest.raises(CheckpointError, match=rf"load_agent\(path, {remedy}") as error:
        headrace.load_agent(path)
    assert says in str(error.value)
    policies = [headrace.load_agent(path, agent=make())]
    if remedy == "ModelCls=":
        policies.append(headrace.load_agent(path, ModelCls=agent.settings()["ModelCls"]))
    for policy in policies:
        for name, value in agent.model.state_dict().items():
            assert torch.equal(policy.agent.model.state_dict()[name], value)


def test_other_spaces_and_other_weights_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    path = checkpoint
    other = CategoricalPgAgent()
    other.initialize(EnvSpaces(spaces.Box(0, 1, (7,), np.float32), spaces.Discrete(2)), seed=0)
    with pytest.raises(CheckpointError, match=r"is for environments with [\s\S]*\(3,\)[\s\S]*is for [\s\S]*\(7,\)"):
        headrace.load_agent(path, agent=other)
    with pytest.raises(CheckpointError, match="do not fit this CategoricalPgAgent"):
        headrace.load_agent(path, agent=CategoricalPgAgent(model_kwargs={"hidden_sizes": (5,)}))
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt does not exist; give the folder of a run"):
        headrace.load_agent(tmp_path / "nothing.pt")
    with pytest.raises(ValueError, match="no model yet"):
        Policy(CategoricalPgAgent())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"class": "os:system"}, "'os:system', which is not a class of headrace"),
        ({"class": "antigravity:Agent"}, "which is not a class of headrace"),
        ({"class": "headrace.policy:os"}, "no such Agent"),
        ({"class": "headrace.policy:Agent"}, "no such Agent"),
        ({"class": "headrace.agents.base:torch"}, "no such Agent"),
        ({"class": "headrace.samplers.presets:SerialSampler"}, "no such Agent"),
        ({"class": "headrace.agents.nothing:Agent"}, "no such Agent"),
        ({"class": "headrace..os:system"}, "which is not a class of headrace"),
        ({"class": "headrace_evil:Agent"}, "which is not a class of headrace"),
        ({"settings": ["dict", {"ModelCls": ["class", "antigravity:x"]}]}, "which is not a class of headrace"),
        ({"settings": ["dict", {"ModelCls": ["class", "headrace.agents.base:Agent"]}]}, "no such Module"),
        ({"settings": ["dict", {"nonsense": 3}]}, "does not accept the settings in the checkpoint"),
        ({"settings": 3}, "does not accept the settings in the checkpoint"),
    ],
)
def test_file_cannot_name_foreign_code(change: dict[str, Any], says: str, tmp_path: Path, checkpoint: Path) -> None:
    state, path = load_checkpoint(checkpoint), tmp_path / "changed.pt"
    save_checkpoint(path, {**state, "about": {**state["about"], **change}})
    with pytest.raises(CheckpointError) as error:
        headrace.load_agent(path)
    assert says in str(error.value)
    assert not {"antigravity", "headrace_evil"} & set(sys.modules)


HUGE = 10**12


def tensor(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.uint8)


def box(shape: Any, raw: Any = None) -> dict[str, Any]:
    one = torch.from_numpy(np.ones(1, np.float32).view(np.uint8).copy()) if raw is None else raw
    return {"kind": "Box", "low": one, "high": one, "shape": shape, "dtype": "<f4"}


FORGED: dict[str, Callable[[dict[str, Any]], None]] = {
    "no weights": lambda state: state.update(agent={}),
    "weights are a number": lambda state: state.update(agent=3),
    "weights are a list": lambda state: state["agent"].update(model=[1.0]),
    "a weight is a number": lambda state: state["agent"]["model"].update({_first(state): 3}),
    "a weight is missing": lambda state: state["agent"]["model"].pop(_first(state)),
    "a weight too many": lambda state: state["agent"]["model"].update(more=torch.zeros(1)),
    "a weight is complex": lambda state: _change(state, lambda weight: weight.to(torch.complex64)),
    "a weight has another shape": lambda state: _change(state, lambda weight: weight[:1]),
    "a weight is NaN": lambda state: _change(state, lambda weight: weight * torch.nan),
    "itr is negative": lambda state: state.update(itr=-1),
    "itr is a text": lambda state: state.update(itr="3"),
    "itr is NaN": lambda state: state.update(itr=float("nan")),
    "itr is a tensor": lambda state: state.update(itr=torch.zeros(2)),
    "about is a list": lambda state: state.update(about=[1]),
    "why_not is missing": lambda state: state["about"].pop("why_not"),
    "settings ask for a huge model": lambda state: state["about"].update(
        settings=["dict", {"model_kwargs": ["dict", {"hidden_sizes": ["list", [HUGE, HUGE]]}]}]
    ),
    "settings are of the wrong type": lambda state: state["about"].update(
        settings=["dict", {"model_kwargs": ["dict", {"hidden_sizes": "wide"}]}]
    ),
    "a setting is no list": lambda state: state["about"].update(settings=["dict", 3]),
    "a space is huge": lambda state: state["about"].update(observation=box([HUGE])),
    "a space has a view of one byte": lambda state: state["about"].update(observation=box([3], tensor(0).expand(HUGE))),
    "a space is negative": lambda state: state["about"].update(observation=box([-3])),
    "a space has no whole shape": lambda state: state["about"].update(observation=box([1.5])),
    "a space is a list": lambda state: state["about"].update(observation=[1]),
    "a space has NaN bounds": lambda state: state["about"].update(observation=box([1], tensor(0, 0, 192, 127))),
    "a space is of texts": lambda state: state["about"].update(observation={**box([3]), "dtype": "<U1"}),
    "a space has many numbers": lambda state: state["about"].update(
        observation={"kind": "Discrete", "n": HUGE, "start": 0, "dtype": "<i8"}
    ),
    "a space has more numbers than there are": lambda state: state["about"].update(
        action={"kind": "Discrete", "n": 10**30, "start": 0, "dtype": "<i8"}
    ),
}


def _first(state: dict[str, Any]) -> str:
    return str(next(iter(state["agent"]["model"])))


def _change(state: dict[str, Any], change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = state["agent"]["model"]
    weights[_first(state)] = change(weights[_first(state)])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "agent.pt"
    agent = CategoricalPgAgent()
    agent.initialize(EnvSpaces(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)), seed=0)
    agent.save(path)
    return path


@pytest.mark.parametrize("name", FORGED)
def test_forged_entries_with_a_valid_checksum_are_a_readable_error(name: str, saved: Path, tmp_path: Path) -> None:
    state = load_checkpoint(saved)
    FORGED[name](state)
    save_checkpoint(tmp_path / "forged.pt", state)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**30, limits[1]))
    try:
        for agent in (None, CategoricalPgAgent()):
            if agent is not None and name.startswith(("settings", "a setting", "why_not")):
                continue  # what is given need not be told
            with pytest.raises(CheckpointError) as error:
                headrace.load_agent(tmp_path / "forged.pt", agent=agent)
            assert "forged.pt" in str(error.value)
            assert len(str(error.value)) < 1500
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_file_without_an_agent_is_refused(tmp_path: Path) -> None:
    states: list[dict[str, Any]] = [
        {"agent": {}},
        {"about": 3, "agent": {}},
        {"about": {"observation": {"kind": "Box"}}, "agent": {}},
    ]
    for state in states:
        save_checkpoint(tmp_path / "c.pt", state)
        with pytest.raises(CheckpointError, match="not written by a runner"):
            headrace.load_agent(tmp_path / "c.pt")
