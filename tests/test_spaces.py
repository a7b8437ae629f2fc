"""Spaces: null values, recorded observations, actions of environments, and refused spaces."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace.agents.base import Agent
from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.tree import allocate_like, tree_leaves, tree_map, tree_paths, tree_rows
from headrace.envs.spaces import Mismatch, action_decoder, null_value, observation_writer
from headrace.errors import EnvContractError, SamplerError
from headrace.models import Features
from headrace.samplers import SerialSampler
from headrace.types import AgentStep, EnvSpaces, StepInputs
from tests.environments import SHAPELESS, SPACES, AnySpaces

ALL = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
REFUSED = pytest.mark.parametrize("space", SHAPELESS.values(), ids=SHAPELESS.keys())


def empty_rows(space: spaces.Space[Any], *leading: int) -> Any:
    return allocate_like(null_value(space), leading, np.zeros)


def plain(value: Any) -> Any:
    """An element of a space, or a row of a batch, as nested lists."""
    if isinstance(value, dict):
        return {key: plain(child) for key, child in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(child) for child in value)
    return np.asarray(value).tolist()


def indexed_from_0(space: spaces.Space[Any], action: Any) -> Any:
    """Returns the agent's form of `action`: discrete numbers count from 0."""
    match space:
        case spaces.Dict():
            return {key: indexed_from_0(child, action[key]) for key, child in space.spaces.items()}
        case spaces.Tuple():
            return tuple(indexed_from_0(child, part) for child, part in zip(space.spaces, action, strict=True))
        case spaces.Discrete() | spaces.MultiDiscrete():
            return np.asarray(action - space.start)
    return np.asarray(action)


@ALL
def test_null_values_are_zeros_of_the_shape_and_dtype_of_the_space(space: spaces.Space[Any]) -> None:
    null, sample = null_value(space), space.sample()
    assert [path for path, _ in tree_paths(null)] == [path for path, _ in tree_paths(sample)]
    for zero, leaf in zip(tree_leaves(null), tree_leaves(sample), strict=True):
        assert isinstance(zero, np.ndarray)
        assert zero.shape == np.shape(leaf)
        assert zero.dtype == np.asarray(leaf).dtype
        assert not zero.any()


@ALL
def test_observations_are_recorded_unchanged(space: spaces.Space[Any]) -> None:
    space.seed(3)
    rows, casts = empty_rows(space, 4), []
    write = observation_writer(space, lambda *cast: casts.append(cast), "observation")
    observations = [space.sample() for _ in range(4)]
    for row in (2, 0, 3, 1):
        write(rows, row, observations[row])
    assert [plain(tree_rows(rows, row)) for row in range(4)] == [plain(value) for value in observations]
    assert casts == []


@ALL
def test_environments_get_actions_that_are_in_their_space(space: spaces.Space[Any]) -> None:
    """Discrete numbers with their start added; each environment gets its own array."""
    space.seed(4)
    actions = [space.sample() for _ in range(5)]
    columns = [indexed_from_0(space, action) for action in actions]
    recorded = tree_map(lambda *leaves: np.stack(leaves), *columns)
    kept = tree_map(np.copy, recorded)
    decoded = action_decoder(space)(recorded)
    assert [plain(action) for action in decoded] == [plain(action) for action in actions]
    assert all(space.contains(action) for action in decoded)
    for action in decoded:  # an environment may write into what it is given
        for leaf in tree_leaves(action):
            if isinstance(leaf, np.ndarray) and leaf.ndim:
                leaf[...] = 0
    assert plain(recorded) == plain(kept)


def test_box_actions_are_clipped_for_the_environment_only() -> None:
    space = spaces.Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32))
    recorded = np.array([[5, 5], [-5, -5], [0.25, 0.5]], np.float32)
    decoded = action_decoder(space)(recorded)
    assert [action.tolist() for action in decoded] == [[1, 5], [-1, 0], [0.25, 0.5]]
    assert all(action.dtype == np.float32 for action in decoded)
    assert recorded.tolist() == [[5, 5], [-5, -5], [0.25, 0.5]]


