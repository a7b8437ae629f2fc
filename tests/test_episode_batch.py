"""Batches of whole episodes: choosing and joining, padding, lists of dicts, columns of samples, checks of fields."""

import pickle
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import A2C, IMPALA, PPO, A2CConfig, PolicyGradientAlgo
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_map, tree_paths, tree_rows
from headrace.envs import VectorEnvs
from headrace.envs.spaces import null_value
from headrace.samplers import SerialSampler
from headrace.samplers.episodes import EnvSpec, EpisodeBatch, StepType, TimeStepBatch, TrajectoryBatch, to_minari
from headrace.samplers.traj_info import TrajInfo
from headrace.types import Tree
from tests.environments import EPISODE_STEP_INFO, EpisodeStep, Stochastic

LENGTHS = (3, 1, 5, 2)
#: How the episodes end; the last one is only the beginning of an episode.
ENDS = (StepType.TERMINAL, StepType.TIMEOUT, StepType.TERMINAL, StepType.MID)

VECTOR = spaces.Box(-1.0, 1.0, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (4, 5, 3), np.uint8)
NESTED = spaces.Dict(
    {"camera": IMAGE, "rest": spaces.Tuple((VECTOR, spaces.Discrete(4, start=2), spaces.MultiBinary(3)))}
)
SPACES = {"vector": VECTOR, "image": IMAGE, "nested": NESTED}


@dataclass
class Info:
    """agent_info as an agent's own dataclass."""

    mean: Any
    value: Any


def drawn(space: spaces.Space[Any], n: int, rng: np.random.Generator) -> Tree:
    """Returns n random elements, all of a dtype that a batch holds."""
    match space:
        case spaces.Dict():
            return {key: drawn(child, n, rng) for key, child in space.spaces.items()}
        case spaces.Tuple():
            return tuple(drawn(child, n, rng) for child in space.spaces)
        case spaces.Discrete():
            return rng.integers(space.start, space.start + space.n, n)
        case spaces.Box() if space.dtype == np.float32:
            return rng.normal(size=(n, *space.shape)).astype(np.float32)
    example = null_value(space)
    return rng.integers(0, 256 if example.dtype == np.uint8 else 2, (n, *example.shape)).astype(example.dtype)


def batch_of(
    lengths: tuple[int, ...] = LENGTHS,
    observation_space: spaces.Space[Any] = NESTED,
    max_episode_length: int | None = None,
    seed: int = 0,
) -> EpisodeBatch:
    rng = np.random.default_rng(seed)
    N, S = len(lengths), sum(lengths)
    step_types = [
        [StepType.get_step_type(step, None, False) for step in range(1, length)] + [end]
        for length, end in zip(lengths, ENDS * N, strict=False)
    ]
    return EpisodeBatch(
        env_spec=EnvSpec(observation_space, spaces.Discrete(3), max_episode_length),
        observations=drawn(observation_space, S, rng),
        last_observations=drawn(observation_space, N, rng),
        actions=rng.integers(0, 3, S),
        rewards=rng.normal(size=S).astype(np.float32),
        step_types=np.array([*chain(*step_types)], np.uint8),
        lengths=np.array(lengths, np.int64),
        env_infos={"speed": rng.normal(size=S).astype(np.float32), "body": {"joints": rng.normal(size=(S, 2))}},
        agent_infos=Info(rng.normal(size=(S, 3)), rng.normal(size=S)),
        versions=np.arange(S, dtype=np.int32),
        env_ids=np.arange(N) + 5,
        numbers=np.arange(N) + 7,
        episode_infos=[{"task": number} for number in range(N)],
        last_infos=[{"won": number % 2} for number in range(N)],
        starts=np.arange(N) * 3,
    ).validate()


def assert_equal(one: Any, other: Any, left_out: tuple[str, ...] = ()) -> None:
    """Asserts that two batches, of the same class, are equal in every field."""
    assert type(one) is type(other)
    assert one.env_spec == other.env_spec
    for name in vars(one).keys() - {"env_spec", *left_out}:
        if name in ("episode_infos", "last_infos"):
            assert getattr(one, name) == getattr(other, name)
            continue
        for (path, leaf), (other_path, other_leaf) in zip(
            tree_paths(getattr(one, name), name), tree_paths(getattr(other, name), name), strict=True
        ):
            assert (path, leaf.dtype) == (other_path, other_leaf.dtype)
            np.testing.assert_array_equal(leaf, other_leaf, err_msg=path)


