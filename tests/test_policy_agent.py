"""`PolicyAgent`: policies with garage's interface act in the samplers."""

import pickle
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace.agents.parameters import ParameterSlots
from headrace.buffers.tree import tree_map
from headrace.checkpoints.file import load_checkpoint, save_checkpoint
from headrace.errors import AgentFailed
from headrace.samplers import (
    AlternatingSampler,
    AsyncAlternatingSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncSerialSampler,
    BaseSampler,
    CpuSampler,
    GpuSampler,
    NoOverlapAlternatingSampler,
    SerialSampler,
)
from headrace.samplers.episodes import PolicyAgent
from headrace.samplers.episodes.policy_values import copied
from headrace.types import EnvSpaces, StepInputs
from tests.environments import SEED, SPACES as KINDS, AnySpaces, EpisodeStep
from tests.grid_world import (
    ACTIONS,
    SCRIPT,
    STATES,
    CountingAlone,
    CountingPolicy,
    GridWorld,
    LinearPolicy,
    ScriptedPolicy,
)
from tests.quick import quick_and_slow

ALL: tuple[type[BaseSampler], ...] = (
    SerialSampler,
    CpuSampler,
    GpuSampler,
    AlternatingSampler,
    NoOverlapAlternatingSampler,
    AsyncSerialSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncAlternatingSampler,
)
SPACES = EnvSpaces(GridWorld.observation_space, GridWorld.action_space)


def sampler_of(cls: type[BaseSampler], env_cls: Any, T: int, B: int, **more: Any) -> BaseSampler:
    n_workers = None if "Serial" in cls.__name__ else 2
    return cls(env_cls, batch_T=T, batch_B=B, max_decorrelation_steps=0, n_workers=n_workers, **more)