@REFUSED
def test_spaces_without_fixed_shape_are_refused_with_path_and_remedy(space: spaces.Space[Any]) -> None:
    place = {"Text in a Dict": "['word']", "Sequence in a Tuple": "[1]"}.get(
        next(name for name, one in SHAPELESS.items() if one is space), ""
    )
    for function, path in ((null_value, "space"), (action_decoder, "action")):
        with pytest.raises(EnvContractError, match="no fixed shape") as caught:
            function(space)
        assert str(caught.value).startswith(f"{path}{place} is ")
        assert "wrap the environment so that it uses Box" in str(caught.value)
    with pytest.raises(EnvContractError, match="no fixed shape") as caught:
        observation_writer(space, lambda *cast: None)
    assert str(caught.value).startswith(f"observation{place} is ")
    key = place.strip("[']")
    words = (
        "TransformObservation"
        if isinstance(space, spaces.Graph)
        else f"pad={{'{key}': n}} to the sampler for at most n "
    )
    assert words in str(caught.value)


@pytest.mark.parametrize("where", ["observation", "action"])
@REFUSED
def test_samplers_refuse_spaces_without_fixed_shape_and_close_the_environments(
    space: spaces.Space[Any], where: str
) -> None:
    made: list[AnySpaces] = []
    pair = (space, spaces.Discrete(2)) if where == "observation" else (spaces.Discrete(2), space)
    sampler = SerialSampler(AnySpaces, {"observation_space": pair[0], "action_space": pair[1], "made": made}, **SIZES)
    with pytest.raises(EnvContractError, match="no fixed shape"):
        sampler.initialize(CategoricalPgAgent(), seed=0)
    assert [env.closed for env in made] == [1, 1, 1]


WRONG: dict[str, tuple[spaces.Space[Any], Any, str]] = {
    "wrong shape": (SPACES["box"], np.zeros(4, np.float32), "shape [3]"),
    "broadcastable shape": (SPACES["box"], np.zeros(1, np.float32), "shape [3]"),
    "one dimension more": (SPACES["box"], np.zeros((1, 3), np.float32), "shape [3]"),
    "zero dimensions": (SPACES["box"], np.zeros((), np.float32), "shape [3]"),
    "object": (SPACES["box"], np.array([1.0, 2.0, None]), "dtype float32"),
    "float64 for uint8": (SPACES["image"], np.zeros((2, 4, 3), np.float64), "dtype uint8; to round or"),
    "too large for uint8": (SPACES["image"], np.full((2, 4, 3), 256), "dtype uint8; to round or"),
    "negative for uint8": (SPACES["image"], np.full((2, 4, 3), -1, np.int8), "dtype uint8; to round or"),
    "int64 that float64 rounds": (SPACES["box float64"], np.array([0, 2**53 + 1]), "dtype float64; to round or"),
    "uint64 that int64 wraps": (SPACES["multi-discrete"], np.full(2, 2**64 - 1, np.uint64), "dtype int64; to round or"),
    "0.5 for an index": (SPACES["multi-discrete"], np.array([0.5, 0]), "dtype int64; to round or"),
    "2 for a bool": (spaces.Box(0, 1, (2,), np.bool_), np.array([2, 0]), "dtype bool; to round or"),
    "ragged list": (SPACES["box"], [0.0, [1.0], 2.0], "a numpy array of float32 [3]"),
    "list of words": (SPACES["box"], ["0", "1", "2"], "a numpy array of float32 [3]"),
    "list of another length": (SPACES["box"], [0.0], "a numpy array of float32 [3]"),
    "transposed": (SPACES["image"], np.zeros((3, 2, 4), np.uint8), "shape [2, 4, 3]"),
    "number": (SPACES["box"], 0.5, "a numpy array of float32 [3]"),
    "None": (SPACES["box"], None, "a numpy array of float32 [3]"),
    "torch tensor": (SPACES["box"], torch.zeros(3), "a numpy array of float32 [3]"),
    "dict for box": (SPACES["box"], {"x": np.zeros(3, np.float32)}, "a numpy array of float32 [3]"),
    "float for discrete": (SPACES["discrete"], 1.0, "an integer in [0, 5)"),
    "numpy float for discrete": (SPACES["discrete"], np.float32(1), "an integer in [0, 5)"),
    "array for discrete": (SPACES["discrete"], np.array([1]), "an integer in [0, 5)"),
    "None for discrete": (SPACES["discrete"], None, "an integer in [0, 5)"),
    "str for discrete": (SPACES["discrete"], "1", "an integer in [0, 5)"),
    "discrete too large": (SPACES["discrete"], 5, "an integer in [0, 5)"),
    "discrete negative": (SPACES["discrete"], -1, "an integer in [0, 5)"),
    "discrete below its start": (SPACES["discrete from 7"], 6, "an integer in [7, 10)"),
    "discrete after its end": (SPACES["discrete from -2"], 2, "an integer in [-2, 2)"),
    "not a dict": (SPACES["dict"], (0, 0), "a dict with the keys ['gear', 'position']"),
    "key missing": (SPACES["dict"], {"gear": 1}, "a dict with the keys ['gear', 'position']"),
    "key too many": (
        SPACES["dict"],
        {"gear": 1, "position": np.zeros(2, np.float32), "extra": 0},
        "a dict with the keys ['gear', 'position']",
    ),
    "tuple too short": (SPACES["tuple"], (np.zeros(2, np.int8),), "a tuple of 2"),
}


