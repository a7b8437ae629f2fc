"""Hindsight: goals, rewards and ends of relabelled transitions equal those computed from a list of whole episodes."""

import dataclasses
import math
import pickle
from collections import Counter
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from headrace.agents.dqn import DqnAgent
from headrace.algos.dqn import DQN, DQNConfig
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_leaves
from headrace.errors import CheckpointError
from headrace.replays import (
    HindsightConfig,
    ReplayFile,
    Transitions,
    UniformReplay,
    build_ring,
    make_replay,
    replay_over,
    replay_spec,
)
from headrace.samplers import AsyncSerialSampler, SerialSampler
from headrace.types import BatchSpec
from tests.replay_worlds import ACTION, Sampler, World

BATCH, N_ROWS = BatchSpec(5, 3), 20
Place = tuple[int, int, int]


def wanted(place: Place) -> np.ndarray:
    """The goal of the environment in an episode: no step achieves it."""
    return np.array([place[0], place[1], -1.0], np.float32)


def with_goals(place: np.ndarray) -> dict[str, np.ndarray]:
    """Turns observations (c, e, k), `[..., 3]`, to dicts: the achieved goal is (c, e, k), too."""
    desired = place.copy()
    desired[..., 2] = -1.0
    return {"observation": place, "achieved_goal": place.copy(), "desired_goal": desired}


EXAMPLE = {key: np.zeros(3, np.float32) for key in ("observation", "achieved_goal", "desired_goal")}


def reward_of(achieved: np.ndarray, desired: np.ndarray, info: dict[str, Any]) -> np.ndarray:
    """A number that differs for each pair of goals."""
    assert info == {}
    return achieved @ np.array([1.0, 3.0, 0.25]) - desired @ np.array([0.5, 2.0, 0.125])


def close_to(achieved: np.ndarray, desired: np.ndarray, info: dict[str, Any]) -> np.ndarray:
    """Whether the goal is the achieved one or the next one: a step or two before the one that achieved it."""
    return (achieved[:, :2] == desired[:, :2]).all(-1) & (np.abs(achieved[:, 2] - desired[:, 2]) <= 1)


class GoalSampler(Sampler):
    """A sampler of a world whose observations have goals."""

    def next(self) -> Samples:
        samples = super().next()

        def changed(part: Any) -> Any:
            goals = with_goals(part.observation.numpy() if len(part.observation) else np.zeros((0, 3), np.float32))
            return dataclasses.replace(part, observation={key: torch.from_numpy(goal) for key, goal in goals.items()})

        return dataclasses.replace(samples, env=changed(samples.env), final=changed(samples.final))


def made(world: World, config: HindsightConfig, n_rows: int = N_ROWS, **settings: Any) -> tuple[Any, Any, GoalSampler]:
    settings = {"discount": 0.9, "n_finals": n_rows * BATCH.B, **settings}
    writer, replay = make_replay(BATCH, EXAMPLE, ACTION, n_rows * BATCH.B, hindsight=config, **settings)
    return writer, replay, GoalSampler(world, BATCH)


def close(found: torch.Tensor, expected: float) -> bool:
    return math.isclose(found, expected, rel_tol=1e-5, abs_tol=1e-5)


def place_of(observation: torch.Tensor) -> Place:
    c, e, k = (int(value) for value in observation)
    return c, e, k


class Episodes:
    """What a replay should hold, as a list of steps, and what its transitions should be, step by step."""

    def __init__(self, world: World, rows: list[list[Any]], oldest: int) -> None:
        self.world = world
        self.there = {step for row in rows[oldest:] for step in row if step is not None}

    def later_goals(self, place: Place) -> set[int]:
        """The numbers k of the goals (c, e, k) that the episode achieved after this step, as far as it is known."""
        c, e, k = place
        goals, length = set(), self.world.length(c, e)
        while k < length and (c, e, k) in self.there:
            k += 1
            if k == length or (c, e, k) in self.there:
                goals.add(k)
        return goals

    def expected(self, place: Place, goal: np.ndarray, n_step: int, ends: bool) -> dict[str, Any]:
        """The numbers of a transition towards a goal. ends: whether terminations are computed anew."""
        c, e, k = place
        world, length, total, m, over = self.world, self.world.length(c, e), 0.0, 0, False
        while m < n_step and k + m < length and not over:
            achieved = np.array([c, e, k + m + 1], np.float32)
            total += 0.9**m * float(reward_of(achieved, goal, {}))
            m += 1
            over = bool(close_to(achieved[None], goal[None], {})) if ends else k + m == length and world.end(c, e)[0]
        achieved = np.array([c, e, k + m], np.float32)
        before = np.array([c, e, k], np.float32)
        first = k == (world.first_step if e == 0 else 0)
        return {
            "return": total,
            "discount": 0.0 if over else 0.9**m,
            "next": k + m,
            "prev_reward": 0.0 if first else reward_of(before, goal, {}),
            "next_prev_reward": reward_of(achieved, goal, {}),
            "next_prev_action": world.action(c, e, k + m - 1),
        }


