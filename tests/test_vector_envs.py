"""`VectorEnvs`: vector environments are recorded like single ones, in every sampler."""

import dataclasses
import itertools
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.vector import AutoresetMode

from headrace.agents.base import Agent
from headrace.agents.pg import CategoricalPgAgent, GaussianPgAgent, RecurrentCategoricalPgAgent
from headrace.algos.pg import PPO, PPOConfig
from headrace.algos.returns import discounted_returns, generalized_advantages
from headrace.algos.reward_scaling import RewardScaling
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_leaves, tree_paths, tree_rows
from headrace.envs import EnvFactory, VectorEnvs, check_env, make_envpool
from headrace.errors import EnvContractError, EnvFailed, SamplerClosed, SamplerError, WorkerCrashed
from headrace.rng import env_seeds
from headrace.samplers import (
    AlternatingSampler,
    BaseSampler,
    CpuSampler,
    GpuSampler,
    NoOverlapAlternatingSampler,
    SerialSampler,
    TrajInfo,
)
from headrace.types import AgentStep, StepInputs
from tests.environments import SEED, raising, replace
from tests.leftovers import DEADLINE
from tests.quick import quick_and_slow
from tests.tasks import Masked, assert_reproduced
from tests.test_returns import ValueIsMemory
from tests.vector_worlds import ACTIONS, MODES, WORLD_INFO, InvalidOnceVector, Steady, World, in_processes, side_by_side

Batches = list[tuple[Samples, Sequence[TrajInfo]]]

slow = partial(pytest.param, marks=pytest.mark.slow)
#: Environments here, in workers, and in workers that are served in turn; then the rest of the samplers.
SAMPLERS: list[tuple[type[BaseSampler], int]] = [
    (SerialSampler, 1),
    (CpuSampler, 3),
    (AlternatingSampler, 2),
    (CpuSampler, 1),
    (GpuSampler, 2),
    (NoOverlapAlternatingSampler, 3),
]


@dataclass
class Diary(TrajInfo):
    """Keeps the arguments of `step`, except the info."""

    Seen: list[Any] = field(default_factory=list)

    def step(
        self, observation: Any, action: Any, reward: float, terminated: bool, truncated: bool, env_info: dict[str, Any]
    ) -> None:
        self.Seen.append(
            [[leaf.tolist() for leaf in tree_leaves((observation, action))], reward, terminated, truncated]
        )


@dataclass
class InfoDiary(Diary):
    """Keeps the info, too."""

    def step(self, *told: Any) -> None:
        super().step(*told)
        self.Seen.append((told[-1]["age"], "fell" in told[-1]))


@dataclass
class Run:
    """What a sampler gave: batches, evaluations, and how many steps it says it took."""

    batches: Batches
    evaluations: list[list[TrajInfo]]
    steps: int


def run(
    cls: type[BaseSampler],
    EnvCls: Any,
    env_kwargs: dict[str, Any] | None = None,
    *,
    n: int = 3,
    evaluations: int = 0,
    agent: Callable[[], Agent] = CategoricalPgAgent,
    seed: int = SEED,
    **options: Any,
) -> Run:
    """`n` batches of 12 rows and 5 columns; the parameters change after each."""
    learner = agent()
    sizes: dict[str, Any] = {"batch_T": 12, "batch_B": 5, "max_decorrelation_steps": 0, "timeout": DEADLINE}
    sampler = cls(EnvCls, env_kwargs, deterministic=True, **(sizes | options))
    batches = []
    with sampler.initialize(learner, seed=seed, bootstrap_value=True, traj_info_kwargs={"discount": 0.9}):
        for itr in range(n):
            samples, traj_infos = sampler.obtain_samples(itr)
            batches.append((samples.copy(), traj_infos))
            with torch.no_grad():
                for parameter in learner.parameters():
                    parameter.add_(0.02 * torch.sin(torch.arange(parameter.numel()) + itr).reshape(parameter.shape))
        return Run(batches, [sampler.evaluate_agent(itr) for itr in range(evaluations)], sampler.timing().steps)


def plain(infos: Sequence[TrajInfo]) -> list[dict[str, Any]]:
    """What can be compared: info values as lists and numbers, whatever they were."""
    return [
        {**vars(info), "info": {key: np.asarray(value).tolist() for key, value in info.info.items()}} for info in infos
    ]


def assert_same_samples(expected: Samples, came: Samples) -> None:
    for (path, leaf), (_, other) in zip(tree_paths(expected), tree_paths(came), strict=True):
        assert leaf.dtype == other.dtype
        assert leaf.shape == other.shape, path
        assert torch.equal(leaf, other), path


def assert_same(expected: Run, came: Run) -> None:
    """Bit for bit."""
    for (samples, infos), (others, other_infos) in zip(expected.batches, came.batches, strict=True):
        assert_same_samples(samples, others)
        assert plain(infos) == plain(other_infos)
    for infos, other_infos in zip(expected.evaluations, came.evaluations, strict=True):
        assert plain(infos) == plain(other_infos)
    assert expected.steps == came.steps


def begin_alike(one: Run, other: Run) -> bool:
    """Returns whether the first observations, which no action has influenced, are the same."""
    first, second = (tree_leaves(tree_rows(run.batches[0][0].env.observation, 0)) for run in (one, other))
    return all(map(torch.equal, first, second))


def total(run: Run, name: str) -> int:
    """Returns the number of cells of all batches in which a field is True."""
    return sum(int(getattr(samples.env, name).sum()) for samples, _ in run.batches)


