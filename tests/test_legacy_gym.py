"""Environments of old gym: samples equal those under Gymnasium, and what cannot be adapted is one readable error."""

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv

from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_paths
from headrace.envs import EnvFactory, LegacyGym
from headrace.envs.legacy_gym import converted_space
from headrace.errors import EnvContractError, EnvFailed
from headrace.samplers import BaseSampler, CpuSampler, SerialSampler, TrajInfo
from tests import legacy
from tests.leftovers import DEADLINE
from tests.legacy import LIMIT, Interop, Joypad, LookAlike, NewWalk, OldWalk, Parallel, Scripted, TakesSeed, gym

Batches = list[tuple[Samples, Sequence[TrajInfo]]]
ZERO = np.zeros(2, np.float32)


def batches_of(cls: type[BaseSampler], EnvCls: Any, env_kwargs: Any = None, **options: Any) -> Batches:
    sampler = cls(EnvCls, env_kwargs, batch_T=25, batch_B=5, max_decorrelation_steps=10, deterministic=True, **options)
    with sampler.initialize(CategoricalPgAgent(), seed=4, bootstrap_value=True):
        return [(samples.copy(), infos) for samples, infos in (sampler.obtain_samples(itr) for itr in range(3))]


def assert_equal(first: Batches, second: Batches) -> None:
    for (samples, traj_infos), (others, other_infos) in zip(first, second, strict=True):
        for (path, leaf), (_, other) in zip(tree_paths(samples), tree_paths(others), strict=True):
            assert leaf.dtype == other.dtype, path
            assert torch.equal(leaf, other), path
        assert traj_infos == other_infos


def ends_of(batches: Batches) -> tuple[int, int]:
    """How many rows are terminated, and how many truncated."""
    terminated = sum(int(samples.env.terminated.sum()) for samples, _ in batches)
    return terminated, sum(int(samples.env.truncated.sum()) for samples, _ in batches)


def cart_pole_with_the_checker(max_episode_steps: int) -> Any:
    """As users of gym make it: with the checker that fails under NumPy 2."""
    return gym.make("CartPole-v1", max_episode_steps=max_episode_steps)


CART_POLES: dict[str, Any] = {
    "id": "gym:CartPole-v1",
    "factory": cart_pole_with_the_checker,
    "adapted": lambda max_episode_steps: LegacyGym(
        gym.make("CartPole-v1", max_episode_steps=max_episode_steps), api="0.26"
    ),
}


@pytest.fixture(scope="module")
def cart_pole() -> Batches:
    batches = batches_of(SerialSampler, "CartPole-v1", {"max_episode_steps": 17})
    terminated, truncated = ends_of(batches)
    assert terminated > 0
    assert truncated > 0
    return batches