def check(episodes: Episodes, drawn: Transitions, n_step: int, ends: bool) -> list[tuple[Place, int]]:
    """Compares every number of transitions; returns the relabelled ones with the numbers k of their goals."""
    relabelled = []
    for i in range(len(drawn.return_)):
        place = place_of(drawn.inputs.observation["observation"][i])
        goal = drawn.inputs.observation["desired_goal"][i].numpy()
        assert np.array_equal(goal, drawn.next_inputs.observation["desired_goal"][i])
        assert place_of(drawn.inputs.observation["achieved_goal"][i]) == place
        c, e, k = place
        assert drawn.action[i] == episodes.world.action(c, e, k)
        if np.array_equal(goal, wanted(place)):
            rewards = [episodes.world.reward(c, e, k + j) for j in range(min(n_step, episodes.world.length(c, e) - k))]
            assert close(drawn.return_[i], sum(0.9**j * reward for j, reward in enumerate(rewards)))
            continue
        assert tuple(goal[:2]) == (c, e), "a goal of the same episode"
        relabelled.append((place, int(goal[2])))
        expected = episodes.expected(place, goal, n_step, ends)
        assert close(drawn.return_[i], expected["return"])
        assert close(drawn.discount[i], expected["discount"])
        assert close(drawn.inputs.prev_reward[i], expected["prev_reward"])
        assert close(drawn.next_inputs.prev_reward[i], expected["next_prev_reward"])
        assert drawn.next_inputs.prev_action[i] == expected["next_prev_action"]
        for key in ("observation", "achieved_goal"):
            assert place_of(drawn.next_inputs.observation[key][i]) == (c, e, expected["next"])
    return relabelled


@pytest.mark.parametrize("mode", ["mid_batch", "wait", "next_step"])
@pytest.mark.parametrize(
    ("n_step", "ends"),
    [(1, False), (3, True), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, True), (3, False)))],
)
def test_relabelled_transitions_equal_those_of_a_list_of_episodes(mode: str, n_step: int, ends: bool) -> None:
    world = World(4, mode, longest=6, first_step=2)
    config = HindsightConfig(compute_reward=reward_of, compute_terminated=close_to if ends else None)
    writer, replay, sampler = made(world, config, n_step=n_step)
    for number in range(10):  # two and a half times round the ring
        writer.append(sampler.next())
        episodes = Episodes(world, sampler.rows, max(0, 5 * (number + 1) - N_ROWS))
        if len(replay):
            pairs = check(episodes, replay.sample(40), n_step, ends)
            assert all(goal in episodes.later_goals(place) for place, goal in pairs)
    found = set(check(episodes, replay.sample(4_000), n_step, ends))
    startable = {place_of(one) for one in replay.sample(2_000).inputs.observation["observation"]}
    assert found == {(place, goal) for place in startable for goal in episodes.later_goals(place)}
    assert any(goal == world.length(*place[:2]) for place, goal in found), "what the last step achieved is a goal"


def test_goals_of_episodes_longer_than_the_ring_are_the_ones_it_holds() -> None:
    world = World(1, longest=70)
    writer, replay, sampler = made(world, HindsightConfig(compute_reward=reward_of))
    for number in range(30):
        writer.append(sampler.next())
        episodes = Episodes(world, sampler.rows, max(0, 5 * (number + 1) - N_ROWS))
        pairs = check(episodes, replay.sample(60), 1, False)
        assert all(goal in episodes.later_goals(place) for place, goal in pairs)
    lengths = [world.length(step[0], step[1]) for row in sampler.rows for step in row if step is not None]
    assert min(lengths) < N_ROWS < max(lengths)