@pytest.mark.parametrize(("space", "observation", "expected"), WRONG.values(), ids=WRONG.keys())
def test_observation_outside_the_space_is_a_mismatch(space: spaces.Space[Any], observation: Any, expected: str) -> None:
    rows = empty_rows(space, 2)
    with pytest.raises(Mismatch) as caught:
        observation_writer(space, lambda *cast: None, "observation")(rows, 1, observation)
    assert caught.value.expected.startswith(expected)
    assert caught.value.path == "observation"
    assert caught.value.came


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda value: value["body"].update(joints=np.zeros(2, np.float32)), "observation['body']['joints']"),
        (lambda value: value["body"].update(modes=[0.5, 1]), "observation['body']['modes']"),
        (lambda value: value.update(camera=(np.zeros((2, 2), np.uint8), 3)), "observation['camera'][1]"),
        (lambda value: value.update(camera=(np.full((2, 2), -1, np.int8), 0)), "observation['camera'][0]"),
        (lambda value: value.update(camera=None), "observation['camera']"),
    ],
)
def test_nested_mismatch_names_its_path(change: Any, path: str) -> None:
    space = SPACES["nested"]
    observation = space.sample()
    change(observation)
    with pytest.raises(Mismatch) as caught:
        observation_writer(space, lambda *cast: None, "observation")(empty_rows(space, 2), 0, observation)
    assert caught.value.path == path


def test_large_observation_is_abbreviated_in_errors() -> None:
    with pytest.raises(Mismatch) as caught:
        observation_writer(SPACES["box"], lambda *cast: None, "observation")(
            empty_rows(SPACES["box"], 1), 0, [0.0] * 10**5
        )
    assert len(caught.value.came) < 80


CAST: dict[str, tuple[spaces.Space[Any], Any, str]] = {
    "float64": (SPACES["box"], np.array([0.1, 0.2, 0.3]), "float64"),
    "float16": (SPACES["box"], np.array([0.5, 1, 2], np.float16), "float16"),
    "uint8": (SPACES["box"], np.array([0, 1, 255], np.uint8), "uint8"),
    "int64": (SPACES["box"], np.array([0, -1, 2**24]), "int64"),
    "bool": (SPACES["box"], np.array([True, False, True]), "bool"),
    "list": (SPACES["box"], [0.5, 1, 2], "list"),
    "tuple": (SPACES["box"], (0.5, 1.0, 2.0), "tuple"),
    "number for a scalar box": (SPACES["box scalar"], 0.5, "float"),
    "float32 for float64": (SPACES["box float64"], np.array([0.1, 0.2], np.float32), "float32"),
    "int64 for float64": (SPACES["box float64"], np.array([2**53, -1]), "int64"),
    "int64 for uint8": (SPACES["image"], np.full((2, 4, 3), 255), "int64"),
    "0 and 1 for bools": (spaces.Box(0, 1, (2,), np.bool_), np.array([0, 1]), "int64"),
    "int32 for indices": (SPACES["multi-discrete"], np.array([1, 2], np.int32), "int32"),
    "floats for bits": (SPACES["multi-binary"], np.array([0.0, 1.0, 1.0, 0.0]), "float64"),
    "bools for bits": (SPACES["multi-binary"], np.array([True, False, True, False]), "bool"),
    "list of bits": (SPACES["multi-binary"], [0, 1, 1, 0], "list"),
}


@pytest.mark.parametrize(("space", "observation", "came"), CAST.values(), ids=CAST.keys())
def test_lossless_casts_are_made_and_logged(space: spaces.Space[Any], observation: Any, came: str) -> None:
    casts: list[Any] = []
    rows = empty_rows(space, 2)
    observation_writer(space, lambda *cast: casts.append(cast))(rows, 1, observation)
    assert not rows[0].any()
    assert rows[1].tolist() == np.asarray(observation).astype(space.dtype).tolist()
    assert [(path, str(said), dtype) for path, said, dtype in casts] == [("observation", came, space.dtype)]