def episode(batch: EpisodeBatch, number: int) -> dict[str, Tree]:
    """Returns the steps of one episode, found by counting."""
    first = sum(batch.lengths[:number].tolist())
    steps = list(range(first, first + int(batch.lengths[number])))
    names = ("observations", "actions", "rewards", "step_types", "env_infos", "agent_infos", "versions")
    return {name: tree_rows(getattr(batch, name), steps) for name in names}


def each_leaf(check: Callable[..., None], tree: Tree, *others: Tree) -> None:
    """Calls `check` for the corresponding leaves of trees."""
    leaves = [list(tree_paths(one)) for one in (tree, *others)]
    for same in zip(*leaves, strict=True):
        assert len({path for path, _ in same}) == 1
        check(*(leaf for _, leaf in same))


# ---- step types ----


def test_step_types_tell_terminal_states_from_cuts() -> None:
    kinds = [StepType.get_step_type(step, 4, False) for step in (1, 2, 3, 4, 5)]
    assert kinds == [StepType.FIRST, StepType.MID, StepType.MID, StepType.TIMEOUT, StepType.TIMEOUT]
    assert StepType.get_step_type(1, 4, True) == StepType.TERMINAL
    assert StepType.get_step_type(4, 4, True) == StepType.TERMINAL, "the time limit changes nothing at a terminal state"
    assert StepType.get_step_type(1, 1, False) == StepType.TIMEOUT
    assert StepType.get_step_type(10**6, None, False) == StepType.MID
    with pytest.raises(ValueError, match="step_cnt must be at least 1, got 0"):
        StepType.get_step_type(0, 4, False)


# ---- choosing and joining ----


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_take_returns_the_chosen_episodes_in_their_order(space: spaces.Space[Any]) -> None:
    batch = batch_of(observation_space=space)
    choices: list[tuple[Any, list[int]]] = [
        ([2, 0], [2, 0]),
        (3, [3]),
        ([-1, 1, 1], [3, 1, 1]),
        (np.array([True, False, True, True]), [0, 2, 3]),
        (slice(None, None, -2), [3, 1]),
        ([], []),
    ]
    for chosen, numbers in choices:
        taken = batch.take(chosen).validate()
        assert taken.lengths.tolist() == [LENGTHS[number] for number in numbers]
        assert taken.numbers.tolist() == [7 + number for number in numbers]
        assert taken.episode_infos == [{"task": number} for number in numbers]
        for place, number in enumerate(numbers):
            each_leaf(np.testing.assert_array_equal, episode(taken, place), episode(batch, number))
    with pytest.raises(IndexError):
        batch.take([4])


def test_take_copies_and_split_does_not() -> None:
    batch = batch_of()
    assert not np.shares_memory(batch.take(slice(None)).rewards, batch.rewards)
    assert all(np.shares_memory(part.rewards, batch.rewards) for part in batch.split())


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_concatenation_of_split_episodes_is_the_batch(space: spaces.Space[Any]) -> None:
    batch = batch_of(observation_space=space)
    parts = batch.split()
    assert [len(part.rewards) for part in parts] == [*LENGTHS]
    for part in parts:
        part.validate()
    assert_equal(EpisodeBatch.concatenate(*parts), batch)
    assert_equal(EpisodeBatch.concatenate(parts[0], batch.take([1, 2, 3])), batch)


def test_empty_batches_add_nothing_to_a_concatenation() -> None:
    batch = batch_of()
    empty = EpisodeBatch.from_list(batch.env_spec, [])
    assert (len(empty), empty.split(), empty.returns.tolist(), empty.to_list()) == (0, [], [], [])
    assert empty.next_observations["camera"].shape == (0, 4, 5, 3)
    assert empty.padded_rewards.shape == empty.valids.shape == (0, 0)
    assert_equal(EpisodeBatch.concatenate(empty, batch, batch.take([])), batch)
    assert_equal(EpisodeBatch.concatenate(empty, empty), empty)
    assert_equal(EpisodeBatch.from_samples(empty.to_samples(), batch.env_spec), empty)
    assert "0 episodes, 0 steps" in repr(empty.validate())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"env_spec": EnvSpec(NESTED, spaces.Discrete(3), 9)}, "expected one env_spec"),
        ({"env_infos": {"speed": np.zeros(3)}}, r"env_infos\['body'\]\['joints'\] is an array \[n, 2\] .* missing"),
        ({"agent_infos": {"mean": np.zeros((3, 3))}}, "agent_infos.mean is an array .* missing"),
        ({"rewards": np.zeros((3, 1), np.float32)}, r"rewards is an array \[n\] .* array \[n, 1\] in another"),
        ({"actions": (np.zeros(3, np.int64),)}, r"cannot concatenate actions"),
    ],
)
def test_batches_that_do_not_fit_are_not_concatenated(change: dict[str, Any], says: str) -> None:
    batch = batch_of()
    with pytest.raises(ValueError, match=says):
        EpisodeBatch.concatenate(batch, replace(batch.take([0]), **change))
    with pytest.raises(ValueError, match="got no batch"):
        EpisodeBatch.concatenate()


