"""Sampler states: a sampler that is restored from one collects what the first would have collected."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch

from headrace.agents.base import Agent
from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.tree import tree_paths
from headrace.envs.pickling import dumps, loads
from headrace.errors import EnvFailed, SamplerClosed
from headrace.rng import env_seeds
from headrace.samplers import AlternatingSampler, AsyncSerialSampler, BaseSampler, CpuSampler, SerialSampler, TrajInfo
from headrace.samplers.collection.snapshot import SamplerState
from headrace.types import AgentStep, EnvSpaces, StepInputs, Tree
from tests.environments import Stochastic
from tests.forgetful import Forgets, ForgetsItsGenerator, ForgetsWhenItEvaluates, HoldsALock, Large, LoadsNowhere, Ticks
from tests.walk import Walk


def serial(env: Any = Walk, **more: Any) -> SerialSampler:
    return SerialSampler(env, batch_T=10, batch_B=6, deterministic=True, **more)


def workers(n: int, env: Any = Walk, **more: Any) -> CpuSampler:
    return CpuSampler(env, batch_T=10, batch_B=6, deterministic=True, n_workers=n, **more)


def alternating(env: Any = Walk, n_workers: int = 2, **more: Any) -> AlternatingSampler:
    return AlternatingSampler(env, batch_T=10, batch_B=6, deterministic=True, n_workers=n_workers, **more)


class Remembers(Agent):
    """A recurrent agent: its state is a decaying sum of its observations, and determines its actions."""

    noise_size = 1

    def build_model(self, spaces: EnvSpaces) -> torch.nn.Module:
        assert spaces.observation.shape is not None
        return torch.nn.Linear(spaces.observation.shape[0], 3)

    def initial_state(self, n: int) -> Tree:
        return {"sum": torch.zeros(n, 3)}

    def _advance(self, inputs: StepInputs, state: Tree) -> torch.Tensor:
        return 0.9 * state["sum"] + self.model(inputs.observation) + inputs.prev_reward[:, None]

    def step(self, inputs: StepInputs, state: Tree) -> AgentStep:
        total = self._advance(inputs, state)
        action = (inputs.noise[:, 0] < torch.sigmoid(total.sum(1))).long()
        return AgentStep(action, {"total": total}, {"sum": total})

    def value(self, inputs: StepInputs, state: Tree) -> torch.Tensor:
        return self._advance(inputs, state).sum(1)

    def __call__(self, inputs: StepInputs, state: Tree = None) -> Any:
        raise NotImplementedError


@dataclass
class Digest(TrajInfo):
    """Statistics over every step."""

    Seen: float = 0.0

    def step(self, observation: Any, action: Any, reward: float, *_: Any) -> None:
        self.Seen = 0.5 * self.Seen + reward + float(observation[0])


def collect(sampler: BaseSampler, n: int, first: int = 0, evaluate: bool = False) -> list[Any]:
    found: list[Any] = []
    for itr in range(first, first + n):
        samples, infos = sampler.obtain_samples(itr)
        found.append([(path, leaf.clone()) for path, leaf in tree_paths(samples) if "version" not in path])
        found.append([vars(info) for info in infos])
        if evaluate:
            found.append([vars(info) for info in sampler.evaluate_agent(itr)])
    return found


def same(a: list[Any], b: list[Any]) -> bool:
    if len(a) != len(b):
        return False
    for one, other in zip(a, b, strict=True):
        if one and isinstance(one[0], tuple):
            pairs = zip(one, other, strict=True)
            if not all(p == q and torch.equal(x, y) for (p, x), (q, y) in pairs):
                return False
        elif one != other:
            return False
    return True


slow = partial(pytest.param, marks=pytest.mark.slow)
OBJECTS = {"TrajInfoCls": Digest, "eval_n_envs": 3, "env": Stochastic}


@pytest.mark.usefixtures("copies_tried_here")
@pytest.mark.parametrize(
    ("first", "second", "more", "Agents"),
    [
        pytest.param(serial, partial(workers, 3), {}, Remembers, id="serial to 3"),
        slow(partial(workers, 3), serial, {"reset_mode": "wait"}, CategoricalPgAgent, id="wait, 3 to serial"),
        pytest.param(partial(workers, 2), serial, OBJECTS | {"reset_mode": "wait"}, CategoricalPgAgent, id="objects"),
        pytest.param(alternating, serial, {}, Remembers, id="alternating to serial"),
        slow(serial, serial, {}, Remembers, id="serial"),
        slow(partial(workers, 2), partial(workers, 3), {}, CategoricalPgAgent, id="2 to 3"),
        slow(partial(workers, 3), serial, {"reset_mode": "wait"}, Remembers, id="wait, 3 to serial, with memory"),
        slow(serial, partial(workers, 2), {"reset_mode": "wait"}, Remembers, id="wait, serial to 2"),
        slow(serial, serial, {"env": "CartPole-v1", "eval_n_envs": 2}, CategoricalPgAgent, id="cartpole"),
        slow(
            partial(workers, 2),
            partial(alternating, n_workers=3),
            {"reset_mode": "wait"},
            Remembers,
            id="wait, 2 to alternating",
        ),
    ],
)
def test_sampler_continues_from_the_state_of_another(
    first: Any, second: Any, more: dict[str, Any], Agents: Any
) -> None:
    evaluate = "eval_n_envs" in more
    agent = Agents()
    with first(**more).initialize(agent, seed=3, bootstrap_value=True, resumable=True) as sampler:
        collect(sampler, 2, evaluate=evaluate)
        state = sampler.state()
        assert state.why_not == ""
        expected = collect(sampler, 3, first=2, evaluate=evaluate)
    with second(**more).initialize(agent, seed=3, bootstrap_value=True, resume=state) as sampler:
        came = collect(sampler, 3, first=2, evaluate=evaluate)
    assert same(came, expected)


@pytest.mark.usefixtures("copies_tried_here")
def test_unused_evaluation_environments_start_with_their_seeds() -> None:
    def infos(sampler: BaseSampler) -> list[Any]:
        return [vars(info) for info in sampler.evaluate_agent(1)]

    agent = CategoricalPgAgent()
    with serial(Stochastic, eval_n_envs=4).initialize(agent, seed=3, resumable=True) as sampler:
        sampler.obtain_samples(0)
        state = sampler.state()
        expected = infos(sampler)
    with workers(2, Stochastic, eval_n_envs=4).initialize(agent, seed=3, resume=state) as resumed:
        assert infos(resumed) == expected


def test_state_does_not_change_the_sampler() -> None:
    def batches(ask: bool) -> list[Any]:
        with workers(2).initialize(CategoricalPgAgent(), seed=3, resumable=ask) as sampler:
            found = []
            for itr in range(3):
                found += collect(sampler, 1, itr)
                if ask:
                    assert sampler.state().train.keys() == set(range(6))
            return found

    assert same(batches(True), batches(False))


@pytest.mark.parametrize(
    ("make", "env", "says"),
    [
        (serial, Forgets, "a pickled copy of Forgets failed where the original did not"),
        (serial, HoldsALock, "HoldsALock cannot be pickled"),
        (serial, Large, "Large cannot be pickled (ValueError: it is larger than 64 MiB)"),
        (partial(workers, 2), ForgetsItsGenerator, "ForgetsItsGenerator gave a different reward than the original"),
        slow(serial, ForgetsItsGenerator, "ForgetsItsGenerator gave a different reward than the original"),
        slow(partial(workers, 2), Forgets, "a pickled copy of Forgets failed where the original did not"),
        slow(partial(workers, 2), HoldsALock, "HoldsALock cannot be pickled"),
        slow(partial(workers, 2), Large, "Large cannot be pickled (ValueError: it is larger than 64 MiB)"),
    ],
)
def test_environments_that_do_not_survive_a_pickle_are_not_in_the_state(make: Any, env: Any, says: str) -> None:
    with make(env).initialize(CategoricalPgAgent(), seed=0, resumable=True) as sampler:
        assert sampler.state().why_not == f"pickled copies of {env.__qualname__} were not tested yet"
        sampler.obtain_samples(0)
        state = sampler.state()
        assert state.train == {}
        assert says in state.why_not
        sampler.obtain_samples(1)
        assert says in sampler.state().why_not


@pytest.mark.parametrize(
    ("make", "more"),
    [
        (serial, {}),
        pytest.param(alternating, {}, marks=pytest.mark.slow),
        slow(AsyncSerialSampler, {"eval_process": True, "batch_T": 10, "batch_B": 6}),
    ],
    ids=["serial", "served", "async"],
)
def test_copies_of_evaluation_environments_are_tried(make: Any, more: dict[str, Any]) -> None:
    """Whether they can be loaded is tried before the first evaluation, whether they continue during it."""
    options: dict[str, Any] = {"eval_n_envs": 2, "eval_env_kwargs": {"evaluates": True}, **more}
    with make(LoadsNowhere, **options).initialize(CategoricalPgAgent(), seed=0, resumable=True) as sampler:
        for itr in range(2):
            sampler.obtain_samples(itr)
            assert "failed where the original did not: loaded" in sampler.state().why_not
            sampler.evaluate_agent(itr)
    with make(ForgetsWhenItEvaluates, **options).initialize(CategoricalPgAgent(), seed=0, resumable=True) as sampler:
        sampler.obtain_samples(0)
        assert sampler.state().why_not == ""
        sampler.evaluate_agent(0)
        assert "gave a different observation than the original" in sampler.state().why_not


def test_trial_of_copies_needs_environments_that_have_stepped() -> None:
    """In another process the global is as after a reset, so only environments that have stepped show the difference."""
    sampler = SerialSampler(Ticks, batch_T=2, batch_B=1, max_decorrelation_steps=0)
    with sampler.initialize(CategoricalPgAgent(), seed=0, resumable=True):
        sampler.obtain_samples(0)
        assert sampler.state().why_not == "pickled copies of Ticks were not tested yet"
        sampler.obtain_samples(1)
        assert "gave a different observation" in sampler.state().why_not


def test_loading_a_state_does_not_change_classes_of_the_program() -> None:
    gone: list[int] = []

    class Local(Walk):
        def step(self, action: np.int64) -> Any:
            gone.append(1)
            return super().step(action)

    before = dict(vars(Local))
    content = dumps(Local())
    first, second = loads(content), loads(content)
    assert all(vars(Local)[name] is value for name, value in before.items())
    assert len({type(first), type(second), Local}) == 3
    for copy in (first, second):
        copy.reset(seed=1)
        copy.step(1)
    assert gone == []


def test_at_most_8_copies_are_tried_with_many_workers() -> None:
    def interpreters() -> int:
        commands = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
        return sum("headrace.processes.fresh" in command for command in commands)

    class LoadsSlowly(Walk):
        def __setstate__(self, state: dict[str, Any]) -> None:
            time.sleep(1000)

    sampler = CpuSampler(LoadsSlowly, batch_T=4, batch_B=30, n_workers=6)
    with sampler.initialize(CategoricalPgAgent(), seed=0, resumable=True):
        for itr in range(3):
            sampler.obtain_samples(itr)
        assert interpreters() == 2  # eight environments, of workers that have five each
    assert interpreters() == 0


def test_state_without_environments_starts_new_episodes_with_new_seeds() -> None:
    class TellsItsSeed(Walk):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            observation, _ = super().reset(seed=seed)
            if seed is not None:
                self._seed = seed
            return observation, {}

        def step(self, action: np.int64) -> Any:
            return (*super().step(action)[:4], {"seed": self._seed})

    def seeds(sampler: BaseSampler, resume: SamplerState | None) -> tuple[set[int], SamplerState]:
        with sampler.initialize(CategoricalPgAgent(), seed=3, resume=resume) as opened:
            found = set()
            for itr in range(3):
                found |= {info.info["seed"] for info in opened.obtain_samples(itr)[1]}
            return found, opened.state(environments=False)

    first, state = seeds(serial(TellsItsSeed), None)
    second, state = seeds(workers(2, TellsItsSeed), state)
    third, state = seeds(serial(TellsItsSeed), state)
    assert first == {env_seeds(3, env_id)[0] for env_id in range(6)}
    assert second == {env_seeds(3, env_id, incarnation=1)[0] for env_id in range(6)}
    assert third == {env_seeds(3, env_id, incarnation=2)[0] for env_id in range(6)}
    assert len(first | second | third) == 18
    assert (state.batches, state.incarnation) == (9, 2)


@pytest.mark.usefixtures("copies_tried_here")
def test_unreadable_saved_environment_is_named() -> None:
    with serial().initialize(CategoricalPgAgent(), seed=3, resumable=True) as sampler:
        sampler.obtain_samples(0)
        state = sampler.state()
    state.train[4] = b"nothing"  # type: ignore[index]
    with pytest.raises(EnvFailed, match=r"unpickling the saved environment raised[\s\S]*env 4"):
        workers(2).initialize(CategoricalPgAgent(), seed=3, resume=state)


@pytest.mark.usefixtures("copies_tried_here")
def test_state_of_other_environments_is_refused() -> None:
    with serial().initialize(CategoricalPgAgent(), seed=3, resumable=True) as sampler:
        sampler.obtain_samples(0)
        state = sampler.state()
    for other in (serial(eval_n_envs=2), SerialSampler(Walk, batch_T=10, batch_B=7)):
        with pytest.raises(ValueError, match="resume has the environments"):
            other.initialize(CategoricalPgAgent(), seed=3, resume=state)


@pytest.mark.usefixtures("copies_tried_here")
def test_closed_sampler_has_a_state_without_environments() -> None:
    with serial().initialize(CategoricalPgAgent(), seed=3, resumable=True) as sampler:
        sampler.obtain_samples(0)
    with pytest.raises(SamplerClosed):
        sampler.state()
    assert sampler.state(environments=False).batches == 1


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Ant-v5", "Pendulum-v1", "Acrobot-v1"])
def test_pickled_simulators_continue_exactly(env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log where it stands
    env = gym.make(env_id)
    env.reset(seed=1)
    env.action_space.seed(1)
    for _ in range(20):
        env.step(env.action_space.sample())
    copy = loads(dumps(env))
    for _ in range(50):
        action = env.action_space.sample()
        ours, theirs = env.step(action), copy.step(action)
        assert np.array_equal(ours[0], theirs[0])
        assert ours[1:4] == theirs[1:4]
    assert np.array_equal(env.reset()[0], copy.reset()[0])
    env.close()
    copy.close()