class Answers:
    """A policy that returns given answers to one environment or to several."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self._answer = answer
        self.params: Any = None

    def reset(self, do_resets: Any = None) -> None:
        pass

    def get_param_values(self) -> Any:
        return self.params

    def set_param_values(self, params: Any) -> None:
        self.params = params


class Many(Answers):
    def get_actions(self, observations: Any) -> Any:
        return self._answer(observations)


class One(Answers):
    def get_action(self, observation: Any) -> Any:
        return self._answer(observation)


# ---- acting ----


@pytest.mark.parametrize("one_by_one", [False, True], ids=["get_actions", "get_action"])
@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler, GpuSampler])
def test_a_scripted_policy_gives_the_scripted_episodes(cls: type[BaseSampler], one_by_one: bool) -> None:
    policy: Any = One(ScriptedPolicy().get_action) if one_by_one else ScriptedPolicy()
    with sampler_of(cls, GridWorld, 12, 3, eval_n_envs=2).initialize(PolicyAgent(policy), seed=0) as sampler:
        for itr in range(2):
            samples, infos = sampler.obtain_samples(itr)
            assert samples.agent.action.T.tolist() == [[*ACTIONS, *ACTIONS]] * 3
            assert samples.env.observation.T.tolist() == [[*STATES, *STATES]] * 3
            assert samples.agent.agent_info["field"].T.tolist() == [[*STATES, *STATES]] * 3
            assert samples.env.reward.T.tolist() == [[0, 0, 0, 0, 0, 1] * 2] * 3
            assert [info.Return for info in infos] == [1.0] * 6
        assert [info.Length for info in sampler.evaluate_agent(2)] == [6, 6]


@pytest.mark.parametrize(
    ("cls", "make", "deterministic"),
    quick_and_slow(
        [(cls, make, exact) for cls in ALL for make in (CountingPolicy, CountingAlone) for exact in (False, True)],
        quick=[
            (SerialSampler, CountingPolicy, False),
            (SerialSampler, CountingAlone, True),
            (CpuSampler, CountingPolicy, True),
            (AlternatingSampler, CountingPolicy, False),
        ],
    ),
)
def test_state_that_a_policy_keeps_belongs_to_its_columns(
    cls: type[BaseSampler], make: Callable[[], Any], deterministic: bool
) -> None:
    """Neither the other group of columns nor an evaluation in the middle of an episode disturbs it."""
    env_cls = partial(EpisodeStep, ((3, 5), (4, 7), (2, 6)), SEED)
    sampler = sampler_of(cls, env_cls, 4, 6, eval_n_envs=3, deterministic=deterministic)  # two groups of one size
    with sampler.initialize(PolicyAgent(make()), seed=SEED):
        for itr in range(4):
            samples, _ = sampler.obtain_samples(itr)
            step_of_episode = samples.env.observation[..., 1].to(torch.int64)
            assert torch.equal(samples.agent.action, step_of_episode % 3)
            sampler.evaluate_agent(itr)


#: What `RecordsMasks.reset` got, in all copies.
MASKS: list[Any] = []


class RecordsMasks(ScriptedPolicy):
    def reset(self, do_resets: Any = None) -> None:
        assert do_resets.dtype == np.bool_
        MASKS.append(do_resets.tolist())


def test_reset_gets_the_mask_of_columns_at_their_first_step() -> None:
    MASKS.clear()
    agent = PolicyAgent(RecordsMasks())
    agent.initialize(SPACES, seed=0)
    agent.sample_mode(0)
    for is_first in ([False, True], [False, False], [True, False]):
        agent.step(inputs_of([0, 1], is_first), None)
    assert MASKS == [[True, True], [True, False]]  # all at first, none in the second step


def inputs_of(observations: list[int], is_first: list[bool]) -> StepInputs:
    n = len(observations)
    return StepInputs(
        torch.tensor(observations),
        torch.zeros(n, dtype=torch.int64),
        torch.zeros(n),
        torch.tensor(is_first),
        torch.arange(n, dtype=torch.float32)[:, None],
    )


def test_observations_are_copies_that_a_policy_may_write_into_and_keep() -> None:
    def spoil(observations: np.ndarray) -> Any:
        shown = observations.copy()
        observations[...] = -5
        return np.zeros(len(shown), np.int64), {"shown": shown}

    with sampler_of(SerialSampler, EpisodeStep, 6, 2).initialize(PolicyAgent(Many(spoil)), seed=SEED) as sampler:
        samples, _ = sampler.obtain_samples(0)
    assert torch.equal(samples.env.observation, samples.agent.agent_info["shown"])
    assert samples.env.observation.min() == 0


def test_memory_that_a_policy_returns_again_reversed_or_read_only_is_recorded() -> None:
    actions, counts = np.arange(2), np.zeros(1)

    def reuse(observations: Any) -> Any:
        n = len(observations)
        counts[...] += 1
        return actions[:n][::-1], {"n": np.broadcast_to(counts, n)}

    with sampler_of(SerialSampler, EpisodeStep, 4, 2).initialize(PolicyAgent(Many(reuse)), seed=SEED) as sampler:
        samples, _ = sampler.obtain_samples(0)
    n = samples.agent.agent_info["n"][:, 0]
    assert (n[1:] - n[:-1]).tolist() == [1, 1, 1]
    assert samples.agent.action.tolist() == [[1, 0]] * 4


@pytest.mark.parametrize("kind", ["discrete from 7", "multi-discrete from 1 and -4", "nested", "box"])
@pytest.mark.parametrize("one_by_one", [False, True], ids=["get_actions", "get_action"])
def test_actions_are_elements_of_the_action_space(kind: str, one_by_one: bool) -> None:
    space = KINDS[kind]
    space.seed(3)
    element = space.sample()

    def rows(value: Any, n: int) -> Any:
        return tree_map(lambda leaf: np.stack([leaf] * n), value)

    def act(observations: Any) -> Any:
        return rows(element, len(observations)), {}

    policy: Any = One(lambda observation: (element, {})) if one_by_one else Many(act)
    made: list[Any] = []
    env_cls = partial(AnySpaces, spaces.Box(-1, 1, (1,), np.float32), space, made)
    with sampler_of(SerialSampler, env_cls, 3, 2).initialize(PolicyAgent(policy), seed=0) as sampler:
        sampler.obtain_samples(0)
    assert [len(env.actions) for env in made] == [3, 3]
    for env in made:
        for action in env.actions:
            assert space.contains(action)
            np.testing.assert_equal(action, element)


def test_an_evaluation_acts_with_the_mean_in_box_spaces() -> None:
    def act(observations: Any) -> Any:
        mean = np.full((len(observations), 2), 0.25)
        return mean + 0.5, {"mean": mean}

    made: list[Any] = []
    space = spaces.Box(-1, 1, (2,), np.float32)
    sampler = sampler_of(SerialSampler, partial(AnySpaces, space, space, made), 2, 1, eval_n_envs=1)
    with sampler.initialize(PolicyAgent(Many(act)), seed=0):
        samples, _ = sampler.obtain_samples(0)
        sampler.evaluate_agent(0)
    assert samples.agent.action.unique().tolist() == [0.75]
    assert {float(value) for action in made[1].actions for value in action} == {0.25}


# ---- parameters ----


@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler, GpuSampler, AsyncCpuSampler])
def test_copies_follow_the_parameters_of_the_policy(cls: type[BaseSampler]) -> None:
    policy = LinearPolicy(2, 3)
    agent = PolicyAgent(policy)
    rng = np.random.default_rng(0)
    used = []
    with sampler_of(cls, EpisodeStep, 4, 4).initialize(agent, seed=SEED) as sampler:
        for itr in range(4):
            if itr % 2:  # in place, and by the method of the agent
                policy.params["weight"] += rng.normal(size=(2, 3))
                policy.params["n_updates"] = itr
            else:
                weight = rng.normal(size=(2, 3))
                agent.set_param_values({"weight": weight, "bias": rng.normal(size=3), "n_updates": itr})
            used.append(pickle.loads(pickle.dumps(agent.get_param_values())))
            samples, _ = sampler.obtain_samples(itr)
            # An asynchronous sampler collects one batch ahead; its first two have the first parameters.
            params = used[max(itr - 1, 0)] if cls is AsyncCpuSampler else used[itr]
            logits = samples.env.observation.numpy() @ params["weight"] + params["bias"]
            chances = np.exp(logits - logits.max(-1, keepdims=True))
            chances /= chances.sum(-1, keepdims=True)
            np.testing.assert_allclose(samples.agent.agent_info["chances"], chances, rtol=1e-5)
            assert samples.agent.agent_info["n_updates"].unique().tolist() == [params["n_updates"]]


class Own:
    """Parameters of an own class."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and other.value == self.value