def test_list_is_cast_to_a_tuple_observation_and_logged() -> None:
    casts: list[Any] = []
    rows = empty_rows(SPACES["tuple"], 1)
    parts = [np.ones(2, np.int8), np.ones(2, np.float32)]
    observation_writer(SPACES["tuple"], lambda *cast: casts.append(cast))(rows, 0, parts)
    assert [leaf.tolist() for leaf in tree_leaves(rows)] == [[[1, 1]], [[1, 1]]]
    assert casts == [("observation", "list", "tuple")]


def test_every_observation_that_a_space_contains_is_recorded() -> None:
    """Whatever Gymnasium takes for an element: the numbers as an array of every dtype, and as a list."""
    for name in ("box", "box float64", "image", "multi-discrete", "multi-binary", "discrete"):
        space = SPACES[name]
        space.seed(1)
        ones = np.ones(space.shape or (), np.int64)
        for value in (*(ones.astype(dtype) for dtype in "?bBhHiIlLefd"), ones.tolist()):
            with warnings.catch_warnings(action="ignore"):
                contained = space.contains(value)
            if contained:
                rows = empty_rows(space, 1)
                observation_writer(space, lambda *cast: None)(rows, 0, value)
                assert (rows == 1).all()


@pytest.mark.parametrize("value", [2, np.int64(2), np.uint8(2), np.array(2)])
def test_any_integer_type_is_a_discrete_observation(value: Any) -> None:
    rows = empty_rows(SPACES["discrete"], 1)
    observation_writer(SPACES["discrete"], lambda *cast: None)(rows, 0, value)
    assert rows.tolist() == [2]


def test_non_contiguous_observations_are_recorded() -> None:
    rows = empty_rows(SPACES["image"], 1)
    image = np.arange(24, dtype=np.uint8).reshape(3, 4, 2).T
    observation_writer(SPACES["image"], lambda *cast: None)(rows, 0, image)
    assert np.array_equal(rows[0], image)


# ---- through a sampler ----

SIZES: dict[str, Any] = {"batch_T": 6, "batch_B": 3, "max_decorrelation_steps": 0}


@dataclass
class Seen:
    observation: Any
    features: torch.Tensor


class AnyAgent(Agent):
    """Acts in every space: element number t of a list of its own; records the observation it was given."""

    def __init__(self, actions: list[Any]) -> None:
        self._actions, self._t = actions, 0

    def build_model(self, spaces: EnvSpaces) -> torch.nn.Module:
        return Features(spaces.observation)

    def sample_mode(self, itr: int) -> None:
        super().sample_mode(itr)
        self._t = 0

    def step(self, inputs: StepInputs, state: Any) -> AgentStep:
        n, action = len(inputs.is_first), self._actions[self._t % len(self._actions)]
        self._t += 1
        rows = tree_map(lambda leaf: torch.from_numpy(np.stack([leaf] * n)), action)
        return AgentStep(rows, Seen(inputs.observation, self.model(inputs.observation)))

    def value(self, inputs: StepInputs, state: Any) -> torch.Tensor:
        return self.model(inputs.observation).sum(-1)

    def __call__(self, inputs: StepInputs, state: Any = None) -> Any:
        return None


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
@ALL
def test_batch_of_every_space(space: spaces.Space[Any], reset_mode: str) -> None:
    """Observations and actions of the same space, as returned, recorded, passed to the agent and passed to the
    environment.
    """
    space.seed(8)
    made: list[AnySpaces] = []
    said = [indexed_from_0(space, space.sample()) for _ in range(6)]
    sampler = SerialSampler(
        AnySpaces,
        {"observation_space": space, "action_space": space, "made": made},
        reset_mode=reset_mode,
        **SIZES,
    )
    with sampler.initialize(AnyAgent(said), seed=0, bootstrap_value=True):
        samples, _ = sampler.obtain_samples(0)
        arrays = samples.copy().numpy()
    shown = [made[b].shown for b in range(3)]
    rows = [0, 1, 2, 3, 5] if reset_mode == "mid_batch" else [0, 1, 2, 3]  # 4 is the final one, 5 a reset's
    for b in range(3):
        for t, number in enumerate(rows):
            assert plain(tree_rows(arrays.env.observation, (t, b))) == plain(shown[b][number])
            assert plain(tree_rows(arrays.agent.agent_info.observation, (t, b))) == plain(shown[b][number])
        assert plain(tree_rows(arrays.final.observation, b)) == plain(shown[b][4])
        steps = 6 if reset_mode == "mid_batch" else 4
        assert len(made[b].actions) == steps
        for t in range(steps):
            assert plain(tree_rows(arrays.agent.action, (t, b))) == plain(said[t])
            assert plain(indexed_from_0(space, made[b].actions[t])) == plain(said[t])
            assert space.contains(made[b].actions[t])
        if reset_mode == "wait":
            for t in (4, 5):
                padding = tree_rows(arrays.env.observation, (t, b))
                assert not any(np.any(leaf) for leaf in tree_leaves(padding))
    assert arrays.agent.agent_info.features.shape[:2] == (6, 3)


