"""`check_env` reports exactly the clause that a broken environment breaks, and nothing for a valid one."""

import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace.agents.pg import CategoricalPgAgent
from headrace.envs import LegacyGym, Violation, check_env
from headrace.envs.checking.rules import CLAUSES
from headrace.errors import SamplerError
from headrace.samplers import SerialSampler
from tests.broken import BROKEN, Adapting, Altered, Broken, Good, ResetWithoutSeed, SeveralThings
from tests.legacy import LookAlike, OldWalk
from tests.walk import Walk


def check(broken: Broken) -> list[Violation]:
    return check_env(broken.make, broken.kwargs, n_steps=40, timeout=broken.timeout)


def some(names: Iterable[str]) -> list[Any]:
    """Returns two cases of each clause; the others are slow."""
    seen = Counter[str]()
    params = []
    for name in names:
        seen[clause := BROKEN[name].clause] += 1
        params.append(pytest.param(name, marks=[] if seen[clause] <= 2 else [pytest.mark.slow]))
    return params


@pytest.mark.parametrize("name", some(BROKEN))
def test_violation_names_the_broken_clause_and_call(name: str) -> None:
    broken = BROKEN[name]
    found = check(broken)
    assert [violation.clause for violation in found] == [broken.clause], "\n".join(map(str, found))
    [violation] = found
    assert broken.call in violation.call, violation
    assert broken.came in violation.came, violation
    assert violation.expected
    assert violation.remedy == CLAUSES[broken.clause]


def test_every_clause_has_an_environment_that_breaks_it() -> None:
    assert len(BROKEN) >= 60
    assert {broken.clause for broken in BROKEN.values()} == CLAUSES.keys()


#: What samplers refuse by themselves: the checker must never be more lenient.
REFUSED = ("constructor", "raises", "reset-answer", "step-answer", "observation", "reward", "terminated", "truncated")


@pytest.mark.parametrize(
    "name", [name for name in BROKEN if BROKEN[name].clause in REFUSED and "KeyboardInterrupt" not in name]
)
def test_every_violation_is_refused_by_a_sampler(name: str) -> None:
    """A sampler refuses every environment of the table, except for lists, which it can cast."""
    broken = BROKEN[name]
    sampler = SerialSampler(broken.make, broken.kwargs, batch_T=40, batch_B=1, max_decorrelation_steps=0)
    if name in ("reset: a list", "step: a list"):
        sampled(sampler, 1)
        return
    try:
        with pytest.raises(SamplerError):
            sampled(sampler, 5)
    finally:
        sampler.shutdown()


def sampled(sampler: SerialSampler, n_batches: int) -> None:
    agent: Any = CategoricalPgAgent()
    with sampler.initialize(agent, seed=0):
        for itr in range(n_batches):
            sampler.obtain_samples(itr)


class Reuses(Good):
    """Returns the same array each time, with other values; samplers copy it."""

    def __init__(self) -> None:
        super().__init__()
        self._array = np.zeros(3, np.float32)

    def observation(self) -> Any:
        self._array[:] = self.observation_space.sample()
        return self._array


class Endless(Good):
    def step(self, action: Any) -> Any:
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, False, info


DICT = spaces.Dict(
    {
        "x": spaces.Box(-1, 1, (2,), np.float32),
        "more": spaces.Tuple((spaces.Discrete(3, start=-1), spaces.MultiBinary(2))),
    }
)

GOOD: dict[str, tuple[Any, dict[str, Any]]] = {
    **{
        name: (name, {})
        for name in (
            "CartPole-v1",
            "Acrobot-v1",
            "Pendulum-v1",
            "MountainCar-v0",
            "MountainCarContinuous-v0",
            "FrozenLake-v1",
            "Taxi-v4",
            "Blackjack-v1",
            "CliffWalking-v1",
            "gym:CartPole-v1",
            "gym:Blackjack-v1",
            "gym:Taxi-v3",
            "tests.walk:Walk",
        )
    },
    "CartPole with a short limit": ("CartPole-v1", {"max_episode_steps": 7}),
    "an EnvSpec": (gymnasium.spec("CartPole-v1"), {}),
    "Dict observations": (Good, {"observation_space": DICT}),
    "Tuple observations": (Good, {"observation_space": spaces.Tuple((spaces.Discrete(2), DICT))}),
    "images": (Good, {"observation_space": spaces.Box(0, 255, (8, 8, 3), np.uint8)}),
    "Discrete with a start": (Good, {"action_space": spaces.Discrete(3, start=5)}),
    "MultiDiscrete actions": (Good, {"action_space": spaces.MultiDiscrete([2, 3], start=[1, -4])}),
    "Dict actions": (Good, {"action_space": DICT}),
    "unbounded actions": (Good, {"action_space": spaces.Box(-np.inf, np.inf, (2,), np.float32)}),
    "an adapting wrapper": (lambda: Adapting(ResetWithoutSeed()), {}),
    "one array for ever": (Reuses, {}),
    "no end": (Endless, {}),
    "float64 where the space says float32": (
        lambda: gymnasium.wrappers.TransformObservation(Walk(), lambda x: x.astype(np.float64), None),
        {},
    ),
    "frame stack": (lambda: gymnasium.wrappers.FrameStackObservation(gymnasium.make("CartPole-v1"), 3), {}),
    "statistics": (lambda: gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("CartPole-v1")), {}),
    "the older API": (OldWalk, {}),
    "the older API, unknown to gym": (lambda: LegacyGym(LookAlike()), {}),
}


