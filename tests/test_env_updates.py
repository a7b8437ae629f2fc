"""Environment updates, what a worker does with them, and the samplers of tasks that make them."""

import logging
import multiprocessing
import pickle
import random
from collections.abc import Callable
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest

from headrace.envs import LegacyGym
from headrace.errors import EnvContractError
from headrace.samplers import EnvUpdate, ExistingEnvUpdate, NewEnvUpdate, SetTaskUpdate
from headrace.samplers.episodes import ConstructEnvsSampler, EnvPoolSampler, SetTaskSampler
from headrace.samplers.episodes.updates import per_worker, updated
from tests.grid_world import FREE, GridWorld
from tests.leftovers import DEADLINE


class Elsewhere(GridWorld):
    """The same tasks, but another type."""


def goal_of(env: gym.Env[Any, Any]) -> int:
    return int(env.reset()[1]["goal"])


# ---- what a worker does with an update ----


def test_no_update_keeps_the_environment_open() -> None:
    env = GridWorld()
    assert updated(None, env) is env
    assert env.n_closed == 0


def test_no_update_without_an_environment_is_refused() -> None:
    with pytest.raises(ValueError, match="env_update is None, but the worker has no environment yet"):
        updated(None, None)


def test_an_environment_replaces_the_old_one_which_is_closed() -> None:
    old, new = GridWorld(), GridWorld()
    assert updated(new, old) is new
    assert (old.n_closed, new.n_closed) == (1, 0)


@pytest.mark.parametrize("make", [lambda env: env, ExistingEnvUpdate], ids=["environment", "ExistingEnvUpdate"])
def test_the_same_environment_again_is_not_closed(make: Callable[[Any], Any]) -> None:
    env = GridWorld()
    assert updated(make(env), env) is env
    assert env.n_closed == 0


def test_a_callable_is_called_with_the_old_environment() -> None:
    old = GridWorld()
    wrapped = updated(lambda env: gym.wrappers.TimeLimit(env, 3), old)
    assert wrapped.unwrapped is old
    assert old.n_closed == 0


@pytest.mark.parametrize(
    ("update", "words"),
    [
        (3, "got int 3"),
        ("CartPole-v1", "got str 'CartPole-v1'; NewEnvUpdate makes"),
        (GridWorld, "got type <class"),
        (lambda env: None, r"env_update function .* returned NoneType None, expected an environment"),
        (lambda env: (env, {}), "returned tuple"),
    ],
    ids=["number", "id", "class", "callable that returns None", "callable that returns a pair"],
)
def test_anything_else_is_refused_and_named(update: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        updated(update, GridWorld())


def test_the_base_class_changes_nothing() -> None:
    env = GridWorld()
    assert updated(EnvUpdate(), env) is env


@pytest.mark.parametrize("value", [None, "text", (1, 2), {"a": 1}], ids=repr)
def test_a_plain_object_goes_to_every_worker(value: Any) -> None:
    assert per_worker(value, 3, "env_update") == [value] * 3


def test_a_list_has_one_entry_per_worker() -> None:
    assert per_worker([1, 2, 3], 3, "env_update") == [1, 2, 3]
    with pytest.raises(ValueError, match="env_update is a list of 2, but there are 3 workers"):
        per_worker([1, 2], 3, "env_update")


# ---- the updates ----


def test_new_environment_is_made_after_the_old_one_is_closed() -> None:
    old = GridWorld()
    closed_before: list[int] = []

    def make() -> GridWorld:
        closed_before.append(old.n_closed)
        return GridWorld(10)

    assert goal_of(updated(NewEnvUpdate(make), old)) == 10
    assert closed_before == [1]


def test_new_environment_of_an_id() -> None:
    spec = updated(NewEnvUpdate("CartPole-v1"), None).spec
    assert spec is not None
    assert spec.id == "CartPole-v1"


def test_new_environment_of_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="env_constructor must be a Gymnasium id"):
        NewEnvUpdate(7)
    with pytest.raises(TypeError, match="env_constructor is an environment"):
        NewEnvUpdate(GridWorld())
    with pytest.raises(EnvContractError, match="returned a int"):
        updated(NewEnvUpdate(lambda: 7), None)


def test_task_is_set_on_the_innermost_environment() -> None:
    inner = GridWorld()
    env = gym.wrappers.TimeLimit(gym.wrappers.OrderEnforcing(inner), 20)
    assert updated(SetTaskUpdate(GridWorld, {"goal": 9}), env) is env
    assert (goal_of(env), inner.n_closed) == (9, 0)