def as_vector(make: Callable[..., gym.Env[Any, Any]], mode: str, own: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """(EnvCls, env_kwargs) of Gymnasium's vector environment of `make(**own)`."""
    return VectorEnvs(side_by_side), {"make": make, "mode": mode, "own": own}


# ---- the batches of single environments ----

AGENTS: dict[str, Callable[[], Agent]] = {
    "discrete from 2": lambda: RecurrentCategoricalPgAgent(model_kwargs={"input_size": 16, "hidden_size": 12}),
    "continuous": GaussianPgAgent,
}


@cache
def single_worlds(action: str, decorrelation: int, diary: type[TrajInfo]) -> Run:
    found = run(SerialSampler, World, {"action_space": ACTIONS[action]}, **world_options(action, decorrelation, diary))
    assert total(found, "terminated")
    assert total(found, "truncated")
    assert len(found.evaluations[0]) == 6
    return found


def world_options(action: str, decorrelation: int, diary: type[TrajInfo]) -> dict[str, Any]:
    return {
        "agent": AGENTS[action],
        "max_decorrelation_steps": decorrelation,
        "TrajInfoCls": diary,
        "env_info_keys": WORLD_INFO,
        "evaluations": 1,
        "eval_n_envs": 3,
        "eval_max_trajectories": 6,
    }


SETTINGS = [
    ("DISABLED", 9, InfoDiary, "discrete from 2"),
    ("SAME_STEP", 0, Diary, "continuous"),
    ("DISABLED", 0, TrajInfo, "discrete from 2"),
    ("DISABLED", 9, InfoDiary, "continuous"),
    ("DISABLED", 0, TrajInfo, "continuous"),
    ("SAME_STEP", 0, Diary, "discrete from 2"),
]
#: Both modes in one process, and one of them in each way to have workers.
QUICK = [
    (SerialSampler, 1, *SETTINGS[0]),
    (SerialSampler, 1, *SETTINGS[1]),
    (CpuSampler, 3, *SETTINGS[1]),
    (AlternatingSampler, 2, *SETTINGS[0]),
]


@pytest.mark.parametrize(
    ("cls", "n_workers", "mode", "decorrelation", "diary", "action"),
    quick_and_slow([(*one, *setting) for one in SAMPLERS for setting in SETTINGS], QUICK),
)
def test_batches_equal_those_of_single_environments(
    cls: type[BaseSampler], n_workers: int, mode: str, decorrelation: int, diary: Any, action: str
) -> None:
    """Columns are uneven over workers and groups; Gymnasium's vector environment answers with arrays it uses again."""
    expected = single_worlds(action, decorrelation, diary)
    vector = as_vector(World, mode, {"action_space": ACTIONS[action]})
    came = run(cls, *vector, n_workers=n_workers, **world_options(action, decorrelation, diary))
    assert_same(expected, came)


@pytest.mark.parametrize("mode", MODES)
def test_statistics_include_the_steps_of_decorrelation(mode: str) -> None:
    """`age` is the environment's own count of the steps of its episode."""
    vector = as_vector(World, mode, {"action_space": ACTIONS["discrete from 2"]})
    found = run(SerialSampler, *vector, max_decorrelation_steps=9)
    samples, infos = found.batches[0]
    assert any(info.Length > time + 1 for info, time in zip(infos, samples.final.time.tolist(), strict=True))
    for _, infos in found.batches:
        assert [info.Length for info in infos] == [info.info["age"] for info in infos]


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP"])
def test_decorrelation_in_lockstep_does_not_depend_on_workers(mode: str) -> None:
    """No environment can be held while others step, so all take the same number of random steps."""
    vector = as_vector(World, mode, {"action_space": ACTIONS["continuous"]})
    options: dict[str, Any] = {"agent": GaussianPgAgent, "max_decorrelation_steps": 9}
    expected = run(SerialSampler, *vector, **options)
    assert_same(expected, run(CpuSampler, *vector, n_workers=3, **options))
    assert not begin_alike(expected, run(SerialSampler, *vector, agent=GaussianPgAgent))


@pytest.mark.parametrize(
    ("mode", "decorrelation"), [("DISABLED", 0), ("SAME_STEP", 0), ("SAME_STEP", 9), ("NEXT_STEP", 9)]
)
def test_masked_actions_are_never_taken(mode: str, decorrelation: int) -> None:
    """`Masked` raises for a forbidden action; random actions respect the mask too."""
    own = {"action_space": spaces.Discrete(4)}
    found = run(SerialSampler, *as_vector(Masked, mode, own), max_decorrelation_steps=decorrelation)
    if not decorrelation:
        assert_same(run(SerialSampler, Masked, own), found)


def test_reset_of_some_columns_leaves_the_others_unchanged() -> None:
    """Whatever the vector environment returns for the others: here, random numbers."""
    made: list[InvalidOnceVector] = []
    found = run(SerialSampler, VectorEnvs(InvalidOnceVector), {"mode": AutoresetMode.DISABLED, "made": made}, n=1)
    env, (vector,) = found.batches[0][0].env, made
    following = torch.cat([env.observation[1:], env.last_observation])
    stepped = torch.from_numpy(np.stack(vector.stepped))
    assert env.done.any(dim=1).sum() > 5
    assert torch.equal(following[~env.done], stepped[~env.done])
    assert not (following == stepped)[env.done].any()
    assert torch.equal(found.batches[0][0].final.observation, stepped[env.done])


@pytest.mark.parametrize(("cls", "n_workers"), [(SerialSampler, 1), (CpuSampler, 2)])
def test_async_vector_env_gives_the_same_batches(cls: type[BaseSampler], n_workers: int) -> None:
    expected = single_worlds("continuous", 9, InfoDiary)
    env_kwargs = {"make": World, "own": {"action_space": ACTIONS["continuous"]}}
    options = world_options("continuous", 9, InfoDiary)
    assert_same(expected, run(cls, VectorEnvs(in_processes), env_kwargs, n_workers=n_workers, **options))


# ---- reset_mode="wait" ----


@cache
def waiting_steadies() -> Run:
    return run(SerialSampler, Steady, reset_mode="wait", max_decorrelation_steps=9, evaluations=1, eval_n_envs=3)


@pytest.mark.parametrize(("cls", "n_workers"), quick_and_slow(SAMPLERS, SAMPLERS[:2]))
def test_wait_mode_batches_equal_those_of_single_environments(cls: type[BaseSampler], n_workers: int) -> None:
    """Waiting columns are stepped along, which a reset that clears everything hides."""
    expected = waiting_steadies()
    assert 0 < total(expected, "valid") < 3 * 12 * 5
    options: dict[str, Any] = {
        "reset_mode": "wait",
        "max_decorrelation_steps": 9,
        "evaluations": 1,
        "eval_n_envs": 3,
    }
    assert_same(expected, run(cls, *as_vector(Steady, "DISABLED"), n_workers=n_workers, **options))


def test_wait_mode_has_whole_episodes_and_padding() -> None:
    """What columns do while they wait is not recorded, but uses random numbers that single environments would not."""
    own = {"action_space": ACTIONS["discrete from 2"]}
    options: dict[str, Any] = {"reset_mode": "wait", "env_info_keys": WORLD_INFO, "TrajInfoCls": InfoDiary}
    single = run(SerialSampler, World, own, **options)
    found = run(SerialSampler, *as_vector(World, "DISABLED", own), **options)
    assert_same_samples(single.batches[0][0], found.batches[0][0])
    assert_same(found, run(CpuSampler, *as_vector(World, "DISABLED", own), n_workers=3, **options))
    age = torch.zeros(5, dtype=torch.int64)
    for samples, infos in found.batches:
        env = samples.env
        for b in range(5):
            ends = env.done[:, b].nonzero()[:, 0].tolist()
            stop = ends[0] + 1 if ends else 12
            assert len(ends) <= 1
            assert env.valid[:, b].tolist() == [t < stop for t in range(12)]
            assert env.is_first[:, b].tolist() == [t == 0 and age[b] == 0 for t in range(12)]
            assert env.env_info["age"][:stop, b].tolist() == [int(age[b]) + 1 + t for t in range(stop)]
            column = (env.observation, env.reward, env.prev_reward, env.env_info, samples.agent.prev_action)
            for leaf in tree_leaves(tree_rows(column, (slice(stop, None), b))):
                assert not leaf.any()
            age[b] = 0 if ends else age[b] + stop
        assert len(infos) == len(samples.final) == int(env.done.sum())
        for info in infos:
            assert info.Length == info.info["age"] == len(vars(info)["Seen"]) // 2
    assert found.steps == total(found, "valid") < 3 * 12 * 5


@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler])
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_wait_mode_needs_autoreset_mode_disabled(cls: type[BaseSampler], mode: str) -> None:
    sampler = cls(*as_vector(Steady, mode), batch_T=4, batch_B=4, reset_mode="wait", n_workers=2)
    with pytest.raises(EnvContractError, match="side_by_side resets its environments by itself") as caught:
        sampler.initialize(CategoricalPgAgent(), seed=SEED)
    assert 'reset_mode="wait" needs a vector environment with AutoresetMode.DISABLED; use "mid_batch"' in str(
        caught.value
    )