def test_batch_survives_pickling() -> None:
    batch = batch_of()
    assert_equal(pickle.loads(pickle.dumps(batch)), batch)


# ---- what follows from the fields ----


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_next_observations_are_those_after_each_step(space: spaces.Space[Any]) -> None:
    batch = batch_of(observation_space=space)
    observed = batch.observations_list
    following = []
    for number, seen in enumerate(observed):
        last = tree_rows(batch.last_observations, slice(number, number + 1))
        following.append(tree_map(lambda now, end: np.concatenate([now[1:], end]), seen, last))
    expected = tree_map(lambda *leaves: np.concatenate(leaves), *following)
    each_leaf(np.testing.assert_array_equal, batch.next_observations, expected)


def test_lists_returns_and_terminals_are_those_of_each_episode() -> None:
    batch = batch_of()
    assert [len(actions) for actions in batch.actions_list] == [*LENGTHS]
    for number in range(len(batch)):
        each_leaf(
            np.testing.assert_array_equal, batch.observations_list[number], episode(batch, number)["observations"]
        )
        np.testing.assert_array_equal(batch.actions_list[number], episode(batch, number)["actions"])
        assert batch.returns[number] == pytest.approx(episode(batch, number)["rewards"].astype(np.float64).sum())
    assert np.flatnonzero(batch.terminals).tolist() == [2, 8]
    assert repr(batch) == "EpisodeBatch: 4 episodes of 1 to 5 steps, 11 steps in total, {'TERMINAL': 2, 'TIMEOUT': 1}"


def test_time_steps_have_no_order() -> None:
    batch = batch_of()
    steps = batch.time_steps()
    assert len(steps) == 11
    assert [info["task"] for info in steps.episode_infos] == [0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3]
    each_leaf(np.testing.assert_array_equal, steps.next_observations, batch.next_observations)
    assert (steps.terminals == batch.terminals).all()
    assert_equal(TimeStepBatch.concatenate(*steps.split()), steps)
    assert_equal(TimeStepBatch.from_time_step_list(batch.env_spec, steps.to_time_step_list()), steps)
    assert steps.to_time_step_list()[4]["rewards"].tolist() == [batch.rewards[4]]


# ---- padding ----


@pytest.mark.parametrize(("max_episode_length", "row"), [(None, 5), (7, 7)])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_padded_fields_have_a_row_per_episode_and_zeros_after_it(
    space: spaces.Space[Any], max_episode_length: int | None, row: int
) -> None:
    batch = batch_of(observation_space=space, max_episode_length=max_episode_length)
    names = ("observations", "next_observations", "actions", "rewards", "step_types", "agent_infos", "env_infos")
    for name in names:
        whole, padded = getattr(batch, name), getattr(batch, f"padded_{name}")

        def check(flat: np.ndarray, rows: np.ndarray) -> None:
            assert (rows.shape, rows.dtype) == ((4, row, *flat.shape[1:]), flat.dtype)
            parts = np.split(flat, np.cumsum(LENGTHS)[:-1])
            for part, line in zip(parts, rows, strict=True):
                np.testing.assert_array_equal(line[: len(part)], part)
                assert not line[len(part) :].any()

        each_leaf(check, whole, padded)
    assert batch.valids.tolist() == [[step < length for step in range(row)] for length in LENGTHS]
    assert batch.padded(batch.rewards, max_length=9).shape == (4, 9)


def test_rows_shorter_than_an_episode_are_refused() -> None:
    with pytest.raises(ValueError, match="max_length is 4, but episode 2 has 5 steps"):
        batch_of().padded(np.zeros(11), max_length=4)