def test_environment_of_a_subtype_is_closed_and_replaced_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    old = Elsewhere()
    with caplog.at_level(logging.WARNING, "headrace.samplers"):
        env = updated(SetTaskUpdate(GridWorld, {"goal": 9}), old)
    assert "closes an environment of type Elsewhere and makes one of type GridWorld" in caplog.text
    assert (type(env), goal_of(env), old.n_closed) == (GridWorld, 9, 1)


def test_new_environment_of_a_task_is_wrapped() -> None:
    def wrap(env: GridWorld, task: dict[str, int]) -> gym.Env[Any, Any]:
        return gym.wrappers.TimeLimit(env, task["goal"])

    env = updated(SetTaskUpdate(GridWorld, {"goal": 2}, wrap), None)
    env.reset()
    assert [env.step(0)[3] for _ in range(2)] == [False, True]


@pytest.mark.parametrize(
    "env_type",
    [GridWorld(), "GridWorld", gym.Env, lambda: GridWorld()],
    ids=["object", "text", "class without set_task", "function"],
)
def test_env_type_without_tasks_is_refused(env_type: Any) -> None:
    with pytest.raises(TypeError, match="env_type must be a class with a method set_task"):
        SetTaskUpdate(env_type, {"goal": 9})


def test_wrapper_constructor_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="wrapper_constructor must be a callable or None, got int 3"):
        SetTaskUpdate(GridWorld, {"goal": 9}, 3)  # type: ignore[arg-type]


def test_existing_environment_must_be_one() -> None:
    with pytest.raises(TypeError, match="env must be an environment, got type"):
        ExistingEnvUpdate(GridWorld)


def test_existing_environment_warns_when_it_is_pickled(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "headrace.samplers"):
        copy = pickle.loads(pickle.dumps(ExistingEnvUpdate(GridWorld(goal=6))))
    assert "copied with its environment, a GridWorld" in caplog.text
    assert goal_of(updated(copy, None)) == 6


def test_environments_of_old_gym_are_adapted_and_recognized() -> None:
    old_gym = pytest.importorskip("gym", reason="the extra `legacy` is not installed")

    class Old(old_gym.Env):  # type: ignore[misc, name-defined]
        observation_space = old_gym.spaces.Discrete(2)
        action_space = old_gym.spaces.Discrete(2)
        task, closed = 0, 0

        def set_task(self, task: int) -> None:
            self.task = task

        def close(self) -> None:
            self.closed += 1

    first, second = Old(), Old()
    env = updated(first, None)
    assert isinstance(env, LegacyGym)
    assert updated(first, env) is env
    assert updated(SetTaskUpdate(Old, 4), env) is env
    assert (first.task, first.closed) == (4, 0)
    assert isinstance(replaced := updated(second, env), LegacyGym)
    assert replaced.legacy is second
    assert first.closed == 1


def goals_after(updates: bytes) -> list[int]:
    """Applies pickled updates one after the other; returns the goals. Runs in another process."""
    goals = []
    env: gym.Env[Any, Any] | None = None
    for update in pickle.loads(updates):
        env = updated(update, env)
        goals.append(goal_of(env))
    return goals


def test_updates_of_all_kinds_work_in_another_process() -> None:
    class OfOnesOwn(EnvUpdate):
        def __call__(self, old_env: Any = None) -> Any:
            old_env.unwrapped.goal += 1
            return old_env

    updates = [
        NewEnvUpdate(lambda: GridWorld(3)),
        SetTaskUpdate(GridWorld, {"goal": 6}, lambda env, task: env),
        None,
        OfOnesOwn(),
        lambda env: GridWorld(env.unwrapped.goal + 1),
        ExistingEnvUpdate(GridWorld(13)),
        GridWorld(14),
    ]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        answer = pool.apply_async(goals_after, (cloudpickle.dumps(updates),))
        assert answer.get(DEADLINE) == [3, 6, 6, 7, 8, 13, 14]


# ---- samplers of tasks ----


def goals(updates: list[EnvUpdate]) -> list[int]:
    return [goal_of(updated(update, None)) for update in updates]


def constructors(n: int) -> list[Callable[[], GridWorld]]:
    return [lambda goal=goal: GridWorld(goal) for goal in range(n)]  # type: ignore[misc]


class FromGlobalGenerators(GridWorld):
    """Draws its tasks from the global generators."""

    def sample_tasks(self, n_tasks: int) -> list[dict[str, int]]:
        return [{"goal": int(np.random.choice(FREE)) + 100 * random.randrange(100)} for _ in range(n_tasks)]