NESTED = {"layers": [np.ones((2, 2), np.float32), (np.zeros(3), 4)], "name": "a", "none": None}
VALUES: dict[str, tuple[Any, Any]] = {
    "flat array": (np.zeros(5, np.float32), np.arange(5, dtype=np.float32)),
    "dict of arrays": ({"a": np.zeros((2, 3)), "b": np.zeros(1)}, {"a": np.ones((2, 3)), "b": np.ones(1)}),
    "nested": (NESTED, {**NESTED, "name": "longer", "layers": [np.zeros((2, 2), np.float32), (np.ones(3), 5)]}),
    "tensors": (
        {"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.bfloat16), "none": torch.zeros(0, 4)},
        {"a": torch.ones(3, 2).T, "b": torch.ones((), dtype=torch.bfloat16), "none": torch.zeros(0, 4)},
    ),
    "object of another kind": (Own(1), Own(2)),
    "nothing": (None, None),
}


def agent_with(values: Any) -> PolicyAgent:
    policy = Many(lambda observations: (np.zeros(len(observations), np.int64), {}))
    policy.params = values
    agent = PolicyAgent(policy)
    agent.initialize(SPACES, seed=0)
    return agent


def assert_same(came: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert came.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(came[key], value)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(came, expected, rtol=0, atol=0)
    else:
        assert type(came) is type(expected)
        np.testing.assert_equal(came, expected)


@pytest.mark.parametrize("kind", VALUES)
def test_parameters_of_any_kind_travel(kind: str) -> None:
    """Also through a process that passes them on, as an asynchronous sampler's does."""
    before, after = VALUES[kind]
    learner, between, acting = (agent_with(before) for _ in range(3))

    def allocate(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    first, second = ParameterSlots(learner, allocate), ParameterSlots(between, allocate)
    for version, values in enumerate((before, after, before, before)):
        learner.set_param_values(values)
        first.publish(learner, version)
        first.load(between, version)
        second.publish(between, version)
        second.load(acting, version)
        acting.sample_mode(version)
        assert_same(acting.get_param_values(), values)
        assert_same(between.get_param_values(), values)


def test_parameters_that_outgrow_their_memory_are_refused() -> None:
    agent = agent_with(np.zeros(10))
    agent.set_param_values(np.zeros(100_000))
    with pytest.raises(ValueError, match=r"parameters have grown to 8.* bytes, but the memory .* was made for"):
        agent.acting_state()


def test_parameters_that_cannot_be_pickled_are_refused() -> None:
    with pytest.raises(TypeError, match=r"the policy's parameters cannot be pickled: .*lambda"):
        agent_with({"a": lambda: None})


@pytest.mark.parametrize("kind", [kind for kind in VALUES if kind != "object of another kind"])
def test_parameters_are_restored_from_a_checkpoint(kind: str, tmp_path: Path) -> None:
    before, after = VALUES[kind]
    save_checkpoint(tmp_path / "c", agent_with(after).state_dict())
    agent = agent_with(before)
    agent.load_state_dict(load_checkpoint(tmp_path / "c"))
    assert_same(agent.get_param_values(), after)


def test_parameters_that_a_checkpoint_cannot_hold_are_named() -> None:
    with pytest.raises(TypeError, match=r"parameters\['a'\]\[0\]: a checkpoint cannot hold a Own"):
        agent_with({"a": [Own(1)]}).state_dict()


@pytest.mark.parametrize(
    ("own", "came", "words"),
    [
        (np.zeros(3), np.zeros(4), r"is float64 \[4\] in the checkpoint, expected float64 \[3\]"),
        ({"a": np.zeros(3)}, {"a": np.zeros(3, np.float32)}, r"\['a'\] is float32 \[3\] .* expected float64 \[3\]"),
        ({"a": 1}, {"b": 1}, r"is a dict with the keys \['b'\] in the checkpoint, expected .* \['a'\]"),
        ([1, 2], [1], "is a list of 1 in the checkpoint, expected a list of 2"),
    ],
)
def test_parameters_of_another_policy_are_refused(own: Any, came: Any, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        agent_with(own).load_state_dict(agent_with(came).state_dict())


def test_a_torch_policy_acts_in_workers() -> None:
    class Torch(Many):
        def __init__(self) -> None:
            self.layer = torch.nn.Linear(2, 3)

        def get_actions(self, observations: Any) -> Any:
            scores = self.layer(torch.from_numpy(observations))
            return scores.argmax(-1), {"scores": scores}

        def get_param_values(self) -> Any:
            return self.layer.state_dict()

        def set_param_values(self, params: Any) -> None:
            self.layer.load_state_dict(params)

    policy = Torch()
    with sampler_of(CpuSampler, EpisodeStep, 4, 4).initialize(PolicyAgent(policy), seed=SEED) as sampler:
        for itr in range(2):
            with torch.no_grad():
                policy.layer.weight += 1
            samples, _ = sampler.obtain_samples(itr)
            scores = policy.layer(samples.env.observation)
            torch.testing.assert_close(samples.agent.agent_info["scores"], scores.detach())


# ---- random numbers ----


def test_copies_draw_different_numbers_which_are_a_function_of_the_seed() -> None:
    def actions(agent: PolicyAgent, seed: int) -> list[list[int]]:
        with sampler_of(CpuSampler, EpisodeStep, 40, 2).initialize(agent, seed=seed) as sampler:
            return sampler.obtain_samples(0)[0].agent.action.T.tolist()

    agent = PolicyAgent(LinearPolicy(2, 3))
    first = actions(agent, SEED)
    assert first[0] != first[1]  # each column has a worker, and each worker a copy
    assert actions(agent, SEED) == first
    assert actions(PolicyAgent(LinearPolicy(2, 3, seed=9)), SEED) == first


@pytest.mark.parametrize(
    "make",
    [
        np.random.default_rng,
        np.random.RandomState,
        random.Random,
        lambda seed: torch.Generator().manual_seed(seed),
    ],
    ids=["Generator", "RandomState", "Random", "torch.Generator"],
)
def test_generators_of_all_kinds_are_seeded_anew_in_copies(make: Callable[[int], Any]) -> None:
    def draw(generator: Any) -> float:
        if isinstance(generator, torch.Generator):
            return float(torch.rand((), generator=generator))
        return float(generator.random())

    shared = make(1)
    original = {"first": shared, "again": shared, "other": make(1)}
    copies = [copied(original, np.random.SeedSequence(seed)) for seed in (4, 4, 5)]
    assert copies[0]["first"] is copies[0]["again"]
    assert type(copies[0]["first"]) is type(shared)
    drawn = [[draw(copy[name]) for name in ("first", "other")] for copy in copies]
    assert drawn[0] == drawn[1]
    assert len({*drawn[0], *drawn[2], draw(shared)}) == 5


def test_a_policy_with_one_copy_per_environment_gives_the_same_batches_in_all_samplers() -> None:
    class Alone(One):
        def __init__(self) -> None:
            super().__init__(lambda observation: (self.rng.integers(3), {}))
            self.rng = np.random.default_rng()

    found = []
    for cls in (SerialSampler, CpuSampler):
        with sampler_of(cls, EpisodeStep, 8, 3).initialize(PolicyAgent(Alone()), seed=SEED) as sampler:
            found.append([sampler.obtain_samples(itr)[0].agent.action.tolist() for itr in range(2)])
    assert found[0] == found[1]


# ---- refusals ----


def test_a_policy_without_the_methods_is_refused() -> None:
    with pytest.raises(TypeError, match="Answers lacks get_actions or get_action"):
        PolicyAgent(Answers(lambda observation: None))
    with pytest.raises(TypeError, match=r"policy must have reset, .*; int lacks reset and get_param_values and"):
        PolicyAgent(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got the class ScriptedPolicy; pass ScriptedPolicy\(...\)"):
        PolicyAgent(ScriptedPolicy)  # type: ignore[arg-type]


NOTHING = np.zeros(2, np.int64)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (NOTHING, r"Many.get_actions returned int64 \[2\], expected a pair \(actions, dict\)"),
        ((NOTHING, None), r"Many.get_actions returned tuple \(array.*expected a pair"),
        ((NOTHING[:1], {}), r"Many returned actions with int64 \[1\], expected numbers \[2, ...\]"),
        ((NOTHING, {"a": 1.0}), r"Many returned agent_infos with float64 \[\], expected numbers \[2, ...\]"),
        ((NOTHING, {"a": ["x", "y"]}), r"Many returned agent_infos with <U1 \[2\], expected numbers"),
    ],
)
def test_answers_of_another_form_are_refused(answer: Any, words: str) -> None:
    agent = PolicyAgent(Many(lambda observations: answer))
    agent.initialize(SPACES, seed=0)
    agent.sample_mode(0)
    with pytest.raises(TypeError, match=words):
        agent.step(inputs_of([0, 1], [True, True]), None)


@pytest.mark.parametrize(
    ("action", "info", "words"),
    [
        (7, lambda at_start: {}, r"action = 7, expected indices in \[0, 4\)"),
        (0.5, lambda at_start: {}, r"action = float64 \[2\], expected indices in \[0, 4\)"),
        ([2], lambda at_start: {}, r"action = int64 \[2, 1\], expected indices in \[0, 4\)"),
        (2, lambda at_start: {"a" if at_start else "b": [0, 0]}, r"keys \['b'\], expected .* the keys \['a'\]"),
        (2, lambda at_start: {"a": np.zeros((2, 1 + at_start))}, r"agent_info\['a'\] = float64 \[2, 1\], expected"),
    ],
)
def test_answers_that_do_not_fit_the_batch_are_refused(action: Any, info: Callable[[bool], Any], words: str) -> None:
    def act(fields: Any) -> Any:
        n = len(fields)
        return np.array([action] * n), {name: rows[:n] for name, rows in info(fields[0] == 0).items()}

    with pytest.raises(AgentFailed, match=words):
        with sampler_of(SerialSampler, GridWorld, 2, 2).initialize(PolicyAgent(Many(act)), seed=0) as sampler:
            sampler.obtain_samples(0)


def test_agent_infos_that_differ_between_environments_are_named() -> None:
    policy = One(lambda seen: (SCRIPT[seen], {"a": 1} if seen == 0 else {"b": 1}))
    agent = PolicyAgent(policy)
    agent.initialize(SPACES, seed=0)
    agent.sample_mode(0)
    with pytest.raises(ValueError, match=r"agent_info with the keys \['b'\], expected \['a'\]"):
        agent.step(inputs_of([0, 1], [True, True]), None)


def test_a_bootstrap_value_is_refused_with_the_remedy() -> None:
    agent = PolicyAgent(ScriptedPolicy())
    with pytest.raises(AgentFailed, match=r"a policy has no value function; initialize .* with bootstrap_value=False"):
        with sampler_of(SerialSampler, GridWorld, 2, 2).initialize(agent, seed=0, bootstrap_value=True) as sampler:
            sampler.obtain_samples(0)


def test_training_with_the_agent_is_refused() -> None:
    with pytest.raises(TypeError, match="PolicyAgent only acts"):
        PolicyAgent(ScriptedPolicy())(inputs_of([0], [True]))