# ---- evaluation ----


def by_environment(infos: Sequence[TrajInfo]) -> list[dict[str, Any]]:
    """Where resets take a step, episodes end later, though in the same order in each environment."""
    return sorted(plain(infos), key=lambda info: int(info["env_id"]))


def without_diary(info: TrajInfo) -> TrajInfo:
    return TrajInfo(**{name: value for name, value in vars(info).items() if name != "Seen"})


@pytest.mark.parametrize(
    ("cls", "n_workers", "mode"),
    quick_and_slow(
        [(*one, mode) for one in SAMPLERS for mode in MODES],
        [*((SerialSampler, 1, mode) for mode in MODES), (AlternatingSampler, 2, "NEXT_STEP")],
    ),
)
def test_evaluation_episodes_equal_those_of_single_environments(
    cls: type[BaseSampler], n_workers: int, mode: str
) -> None:
    expected = single_worlds("continuous", 9, InfoDiary).evaluations
    own = {"action_space": ACTIONS["continuous"]}
    options = world_options("continuous", 9, TrajInfo) | {"env_info_keys": None}
    came = run(cls, *as_vector(World, mode, own), n_workers=n_workers, **options).evaluations
    assert by_environment([without_diary(info) for info in expected[0]]) == by_environment(came[0])


@pytest.mark.parametrize("mode", ["NEXT_STEP", slow("SAME_STEP"), slow("DISABLED")])
def test_later_evaluations_start_with_resets(mode: str) -> None:
    options: dict[str, Any] = {"evaluations": 3, "eval_n_envs": 5, "eval_max_trajectories": 15}
    expected = run(SerialSampler, Steady, **options).evaluations
    for cls in (SerialSampler, CpuSampler, GpuSampler):
        came = run(cls, *as_vector(Steady, mode), n_workers=2, **options).evaluations
        assert list(map(by_environment, came)) == list(map(by_environment, expected))


class Tally(ValueIsMemory):
    """Its action is the number of rows since its state was zeroed, modulo 3."""

    def step(self, inputs: StepInputs, state: torch.Tensor) -> AgentStep:
        return AgentStep(state.long() % 3, super().step(inputs, state).agent_info, state + 1)


@pytest.mark.parametrize("mode", MODES)
def test_evaluations_do_not_depend_on_where_earlier_ones_stopped(mode: str) -> None:
    """In NEXT_STEP mode environment 0 would reset itself after three rows, but not after a reset of all."""
    for n_rows in (2, 3, 4, 5):
        sizes: dict[str, Any] = {"eval_n_envs": 2, "eval_max_trajectories": 20, "eval_max_steps": 2 * n_rows}
        first, *others = run(SerialSampler, *as_vector(Steady, mode), agent=Tally, evaluations=3, **sizes).evaluations
        assert first
        assert all(plain(infos) == plain(first) for infos in others)


def test_evaluations_stopped_at_eval_max_steps_have_unfinished_episodes() -> None:
    """Four rows: environment 0 of evaluation has episodes of 3 steps, then a row is its reset, and nothing more."""
    options: dict[str, Any] = {"evaluations": 1, "eval_n_envs": 2, "eval_max_trajectories": 4, "eval_max_steps": 8}
    for mode, rest in (("NEXT_STEP", []), ("SAME_STEP", [(0, 1, False)]), ("DISABLED", [(0, 1, False)])):
        (infos,) = run(SerialSampler, *as_vector(Steady, mode), **options).evaluations
        expected = [(0, 3, True), (1, 4, True), *rest]
        assert [(info.env_id, info.Length, info.finished) for info in infos] == expected


# ---- NEXT_STEP: a step for each reset ----

DEAF = {"action_space": ACTIONS["discrete from 2"], "deaf": True}


@dataclass
class Row:
    """A row of one column: what does not depend on actions, and the actions."""

    values: list[Any]
    is_first: bool
    prev_action: int
    action: int


def valid_rows(batches: Batches) -> list[list[Row]]:
    """The valid rows of each column, one batch after the other."""
    columns: list[list[Row]] = [[] for _ in range(5)]
    for samples, _ in batches:
        env = samples.env
        values = (env.observation, env.reward, env.terminated, env.truncated, env.is_first, env.prev_reward)
        for b, column in enumerate(columns):
            for t in env.valid[:, b].nonzero()[:, 0].tolist():
                row = [leaf.tolist() for leaf in tree_leaves(tree_rows((*values, env.env_info), (t, b)))]
                is_first, agent = bool(env.is_first[t, b]), samples.agent
                column.append(Row(row, is_first, int(agent.prev_action[t, b]), int(agent.action[t, b])))
    return columns


def finals(batches: Batches) -> list[list[Any]]:
    """The final observations and last rewards of each column; they stand where episodes ended."""
    columns: list[list[Any]] = [[] for _ in range(5)]
    for samples, _ in batches:
        final = samples.final
        assert torch.equal(torch.stack([final.time, final.column], dim=1), samples.env.done.nonzero())
        assert torch.equal(final.prev_reward, samples.env.reward[final.time, final.column])
        assert torch.equal(final.prev_action, samples.agent.action[final.time, final.column])
        for k, b in enumerate(final.column.tolist()):
            columns[b].append([leaf.tolist() for leaf in tree_leaves(tree_rows(final.observation, k))])
    return columns


def episodes(batches: Batches) -> list[list[TrajInfo]]:
    """The episodes of each column."""
    columns: list[list[TrajInfo]] = [[] for _ in range(5)]
    for _, infos in batches:
        for info in infos:
            columns[info.env_id].append(info)
    return columns