# ---- lists of dicts ----


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_list_of_dicts_gives_the_batch_back(space: spaces.Space[Any]) -> None:
    batch = batch_of(observation_space=space)
    paths = batch.to_list()
    assert [path["env_ids"] for path in paths] == [5, 6, 7, 8]
    assert_equal(EpisodeBatch.from_list(batch.env_spec, paths), batch)
    for number, path in enumerate(paths):  # the other form: one more observation, and no next ones
        last = tree_rows(batch.last_observations, slice(number, number + 1))
        path["observations"] = tree_map(lambda seen, end: np.concatenate([seen, end]), path["observations"], last)
        del path["next_observations"]
    assert_equal(TrajectoryBatch.from_trajectory_list(batch.env_spec, paths), batch)
    each_leaf(np.testing.assert_array_equal, batch.to_trajectory_list()[2]["actions"], paths[2]["actions"])


@pytest.mark.parametrize("key", ["terminals", "dones"])
def test_list_of_dicts_needs_only_observations_actions_and_rewards(key: str) -> None:
    spec = EnvSpec(VECTOR, spaces.Discrete(3, start=1), 9)
    paths = [
        {"observations": [[0, 0], [0.5, 1]], "actions": [2], "rewards": [1], key: [False]},
        {"observations": np.zeros((4, 2)), "actions": [0, 1, 2], "rewards": [1, 2, 3], key: [False, False, True]},
        {"observations": np.ones((3, 2)), "actions": np.zeros(2, np.int32), "rewards": np.ones(2, np.float64)},
    ]
    batch = EpisodeBatch.from_list(spec, paths)
    assert batch.lengths.tolist() == [1, 3, 2]
    assert batch.step_types.tolist() == [
        StepType.TIMEOUT,
        *(StepType.FIRST, StepType.MID, StepType.TERMINAL),
        *(StepType.FIRST, StepType.TIMEOUT),
    ]
    assert batch.last_observations.tolist() == [[0.5, 1], [0, 0], [1, 1]]
    dtypes = [str(array.dtype) for array in (batch.observations, batch.actions, batch.rewards)]
    assert dtypes == ["float32", "int64", "float32"]
    assert (batch.starts.tolist(), batch.numbers.tolist()) == ([0, 1, 4], [0, 1, 2])
    assert (batch.env_infos, batch.agent_infos, batch.episode_infos) == ({}, None, [{}, {}, {}])


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"rewards": None}, ValueError, r"paths\[1\] does not have \['rewards'\]"),
        ({"reward": [0.0]}, ValueError, r"paths\[1\] has \['reward'\], expected observations, actions, rewards"),
        ({"rewards": []}, ValueError, r"paths\[1\]\['rewards'\] has the shape \(0,\)"),
        ({"observations": np.zeros((2, 2))}, ValueError, "2 observations and 2 rewards, expected 3 observations, or 2"),
        ({"observations": np.zeros((5, 2))}, ValueError, "5 observations and 2 rewards"),
        (
            {"observations": np.zeros((3, 4))},
            ValueError,
            r"paths\[1\].observations is float64 \[2, 4\]",
        ),
        ({"actions": [0, 1, 1]}, ValueError, r"paths\[1\].actions is int64 \[3\], expected 2 rows"),
        ({"actions": [0, 3]}, ValueError, r"paths\[1\].actions\[1\] is 3, expected 0 to 2"),
        ({"actions": [0.0, 1.0]}, ValueError, r"actions is float64 \[2\], expected shape \(2,\) and dtype int64"),
        ({"terminals": [True, False]}, ValueError, r"paths\[1\] is terminal at the steps \[0\]"),
        ({"step_types": [0, 4]}, ValueError, "step_types has the value 4"),
        ({"env_infos": [1, 2]}, TypeError, r"paths\[1\].env_infos is .* expected a dict"),
        ({"episode_infos": 3}, TypeError, "expected a list of dicts"),
    ],
)
def test_wrong_paths_are_named(change: dict[str, Any], error: type[Exception], says: str) -> None:
    good = {"observations": np.zeros((3, 2)), "actions": [0, 1], "rewards": [1.0, 2.0]}
    wrong = {key: value for key, value in (good | change).items() if value is not None}
    with pytest.raises(error, match=says):
        EpisodeBatch.from_list(EnvSpec(VECTOR, spaces.Discrete(3)), [good, wrong])