#: Simulators of Gymnasium that differ in nothing that is checked.
MORE = {"Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "FrozenLake-v1", "Taxi-v4", "CliffWalking-v1"}
MORE |= {"gym:Blackjack-v1", "gym:Taxi-v3", "statistics", "an EnvSpec", "CartPole with a short limit"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in MORE else []) for name in GOOD]
)
def test_valid_environments_have_no_violations(name: str) -> None:
    EnvCls, env_kwargs = GOOD[name]
    assert check_env(EnvCls, env_kwargs, n_steps=80) == []


@pytest.mark.parametrize(
    ("env_id", "package"),
    [
        ("LunarLander-v3", "Box2D"),
        pytest.param("Hopper-v5", "mujoco", marks=pytest.mark.slow),
        pytest.param("Ant-v5", "mujoco", marks=pytest.mark.slow),
    ],
)
def test_installed_simulators_have_no_violations(
    env_id: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)  # MuJoCo may write a log where it runs
    assert check_env(env_id, n_steps=200) == []


def test_at_least_20_valid_environments_are_checked() -> None:
    assert len(GOOD) >= 20


def test_all_of_several_violations_are_reported() -> None:
    found = check_env(SeveralThings, n_steps=40)
    assert [violation.clause for violation in found] == ["spaces", "close"]
    found = check_env(SeveralInPlay, n_steps=40)
    assert [violation.clause for violation in found] == ["bounds", "global-rng", "autoreset", "close"]


class SeveralInPlay(Good):
    def observation(self) -> Any:
        return super().observation() + np.float32(9 if self.n == 3 else 0)

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        if terminated:
            info["final_obs"] = observation
            np.random.random()
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        raise OSError("stuck")


def test_violations_of_a_registered_environment_are_reported() -> None:
    """Gymnasium's own checker, which an id has by default, would stop at the first assertion."""
    kwargs = BROKEN["step: a list"].kwargs
    spec = gymnasium.envs.registration.EnvSpec("Lists-v0", entry_point=lambda **_: Altered(**kwargs))
    [violation] = check_env(spec, n_steps=40)
    assert (violation.clause, violation.call) == ("step-answer", "step() 2 of episode 2")
    spec = gymnasium.envs.registration.EnvSpec("Lists-v0", entry_point=lambda **_: Altered("reset", list))
    [violation] = check_env(spec, n_steps=40)
    assert (violation.clause, violation.call) == ("reset-answer", "reset(seed=...) of episode 1")


def test_check_env_does_not_change_the_global_generators() -> None:
    def states() -> list[Any]:
        return [pickle.dumps(np.random.get_state()), random.getstate(), torch.get_rng_state().tolist()]

    before = states()
    check_env("CartPole-v1", n_steps=20)
    assert states() == before


def test_violation_is_one_line_with_the_remedy() -> None:
    [violation] = check(BROKEN["shape"])
    assert str(violation) == (
        "observation: step() 2 of episode 2: observation = float32 [4], expected shape [3]; "
        "correct the observation or its declared space"
    )


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: check_env("CartPol-v1"), ValueError, "CartPol"),
        (lambda: check_env(7), TypeError, "EnvCls must be a Gymnasium id"),
        (lambda: check_env(gymnasium.make("CartPole-v1")), TypeError, "is an environment, "),
        (
            lambda: check_env("lanes:Lane"),
            ValueError,
            "EnvCls='lanes:Lane' cannot be imported: No module named 'lanes'",
        ),
        (lambda: check_env("CartPole-v1", n_steps=0), ValueError, "n_steps must be at least 1"),
        (lambda: check_env("CartPole-v1", seed=-1), ValueError, "seed at least 0"),
        (lambda: check_env("CartPole-v1", timeout=0), ValueError, "timeout positive"),
    ],
    ids=["unknown id", "a number", "an environment", "a module", "n_steps", "seed", "timeout"],
)
def test_wrong_argument_of_check_env_raises_an_error(
    call: Callable[[], Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        call()