def test_recorded_box_actions_are_unclipped_and_the_environment_gets_clipped_ones() -> None:
    made: list[AnySpaces] = []
    wild = np.array([9.0, -9.0, 0.5], np.float32)
    options = {"observation_space": SPACES["discrete"], "action_space": SPACES["box"], "made": made}
    sampler = SerialSampler(AnySpaces, options, **SIZES)
    with sampler.initialize(AnyAgent([wild]), seed=0):
        samples, _ = sampler.obtain_samples(0)
        assert samples.agent.action[2, 1].tolist() == [9.0, -9.0, 0.5]
        assert samples.agent.prev_action[3, 1].tolist() == [9.0, -9.0, 0.5]
        assert samples.final.prev_action[0].tolist() == [9.0, -9.0, 0.5]
    assert made[1].actions[2].tolist() == [3.0, -2.0, 0.5]


def test_environments_of_different_spaces_are_refused() -> None:
    made: list[AnySpaces] = []

    def make() -> AnySpaces:
        return AnySpaces(spaces.Discrete(2 + len(made)), spaces.Discrete(2), made)

    with pytest.raises(EnvContractError, match="all must be the same") as caught:
        SerialSampler(make, **SIZES).initialize(CategoricalPgAgent(), seed=0)
    assert "env 1" in str(caught.value)
    assert [env.closed for env in made] == [1, 1, 1]


def test_evaluation_environments_of_other_spaces_are_refused() -> None:
    made: list[AnySpaces] = []

    def make(size: int) -> AnySpaces:
        return AnySpaces(spaces.Discrete(size), spaces.Discrete(2), made)

    sampler = SerialSampler(make, {"size": 3}, eval_env_kwargs={"size": 4}, eval_n_envs=2, **SIZES)
    with pytest.raises(EnvContractError, match="eval_env_kwargs"):
        sampler.initialize(CategoricalPgAgent(), seed=0)
    assert [env.closed for env in made] == [1] * 5


def test_agent_for_other_action_spaces_is_refused() -> None:
    made: list[AnySpaces] = []
    options = {"observation_space": SPACES["discrete"], "action_space": SPACES["box"], "made": made}
    with pytest.raises((TypeError, SamplerError), match="Discrete"):
        SerialSampler(AnySpaces, options, **SIZES).initialize(CategoricalPgAgent(), seed=0)
    assert [env.closed for env in made] == [1, 1, 1]


# ---- features ----


def test_features_of_nested_spaces_are_concatenated_in_the_order_of_the_space() -> None:
    space = SPACES["nested"]
    observation = {
        "camera": (torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8), torch.tensor(2)),
        "body": {"joints": torch.tensor([5.0, 6.0, 7.0]), "modes": torch.tensor([8, 9])},
    }
    features = Features(space)
    parts = {"camera": [1, 2, 3, 4, 0, 0, 1], "body": [5, 6, 7, 8, 9]}
    expected = [number for key in space.spaces for number in parts[key]]  # type: ignore[attr-defined]
    assert features.size == 12
    assert features(observation).tolist() == expected
    stacked = tree_map(lambda leaf: leaf.expand(4, 3, *leaf.shape), observation)
    assert features(stacked).tolist() == [[expected] * 3] * 4


@pytest.mark.parametrize("name", ["discrete from 7", "discrete from -2"])
def test_discrete_features_are_one_hot_from_space_start(name: str) -> None:
    space = SPACES[name]
    assert isinstance(space, spaces.Discrete)
    numbers = torch.arange(int(space.start), int(space.start + space.n))
    assert Features(space)(numbers).tolist() == torch.eye(int(space.n)).tolist()