@cache
def single_deaf_worlds(batch_T: int) -> Run:
    return run(SerialSampler, World, DEAF, n=max(6, 36 // batch_T), batch_T=batch_T, env_info_keys=WORLD_INFO)


@cache
def deaf_worlds(batch_T: int) -> Run:
    n = max(6, 36 // batch_T)
    return run(SerialSampler, *as_vector(World, "NEXT_STEP", DEAF), n=n, batch_T=batch_T, env_info_keys=WORLD_INFO)


@pytest.mark.parametrize("batch_T", [1, 3, 12, slow(2), slow(7)])
def test_next_step_mode_valid_steps_equal_those_of_single_environments(batch_T: int) -> None:
    expected, came = single_deaf_worlds(batch_T), deaf_worlds(batch_T)
    for singles, rows in zip(valid_rows(expected.batches), valid_rows(came.batches), strict=True):
        assert len(rows) > 20
        assert [row.values for row in rows] == [row.values for row in singles[: len(rows)]]
        for before, row in itertools.pairwise(rows):
            assert row.prev_action == (0 if row.is_first else before.action)
    for singles, came_finals in zip(finals(expected.batches), finals(came.batches), strict=True):
        assert came_finals == singles[: len(came_finals)]
    assert came.steps == total(came, "valid") < total(expected, "valid")
    assert expected.steps == total(expected, "valid")


@pytest.mark.parametrize("batch_T", [1, 3, 12, slow(2), slow(7)])
def test_next_step_mode_statistics_equal_those_of_single_environments(batch_T: int) -> None:
    """To the last digits of a sum: it is split where batches end, which is elsewhere."""
    expected, came = single_deaf_worlds(batch_T).batches, deaf_worlds(batch_T).batches
    for singles, infos in zip(episodes(expected), episodes(came), strict=True):
        assert infos
        for single, info in zip(singles, infos, strict=False):
            sums = {name: getattr(single, name) for name in ("Return", "DiscountedReturn")}
            assert {name: getattr(info, name) for name in sums} == pytest.approx(sums, rel=1e-12, abs=1e-12)
            assert plain([dataclasses.replace(info, **sums)]) == plain([single])


@pytest.mark.parametrize("batch_T", [1, 3, 12, slow(2), slow(7)])
def test_next_step_mode_reset_step_is_padding_and_the_next_is_first(batch_T: int) -> None:
    """Wherever the episode ends: after the last row of a batch, row 0 of the next is the reset."""
    resetting, at_the_border = torch.zeros(5, dtype=torch.bool), 0
    last = None
    for samples, _ in deaf_worlds(batch_T).batches:
        env, agent = samples.env, samples.agent
        after_an_end = torch.cat([resetting[None], env.done[:-1]])
        assert torch.equal(env.valid, ~after_an_end)
        at_the_border += int(resetting.sum())
        padding = ~env.valid
        for zero in (env.reward, env.prev_reward, env.is_first, env.terminated, env.truncated, agent.prev_action):
            assert not zero[padding].any()
        assert torch.equal(env.is_first[1:], padding[:-1])
        for zero in (env.prev_reward, agent.prev_action):
            assert not zero[env.is_first].any()
        assert last is None or torch.equal(env.is_first[0], last)
        # What stands there is the final observation.
        for k, (t, b) in enumerate(env.done.nonzero().tolist()):
            last_row = t + 1 == batch_T
            shown = tree_rows(env.last_observation if last_row else env.observation, (0 if last_row else t + 1, b))
            assert all(map(torch.equal, tree_leaves(shown), tree_leaves(tree_rows(samples.final.observation, k))))
        resetting, last = env.done[-1], padding[-1]
    assert at_the_border


class Insistent(InvalidOnceVector):
    """Returns a reward and an end also for the step of a reset."""

    def step(self, actions: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(actions)
        before, self._ended = self._ended, terminated
        return observation, reward, terminated | before, truncated, info


def test_next_step_mode_ignores_rewards_and_ends_of_reset_steps() -> None:
    found = run(SerialSampler, VectorEnvs(Insistent), {"mode": AutoresetMode.NEXT_STEP})
    for samples, infos in found.batches:
        env = samples.env
        assert torch.equal(env.reward, env.valid.float())
        assert not env.done[~env.valid].any()
        assert torch.equal(env.done[:-1], ~env.valid[1:])
        assert all(info.Return == info.Length for info in infos)
        assert len(infos) == len(samples.final) == int(env.done.sum())
    assert {info.Length for info in found.batches[-1][1]} == {4}


@pytest.mark.parametrize(
    ("cls", "n_workers", "batch_T"),
    quick_and_slow(
        [(*one, batch_T) for one in SAMPLERS[1:] for batch_T in (1, 12)],
        [(AlternatingSampler, 2, 1), (CpuSampler, 3, 12)],
    ),
)
def test_next_step_mode_batches_do_not_depend_on_workers(cls: type[BaseSampler], n_workers: int, batch_T: int) -> None:
    options: dict[str, Any] = {
        "agent": AGENTS["discrete from 2"],
        "batch_T": batch_T,
        "max_decorrelation_steps": 6,
    }
    vector = as_vector(World, "NEXT_STEP", {"action_space": ACTIONS["discrete from 2"]})
    assert_same(run(SerialSampler, *vector, **options), run(cls, *vector, n_workers=n_workers, **options))


def test_next_step_mode_recurrent_state_is_zero_after_a_reset() -> None:
    vector = as_vector(World, "NEXT_STEP", {"action_space": ACTIONS["discrete from 2"]})
    learner = AGENTS["discrete from 2"]()
    sampler = SerialSampler(*vector, batch_T=16, batch_B=4, max_decorrelation_steps=6)
    with sampler.initialize(learner, seed=SEED, bootstrap_value=True):
        for itr in range(2):
            assert_reproduced(learner, sampler.obtain_samples(itr)[0].copy())


# ---- what comes back wrong ----

INVALID_ENV = 2


def use(cls: type[BaseSampler], factory: Any, env_kwargs: dict[str, Any], **options: Any) -> BaseSampler:
    """A batch of 12 rows of four environments, an evaluation, and the end."""
    sizes: dict[str, Any] = {
        "batch_T": 12,
        "batch_B": 4,
        "max_decorrelation_steps": 0,
        "n_workers": 2,
        "timeout": DEADLINE,
    }
    sampler = cls(VectorEnvs(factory), env_kwargs, **(sizes | options))
    sampler.initialize(CategoricalPgAgent(), seed=SEED)
    sampler.obtain_samples(0)
    sampler.shutdown()
    return sampler


def with_cell(index: int, cell: Any, value: Any) -> Callable[[list[Any]], Any]:
    """Returns a change of one number in one array of the result."""

    def change(answer: list[Any]) -> Any:
        array = np.array(answer[index])
        array[cell] = value
        return replace(index, array)(answer)

    return change


def without(key: str) -> Callable[[list[Any]], Any]:
    """Returns a change that removes a key of the info."""

    def change(answer: list[Any]) -> Any:
        return replace(4, {name: value for name, value in answer[4].items() if name != key})(answer)

    return change


ROW_5 = "stepping, step 5"
INVALID_RESULTS: dict[str, tuple[Callable[[list[Any]], Any], str, int | None, str]] = {
    "wrong shape": (
        replace(0, np.zeros((4, 4), np.float32)),
        "observation = float32 [4, 4], expected shape",
        None,
        ROW_5,
    ),
    "one row for all": (
        replace(0, np.zeros((1, 3), np.float32)),
        "observation = float32 [1, 3], expected",
        None,
        ROW_5,
    ),
    "a column for all": (
        replace(0, np.zeros((4, 1), np.float32)),
        "float32 [4, 1], expected shape [4, 3]",
        None,
        ROW_5,
    ),
    "wrong dtype": (
        replace(0, np.full((4, 3), 2**24 + 1)),
        "observation = 16777217 in int64 [4, 3], expected dtype float32",
        None,
        ROW_5,
    ),
    "list": (replace(0, [[0.0] * 3] * 3), "observation = list", None, ROW_5),
    "NaN in row 2": (
        with_cell(0, (INVALID_ENV, 1), np.nan),
        "observation = nan, expected finite numbers",
        INVALID_ENV,
        ROW_5,
    ),
    "-Inf in row 1": (with_cell(0, (1, 0), -np.inf), "observation = -inf, expected finite numbers", 1, ROW_5),
    "infinite reward": (with_cell(1, 3, np.inf), "reward = inf, expected finite numbers", 3, ROW_5),
    "one reward for all": (replace(1, 1.0), "reward = float64 [], expected numbers [4]", None, ROW_5),
    "a reward too few": (replace(1, np.ones(3)), "reward = float64 [3], expected numbers [4]", None, ROW_5),
    "no reward": (replace(1, None), "reward = object [], expected numbers [4]", None, ROW_5),
    "terminated list": (
        replace(2, [False] * 3),
        "terminated = list [False, False, False], expected a numpy array of bool [4]",
        None,
        ROW_5,
    ),
    "terminated int": (replace(2, np.full(4, 2)), "terminated = int64 [4], expected a numpy", None, ROW_5),
    "truncated bool": (replace(3, False), "truncated = bool False, expected a numpy array of bool [4]", None, ROW_5),
    "info list": (replace(4, [{}] * 4), "returned a tuple of 5, expected (observation, reward", None, ROW_5),
    "4-tuple": (
        lambda answer: tuple(answer[:4]),
        "returned a tuple of 4, expected (observation, reward",
        None,
        ROW_5,
    ),
    "5-list": (list, "returned list", None, ROW_5),
    "info key": (without("speed"), "info['speed'] = nothing (the info dict is empty), expected a value", None, ROW_5),
    "info shape": (replace(4, {"speed": np.zeros((4, 2))}), "info['speed'] = float64 [4, 2], expected", None, ROW_5),
    "info for one": (replace(4, {"speed": 1.0}), "info['speed'] = float64 [], expected float32 [4]", None, ROW_5),
}


def assert_error_names(error: SamplerError, words: str, env_id: int | None, place: str) -> None:
    assert words in str(error)
    assert "correct the environment or its declared spaces" in str(error)
    where = error.where
    assert where is not None
    assert where.env_id == env_id
    assert str(where).endswith(place)


@pytest.mark.parametrize(
    ("case", "mode"),
    [
        pytest.param(case, mode, marks=[] if mode is AutoresetMode.SAME_STEP or "NaN" in case else [pytest.mark.slow])
        for case, mode in itertools.product(INVALID_RESULTS, AutoresetMode)
    ],
)
def test_invalid_step_result_error_says_what_came_and_where(case: str, mode: AutoresetMode) -> None:
    change, words, env_id, place = INVALID_RESULTS[case]
    made: list[InvalidOnceVector] = []
    env_kwargs = {"change": change, "mode": mode, "info": {"speed": np.zeros(4, np.float32)}, "made": made}
    with pytest.raises(EnvContractError) as caught:
        use(SerialSampler, InvalidOnceVector, env_kwargs, env_info_keys={"speed": ("float32", ())})
    assert str(caught.value).startswith("InvalidOnceVector: step() returned ")
    assert_error_names(caught.value, words, env_id, place)
    assert [env.closes for env in made] == [1]


def test_valid_results_are_accepted() -> None:
    for mode in AutoresetMode:
        made: list[InvalidOnceVector] = []
        env_kwargs = {"mode": mode, "info": {"speed": np.zeros(4, np.float32)}, "made": made}
        use(SerialSampler, InvalidOnceVector, env_kwargs, env_info_keys={"speed": ("float32", ())})
        assert [env.closes for env in made] == [1]


@pytest.mark.parametrize(
    ("change", "words", "env_id"),
    [
        (replace(0, np.zeros((4, 1), np.float32)), "observation = float32 [4, 1], expected shape", None),
        (with_cell(0, (INVALID_ENV, 1), np.nan), "observation = nan, expected finite numbers", INVALID_ENV),
        (lambda answer: answer[0], "returned float32 [4, 3], expected (observation, info)", None),
        (replace(1, None), "returned a tuple of 2, expected (observation, info)", None),
    ],
    ids=["shape", "NaN", "no tuple", "no info"],
)
def test_invalid_reset_result_is_an_error(change: Any, words: str, env_id: int | None) -> None:
    with pytest.raises(EnvContractError) as caught:
        use(SerialSampler, InvalidOnceVector, {"change": change, "at": "reset"})
    assert str(caught.value).startswith("InvalidOnceVector: reset() returned ")
    assert_error_names(caught.value, words, env_id, "resetting, step 0")


def test_invalid_result_in_a_worker_names_worker_and_environment() -> None:
    """Environments 2 and 3 are rows 0 and 1 there."""
    with pytest.raises(EnvContractError, match="observation = nan") as caught:
        use(CpuSampler, InvalidOnceVector, {"change": with_cell(0, (1, 1), np.nan)})
    where = caught.value.where
    assert where is not None
    assert (where.worker, where.env_id, where.phase, where.step) == (1, 3, "stepping", 5)


def test_missing_final_observation_is_an_error() -> None:
    """Row 2 ends alone in row 2 of the batch."""
    with pytest.raises(EnvContractError) as caught:
        use(SerialSampler, InvalidOnceVector, {"change": without("final_obs"), "at": "end"})
    assert "the last observations where episodes ended (autoreset mode SAME_STEP)" in str(caught.value)
    words = "info['final_obs'] = nothing (the info dict has only '_final_obs'), expected"
    assert_error_names(caught.value, words, None, "stepping, step 2")


def test_info_field_missing_from_the_last_info_is_an_error() -> None:
    speed = {"speed": np.zeros(4, np.float32)}

    def change(answer: list[Any]) -> Any:
        return replace(4, {**answer[4], "final_info": {}})(answer)

    env_kwargs = {"change": change, "at": "end", "info": speed}
    with pytest.raises(EnvContractError) as caught:
        use(SerialSampler, InvalidOnceVector, env_kwargs, env_info_keys={"speed": ("float32", ())})
    words = "info['speed'] = nothing (the info dict is empty), expected a value at every step"
    assert_error_names(caught.value, words, INVALID_ENV, "stepping, step 2")


@pytest.mark.parametrize("mode", [None, "NextStep"])
def test_missing_autoreset_mode_is_an_error(mode: Any) -> None:
    made: list[InvalidOnceVector] = []
    with pytest.raises(EnvContractError, match=r"InvalidOnceVector: metadata.*not a gymnasium.vector.AutoresetMode"):
        use(SerialSampler, InvalidOnceVector, {"mode": mode, "made": made})
    assert [env.closes for env in made] == [1]


def three_of_them(num_envs: int) -> Any:
    return InvalidOnceVector(3)


def single_one(num_envs: int) -> Any:
    return Steady()


@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler])
def test_factory_with_wrong_class_or_size_is_refused(cls: type[BaseSampler]) -> None:
    with pytest.raises(EnvContractError, match="three_of_them returned 3 environments, expected "):
        use(cls, three_of_them, {})
    with pytest.raises(EnvContractError, match=r"single_one returned a Steady, not a gymnasium.vector.VectorEnv"):
        use(cls, single_one, {})
    with pytest.raises(EnvFailed, match=r"the constructor raised TypeError.*colour"):
        use(cls, InvalidOnceVector, {"colour": "red"})


PHASES = {
    "constructor": "constructing the environment",
    "late reset": "stepping",
    "step": "stepping",
    "close": "closing",
}


@pytest.mark.parametrize(
    ("cls", "error"),
    [
        (SerialSampler, SystemExit("unhappy")),
        (CpuSampler, ValueError("unhappy")),
        slow(SerialSampler, ValueError("unhappy")),
        slow(CpuSampler, SystemExit("unhappy")),
    ],
)
@pytest.mark.parametrize("at", list(PHASES))
def test_exception_in_a_vector_environment_raises_env_failed(
    at: str, error: BaseException, cls: type[BaseSampler]
) -> None:
    with pytest.raises(EnvFailed) as caught:
        use(cls, InvalidOnceVector, {"change": raising(error), "at": at, "mode": AutoresetMode.DISABLED})
    call = "the constructor" if at == "constructor" else f"{at.split()[-1]}()"
    assert str(caught.value).startswith(f"InvalidOnceVector: {call} raised {type(error).__name__}: unhappy")
    assert caught.value.where is not None
    assert caught.value.where.phase == PHASES[at]
    assert "vector_worlds.py" in caught.value.traceback_text


def kill_me(answer: list[Any]) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def test_worker_killed_during_a_step_raises_worker_crashed() -> None:
    with pytest.raises(WorkerCrashed, match="SIGKILL") as caught:
        use(CpuSampler, InvalidOnceVector, {"change": kill_me})
    where = caught.value.where
    assert where is not None
    assert (where.worker, where.phase, where.step) == (1, "stepping", 5)


def doubles(answer: list[Any]) -> Any:
    return (answer[0].astype(np.float64), *answer[1:])


class Doubles(InvalidOnceVector):
    """Always float64."""

    def _answer(self, answer: list[Any], call: str, count: int) -> Any:
        return doubles(answer)


@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler])
def test_float64_observations_are_cast_and_logged_once(
    cls: type[BaseSampler], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        sampler = cls(VectorEnvs(Doubles), batch_T=12, batch_B=4, max_decorrelation_steps=0, n_workers=2)
        with sampler.initialize(CategoricalPgAgent(), seed=SEED):
            for itr in range(2):
                samples, _ = sampler.obtain_samples(itr)
                assert samples.env.observation.dtype == torch.float32
                assert samples.env.observation.any()
    words = "Doubles: observation is float64, expected float32; it is cast"
    assert [record.message for record in caplog.records] == [words]


def test_undeclared_info_keys_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "headrace.samplers"):
        found = run(SerialSampler, *as_vector(Steady, "SAME_STEP"))
    assert all(info.info == {"age": info.Length} for _, infos in found.batches for info in infos)
    assert [record.message for record in caplog.records] == [
        "side_by_side: info has keys that are not recorded per step: age (declare them with env_info_keys; the last "
        "info of an episode is in its TrajInfo.info)"
    ]


