"""Samplers of whole episodes: equal in every sampler, exact, unbiased, and with readable errors."""

import pickle
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from headrace.agents.pg import CategoricalPgAgent, RecurrentCategoricalPgAgent
from headrace.buffers.tree import tree_leaves, tree_paths
from headrace.envs import VectorEnvs
from headrace.errors import AgentFailed, EnvContractError, EnvFailed, SamplerClosed, WorkerCrashed
from headrace.processes.affinity import usable_cores
from headrace.samplers import (
    DefaultWorker,
    EpisodeSampler,
    FragmentWorker,
    LocalSampler,
    MultiprocessingSampler,
    NewEnvUpdate,
    SetTaskUpdate,
    VecWorker,
    Worker,
    WorkerFactory,
)
from headrace.samplers.episodes import EpisodeBatch, StepType
from headrace.samplers.episodes.pace import Pace
from tests.episode_worlds import Fails, Kills, Lengths, Limited, Pictures, Zeros
from tests.grid_world import ACTIONS, STATES, GridWorld, ScriptedPolicy
from tests.leftovers import other_processes

SAMPLERS = [LocalSampler, MultiprocessingSampler]
WORKERS = [DefaultWorker, VecWorker, FragmentWorker]
each_sampler = pytest.mark.parametrize("sampler_cls", SAMPLERS, ids=lambda cls: cls.__name__)


def grid(sampler_cls: type[EpisodeSampler], **arguments: Any) -> EpisodeSampler:
    """Returns a sampler of GridWorld with a policy that acts by a script."""
    arguments = {"max_episode_length": 16, "n_workers": 2, "seed": 0} | arguments
    return sampler_cls(ScriptedPolicy(), GridWorld, **arguments)  # type: ignore[call-arg, arg-type]


def require_equal(one: EpisodeBatch, other: EpisodeBatch) -> None:
    for name, value in vars(one).items():
        came = vars(other)[name]
        if isinstance(value, list) or name == "env_spec":
            assert value == came, name
            continue
        for (path, leaf), (_, same) in zip(tree_paths(value, name), tree_paths(came, name), strict=True):
            assert leaf.dtype == same.dtype, path
            np.testing.assert_array_equal(leaf, same, path)


def require_consistent(episodes: EpisodeBatch) -> None:
    """Checks what holds for every batch of `Lengths`: rewards are steps, and observations those of one episode."""
    episodes.validate()
    for one in episodes.split():
        n = int(one.lengths[0])
        np.testing.assert_array_equal(one.observations[:, 0], np.arange(n))
        np.testing.assert_array_equal(one.rewards, np.arange(1, n + 1))
        assert (one.observations[:, 1] == one.numbers[0]).all()
        assert one.last_observations.tolist() == [[n, one.numbers[0]]]
        assert one.episode_infos == [{"number": one.numbers[0]}]
        assert one.last_infos[0] == {"step": n, "action": one.actions[-1]}


# ---- equal in every sampler ----