@pytest.mark.parametrize(
    ("name", "cls", "options"),
    [
        ("id", SerialSampler, {}),
        ("factory", SerialSampler, {}),
        ("adapted", SerialSampler, {}),
        ("id", CpuSampler, {"n_workers": 2}),
        ("factory", CpuSampler, {"n_workers": 2}),
        pytest.param("id", CpuSampler, {"n_workers": 1, "start_method": "forkserver"}, marks=pytest.mark.slow),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_gym_cartpole_gives_the_batches_of_gymnasium(
    cart_pole: Batches, name: str, cls: type[BaseSampler], options: dict[str, Any]
) -> None:
    assert_equal(cart_pole, batches_of(cls, CART_POLES[name], {"max_episode_steps": 17}, **options))


def test_gym_class_is_accepted_as_env_cls() -> None:
    old = gym.envs.registration.load("gym.envs.classic_control:CartPoleEnv")
    assert_equal(batches_of(SerialSampler, CartPoleEnv), batches_of(SerialSampler, old))


@pytest.mark.parametrize("api", ["auto", "0.21"])
@pytest.mark.parametrize(("cls", "options"), [(SerialSampler, {}), (CpuSampler, {"n_workers": 2})])
def test_four_tuple_api_gives_the_batches_of_the_new_api(
    cls: type[BaseSampler], options: dict[str, Any], api: str
) -> None:
    """Seeds, the environment's own action space, `start`, and both kinds of end."""
    old = OldWalk if api == "auto" else partial(adapted_walk, api)
    expected = batches_of(SerialSampler, NewWalk, {"start": 2})
    terminated, truncated = ends_of(expected)
    assert terminated > 0
    assert truncated > 0
    assert_equal(expected, batches_of(cls, old, {"start": 2}, **options))


def adapted_walk(api: str, start: int) -> LegacyGym:
    return LegacyGym(OldWalk(start), api=api)


def test_time_limit_is_a_truncation_and_other_ends_are_terminations() -> None:
    env = LegacyGym(OldWalk())
    ends = set()
    env.reset(seed=1)
    for _ in range(300):
        _, _, terminated, truncated, info = env.step(0)
        assert truncated == info.get("TimeLimit.truncated", False)
        if terminated or truncated:
            ends.add((terminated, truncated, "TimeLimit.truncated" in info))
            env.reset()
    # also one that fell in the very step of the limit
    assert ends >= {(True, False, False), (False, True, True)}
    assert all(not (terminated and truncated) for terminated, truncated, _ in ends)


def test_seed_is_passed_once_and_render_and_close_are_forwarded() -> None:
    old = OldWalk()
    env = LegacyGym(old, render_mode="ansi")
    first, info = env.reset(seed=7)
    assert info == {}
    again, _ = env.reset()
    assert old.seeds == [7]
    assert not np.array_equal(first, again)
    np.testing.assert_array_equal(first, env.reset(seed=7)[0])
    assert env.render() == "drawn for ansi"
    env.close()
    assert (old.drawings, old.closed) == (["ansi"], 1)


def test_gym_rendering_is_forwarded() -> None:
    env = LegacyGym(gym.make("CartPole-v1", render_mode="rgb_array", disable_env_checker=True))
    assert env.render_mode == "rgb_array"
    assert "rgb_array" in env.metadata["render_modes"]
    env.reset(seed=0)
    frame = env.render()
    assert frame.shape == (400, 600, 3)
    env.close()


def test_environment_not_derived_from_gym_is_adapted_with_legacy_gym() -> None:
    expected = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)
    env = LegacyGym(LookAlike())
    assert (env.observation_space, env.action_space) == expected
    [(samples, traj_infos), *_] = batches_of(SerialSampler, lambda: LegacyGym(LookAlike()))
    assert {info.Length for info in traj_infos[5:]} == {4}
    assert samples.env.terminated.sum() == len(traj_infos)


def test_tuple_observation_is_not_taken_for_an_info() -> None:
    space = gym.spaces.Tuple((gym.spaces.Discrete(3), gym.spaces.Dict({"x": gym.spaces.Discrete(2)})))
    observation = (2, {"x": 1})
    env = LegacyGym(Scripted(observation, (observation, 1.0, True, {}), observation_space=space))
    assert env.reset(seed=0) == (observation, {})
    assert env.step(0) == (observation, 1.0, True, False, {})


SPACES: dict[str, tuple[Any, spaces.Space[Any]]] = {
    "box": (gym.spaces.Box(-2.0, 3.0, (3,), np.float32), spaces.Box(-2.0, 3.0, (3,), np.float32)),
    "box float64": (gym.spaces.Box(-np.inf, 3.0, (1, 2), np.float64), spaces.Box(-np.inf, 3.0, (1, 2), np.float64)),
    "image": (gym.spaces.Box(0, 255, (2, 4, 3), np.uint8), spaces.Box(0, 255, (2, 4, 3), np.uint8)),
    "discrete": (gym.spaces.Discrete(5), spaces.Discrete(5)),
    "discrete from -2": (gym.spaces.Discrete(4, start=-2), spaces.Discrete(4, start=-2)),
    "multi-discrete": (gym.spaces.MultiDiscrete([3, 5]), spaces.MultiDiscrete([3, 5])),
    "multi-binary": (gym.spaces.MultiBinary(4), spaces.MultiBinary(4)),
    "multi-binary matrix": (gym.spaces.MultiBinary([2, 3]), spaces.MultiBinary([2, 3])),
    "nested": (
        gym.spaces.Dict(
            {"b": gym.spaces.Tuple((gym.spaces.Discrete(2), gym.spaces.Discrete(3))), "a": gym.spaces.MultiBinary(2)}
        ),
        spaces.Dict(
            {"b": spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3))), "a": spaces.MultiBinary(2)},
        ),
    ),
}