def test_path_that_is_no_dict_is_refused() -> None:
    with pytest.raises(TypeError, match=r"paths\[0\] is .*, expected a dict"):
        EpisodeBatch.from_list(EnvSpec(VECTOR, spaces.Discrete(3)), [batch_of()])  # type: ignore[list-item]


# ---- checks ----


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"env_spec": "CartPole-v1"}, TypeError, "env_spec is str 'CartPole-v1', expected an EnvSpec"),
        ({"lengths": [3, 1, 5, 2]}, TypeError, "lengths is list .*, expected a NumPy array"),
        ({"lengths": np.array([3.0, 1.0, 5.0, 2.0])}, ValueError, "lengths is float64 .* expected .* integers"),
        ({"lengths": np.array([[3, 1], [5, 2]])}, ValueError, r"lengths is int64 \[2, 2\]"),
        ({"lengths": np.array([4, 0, 5, 2])}, ValueError, r"lengths\[1\] is 0, expected at least 1"),
        ({"lengths": np.array([3, 1, 5, 1])}, ValueError, r"rewards is float32 \[11\], expected 10 rows"),
        ({"env_spec": EnvSpec(VECTOR, spaces.Discrete(3), 4)}, ValueError, r"lengths\[2\] is 5, expected 1 to 4"),
        ({"observations": np.zeros((11, 2), np.complex64)}, ValueError, "observations is complex64"),
        ({"observations": np.zeros((10, 2), np.float32)}, ValueError, r"observations is float32 \[10, 2\]"),
        ({"last_observations": np.zeros((3, 2), np.float32)}, ValueError, "last_observations .* expected 4 rows"),
        ({"actions": np.full(11, -1)}, ValueError, r"actions\[0\] is -1, expected 0 to 2"),
        ({"actions": np.zeros((11, 1), np.int64)}, ValueError, r"actions is int64 \[11, 1\], expected shape \(11,\)"),
        ({"rewards": np.zeros((11, 1), np.float32)}, ValueError, "rewards is .* expected one dimension of floats"),
        ({"rewards": np.zeros(11, np.int64)}, ValueError, "rewards is .* expected one dimension of floats"),
        ({"step_types": np.ones(11)}, ValueError, "step_types is float64"),
        (
            {"step_types": np.full(11, 2, np.uint8)},
            ValueError,
            "TERMINAL, step 0 of 3 in episode 0",
        ),
        ({"step_types": np.zeros(11, np.uint8)}, ValueError, r"step_types\[1\] is FIRST, step 1 of 3 in episode 0"),
        ({"env_infos": None}, TypeError, "env_infos is NoneType None, expected a dict"),
        ({"env_infos": {"a": {"b": np.zeros(4)}}}, ValueError, r"env_infos\['a'\]\['b'\] is .* expected 11 rows"),
        ({"agent_infos": {"mean": torch.zeros(11)}}, TypeError, r"agent_infos\['mean'\] is .* expected a NumPy array"),
        ({"agent_infos": np.zeros(())}, ValueError, "agent_infos is .* expected 11 rows"),
        ({"versions": np.zeros(11, np.float32)}, ValueError, "versions is .* expected one dimension of integers"),
        ({"env_ids": np.zeros(3, np.int64)}, ValueError, "env_ids is .* expected 4 rows"),
        ({"numbers": np.zeros(4)}, ValueError, "numbers is float64"),
        ({"starts": None}, TypeError, "starts is NoneType"),
        ({"episode_infos": [{}]}, ValueError, "episode_infos has 1 dicts, expected one for each of 4 episodes"),
        ({"last_infos": [None] * 4}, TypeError, "last_infos is list .* expected a list of dicts"),
    ],
)
def test_wrong_field_is_named(change: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        replace(batch_of(observation_space=VECTOR), **change).validate()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda tree: tree["rest"], "observations is a tuple of 3, expected a dict with the keys"),
        (lambda tree: {"camera": tree["camera"]}, "expected a dict with the keys"),
        (
            lambda tree: tree | {"rest": tree["rest"][:2]},
            r"\['rest'\] is a tuple of 2, expected a tuple of 3",
        ),
        (
            lambda tree: tree | {"camera": tree["camera"][:, 1:]},
            r"\['camera'\] is uint8 \[11, 3, 5, 3\]",
        ),
        (lambda tree: tree | {"camera": tree["camera"].astype(np.int64)}, r"\['camera'\] is int64"),
        (
            lambda tree: tree | {"rest": (tree["rest"][0], tree["rest"][1] - 2, tree["rest"][2])},
            r"observations\['rest'\]\[1\]\[\d+\] is \d, expected 2 to 5",
        ),
    ],
)
def test_wrong_part_of_nested_observations_is_named(wrong: Callable[[Any], Any], says: str) -> None:
    batch = batch_of()
    with pytest.raises((TypeError, ValueError), match=says):
        replace(batch, observations=wrong(batch.observations)).validate()