def test_goals_are_drawn_uniformly_and_one_in_k_plus_one_keeps_its_own() -> None:
    world = World(2, longest=6)
    writer, replay, sampler = made(world, HindsightConfig(compute_reward=reward_of, n_relabels=3))
    for _ in range(4):
        writer.append(sampler.next())
    episodes, n = Episodes(world, sampler.rows, 0), 10_000
    pairs = check(episodes, replay.sample(n), 1, False)
    assert abs(len(pairs) / n - 0.75) < 0.02
    counts, starts = Counter(pairs), Counter(place for place, _ in pairs)
    for place, count in starts.items():
        goals = episodes.later_goals(place)
        for goal in goals:
            assert abs(counts[place, goal] - count / len(goals)) < 6 * (count / len(goals)) ** 0.5 + 1


def test_goals_never_cross_a_gap_between_batches() -> None:
    world = World(1, longest=1_000)
    assert min(world.length(c, 0) for c in range(3)) > 20, "one episode in each column"
    writer, replay, sampler = made(world, HindsightConfig(compute_reward=reward_of))
    writer.append(sampler.next())
    writer.append(sampler.next())
    sampler.next()  # is lost
    writer.cut()
    sampler.rows[10:15] = [[None] * 3] * 5
    writer.append(sampler.next())
    episodes = Episodes(world, sampler.rows, 0)
    pairs = check(episodes, replay.sample(2_000), 1, False)
    assert all(goal in episodes.later_goals(place) for place, goal in pairs)
    assert {goal for (_, _, k), goal in pairs if k < 10} == set(range(1, 10))
    assert {goal for (_, _, k), goal in pairs if k > 10} == set(range(17, 20))


def test_prioritized_replay_relabels_as_well() -> None:
    world = World(5, longest=7)
    writer, replay, sampler = made(world, HindsightConfig(compute_reward=reward_of), prioritized=True)
    for _ in range(6):
        writer.append(sampler.next())
    drawn = replay.sample(200)
    assert check(Episodes(world, sampler.rows, 0), drawn, 1, False)
    everything = replay.sample(2_000).indices
    replay.update_priorities(everything, torch.from_numpy(np.where(everything == drawn.indices[0], 1e9, 0.0)))
    assert np.mean(replay.sample(100).indices == drawn.indices[0]) > 0.9


def test_draws_come_from_the_seed_and_continue_from_a_state() -> None:
    world = World(5, longest=7)
    config = HindsightConfig(compute_reward=reward_of)
    writer, replay, sampler = made(world, config, seed=3)
    for _ in range(6):
        writer.append(sampler.next())
    replay.sample(10)
    again = replay_over(replay.spec, replay.ring, prioritized=False, n_step=1, discount=0.9, seed=0, hindsight=config)
    again.load_state_dict(pickle.loads(pickle.dumps(replay.state_dict())))
    for one, other in zip(tree_leaves(replay.sample(50)), tree_leaves(again.sample(50)), strict=True):
        assert np.array_equal(one, other)