def test_after_an_error_the_sampler_is_closed() -> None:
    env_kwargs = {"change": replace(0, None)}
    sampler = SerialSampler(VectorEnvs(InvalidOnceVector), env_kwargs, batch_T=5, batch_B=4, max_decorrelation_steps=0)
    sampler.initialize(CategoricalPgAgent(), seed=SEED)
    sampler.obtain_samples(0)
    with pytest.raises(EnvContractError) as caught:
        sampler.obtain_samples(1)
    with pytest.raises(SamplerClosed) as refused:
        sampler.obtain_samples(2)
    assert refused.value.__cause__ is caught.value


# ---- where vector environments can be named, and where not ----


def test_id_without_vector_entry_point_is_refused() -> None:
    with pytest.raises(ValueError, match="MountainCar-v0 has no vector entry point; pass a callable"):
        VectorEnvs("MountainCar-v0")
    with pytest.raises(TypeError, match="VectorEnvs takes a Gymnasium id or a callable, got int 3"):
        VectorEnvs(3)  # type: ignore[arg-type]


def test_vector_environments_are_refused_where_single_ones_are_needed() -> None:
    with pytest.raises(
        EnvContractError, match="CartPole-v1 makes vector environments, but this call needs a single one"
    ):
        EnvFactory.of(VectorEnvs("CartPole-v1"), None)()
    (violation,) = check_env(VectorEnvs("CartPole-v1"), n_steps=10)
    assert "CartPole-v1 makes vector environments, but this call needs a single one" in str(violation)