# ---- columns of samples ----


def collected(
    env: Any = EpisodeStep, batch_T: int = 23, reset_mode: str = "mid_batch", **options: Any
) -> tuple[CategoricalPgAgent, Samples, Sequence[TrajInfo]]:
    agent = CategoricalPgAgent()
    sampler = SerialSampler(
        env, batch_T=batch_T, batch_B=4, max_decorrelation_steps=0, reset_mode=reset_mode, **options
    )
    with sampler.initialize(agent, seed=5, bootstrap_value=True):
        samples, infos = sampler.obtain_samples(0)
        return agent, samples.copy(), infos


def spec_of(env: gymnasium.Env[Any, Any]) -> EnvSpec:
    return EnvSpec(env.observation_space, env.action_space)


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
def test_whole_episodes_of_samples_are_those_that_start_and_end_in_it(reset_mode: str) -> None:
    lengths = ((3, 5), (1, 2), (30, 4), (7, 1))
    _, samples, infos = collected(
        env_kwargs={"lengths": lengths}, reset_mode=reset_mode, env_info_keys=EPISODE_STEP_INFO
    )
    env = EpisodeStep()
    batch = EpisodeBatch.from_samples(samples, spec_of(env)).validate()
    assert sorted((info.env_id, info.Length) for info in infos) == sorted(
        zip(batch.env_ids.tolist(), batch.lengths.tolist(), strict=True)
    )
    assert [*zip(batch.starts, batch.env_ids, strict=True)] == sorted(zip(batch.starts, batch.env_ids, strict=True))
    assert len(batch) == (3 if reset_mode == "wait" else len(infos)) > 2
    for number, (column, start, count) in enumerate(zip(batch.env_ids, batch.starts, batch.numbers, strict=True)):
        (one,) = batch.take([number]).split()
        length = len(one.rewards)
        assert length == lengths[column][count % 2]
        steps = np.arange(length)
        # The environment's observation is (episode, step).
        np.testing.assert_array_equal(one.observations, np.stack([np.full(length, count), steps], 1))
        np.testing.assert_array_equal(one.last_observations, [[count, length]])
        np.testing.assert_array_equal(one.rewards, 10 * count + steps - 1 + one.actions / 4)
        np.testing.assert_array_equal(one.env_infos["pair"], np.stack([np.full(length, count), steps + 1], 1))
        rows = slice(start, start + length)
        np.testing.assert_array_equal(one.agent_infos.value, samples.agent.agent_info.value[rows, column])
        terminated, _ = EpisodeStep.ENDS[(count + column) % 3]
        assert one.step_types[-1] == (StepType.TERMINAL if terminated else StepType.TIMEOUT)
        assert one.step_types[:-1].tolist() == [StepType.FIRST, *[StepType.MID] * (length - 2)][: length - 1]


def test_padding_steps_of_vector_environments_are_in_no_episode() -> None:
    _, samples, infos = collected(VectorEnvs("CartPole-v1"), batch_T=80)
    assert not samples.env.valid.all()
    with closing(gymnasium.make("CartPole-v1")) as env:
        batch = EpisodeBatch.from_samples(samples, spec_of(env)).validate()
    assert sorted(zip(batch.env_ids, batch.returns, strict=True)) == sorted((one.env_id, one.Return) for one in infos)
    assert len(batch) > 4
    assert (batch.lengths == batch.returns).all()


def test_samples_without_a_whole_episode_give_an_empty_batch() -> None:
    _, samples, _ = collected(env_kwargs={"lengths": ((30,),)})
    batch = EpisodeBatch.from_samples(samples, spec_of(EpisodeStep())).validate()
    assert len(batch) == 0
    assert batch.last_observations.shape == (0, 2)