@pytest.mark.parametrize("name", SPACES)
def test_spaces_are_converted(name: str) -> None:
    old, new = SPACES[name]
    converted = converted_space(old, "action_space")
    assert converted == new
    converted.seed(3)
    new.seed(3)
    assert all(converted.contains(sample) and old.contains(sample) for sample in (new.sample() for _ in range(5)))


def test_space_subclass_is_converted_like_its_base() -> None:
    class Buttons(gym.spaces.Discrete):  # type: ignore[misc]
        pass

    assert converted_space(Buttons(3), "action_space") == spaces.Discrete(3)


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (Parallel(), "observation_space is Parallel"),
        (gym.spaces.Dict({"x": Parallel()}), "observation_space['x'] is Parallel"),
        (gym.spaces.Tuple([gym.spaces.Discrete(2), Parallel()]), "observation_space[1] is Parallel"),
        (gym.spaces.Text(5), "observation_space is Text"),
        (7, "observation_space is int 7"),
    ],
    ids=["own", "in a Dict", "in a Tuple", "Text", "a number"],
)
def test_a_space_without_a_counterpart_is_refused(space: Any, says: str) -> None:
    with pytest.raises(EnvContractError) as caught:
        batches_of(SerialSampler, Scripted, {"first": ZERO, "answer": None, "observation_space": space})
    assert says in str(caught.value)
    assert "expected one of gym's Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple" in str(caught.value)
    assert "constructing the environment" in str(caught.value)


@pytest.mark.parametrize(
    ("first", "answer", "says"),
    [
        (None, None, ["reset() returned observation = NoneType None", "a numpy array of float32 [2]"]),
        ("junk", None, ["reset() returned observation = str 'junk'", "a numpy array of float32 [2]"]),
        ((ZERO, ZERO), None, ["reset() returned observation = tuple", "a numpy array of float32 [2]"]),
        (ZERO, (ZERO, 1.0, True), ["Scripted: step() returned tuple of 3", "(observation, reward, done, info)"]),
        (ZERO, (ZERO, 1.0, True, False, {}), ["step() returned tuple of 5", "(observation, reward, done, info)"]),
        ((ZERO, {}), (ZERO, 1.0, True, {}), ["step() returned tuple of 4", "terminated, truncated, info"]),
        (ZERO, None, ["step() returned NoneType None", "(observation, reward, done, info)"]),
        (ZERO, (ZERO, 1.0, "yes", {}), ["step() returned terminated = str 'yes'", "expected a bool"]),
        (ZERO, (ZERO, 1.0, 2, {}), ["step() returned terminated = int 2", "expected a bool"]),
        (ZERO, (ZERO, 1.0, True, None), ["step() returned info = NoneType", "expected a dict"]),
    ],
    ids=[
        "None",
        "string",
        "pair",
        "three",
        "five",
        "four of 0.26",
        "no answer",
        "done is a string",
        "done is 1",
        "info",
    ],
)
def test_invalid_result_of_an_old_environment_is_a_one_sentence_error(first: Any, answer: Any, says: list[str]) -> None:
    with pytest.raises(EnvContractError) as caught:
        batches_of(SerialSampler, Scripted, {"first": first, "answer": answer})
    assert all(words in str(caught.value) for words in says), str(caught.value)
    assert "env 0" in str(caught.value)


def test_a_wrong_api_is_named() -> None:
    with pytest.raises(ValueError, match=r"api must be one of 'auto', '0.26', '0.21', got '0.25'"):
        LegacyGym(OldWalk(), api="0.25")
    with pytest.raises(EnvContractError, match=r"reset\(\) returned ndarray .*expected \(observation, info\)"):
        LegacyGym(OldWalk(), api="0.26").reset(seed=0)