@pytest.mark.parametrize("worker_class", WORKERS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("agent_cls", [CategoricalPgAgent, RecurrentCategoricalPgAgent], ids=lambda cls: cls.__name__)
def test_local_and_multiprocessing_give_equal_episodes(worker_class: Any, agent_cls: Any) -> None:
    found = []
    for sampler_cls in SAMPLERS:
        with sampler_cls(
            agent_cls(),
            Lengths,
            max_episode_length=50,
            n_workers=3,
            worker_class=worker_class,
            seed=5,
            deterministic=True,
            env_info_keys={"step": (np.int64, ())},
        ) as sampler:
            found.append(
                [
                    sampler.obtain_samples(0, 200),
                    sampler.obtain_samples(1, 100),
                    sampler.obtain_exact_episodes(5),
                    sampler.obtain_samples(2, 150),
                ]
            )
    for one, other in zip(*found, strict=True):
        require_equal(one, other)


def test_episodes_do_not_depend_on_the_other_environments() -> None:
    """Episode k of environment e is the same beside others, and in obtain_samples and obtain_exact_episodes."""

    def episodes(n_workers: int, n_envs: int, exact: bool) -> dict[tuple[int, int], EpisodeBatch]:
        arguments: dict[str, Any] = {"worker_class": VecWorker, "worker_args": {"n_envs": n_envs}}
        with LocalSampler(
            CategoricalPgAgent(),
            Lengths,
            max_episode_length=50,
            n_workers=n_workers,
            seed=5,
            deterministic=True,
            **arguments,
        ) as sampler:
            parts = [sampler.obtain_exact_episodes(2 * n_envs), sampler.obtain_exact_episodes(n_envs)] if exact else []
            for itr in range(0 if exact else 3):
                parts.append(sampler.obtain_samples(itr, 100))
        return {(int(one.env_ids[0]), int(one.numbers[0])): one for part in parts for one in part.split()}

    one, other, exact = episodes(1, 4, False), episodes(2, 2, False), episodes(4, 1, True)
    common = one.keys() & other.keys() & exact.keys()
    assert len(common) == 12
    for key in common:
        for name in ("observations", "actions", "rewards", "agent_infos"):
            for leaves in zip(*(tree_leaves(getattr(found[key], name)) for found in (one, other, exact)), strict=True):
                np.testing.assert_array_equal(leaves[0], leaves[1])
                np.testing.assert_array_equal(leaves[0], leaves[2])


@each_sampler
def test_scripted_episodes(sampler_cls: Any) -> None:
    with grid(sampler_cls) as sampler:
        episodes = sampler.obtain_samples(0, 1000)
    assert len(episodes.rewards) >= 1000
    for one in episodes.split():
        np.testing.assert_array_equal(one.observations, STATES)
        np.testing.assert_array_equal(one.actions, ACTIONS)
        assert one.rewards.tolist() == [0, 0, 0, 0, 0, 1]
        assert one.last_observations.tolist() == [15]
        assert one.step_types.tolist() == [StepType.FIRST, *[StepType.MID] * 4, StepType.TERMINAL]
        np.testing.assert_array_equal(one.agent_infos["field"], STATES)
        assert one.episode_infos == [{"goal": 15}]


# ---- which episodes ----


@each_sampler
@pytest.mark.parametrize("worker_class", [DefaultWorker, VecWorker], ids=lambda cls: cls.__name__)
def test_exact_episodes_are_in_worker_order(worker_class: Any, sampler_cls: Any) -> None:
    policies = [ScriptedPolicy([worker % 4] * 16) for worker in range(4)]
    with sampler_cls(
        policies, GridWorld, max_episode_length=5, n_workers=4, worker_class=worker_class, seed=0
    ) as sampler:
        episodes = sampler.obtain_exact_episodes(3)
        assert len(episodes) == 12
        for index, one in enumerate(episodes.split()):
            assert set(one.actions.tolist()) == {index // 3}
        assert sampler.total_env_steps == len(episodes.rewards)


def test_exact_episodes_of_a_worker_with_several_environments() -> None:
    with LocalSampler(
        CategoricalPgAgent(),
        Lengths,
        max_episode_length=50,
        n_workers=2,
        worker_class=VecWorker,
        worker_args={"n_envs": 3},
        seed=7,
    ) as sampler:
        parts = [sampler.obtain_exact_episodes(n) for n in (1, 7, 2)]
    for n, part in zip((1, 7, 2), parts, strict=True):
        require_consistent(part)  # an environment that runs no episode is not reset either
        first, second = part.take(slice(0, n)), part.take(slice(n, None))
        assert (first.env_ids < 3).all()
        assert (second.env_ids >= 3).all()
        for one in (first, second):
            assert one.starts.tolist() == sorted(one.starts.tolist())
    assert parts[1].numbers[parts[1].env_ids == 0].tolist() == [1, 2, 3]
    assert parts[1].numbers[parts[1].env_ids == 2].tolist() == [0, 1]


def test_samples_are_counted_up_to_the_episode_that_reaches_the_number() -> None:
    with grid(LocalSampler, n_workers=8) as sampler:
        assert len(sampler.obtain_samples(0, 161)) == 27  # episodes of six steps
        assert len(sampler.obtain_samples(1, 6)) == 1


def test_no_episode_is_lost_or_returned_twice() -> None:
    with LocalSampler(
        CategoricalPgAgent(), Lengths, max_episode_length=50, n_workers=2, worker_class=VecWorker, seed=1
    ) as sampler:
        parts = [sampler.obtain_samples(itr, 77) for itr in range(12)]
        assert sampler.discarded.steps == 0
    found: dict[int, list[int]] = {}
    for part in parts:
        require_consistent(part)
        for env_id, number in zip(part.env_ids.tolist(), part.numbers.tolist(), strict=True):
            found.setdefault(env_id, []).append(number)
    assert found.keys() == set(range(16))
    assert all(numbers == list(range(len(numbers))) for numbers in found.values())
    # Parameters that acted: those of the call, or of an earlier one for what was carried over.
    assert all(part.versions.max() <= itr for itr, part in enumerate(parts))
    assert any((part.versions < itr).any() for itr, part in enumerate(parts))


def test_short_episodes_are_not_favoured() -> None:
    """The lengths of returned episodes are those of all started ones; first-come returns too many short ones."""

    def first_lengths(by_arrival: bool) -> float:
        with LocalSampler(
            CategoricalPgAgent(),
            lambda: Lengths(most=60),
            max_episode_length=100,
            n_workers=1,
            worker_class=VecWorker,
            worker_args={"n_envs": 16},
            seed=0,
            by_arrival=by_arrival,
            on_policy=True,  # so that all environments start anew in every call
        ) as sampler:
            return float(np.mean([sampler.obtain_samples(itr, 200).lengths.mean() for itr in range(60)]))

    unbiased, first_come = first_lengths(False), first_lengths(True)
    assert abs(unbiased - 30.5) < 4  # uniform over 1 to 60; the standard error is 1
    assert first_come < 24


@each_sampler
def test_on_policy_discards_what_an_earlier_call_began(sampler_cls: Any) -> None:
    with sampler_cls(
        CategoricalPgAgent(),
        Lengths,
        max_episode_length=50,
        n_workers=2,
        worker_class=VecWorker,
        seed=1,
        on_policy=True,
    ) as sampler:
        parts = [sampler.obtain_samples(itr, 50) for itr in range(4)]
        discarded = sampler.discarded
    for itr, part in enumerate(parts):
        assert set(part.versions.tolist()) == {itr}
        assert (part.step_types[np.cumsum(part.lengths) - part.lengths] != StepType.MID).all()
    assert discarded.steps > 0
    assert discarded.episodes > 0


def test_episodes_of_a_bounded_age() -> None:
    def oldest(max_age: int | None) -> list[int]:
        with LocalSampler(
            CategoricalPgAgent(),
            lambda: Lengths(most=4, long_every=3, long=90),
            max_episode_length=100,
            n_workers=1,
            worker_class=VecWorker,
            seed=1,
            max_age=max_age,
        ) as sampler:
            parts = [sampler.obtain_samples(itr, 60) for itr in range(12)]
            assert (sampler.discarded.episodes > 0) == (max_age is not None)
        return [itr - int(part.versions.min()) for itr, part in enumerate(parts)]

    assert max(oldest(None)) > 1
    assert max(oldest(1)) <= 1


@each_sampler
def test_one_long_episode_does_not_hold_up_a_call_with_max_wait(sampler_cls: Any) -> None:
    with sampler_cls(
        CategoricalPgAgent(),
        [lambda: Lengths(most=5, long_every=1, long=100_000), lambda: Lengths(most=5)],
        max_episode_length=100_000,
        n_workers=2,
        seed=1,
    ) as sampler:
        episodes = sampler.obtain_samples(0, 30, max_wait=0.0)
        assert set(episodes.env_ids.tolist()) == {1}
        assert len(episodes.rewards) > 0
        assert set(sampler.obtain_samples(1, 30, max_wait=0.0).env_ids.tolist()) == {1}


def test_pictures() -> None:
    """Large rows are joined in another way than small ones."""
    with LocalSampler(Zeros(), Pictures, max_episode_length=50, n_workers=2, worker_class=VecWorker, seed=1) as sampler:
        parts = [sampler.obtain_samples(itr, 100) for itr in range(3)]
    for part in parts:
        for one in part.split():
            n = int(one.lengths[0])
            np.testing.assert_array_equal(one.observations, np.arange(n)[:, None, None] * np.ones((48, 48)))
            assert (one.last_observations == n).all()
            np.testing.assert_array_equal(one.rewards, np.arange(1, n + 1))


def test_first_come_is_the_order_of_ends() -> None:
    with LocalSampler(
        CategoricalPgAgent(),
        lambda: Lengths(most=30),
        max_episode_length=50,
        n_workers=2,
        worker_class=VecWorker,
        seed=1,
        by_arrival=True,
    ) as sampler:
        episodes = sampler.obtain_samples(0, 400)
    ends = episodes.starts + episodes.lengths
    assert ends.tolist() == sorted(ends.tolist())
    assert episodes.starts.tolist() != sorted(episodes.starts.tolist())


@each_sampler
def test_no_worker_is_ahead_after_exact_episodes(sampler_cls: Any) -> None:
    """Short episodes in one worker and long ones in the other: both take part in the next call."""
    with sampler_cls(
        CategoricalPgAgent(),
        [lambda: Lengths(most=1), lambda: Lengths(long_every=1, long=500)],
        max_episode_length=500,
        n_workers=2,
        seed=1,
    ) as sampler:
        sampler.obtain_exact_episodes(4)
        episodes = sampler.obtain_samples(0, 800)
    assert set(episodes.env_ids.tolist()) == {0, 1}


def test_infos_of_resets_are_copies() -> None:
    class Reused(Lengths):
        _told: ClassVar[dict[str, Any]] = {"place": np.zeros(1)}

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            observation, info = super().reset(seed=seed, options=options)
            self._told["place"][:] = info["number"]
            return observation, self._told

    with LocalSampler(CategoricalPgAgent(), Reused, max_episode_length=50, n_workers=1, seed=1) as sampler:
        episodes = sampler.obtain_samples(0, 100)
    assert [info["place"].tolist() for info in episodes.episode_infos] == [[number] for number in episodes.numbers]


def test_rows_between_two_looks_at_the_clock() -> None:
    assert Pace(None).most(1000) == 1000
    assert Pace(0.0).most(1000) == 1
    pace = Pace(1e6)
    assert pace.most(1000) == 1  # nothing is known of how long a row takes
    pace.note(1)
    assert pace.most(1000) == 1000
    assert not pace.is_late


# ---- how episodes end ----


@pytest.mark.parametrize("worker_class", WORKERS, ids=lambda cls: cls.__name__)
def test_a_time_limit_of_the_environment_and_one_of_the_worker(worker_class: Any) -> None:
    with LocalSampler(
        CategoricalPgAgent(),
        lambda: Limited(most=8, truncates=True),
        max_episode_length=5,
        n_workers=1,
        worker_class=worker_class,
        worker_args={"timesteps_per_call": 7} if worker_class is FragmentWorker else None,
        seed=3,
    ) as sampler:
        episodes = sampler.obtain_samples(0, 300)
    assert episodes.lengths.max() == 5
    ends = episodes.step_types[np.cumsum(episodes.lengths) - 1]
    if worker_class is not FragmentWorker:
        assert set(ends.tolist()) == {StepType.TIMEOUT}
        require_consistent(episodes)
        assert episodes.env_spec.max_episode_length == 5


def test_a_terminal_state_at_the_time_limit_is_terminal() -> None:
    with LocalSampler(
        CategoricalPgAgent(), lambda: Lengths(most=1), max_episode_length=1, n_workers=1, seed=0
    ) as sampler:
        assert set(sampler.obtain_samples(0, 5).step_types.tolist()) == {StepType.TERMINAL}


def test_the_limit_is_that_of_the_environment_by_default() -> None:
    with LocalSampler(CategoricalPgAgent(), "CartPole-v1", n_workers=1, seed=0) as sampler:
        assert sampler.obtain_samples(0, 1).env_spec.max_episode_length == 500
    with pytest.raises(EnvContractError, match=r"Lengths states no time limit .*pass max_episode_length"):
        LocalSampler(CategoricalPgAgent(), Lengths, n_workers=1, seed=0)


@pytest.mark.parametrize("mode", [*AutoresetMode], ids=lambda mode: mode.name)
def test_vector_environments(mode: AutoresetMode) -> None:
    envs = VectorEnvs(
        partial(gym.make_vec, "CartPole-v1", vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    )
    found = []
    for _ in range(2):
        with LocalSampler(
            CategoricalPgAgent(),
            envs,
            n_workers=2,
            worker_class=VecWorker,
            worker_args={"n_envs": 3},
            seed=0,
            deterministic=True,
        ) as sampler:
            found.append([sampler.obtain_samples(0, 100), sampler.obtain_exact_episodes(4)])
    for one, other in zip(*found, strict=True):
        require_equal(one, other)
    assert len(found[0][1]) == 8
    for episodes in found[0]:
        for one in episodes.split():  # a dummy step of a reset would be a step that changes nothing
            assert (np.abs(np.diff(one.observations, axis=0)).sum(axis=1) > 0).all()
            assert one.rewards.tolist() == [1.0] * len(one.rewards)
    with pytest.raises(EnvContractError, match="time limit"):
        LocalSampler(CategoricalPgAgent(), envs, max_episode_length=9, n_workers=1, worker_class=VecWorker)


# ---- fragments ----


@pytest.mark.parametrize("timesteps", [1, 3, 40])
def test_fragments_join_to_whole_episodes(timesteps: int) -> None:
    n_envs, n_calls = 3, 40
    with LocalSampler(
        CategoricalPgAgent(),
        Lengths,
        max_episode_length=50,
        n_workers=1,
        worker_class=FragmentWorker,
        worker_args={"n_envs": n_envs, "timesteps_per_call": timesteps},
        seed=2,
    ) as sampler:
        parts = [sampler.obtain_exact_episodes(1) for _ in range(n_calls)]
    assert all(len(part.rewards) == n_envs * timesteps for part in parts)
    joined: dict[tuple[int, int], list[EpisodeBatch]] = {}
    for part in parts:
        for one in part.split():
            joined.setdefault((int(one.env_ids[0]), int(one.numbers[0])), []).append(one)
    n_whole = 0
    for pieces in joined.values():
        steps = np.concatenate([piece.observations[:, 0] for piece in pieces])
        np.testing.assert_array_equal(steps, np.arange(len(steps)))
        types = np.concatenate([piece.step_types for piece in pieces])
        assert (types[1:] != StepType.FIRST).all()
        assert (types[:-1] < StepType.TERMINAL).all()
        for before, after in pairwise(pieces):
            np.testing.assert_array_equal(before.last_observations[0], after.observations[0])
        assert all(piece.episode_infos == [{"number": piece.numbers[0]}] for piece in pieces)
        if types[-1] == StepType.TERMINAL:
            n_whole += 1
            assert pieces[-1].last_observations[0, 0] == len(steps)
    assert n_whole >= len(joined) - n_envs


@each_sampler
def test_fragments_go_on_until_the_environments_are_updated(sampler_cls: Any) -> None:
    def long() -> Lengths:
        return Lengths(long_every=1, long=1000)

    with sampler_cls(
        CategoricalPgAgent(),
        long,
        max_episode_length=1000,
        n_workers=2,
        worker_class=FragmentWorker,
        worker_args={"n_envs": 2, "timesteps_per_call": 5},
        seed=0,
    ) as sampler:
        parts = [sampler.obtain_samples(0, 160), sampler.obtain_samples(1, 160)]
        after = sampler.obtain_samples(2, 160, env_update=NewEnvUpdate(long))
    assert all(part.lengths.tolist() == [5] * 32 for part in (*parts, after))
    for found, first in ((EpisodeBatch.concatenate(*parts), 0), (after, 1)):
        for env_id in range(4):
            own = found.take(found.env_ids == env_id)
            np.testing.assert_array_equal(own.observations[:, 0], np.arange(len(own.rewards)))
            assert own.step_types.tolist() == [StepType.FIRST, *[StepType.MID] * (len(own.rewards) - 1)]
            assert set(own.numbers.tolist()) == {first}


# ---- updates ----


@each_sampler
def test_environment_updates(sampler_cls: Any) -> None:
    tasks = [SetTaskUpdate(GridWorld, {"goal": goal}) for goal in (2, 6)]
    with grid(sampler_cls) as sampler:
        before = sampler.obtain_samples(0, 60)
        after = sampler.obtain_samples(1, 60, env_update=tasks)
        again = sampler.obtain_samples(2, 60, env_update=tasks[::-1])
        same = sampler.obtain_samples(3, 60)
        with pytest.raises(ValueError, match="env_update is a list of 3, but there are 2 workers"):
            sampler.obtain_samples(4, 60, env_update=[tasks[0]] * 3)
        assert len(sampler.obtain_samples(5, 60).rewards) >= 60
    assert {info["goal"] for info in before.episode_infos} == {15}
    goals = [
        {int(env_id): info["goal"] for env_id, info in zip(part.env_ids, part.episode_infos, strict=True)}
        for part in (after, again, same)
    ]
    assert goals == [{0: 2, 1: 6}, {0: 6, 1: 2}, {0: 6, 1: 2}]


@each_sampler
def test_updates_of_each_environment_of_a_worker(sampler_cls: Any) -> None:
    def tasks(*goals: int) -> list[SetTaskUpdate]:
        return [SetTaskUpdate(GridWorld, {"goal": goal}) for goal in goals]

    arguments: dict[str, Any] = {"worker_class": VecWorker, "worker_args": {"n_envs": 2}}
    with grid(sampler_cls, **arguments) as sampler:
        sampler.obtain_samples(0, 60)
        parts = [sampler.obtain_samples(1, 60, env_update=[tasks(2, 6), tasks(10, 2)])]
        with pytest.raises(ValueError, match=r"worker 1 got a list of 3 environments or updates, but it has 2"):
            sampler.obtain_samples(2, 60, env_update=[None, tasks(2, 6, 10)])
        parts.append(sampler.obtain_samples(3, 60, env_update=[tasks(6, 6), None]))
    found = [dict(zip(part.env_ids.tolist(), part.episode_infos, strict=True)) for part in parts]
    goals = [[own[env_id]["goal"] for env_id in range(4)] for own in found]
    assert goals == [[2, 6, 10, 2], [6, 6, 10, 2]]
    with pytest.raises((ValueError, EnvFailed), match="got a list of 1 environments"):
        sampler_cls(ScriptedPolicy(), [[GridWorld], GridWorld], max_episode_length=16, n_workers=2, **arguments)


@each_sampler
def test_the_first_environments_may_be_updates_or_environments(sampler_cls: Any) -> None:
    update = NewEnvUpdate(GridWorld)
    env = GridWorld(goal=6)
    with sampler_cls(ScriptedPolicy(), [update, env], max_episode_length=16, n_workers=2, seed=0) as sampler:
        episodes = sampler.obtain_samples(0, 160)
    assert len(episodes.rewards) >= 160
    assert {info["goal"] for info in episodes.episode_infos} == {15, 6}
    assert env.n_closed == 0  # workers have copies


@each_sampler
def test_a_callable_gets_the_old_environment(sampler_cls: Any) -> None:
    def moved(env: Any) -> Any:
        env.goal = 2
        return env

    with grid(sampler_cls) as sampler:
        episodes = sampler.obtain_samples(0, 20, env_update=moved)
    assert {info["goal"] for info in episodes.episode_infos} == {2}


def test_an_environment_that_stays_goes_on_with_its_generator() -> None:
    def kept(env: Any) -> Any:
        return env

    lengths = []
    for env_update in (None, kept):
        with LocalSampler(
            CategoricalPgAgent(), Lengths, max_episode_length=50, n_workers=1, seed=4, deterministic=True
        ) as sampler:
            sampler.obtain_exact_episodes(2)
            lengths.append(sampler.obtain_exact_episodes(6, env_update=env_update).lengths.tolist())
    assert lengths[0] == lengths[1]


@each_sampler
def test_agent_updates(sampler_cls: Any) -> None:
    agent, other = CategoricalPgAgent(), CategoricalPgAgent()
    with sampler_cls(agent, "CartPole-v1", n_workers=2, seed=0, deterministic=True) as sampler:

        def logits(agent_update: Any) -> np.ndarray:
            episodes = sampler.obtain_exact_episodes(1, agent_update)
            found: np.ndarray = episodes.agent_infos.dist.logits[np.cumsum(episodes.lengths) - episodes.lengths]
            return found

        assert agent.spaces is not None
        other.initialize(agent.spaces, seed=99)
        with_other = logits(other.get_param_values())
        assert not np.array_equal(with_other, logits(agent))
        for parameter in agent.parameters():
            parameter.data.zero_()
        assert (logits(None) == 0).all()  # in place, as a learner changes them
        first, second = logits([agent.get_param_values(), other.get_param_values()])
        assert (first == 0).all()
        assert (second != 0).any()
        assert not (logits(other) == 0).all()
        with pytest.raises(ValueError, match="agent_update is a list of 3"):
            sampler.obtain_samples(0, 10, agent_update=[agent] * 3)


# ---- recipes ----


@each_sampler
def test_pickling(sampler_cls: Any) -> None:
    sampler = grid(sampler_cls)
    payload = cloudpickle.dumps(sampler)
    before = sampler.obtain_samples(0, 60)
    sampler.shutdown_worker()
    with pickle.loads(payload) as again:
        require_equal(before, again.obtain_samples(0, 60))
    with pytest.raises(SamplerClosed):
        sampler.obtain_samples(0, 1)


@each_sampler
def test_the_names_of_a_life(sampler_cls: Any) -> None:
    sampler = grid(sampler_cls)
    sampler.start_worker()
    sampler.start_worker()
    first = sampler.obtain_exact_trajectories(2)
    assert first.env_ids.tolist() == [0, 0, 1, 1]
    assert sampler.total_env_steps == len(first.rewards) == 24
    sampler.shutdown_worker()
    sampler.shutdown()
    with pytest.raises(SamplerClosed):
        sampler.obtain_exact_episodes(1)


def test_worker_factories() -> None:
    factory = WorkerFactory(max_episode_length=16, seed=3, n_workers=2, worker_class=VecWorker)
    assert WorkerFactory().n_workers == usable_cores()
    with grid(LocalSampler, seed=3, worker_class=VecWorker) as sampler:
        assert sampler.worker_factory == factory
        one = sampler.obtain_samples(0, 100)
    with LocalSampler.from_worker_factory(factory, ScriptedPolicy(), GridWorld) as sampler:
        require_equal(one, sampler.obtain_samples(0, 100))
    recorded: dict[str, Any] = {"goal": (np.int64, ())}  # what the sampler adds to the arguments of the factory
    with LocalSampler(ScriptedPolicy(), GridWorld, worker_factory=factory, env_info_keys=recorded) as sampler:
        assert set(sampler.obtain_samples(0, 100).env_infos["goal"].tolist()) == {15}
    with pytest.raises(TypeError, match="n_workers and worker_factory were given"):
        LocalSampler(ScriptedPolicy(), GridWorld, n_workers=2, worker_factory=factory)


@each_sampler
def test_workers_without_a_seed_draw_different_numbers(sampler_cls: Any) -> None:
    with sampler_cls(CategoricalPgAgent(), "CartPole-v1", n_workers=2) as sampler:
        episodes = sampler.obtain_exact_episodes(1)
        one, other = episodes.split()
        assert not np.array_equal(one.observations[0], other.observations[0])
        assert isinstance(sampler.seed, int)


def test_a_sampler_leaves_the_global_generators_alone() -> None:
    state = np.random.get_state()
    with grid(LocalSampler) as sampler:
        sampler.obtain_samples(0, 10)
    for one, other in zip(state, np.random.get_state(), strict=True):
        np.testing.assert_array_equal(one, other)


class Trials(DefaultWorker):
    """A rollout of several episodes, for memory over several of them."""

    def __init__(self, *, seed: int, max_episode_length: int | None, worker_number: int, n_episodes: int) -> None:
        super().__init__(seed=seed, max_episode_length=max_episode_length, worker_number=worker_number)
        self._n_episodes = n_episodes

    def rollout(self) -> EpisodeBatch:
        parts = []
        for _ in range(self._n_episodes):
            self.start_episode()
            while not self.step_episode():
                pass
            parts.append(self.collect_episode())
        return EpisodeBatch.concatenate(*parts)


class OldNames(DefaultWorker):
    """Overrides a hook by its name of July 2020."""

    n_started = 0

    def start_rollout(self) -> None:
        self.n_started += 1
        DefaultWorker.start_episode(self)

    def collect_episode(self) -> EpisodeBatch:
        episodes = super().collect_episode()
        episodes.env_infos = {"started": np.full(len(episodes.rewards), self.n_started)}
        return episodes


@each_sampler
def test_workers_of_ones_own(sampler_cls: Any) -> None:
    with grid(sampler_cls, worker_class=Trials, worker_args={"n_episodes": 5}) as sampler:
        episodes = sampler.obtain_exact_episodes(3)
        assert len(episodes) == 30
        assert episodes.numbers.tolist() == [*range(15)] * 2
        assert len(sampler.obtain_samples(0, 100).rewards) >= 100
    with grid(sampler_cls, worker_class=OldNames) as sampler:
        episodes = sampler.obtain_exact_episodes(3)
        assert episodes.env_infos["started"].reshape(2, 3, 6)[:, :, 0].tolist() == [[1, 2, 3]] * 2


# ---- faults ----


@each_sampler
def test_a_failing_policy(sampler_cls: Any) -> None:
    with pytest.raises(AgentFailed, match="this policy does not start"):
        with sampler_cls([ScriptedPolicy(), Fails()], GridWorld, max_episode_length=16, n_workers=2, seed=0) as sampler:
            sampler.obtain_samples(0, 100)


@each_sampler
def test_a_failing_update(sampler_cls: Any) -> None:
    def broken(env: Any) -> Any:
        raise KeyError("no such task")

    with grid(sampler_cls) as sampler:
        with pytest.raises(EnvFailed, match="the update of env 0 raised KeyError: 'no such task'"):
            sampler.obtain_samples(0, 100, env_update=[broken, None])
        with pytest.raises(SamplerClosed):
            sampler.obtain_samples(1, 100)


@pytest.mark.parametrize("exact", [False, True], ids=["samples", "exact"])
@pytest.mark.parametrize("envs", [Kills, [Kills, Lengths]], ids=["all", "one"])
def test_killed_workers(envs: Any, exact: bool) -> None:
    with MultiprocessingSampler(CategoricalPgAgent(), envs, max_episode_length=50, n_workers=2, seed=0) as sampler:
        call = partial(sampler.obtain_exact_episodes, 1000) if exact else partial(sampler.obtain_samples, 0, 10_000)
        with pytest.raises(WorkerCrashed, match="SIGKILL"):
            call()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"n_workers": 0}, ValueError, "n_workers must be at least 1"),
        ({"worker_class": int}, TypeError, "worker_class must be a subclass of Worker"),
        ({"max_episode_length": 0}, ValueError, "max_episode_length must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"worker_args": {"n_env": 3}}, TypeError, "n_env"),
        ({"n_env": 3}, TypeError, "n_env"),
        ({"max_age": -1}, ValueError, "max_age must be at least 0"),
        ({"max_age": 1, "on_policy": True}, ValueError, "max_age=1 has no effect with on_policy"),
        ({"by_arrival": 1}, TypeError, "by_arrival must be True or False"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        grid(LocalSampler, **arguments)


def test_lists_of_a_wrong_length() -> None:
    with pytest.raises(ValueError, match="envs is a list of 3, but there are 2 workers"):
        LocalSampler(ScriptedPolicy(), [GridWorld] * 3, max_episode_length=16, n_workers=2)
    with pytest.raises(ValueError, match="agents is a list of 1, but there are 2 workers"):
        LocalSampler([ScriptedPolicy()], GridWorld, max_episode_length=16, n_workers=2)


def test_an_error_of_the_program_closes_the_workers() -> None:
    with pytest.raises(ValueError, match="mine"), grid(MultiprocessingSampler) as sampler:
        raise ValueError("mine")
    with pytest.raises(SamplerClosed):
        sampler.obtain_samples(0, 1)
    assert other_processes() == set()


def test_calls_with_wrong_numbers() -> None:
    with grid(LocalSampler) as sampler:
        with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
            sampler.obtain_samples(0, 0)
        with pytest.raises(ValueError, match="n_eps_per_worker must be at least 1, got 0"):
            sampler.obtain_exact_episodes(0)


def rolled_out(worker_class: type[Worker], env: Any, agent: Any, **worker_args: Any) -> list[EpisodeBatch]:
    """Returns two rollouts of a worker without a sampler."""
    worker = WorkerFactory(
        max_episode_length=16, seed=0, n_workers=1, worker_class=worker_class, worker_args=worker_args
    )(0)
    worker.update_agent(agent)
    worker.update_env(env)
    found = [worker.rollout() for _ in range(2)]
    worker.shutdown()
    return found


def test_rollouts_of_several_environments() -> None:
    first, second = rolled_out(VecWorker, GridWorld(), ScriptedPolicy(), n_envs=5)
    for one in (first, second):
        assert one.env_ids.tolist() == [*range(5)]
        assert one.actions.tolist() == [*ACTIONS] * 5
        assert one.last_observations.tolist() == [15] * 5
    alone = rolled_out(DefaultWorker, Lengths(), CategoricalPgAgent())
    for one, other in zip(alone, rolled_out(VecWorker, Lengths(), CategoricalPgAgent(), n_envs=1), strict=True):
        require_equal(one, other)


def test_a_worker_alone() -> None:
    """A worker can be used without a sampler, and refuses to be pickled."""
    made: Callable[[int], Any] = WorkerFactory(max_episode_length=50, seed=0, n_workers=2, worker_class=VecWorker)
    worker = made(1)
    worker.update_agent(CategoricalPgAgent())
    worker.update_env(Lengths())
    parts = [worker.rollout() for _ in range(6)]
    for part in parts:
        require_consistent(part)
        assert set(part.env_ids.tolist()) <= set(range(8, 16))
    with pytest.raises(TypeError, match="VecWorker cannot be pickled"):
        pickle.dumps(worker)
    worker.shutdown()
    one = WorkerFactory(max_episode_length=500, seed=0, n_workers=1)(0)
    one.update_agent(CategoricalPgAgent())
    one.update_env(Lengths(long_every=1, long=400))
    one.start_episode()
    for _ in range(3):
        one.step_episode()
    one.start_episode()  # a new one, in the middle of the first
    while not one.step_episode():
        pass
    assert one.collect_episode().numbers.tolist() == [1]
    one.shutdown()
    with pytest.raises(ValueError, match="worker_number must be from 0 to 1, got 2"):
        made(2)