def test_episode_that_started_before_the_batch_is_left_out() -> None:
    sampler = SerialSampler(
        EpisodeStep, batch_T=4, batch_B=2, max_decorrelation_steps=0, env_kwargs={"lengths": ((3, 4, 2),)}
    )
    with sampler.initialize(CategoricalPgAgent(), seed=5):
        sampler.obtain_samples(0)
        samples, _ = sampler.obtain_samples(1)
        # In both columns the last three steps of the second episode, then the first step of the third.
        assert samples.env.is_first.tolist() == [[False] * 2] * 3 + [[True] * 2]
        assert len(EpisodeBatch.from_samples(samples, spec_of(EpisodeStep()))) == 0


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_columns_of_samples_are_the_episodes(space: spaces.Space[Any]) -> None:
    batch = batch_of(observation_space=space)
    samples = batch.to_samples()
    T, B = samples.batch_spec.T, samples.batch_spec.B
    assert (T, B) == (5, 4)
    env, agent = samples.env, samples.agent
    for column in range(B):
        length, one = LENGTHS[column], episode(batch, column)
        pairs = [
            (env.observation, one["observations"]),
            (agent.action, one["actions"]),
            (env.reward, one["rewards"]),
            (env.env_info, one["env_infos"]),
            (agent.agent_info, one["agent_infos"]),
            (agent.version, one["versions"]),
        ]
        for tree, values in pairs:
            each_leaf(np.testing.assert_array_equal, tree_rows(tree, (slice(length), column)), values)
            each_leaf(
                lambda leaf: np.testing.assert_array_equal(leaf, 0), tree_rows(tree, (slice(length, None), column))
            )
        assert env.valid[:, column].tolist() == [True] * length + [False] * (T - length)
        assert env.is_first[:, column].tolist() == [True] + [False] * (T - 1)
        assert env.prev_reward[:, column].tolist() == [0, *one["rewards"][:-1], *[0] * (T - length)]
        assert agent.prev_action[:, column].tolist() == [0, *one["actions"][:-1], *[0] * (T - length)]
        ended = [step == length - 1 for step in range(T)]
        terminal = ENDS[column] == StepType.TERMINAL
        assert env.terminated[:, column].tolist() == [end and terminal for end in ended]
        assert env.truncated[:, column].tolist() == [end and not terminal for end in ended], "also a part of an episode"
    final = samples.final
    assert [*zip(final.time.tolist(), final.column.tolist(), strict=True)] == [(0, 1), (1, 3), (2, 0), (4, 2)]
    each_leaf(np.testing.assert_array_equal, final.observation, tree_rows(batch.last_observations, [1, 3, 0, 2]))
    last_steps = [3, 10, 2, 8]
    np.testing.assert_array_equal(final.prev_action, batch.actions[last_steps])
    np.testing.assert_array_equal(final.prev_reward, batch.rewards[last_steps])
    for (_, leaf), (_, own) in zip(tree_paths(env.last_observation), tree_paths(batch.last_observations), strict=True):
        assert not np.shares_memory(leaf.numpy(), own)


def test_samples_give_the_episodes_back() -> None:
    batch = batch_of()
    back = EpisodeBatch.from_samples(batch.to_samples(), batch.env_spec)
    left_out = ("env_ids", "numbers", "starts", "episode_infos", "last_infos", "step_types")
    assert_equal(back, batch, left_out)
    assert back.step_types.tolist() == [*batch.step_types[:-1], StepType.TIMEOUT]


def test_advantages_of_episodes_are_those_of_the_batch_they_come_from() -> None:
    agent, samples, _ = collected(Stochastic, batch_T=40)
    episodes = EpisodeBatch.from_samples(samples, spec_of(Stochastic()))
    assert len(episodes) > 8
    columns = episodes.to_samples()
    algo = A2C(A2CConfig(normalize_reward=False))
    algo.initialize(agent, n_itr=1, batch_spec=samples.batch_spec)
    agent.eval_mode(0)
    whole, _ = algo.advantages(samples, samples.env.reward, None)
    own, _ = algo.advantages(columns, columns.env.reward, columns.env.valid)
    for number, (column, start, length) in enumerate(
        zip(episodes.env_ids, episodes.starts, episodes.lengths, strict=True)
    ):
        torch.testing.assert_close(own[:length, number], whole[start : start + length, column])
    assert not own[~columns.env.valid].any()