def test_replay_with_all_final_observations_is_saved_and_loaded(tmp_path: Any) -> None:
    world = World(6, longest=5)
    config = HindsightConfig(compute_reward=reward_of, compute_terminated=close_to)
    writer, replay, sampler = made(world, config, seed=1)
    for _ in range(6):
        writer.append(sampler.next())
    ReplayFile(tmp_path, replay.spec).save(replay.ring)
    ring = build_ring(replay.spec, np.zeros)
    ReplayFile(tmp_path, replay.spec).load(ring)
    loaded = UniformReplay(replay.spec, ring, discount=0.9, seed=1, hindsight=config)
    check(Episodes(world, sampler.rows, 30 - N_ROWS), loaded.sample(500), 1, True)
    spec = dataclasses.replace(replay.spec, all_finals=False)
    with pytest.raises(CheckpointError, match=r"another layout, .* of all episodes; "):
        ReplayFile(tmp_path, spec).load(build_ring(spec, np.zeros))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(3), r"this one is no Dict and lacks observation, achieved_goal, desired_goal"),
        ({"observation": np.zeros(3), "desired_goal": np.zeros(2)}, r"lacks achieved_goal: leave out hindsight"),
        ({**EXAMPLE, "achieved_goal": np.zeros(2)}, r"of one shape and dtype, got float64 \[2\] and float32 \[3\]"),
        ({**EXAMPLE, "achieved_goal": {"x": np.zeros(2)}}, r"got a tree and float32 \[3\]"),
    ],
)
def test_observations_without_goals_are_refused(observation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_replay(BATCH, observation, ACTION, 120, hindsight=HindsightConfig(compute_reward=reward_of))


def test_ring_without_all_final_observations_is_refused() -> None:
    spec = replay_spec(BATCH, EXAMPLE, ACTION, 120)
    with pytest.raises(ValueError, match="make it with all_finals=True"):
        UniformReplay(spec, build_ring(spec, np.zeros), hindsight=HindsightConfig(compute_reward=reward_of))


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(TypeError, match="compute_reward must be a function"):
        HindsightConfig(compute_reward=1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="compute_terminated must be a function"):
        HindsightConfig(compute_reward=reward_of, compute_terminated=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_relabels must be at least 1, got 0"):
        HindsightConfig(compute_reward=reward_of, n_relabels=0)


def test_function_for_one_goal_at_a_time_is_named() -> None:
    world = World(5)
    writer, replay, sampler = made(world, HindsightConfig(compute_reward=lambda achieved, desired, info: 0.0))
    writer.append(sampler.next())
    with pytest.raises(ValueError, match=r"compute_reward returned float64 \[\] for goals .* all transitions at once"):
        replay.sample(20)


# ---- with an algorithm ----


class Corridor(gym.Env[Any, Any]):
    """A walk on 0 to 9; the goal ends the episode, and so does the limit of 6 steps."""

    observation_space = gym.spaces.Dict(
        {key: gym.spaces.Box(0, 9, (1,), np.float32) for key in ("observation", "achieved_goal", "desired_goal")}
    )
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._n, self._x, self._goal = 0, 4.0, float(self.np_random.integers(10))
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self._n, self._x = self._n + 1, float(np.clip(self._x + 2 * action - 1, 0, 9))
        reached = self._x == self._goal
        return self._seen(), float(reached), reached, self._n == 6, {}

    def _seen(self) -> dict[str, np.ndarray]:
        here, goal = (np.array([x], np.float32) for x in (self._x, self._goal))
        return {"observation": here, "achieved_goal": here.copy(), "desired_goal": goal}


def same(achieved: np.ndarray, desired: np.ndarray, info: dict[str, Any]) -> np.ndarray:
    return (achieved == desired)[:, 0]


class Seen(DQN):
    """Keeps the last transitions."""

    def update(self, itr: int, transitions: Transitions) -> Any:
        self.seen = transitions
        return super().update(itr, transitions)


@pytest.mark.parametrize("own_process", [False, True])
def test_dqn_learns_from_relabelled_transitions(own_process: bool) -> None:
    hindsight = HindsightConfig(compute_reward=same, compute_terminated=same)
    algo = Seen(DQNConfig(hindsight=hindsight, n_step=1, min_steps_learn=64, replay_size=999, batch_size=64))
    agent, sampler = DqnAgent(), (AsyncSerialSampler if own_process else SerialSampler)(Corridor, batch_T=16, batch_B=4)
    if isinstance(sampler, AsyncSerialSampler):
        sampler.feed(algo.sink())
    with sampler.initialize(agent, seed=0):
        algo.initialize(agent, n_itr=4, batch_spec=sampler.batch_spec)
        for itr in range(4):
            samples, _ = sampler.obtain_samples(itr)
            algo.optimize_agent(itr, samples)
    drawn = algo.seen
    reached = drawn.next_inputs.observation["achieved_goal"][:, 0] == drawn.inputs.observation["desired_goal"][:, 0]
    # Where a transition that keeps its goal terminates, what follows it is not read from the ring.
    assert (drawn.return_ == 1).equal(drawn.discount == 0)
    assert (drawn.return_ == 1)[reached].all()
    assert reached.float().mean() > 0.25, "most goals are near; of the environment's own goals few are reached"


def test_algorithm_refuses_an_environment_without_goals() -> None:
    agent, algo = DqnAgent(), DQN(DQNConfig(hindsight=HindsightConfig(compute_reward=same)))
    with SerialSampler("CartPole-v1", batch_T=8, batch_B=2).initialize(agent, seed=0) as sampler:
        with pytest.raises(
            ValueError, match="hindsight needs a Dict observation space with observation, achieved_goal"
        ):
            algo.initialize(agent, n_itr=1, batch_spec=sampler.batch_spec)


@pytest.mark.slow
def test_many_bits_are_solved_with_hindsight_and_not_without() -> None:
    bit_flipping = import_module("examples.bit_flipping")
    assert bit_flipping.main(n_relabels=4, n_bits=10, n_itr=400) > 0.8
    assert bit_flipping.main(n_relabels=0, n_bits=10, n_itr=400) < 0.2