def test_vector_envs_can_be_given_as_module_name() -> None:
    named = run(CpuSampler, "tests.vector_worlds:CARTPOLES", n_workers=1)
    assert_same(named, run(CpuSampler, VectorEnvs("CartPole-v1"), n_workers=1))


def test_state_says_why_vector_environments_are_not_saved() -> None:
    sampler = SerialSampler(*as_vector(Steady, "SAME_STEP"), batch_T=4, batch_B=2)
    with sampler.initialize(CategoricalPgAgent(), seed=SEED, resumable=True):
        sampler.obtain_samples(0)
        assert sampler.state().why_not == "side_by_side makes vector environments, which are not saved"


@pytest.mark.parametrize("start_method", ["forkserver", slow("spawn")])
def test_vector_envs_work_with_every_start_method(start_method: str) -> None:
    vector = as_vector(Steady, "SAME_STEP")
    assert_same(run(SerialSampler, *vector), run(GpuSampler, *vector, n_workers=2, start_method=start_method))


# ---- environments written as vector environments ----


def next_observation(samples: Samples, t: int, b: int) -> Any:
    """What step t led to: the final observation where it ended an episode."""
    final, env = samples.final, samples.env
    ended = ((final.time == t) & (final.column == b)).nonzero()
    if len(ended):
        return final.observation[ended[0, 0]]
    return env.observation[t + 1, b] if t + 1 < len(env.reward) else env.last_observation[0, b]


def assert_cartpoles(found: Run, limit: int) -> None:
    """Compares every valid step with a step of Gymnasium's single CartPole from the recorded state."""
    single = CartPoleEnv()
    single.reset(seed=0)
    assert total(found, "terminated")
    seen = set()
    for samples, infos in found.batches:
        env = samples.env
        for t, b in env.valid.nonzero().tolist():
            seen.add(tuple(env.observation[t, b].tolist()))
            single.state = np.array(env.observation[t, b].double().tolist())
            single.steps_beyond_terminated = None
            observation, reward, terminated, _, _ = single.step(int(samples.agent.action[t, b]))
            np.testing.assert_allclose(next_observation(samples, t, b), observation, rtol=1e-5, atol=1e-6)
            assert (float(env.reward[t, b]), bool(env.terminated[t, b])) == (reward, terminated)
        assert all(info.Return == info.Length <= limit for info in infos)
        assert all(info.Length == limit for info, cut in zip(infos, cuts(samples), strict=True) if cut)
    assert len(seen) == total(found, "valid")  # no two environments do the same


def cuts(samples: Samples) -> list[bool]:
    """Which ends are only truncations."""
    env, final = samples.env, samples.final
    where = final.time, final.column
    return (env.truncated[where] & ~env.terminated[where]).tolist()


def test_vector_entry_point_of_cartpole_follows_its_dynamics() -> None:
    found = run(SerialSampler, VectorEnvs("CartPole-v1"), {"max_episode_steps": 16}, n=6)
    assert_cartpoles(found, 16)
    assert total(found, "truncated")
    assert found.steps == total(found, "valid") < 6 * 12 * 5


def test_shared_generator_of_a_vector_environment_is_seeded() -> None:
    first, again, other = (run(SerialSampler, VectorEnvs("CartPole-v1"), seed=seed) for seed in (1, 1, 2))
    assert_same(first, again)
    assert not begin_alike(first, other)
    assert_same(first, run(CpuSampler, VectorEnvs("CartPole-v1"), seed=1, n_workers=1))