SAMPLERS: dict[str, Callable[[int], Any]] = {
    "ConstructEnvsSampler": lambda seed: ConstructEnvsSampler(constructors(8), seed=seed),
    "SetTaskSampler": lambda seed: SetTaskSampler(GridWorld, seed=seed),
    "SetTaskSampler, global generators": lambda seed: SetTaskSampler(FromGlobalGenerators, seed=seed),
    "EnvPoolSampler": lambda seed: EnvPoolSampler([GridWorld(goal) for goal in range(8)], seed=seed),
}


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_tasks_are_a_function_of_the_seed_and_leave_the_global_generators_alone(make: Callable[[int], Any]) -> None:
    before = np.random.get_state(legacy=False), random.getstate()
    draws = []
    for seed in (1, 1, 2):
        sampler = make(seed)
        draws.append([goals(sampler.sample(6)) for _ in range(3)])
    assert draws[0] == draws[1] != draws[2]
    assert draws[0][0] != draws[0][1]
    np.testing.assert_equal((np.random.get_state(legacy=False), random.getstate()), before)


def test_tasks_without_a_seed_differ() -> None:
    assert goals(SetTaskSampler(GridWorld).sample(30)) != goals(SetTaskSampler(GridWorld).sample(30))


def test_without_replacement_every_task_is_drawn_before_one_is_repeated() -> None:
    sampler = ConstructEnvsSampler(constructors(4), seed=0)
    assert sampler.n_tasks == 4
    drawn = goals(sampler.sample(10))
    assert sorted(drawn[:4]) == sorted(drawn[4:8]) == [0, 1, 2, 3]
    assert len({*drawn[8:]}) == 2


def test_with_replacement_draws_are_independent() -> None:
    drawn = goals(ConstructEnvsSampler(constructors(4), seed=0).sample(400, with_replacement=True))
    rounds = [{*drawn[first : first + 4]} for first in range(0, 400, 4)]
    assert {*drawn} == {0, 1, 2, 3}
    assert any(len(one) < 4 for one in rounds)


def test_tasks_of_a_distribution_go_to_the_right_type() -> None:
    sampler = SetTaskSampler(GridWorld, seed=0)
    updates = sampler.sample(5)
    assert sampler.n_tasks is None
    assert [type(update) for update in updates] == [SetTaskUpdate] * 5
    assert {*goals(updates)} <= {*FREE}
    assert SetTaskSampler(GridWorld, n_tasks=11).n_tasks == 11


def test_sample_tasks_that_returns_too_few_is_named() -> None:
    class Few(GridWorld):
        def sample_tasks(self, n_tasks: int) -> list[dict[str, int]]:
            return []

    with pytest.raises(ValueError, match=r"Few.sample_tasks\(3\) returned 0 tasks"):
        SetTaskSampler(Few).sample(3)


def test_wrong_arguments_of_task_samplers_are_named() -> None:
    with pytest.raises(TypeError, match="env_type must be a class with the methods set_task and sample_tasks"):
        SetTaskSampler(gym.Env)
    with pytest.raises(ValueError, match="env_constructors is empty"):
        ConstructEnvsSampler([])
    with pytest.raises(TypeError, match="env_constructor must be"):
        ConstructEnvsSampler([3])
    with pytest.raises(TypeError, match="env must be an environment, got int 3"):
        EnvPoolSampler([3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="n_tasks must be at least 0"):
        ConstructEnvsSampler(constructors(1)).sample(-1)


def test_no_environment_of_a_pool_is_drawn_twice() -> None:
    pool = EnvPoolSampler([GridWorld(goal) for goal in range(3)], seed=0)
    assert sorted(goals(pool.sample(3))) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"n_tasks is 4, but the pool has 3 environments; call grow_pool\(4\) first"):
        pool.sample(4)
    with pytest.raises(ValueError, match="would draw an environment twice"):
        pool.sample(2, with_replacement=True)


def test_a_pool_grows_by_copies_with_their_own_random_numbers() -> None:
    originals = [GridWorld(goal) for goal in range(2)]
    for env in originals:
        env.reset(seed=env.goal)
    pool = EnvPoolSampler(originals, seed=0)
    pool.grow_pool(6)
    pool.grow_pool(3)
    assert pool.n_tasks == 6
    envs = [updated(update, None) for update in pool.sample(6)]
    assert sorted(goal_of(env) for env in envs) == [0, 0, 0, 1, 1, 1]
    assert len({env.np_random.random() for env in envs}) == 6
    with pytest.raises(ValueError, match="the pool is empty"):
        EnvPoolSampler([]).grow_pool(2)