@pytest.mark.parametrize("algo", [A2C(), PPO(), IMPALA()], ids=["A2C", "PPO", "IMPALA"])
def test_policy_gradient_algorithms_learn_from_episodes(algo: PolicyGradientAlgo) -> None:
    agent, samples, _ = collected(Stochastic, batch_T=40)
    episodes = EpisodeBatch.from_samples(samples, spec_of(Stochastic()))
    start = [parameter.detach().clone() for parameter in agent.parameters()]
    for itr, batch in enumerate((episodes, episodes.take(slice(3)))):  # of different numbers of columns
        columns = batch.to_samples()
        if itr == 0:
            algo.initialize(agent, n_itr=2, batch_spec=columns.batch_spec)
        algo.cut()
        info = algo.optimize_agent(itr, columns)
        assert np.isfinite([info["loss"], info["gradNorm"]]).all()
    assert not all(torch.equal(*pair) for pair in zip(start, agent.parameters(), strict=True))


# ---- Minari ----


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns the package minari, whose datasets are in a folder of the test."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    pytest.importorskip("h5py", reason="h5py (extra minari) is not installed")
    return pytest.importorskip("minari", reason="minari (extra minari) is not installed")


@pytest.mark.filterwarnings("ignore:.*is set to None.:UserWarning", "ignore:env_spec is None:UserWarning")
def test_minari_loads_the_episodes_that_were_written(minari: Any) -> None:
    """Images are as large as those that Minari stores as JPEG by default."""
    space = spaces.Dict({**NESTED.spaces, "camera": spaces.Box(0, 255, (32, 40, 3), np.uint8)})
    batch = batch_of(observation_space=space)
    actions = spaces.Tuple((spaces.Discrete(3, start=4), spaces.Box(-0.5, 0.5, (2,), np.float32)))
    both = (batch.actions, np.random.default_rng(1).normal(size=(11, 2)).astype(np.float32))
    batch = replace(batch, env_spec=EnvSpec(space, actions), actions=both)
    to_minari(batch, "headrace/episodes-v0")
    dataset = minari.load_dataset("headrace/episodes-v0")
    assert (dataset.observation_space, dataset.action_space) == (space, actions)
    assert (dataset.total_episodes, dataset.total_steps) == (4, 11)
    for number, found in enumerate(dataset.iterate_episodes()):
        one, length = episode(batch, number), LENGTHS[number]
        last = tree_rows(batch.last_observations, slice(number, number + 1))
        seen = tree_map(lambda now, end: np.concatenate([now, end]), one["observations"], last)
        each_leaf(np.testing.assert_array_equal, found.observations, seen)
        np.testing.assert_array_equal(found.actions[0], one["actions"][0] + 4)
        np.testing.assert_array_equal(found.actions[1], one["actions"][1].clip(-0.5, 0.5))
        np.testing.assert_array_equal(found.rewards, one["rewards"])
        ended, terminal = np.arange(length) == length - 1, ENDS[number] == StepType.TERMINAL
        assert found.terminations.tolist() == (ended & terminal).tolist()
        assert found.truncations.tolist() == (ended & ~np.bool_(terminal)).tolist()
        np.testing.assert_array_equal(found.infos["body"]["joints"], one["env_infos"]["body"]["joints"])
        np.testing.assert_array_equal(found.infos["speed"], one["env_infos"]["speed"])


def test_minari_dataset_makes_its_environment_again(minari: Any) -> None:
    _, samples, _ = collected("CartPole-v1", batch_T=60)
    with closing(gymnasium.make("CartPole-v1")) as env:
        episodes = EpisodeBatch.from_samples(samples, spec_of(env))
    assert len(episodes)
    about: dict[str, Any] = {
        "algorithm_name": "PPO",
        "author": "A",
        "author_email": "a@b.c",
        "code_permalink": "d",
        "description": "e",
    }
    to_minari(episodes, "cartpole/ppo-v0", env="CartPole-v1", **about)
    dataset = minari.load_dataset("cartpole/ppo-v0")
    kept = dataset.storage.metadata
    assert {**kept, "author": min(kept["author"]), "author_email": min(kept["author_email"])}.items() >= about.items()
    with closing(dataset.recover_environment()) as env:
        assert env.spec.id == "CartPole-v1"
    with pytest.raises(ValueError, match="already exists"):
        to_minari(episodes, "cartpole/ppo-v0", env="CartPole-v1", **about)


@pytest.mark.parametrize("package", ["minari", "h5py", "PIL.Image"])
def test_missing_minari_error_names_the_extra(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'to_minari\(\) needs minari, h5py and pillow .*"headrace\[minari\]"'):
        to_minari(batch_of(), "headrace/episodes-v0")
    assert not any(tmp_path.iterdir()), "a folder that is left behind would refuse the next try"