PONG: dict[str, Any] = {"game": "pong", "num_threads": 1, "noop_max": 30, "img_height": 36, "img_width": 36}
PONG |= {"max_num_frames_per_episode": 320}


@cache
def pongs(mode: str, n_workers: int) -> Run:
    env_kwargs = {**PONG, "autoreset_mode": AutoresetMode[mode]}
    options: dict[str, Any] = {"batch_T": 32, "batch_B": 4, "env_info_keys": {"episode_frame_number": ("int32", ())}}
    return run(CpuSampler, VectorEnvs(AtariVectorEnv), env_kwargs, n=5, n_workers=n_workers, **options)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_atari_vector_batches_do_not_depend_on_workers(mode: str) -> None:
    """They take a seed each."""
    one, two = pongs(mode, 1), pongs(mode, 2)
    for (samples, infos), (others, other_infos) in zip(one.batches, two.batches, strict=True):
        assert_same_samples(samples, others)
        for name in ("env_id", "Length", "Return", "DiscountedReturn"):
            assert [getattr(info, name) for info in infos] == [getattr(info, name) for info in other_infos]
    frames = one.batches[0][0].env.env_info["episode_frame_number"][0]
    assert len(set(frames.tolist())) == 4  # so many that they did nothing


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_atari_vector_observations_are_recorded_unchanged(mode: str) -> None:
    """The same environments stepped here, with the recorded actions, row by row."""
    found = pongs(mode, 2)
    assert total(found, "truncated")
    assert any(samples.env.reward.any() for samples, _ in found.batches)
    env = AtariVectorEnv(num_envs=4, autoreset_mode=AutoresetMode[mode], **PONG)
    shown, _ = env.reset(seed=np.array([env_seeds(SEED, env_id)[0] for env_id in range(4)]))
    ended = np.zeros(4, np.bool_)
    for samples, _ in found.batches:
        rows = samples.numpy().env
        for t in range(32):
            assert np.array_equal(rows.observation[t], shown)
            assert rows.observation.dtype == np.uint8
            assert np.array_equal(rows.valid[t], ~ended if mode == "NEXT_STEP" else np.ones(4, np.bool_))
            shown, reward, terminated, truncated, info = env.step(samples.agent.action[t].numpy())
            assert np.array_equal(rows.reward[t], reward)
            assert np.array_equal(rows.terminated[t], terminated)
            assert np.array_equal(rows.truncated[t], truncated)
            assert np.array_equal(rows.env_info["episode_frame_number"][t], info["episode_frame_number"])
            ended = terminated | truncated
            last = shown if mode == "NEXT_STEP" else info.get("final_obs")
            for b in np.flatnonzero(ended).tolist():
                assert last is not None
                assert np.array_equal(next_observation(samples, t, b), last[b])
        assert np.array_equal(rows.last_observation[0], shown)
    env.close()


# ---- EnvPool ----

QUIET = pytest.mark.filterwarnings("ignore:.*precision lowered by casting")
POOL: dict[str, Any] = {"task_id": "CartPole-v1", "config": {"num_threads": 1}}


@QUIET
def test_envpool_is_seeded() -> None:
    first, again, other = (run(SerialSampler, VectorEnvs(make_envpool), POOL, seed=seed, n=4) for seed in (1, 1, 2))
    assert_same(first, again)
    assert not begin_alike(first, other)
    assert first.steps == total(first, "valid") < 4 * 12 * 5


@QUIET
def test_envpool_info_fields_can_be_recorded() -> None:
    """`elapsed_step` is 0 where it reset itself, then 1, 2, …"""
    info_keys = {"elapsed_step": ("int32", ())}
    found = run(SerialSampler, VectorEnvs(make_envpool), POOL, n=2, batch_T=60, batch_B=1, env_info_keys=info_keys)
    elapsed = 0
    for samples, infos in found.batches:
        env = samples.env
        for t in range(60):
            elapsed = elapsed + 1 if env.valid[t, 0] else 0
            assert env.env_info["elapsed_step"][t, 0] == elapsed
        assert infos
        assert all(info.Length == info.Return == info.info["elapsed_step"] for info in infos)


@QUIET
def test_envpool_takes_one_seed_and_resets_all_columns() -> None:
    pool = make_envpool(2, **POOL)
    with pytest.raises(TypeError, match="EnvPool takes one seed for all of its environments, got list"):
        pool.reset(seed=[1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="EnvPool resets all environments at once"):
        pool.reset(options={"reset_mask": np.array([True, False])})
    pool.close()


@pytest.mark.parametrize("key", ["num_envs", "batch_size", "seed", "env_type"])
def test_envpool_config_cannot_set_what_the_sampler_sets(key: str) -> None:
    with pytest.raises(ValueError, match=f"config has \\['{key}'\\], which the sampler sets"):
        make_envpool(2, task_id="CartPole-v1", config={key: 3})


def test_without_envpool_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r'EnvPool is not installed.*pip install "headrace\[envpool\]"'):
        make_envpool(2, **POOL)
    with pytest.raises(EnvFailed, match=r'the constructor raised ImportError.*pip install "headrace\[envpool\]"'):
        run(SerialSampler, VectorEnvs(make_envpool), POOL)


# ---- calling environments ----


def wrapped_world() -> gym.Env[Any, Any]:
    return gym.wrappers.TimeLimit(World(ACTIONS["discrete from 2"]), 50)


CALLED = [(SerialSampler, 1), (CpuSampler, 3), slow(AlternatingSampler, 2)]


def opened(cls: type[BaseSampler], n_workers: int, EnvCls: Any = wrapped_world, kwargs: Any = None) -> BaseSampler:
    sampler = cls(
        EnvCls, kwargs, batch_T=12, batch_B=5, max_decorrelation_steps=0, n_workers=n_workers, timeout=DEADLINE
    )
    return sampler.initialize(CategoricalPgAgent(), seed=SEED)


@pytest.mark.parametrize(("cls", "n_workers"), CALLED)
def test_call_envs_reaches_environments_through_their_wrappers(cls: type[BaseSampler], n_workers: int) -> None:
    with opened(cls, n_workers) as sampler:
        assert sampler.call_envs("lengthen", 3) == [("longer by", 3)] * 5
        assert sampler.call_envs("lengthen", 4, env_ids=[3, 0]) == [("longer by", 7)] * 2
        assert sampler.call_envs("lengthening") == [7, 3, 3, 7, 3]
        assert sampler.call_envs("np_random_seed") == [env_seeds(SEED, env_id)[0] for env_id in range(5)]
        backwards = [env_seeds(SEED, env_id)[0] for env_id in (4, 0, 2, 0)]
        assert sampler.call_envs("np_random_seed", env_ids=[4, 0, 2, 0]) == backwards
        assert sampler.call_envs("lengthening", env_ids=np.array([1])) == [3]  # type: ignore[arg-type]
        assert sampler.call_envs("lengthening", env_ids=[]) == []


@pytest.mark.parametrize(("cls", "n_workers"), CALLED)
def test_call_envs_changes_take_effect_in_the_next_batch(cls: type[BaseSampler], n_workers: int) -> None:
    """Episodes of 1 to 9 steps become 30 longer, so that few can end in 12 rows: those that fall."""
    with opened(cls, n_workers) as sampler:
        before = [len(sampler.obtain_samples(itr)[0].final) for itr in range(2)]
        sampler.call_envs("lengthen", 30)
        sampler.obtain_samples(2)  # the episodes that were running
        after = [sampler.obtain_samples(itr)[0].env.truncated.sum() for itr in range(3, 5)]
    assert min(before) > 5
    assert max(after) == 0