def test_object_without_spaces_is_named() -> None:
    with pytest.raises(EnvContractError, match="object has no observation_space"):
        LegacyGym(object())


def test_an_error_inside_an_old_environment_names_it() -> None:
    class Fails(OldWalk):
        def step(self, action: Any) -> Any:
            raise RuntimeError("out of oil")

    with pytest.raises(EnvFailed, match="RuntimeError: out of oil"):
        batches_of(SerialSampler, Fails)


@pytest.mark.parametrize(
    ("env_id", "says"),
    [("gym:CartPol-v1", "gym has no environment 'CartPol-v1'"), ("gym:nowhere:X-v0", "No module named 'nowhere'")],
)
def test_an_unknown_id_of_gym_is_named(env_id: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EnvFactory.of(env_id, None)


def test_gym_id_without_gym_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym", None)
    with pytest.raises(ValueError, match=r'pip install "headrace\[legacy\]"'):
        EnvFactory.of("gym:CartPole-v1", None)


def test_old_environment_not_derived_from_gym_error_names_the_adapter() -> None:
    with pytest.raises(EnvContractError, match=r"LookAlike, not a gymnasium\.Env; .*LegacyGym\(env\)"):
        EnvFactory.of(LookAlike, None)()


def test_gym_is_loaded_only_for_its_ids_and_prints_nothing() -> None:
    code = (
        "import sys\n"
        "from headrace.envs import EnvFactory\n"
        "EnvFactory.of('CartPole-v1', None)()\n"
        "assert 'gym' not in sys.modules\n"
        "env = EnvFactory.of('gym:CartPole-v1', None)()\n"
        "assert 'gym' in sys.modules\n"
        "env.reset(seed=0); env.step(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_gymnasium_environments_are_not_adapted() -> None:
    assert isinstance(EnvFactory.of("CartPole-v1", None)(), gymnasium.Wrapper)
    assert isinstance(EnvFactory.of(legacy.NewWalk, None)(), NewWalk)
    assert LIMIT < 17  # both walks truncate within a batch


# ---- what `gym.make` and other packages put around environments ----


@pytest.mark.parametrize("make", ["gym:tests.legacy:tests/Endless-v0", lambda: gym.make("tests/Endless-v0")])
def test_time_limit_of_a_four_tuple_environment_is_kept(make: Any) -> None:
    [(samples, traj_infos), *_] = batches_of(CpuSampler, make, n_workers=2)
    lengths = {info.Length for info in traj_infos}
    assert max(lengths) == LIMIT
    assert len(lengths) > 1
    terminated, truncated = ends_of([(samples, traj_infos)])
    assert terminated > 0
    assert truncated > 0


@pytest.mark.parametrize(
    "make",
    [
        "gym:tests.legacy:tests/Unseeded-v0",
        "gym:tests.legacy:tests/Compatible-v0",
        lambda: gym.wrappers.RecordEpisodeStatistics(gym.make("tests/Compatible-v0")),
        Interop,
    ],
    ids=["id", "with the adapter of gym", "in a wrapper of gym", "with an `env` of another kind"],
)
def test_environments_without_a_seed_method_run(make: Any) -> None:
    batches = batches_of(SerialSampler, make)
    assert sum(ends_of(batches)) > 0


def test_seed_reaches_environments_inside_wrappers_without_seed() -> None:
    direct = batches_of(SerialSampler, OldWalk)
    for make in (lambda: Joypad(OldWalk()), lambda: Joypad(TakesSeed()), TakesSeed):
        assert_equal(direct, batches_of(SerialSampler, make))


def test_wrapper_that_expects_the_newer_api_is_named_with_the_remedy() -> None:
    def make() -> Any:
        return gym.wrappers.RecordEpisodeStatistics(gym.make("tests/Endless-v0"))

    with pytest.raises(EnvContractError) as caught:
        batches_of(SerialSampler, make)
    for words in ("Endless: step() raised ValueError", "RecordEpisodeStatistics.step", "apply_api_compatibility=True"):
        assert words in str(caught.value)
    assert "LegacyGym(env)" in str(caught.value)