@pytest.mark.parametrize(("cls", "n_workers"), CALLED)
def test_call_envs_refuses_unknown_env_ids(cls: type[BaseSampler], n_workers: int) -> None:
    with opened(cls, n_workers) as sampler:
        with pytest.raises(ValueError, match=r"env_ids has \[-1, 7\], but this sampler has the environments 0 to 4"):
            sampler.call_envs("lengthen", 3, env_ids=[2, 7, -1])
        assert sampler.call_envs("lengthening") == [0] * 5
        sampler.obtain_samples(0)


@pytest.mark.parametrize(("cls", "n_workers"), CALLED)
@pytest.mark.parametrize(("name", "raised"), [("fail", "ValueError: the simulator"), ("missing", "AttributeError: ")])
def test_call_envs_that_raises_is_env_failed(cls: type[BaseSampler], n_workers: int, name: str, raised: str) -> None:
    sampler = opened(cls, n_workers)
    with pytest.raises(EnvFailed, match=rf"^wrapped_world: {name}\(\) raised {raised}") as caught:
        sampler.call_envs(name, env_ids=[3])
    where = caught.value.where
    assert where is not None
    assert (where.env_id, where.phase) == (3, "in call_envs")
    with pytest.raises(SamplerClosed):
        sampler.call_envs("lengthening")


@pytest.mark.parametrize(("cls", "n_workers"), CALLED)
def test_call_envs_of_a_vector_environment_splits_sequences_over_columns(
    cls: type[BaseSampler], n_workers: int
) -> None:
    """Gymnasium's pass a call on to each environment; others have methods of their own, for all of them."""
    with opened(cls, n_workers, *as_vector(wrapped_world, "SAME_STEP")) as sampler:
        assert sampler.call_envs("lengthen", 3) == [("longer by", 3)] * 5
        assert sampler.call_envs("lengthening") == [3] * 5
        backwards = [env_seeds(SEED, env_id)[0] for env_id in (4, 3, 2, 1, 0)]
        assert sampler.call_envs("np_random_seed", env_ids=[4, 3, 2, 1, 0]) == backwards
        sampler.obtain_samples(0)
    with opened(cls, n_workers, VectorEnvs(InvalidOnceVector)) as sampler:
        assert sampler.call_envs("per_row") == [0, 10, 20, 30, 40]
        assert sampler.call_envs("per_row", env_ids=[1, 0, 2, 3, 4]) == [10, 0, 20, 30, 40]
        widths = {SerialSampler: [5] * 5, CpuSampler: [2, 2, 2, 2, 1], AlternatingSampler: [2, 2, 1, 1, 1]}[cls]
        assert sampler.call_envs("num_envs") == widths
        assert sampler.call_envs("whole", "rows") == [("rows", width, 0) for width in widths]


def test_call_envs_of_a_vector_environment_that_raises_is_env_failed() -> None:
    sampler = opened(CpuSampler, 3, *as_vector(wrapped_world, "NEXT_STEP"))
    with pytest.raises(EnvFailed, match=r"side_by_side: fail\(\) raised ValueError: the simulator") as caught:
        sampler.call_envs("fail", env_ids=[4])
    where = caught.value.where
    assert where is not None
    assert (where.worker, where.env_id, where.phase) == (2, 4, "in call_envs")


# ---- learning ----


def test_padding_within_a_column_is_zero_and_affects_nothing() -> None:
    """Rows 2 and 6 are padding after ends, NaN where it can be; without them the same numbers come out."""
    generator = torch.Generator().manual_seed(0)
    T, padding = 9, [2, 6]
    real = [t for t in range(T) if t not in padding]
    reward, value, final = torch.randn(3, T, 1, generator=generator, dtype=torch.float64)
    terminated, truncated = torch.zeros(2, T, 1, dtype=torch.bool)
    terminated[1], truncated[5] = True, True
    bootstrap = torch.randn(1, 1, generator=generator, dtype=torch.float64)
    valid = torch.ones(T, 1, dtype=torch.bool)
    valid[padding] = False

    def both(rows: list[int], valid: torch.Tensor | None) -> list[torch.Tensor]:
        ends = terminated[rows], truncated[rows], bootstrap, final[rows] * truncated[rows]
        advantage, returns = generalized_advantages(reward[rows], value[rows], *ends, 0.9, 0.8, valid)
        scaled = RewardScaling(0.9)(reward[rows], ends[0] | ends[1], valid)
        return [advantage, returns, discounted_returns(reward[rows], *ends, 0.9, valid), scaled]

    expected = both(real, None)
    for filler in (float("nan"), 1e6, 0.0):
        reward[padding] = value[padding] = filler
        for came, wanted in zip(both(list(range(T)), valid), expected, strict=True):
            assert not came[padding].any()
            assert torch.equal(came[real], wanted)


def learned(agent: Callable[[], Agent], mode: str, filler: float | None) -> tuple[list[float], list[torch.Tensor], int]:
    """Two updates of PPO; (losses, parameters, padding rows), with `filler` put into all padding."""
    learner, algo = agent(), PPO(PPOConfig(epochs=2, normalize_reward=True))
    sampler = SerialSampler(
        *as_vector(World, mode, {"action_space": ACTIONS["discrete from 2"]}), batch_T=20, batch_B=6
    )
    losses: list[float] = []
    n_padding = 0
    with sampler.initialize(learner, seed=SEED, bootstrap_value=True):
        algo.initialize(learner, n_itr=2, batch_spec=sampler.batch_spec, seed=0)
        for itr in range(2):
            samples = sampler.obtain_samples(itr)[0].copy()
            padding = ~samples.env.valid
            n_padding += int(padding.sum())
            if filler is not None:
                told = samples.env.observation["x"], samples.env.reward, samples.agent.prev_action
                for leaf in (*told, *tree_leaves(samples.agent.agent_info)):
                    leaf[padding] = filler if leaf.is_floating_point() else 1
                samples.agent.action[padding] = 2 - samples.agent.action[padding]
            losses.append(algo.optimize_agent(itr, samples)["loss"])
    return losses, [parameter.detach().clone() for parameter in learner.parameters()], n_padding


@pytest.mark.parametrize("kind", ["feed-forward", "recurrent"])
def test_padding_within_a_column_does_not_affect_ppo(kind: str) -> None:
    """Padding is NaN for agents that learn from single steps, and numbers for those that learn from whole columns."""
    recurrent = kind == "recurrent"
    agent = AGENTS["discrete from 2"] if recurrent else CategoricalPgAgent
    losses, parameters, n_padding = learned(agent, "NEXT_STEP", None)
    assert n_padding > 20
    assert np.isfinite(losses).all()
    others, other_parameters, _ = learned(agent, "NEXT_STEP", 100.0 if recurrent else float("nan"))
    assert others == losses
    assert all(map(torch.equal, parameters, other_parameters))
    losses, _, n_padding = learned(agent, "SAME_STEP", None)
    assert n_padding == 0
    assert np.isfinite(losses).all()
