"""Models: features of every kind of space, images, default models, weights as a function of the seed."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace.agents.base import Agent
from headrace.agents.pg import (
    CategoricalPgAgent,
    GaussianPgAgent,
    RecurrentCategoricalPgAgent,
    RecurrentGaussianPgAgent,
)
from headrace.buffers.tree import tree_map
from headrace.models import ActorCritic, Features, NatureCnn, RecurrentActorCritic
from headrace.models.conv import is_image
from headrace.types import EnvSpaces, StepInputs

BOX = spaces.Box(-1, 1, (3,), np.float32)


def image(*shape: int, dtype: Any = np.uint8) -> spaces.Box:
    return spaces.Box(0, 255, shape, dtype)


def rows_of(space: spaces.Space[Any], n: int, seed: int = 0) -> Any:
    """`n` observations of a space as a batch holds them."""
    space.seed(seed)
    return tree_map(lambda *leaves: torch.from_numpy(np.stack(leaves)), *(space.sample() for _ in range(n)))


# ---- images ----


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (image(3, 84, 84), True),
        (image(84, 84, 3), True),
        (image(84, 84, 1), True),
        (image(1, 84, 84), True),
        (image(4, 36, 36), True),
        (image(36, 36, 4), True),
        (image(36, 64, 3), True),
        (image(210, 160, 3), True),
        (image(40, 40, 40), True),
        (image(3, 35, 36), False),
        (image(3, 36, 35), False),
        (image(35, 84, 3), False),
        (image(84, 3, 84), False),
        (image(84, 84), False),
        (image(4, 84, 84, 3), False),
        (image(3, 84, 84, dtype=np.float32), False),
        (image(3, 84, 84, dtype=np.int16), False),
        (spaces.MultiBinary((3, 84, 84)), False),
        (spaces.Discrete(5), False),
    ],
    ids=str,
)
def test_images_are_uint8_with_channels_and_sides_of_at_least_36(space: spaces.Space[Any], expected: bool) -> None:
    assert is_image(space) == expected
    if space.shape is not None and math.prod(space.shape) < 1e5:
        features = Features(space)
        assert features.has_images == expected
        if expected:
            assert features(torch.zeros((2, *space.shape), dtype=torch.uint8)).shape == (2, features.size)


def channel_last_of(cnn: NatureCnn, shape: tuple[int, ...]) -> NatureCnn:
    other = NatureCnn(shape)
    other.load_state_dict(cnn.state_dict())
    return other


@pytest.mark.parametrize("shape", [(3, 84, 84), (1, 36, 36), (4, 64, 48)])
def test_channel_first_and_last_give_the_same_features_of_the_same_image(shape: tuple[int, ...]) -> None:
    cnn, images = NatureCnn(shape), rows_of(image(*shape), 3)
    turned = images.permute(0, 2, 3, 1).contiguous()
    expected = cnn(images)
    assert expected.shape == (3, 512)
    assert expected.std() > 0
    torch.testing.assert_close(channel_last_of(cnn, (*shape[1:], shape[0]))(turned), expected)


@pytest.mark.parametrize("shape", [(3, 84, 84), (84, 84, 3), (36, 36, 1), (2, 37, 45), (50, 99, 2), (3, 210, 160)])
def test_nature_cnn_fits_every_image_size(shape: tuple[int, ...]) -> None:
    """The input size of the linear layer follows from the convolutions."""
    cnn = NatureCnn(shape, size=16)
    assert cnn(torch.zeros((2, *shape), dtype=torch.uint8)).shape == (2, 16)
    if shape == (3, 84, 84):
        assert cnn.linear.in_features == 64 * 7 * 7  # as in the paper


def test_bytes_are_scaled_to_one_and_the_layers_are_those_of_the_paper() -> None:
    cnn, images = NatureCnn((3, 40, 52)), rows_of(image(3, 40, 52), 2)
    kept = images.clone()
    hidden = images.double() / 255
    for convolution, stride in zip(cnn.convolutions, (4, 2, 1), strict=True):
        assert isinstance(convolution, torch.nn.Conv2d)
        weight, bias = convolution.weight.double(), convolution.bias
        assert bias is not None
        hidden = torch.nn.functional.conv2d(hidden, weight, bias.double(), stride=stride).relu()
    expected = (hidden.flatten(1) @ cnn.linear.weight.double().T + cnn.linear.bias.double()).relu()
    torch.testing.assert_close(cnn(images).double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(images, kept), "the batch is only read"


def test_images_may_have_any_leading_dims() -> None:
    cnn, images = NatureCnn((36, 40, 3), size=8), rows_of(image(36, 40, 3), 6)
    flat = cnn(images)
    torch.testing.assert_close(cnn(images.reshape(2, 3, 36, 40, 3)), flat.reshape(2, 3, 8))
    torch.testing.assert_close(cnn(images[4]), flat[4])


# ---- features ----


def test_features_of_the_parts_of_a_tree_are_concatenated() -> None:
    space = spaces.Dict(
        {
            "a": spaces.Tuple((spaces.Discrete(3, start=5), spaces.Box(-9, 9, (2, 2), np.float64))),
            "b": spaces.MultiBinary(2),
            "c": spaces.Box(-9, 9, (), np.float32),
        }
    )
    features = Features(space)
    observation = {
        "a": (torch.tensor([5, 7]), torch.arange(8.0).double().reshape(2, 2, 2)),
        "b": torch.tensor([[0, 1], [1, 1]], dtype=torch.int8),
        "c": torch.tensor([-1.0, -2.0]),
    }
    assert features.size == 3 + 4 + 2 + 1
    seen = features(observation)
    assert seen.dtype == torch.float32
    assert seen.tolist() == [[1, 0, 0, 0, 1, 2, 3, 0, 1, -1], [0, 0, 1, 4, 5, 6, 7, 1, 1, -2]]
    twice = features(tree_map(lambda leaf: torch.stack([leaf, leaf]), observation))
    assert torch.equal(twice, torch.stack([seen, seen]))
    one = features(tree_map(lambda leaf: leaf[1], observation))
    assert torch.equal(one, seen[1])


def test_each_image_in_a_dict_has_its_own_convolutions() -> None:
    space = spaces.Dict({"front": image(3, 40, 40), "back": image(3, 40, 40), "speed": BOX})
    features, rows = Features(space), rows_of(space, 4)
    assert features.size == 512 + 512 + 3
    before = features(rows)
    rows["front"] = rows["front"] // 2
    changed = (features(rows) != before).any(dim=0)
    back, front, speed = changed[:512], changed[512:1024], changed[1024:]  # Gymnasium sorts the keys
    assert front.any()
    assert not back.any()
    assert not speed.any()


@pytest.mark.parametrize("start", [0, 7, -2])
def test_zero_observation_of_a_discrete_space_is_valid_for_any_start(start: int) -> None:
    seen = Features(spaces.Discrete(4, start=start))(torch.tensor([0, start, start + 3]))
    assert seen.sum(dim=-1).tolist() == [1, 1, 1]
    assert seen[1:].argmax(dim=-1).tolist() == [0, 3]


# ---- default models ----


@pytest.mark.parametrize("space", [BOX, spaces.Discrete(3), image(35, 35, 3), spaces.Dict({"x": BOX})], ids=str)
def test_numbers_get_two_layers_of_64(space: spaces.Space[Any]) -> None:
    model = ActorCritic(EnvSpaces(space, spaces.Discrete(2)), n_outputs=2)
    assert [layer.out_features for layer in model.policy.layers] == [64, 64]
    assert not any(isinstance(module, NatureCnn) for module in model.modules())


@pytest.mark.parametrize("space", [image(40, 40, 3), spaces.Tuple((BOX, image(3, 40, 40)))], ids=["image", "tuple"])
def test_images_get_convolutions_without_further_layers(space: spaces.Space[Any]) -> None:
    model = ActorCritic(EnvSpaces(space, spaces.Discrete(2)), n_outputs=2)
    assert len(model.policy.layers) == 0
    assert sum(isinstance(module, NatureCnn) for module in model.modules()) == 1
    outputs, value = model(rows_of(space, 3), None, torch.zeros(3))
    (outputs.square().sum() + value.sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_separate_value_shares_only_the_features() -> None:
    model = ActorCritic(EnvSpaces(BOX, spaces.Discrete(2)), n_outputs=2, separate_value=True)
    outputs, value = model(torch.randn(5, 3), None, None)
    assert (outputs.shape, value.shape) == ((5, 2), (5,))
    value.sum().backward()
    assert all(parameter.grad is None for parameter in model.policy.parameters())
    assert model.value is not None
    assert all(parameter.grad is not None for parameter in model.value.parameters())
    with torch.inference_mode():  # in NumPy
        for quick, slow in zip(
            model(torch.ones(5, 3), None, None), model(torch.ones(1, 5, 3), None, None), strict=True
        ):
            torch.testing.assert_close(quick, slow[0], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    "model_kwargs", [{}, {"separate_value": True}, {"hidden_sizes": (8,)}, {"hidden_sizes": ()}], ids=str
)
def test_initial_outputs_are_small_and_initial_values_vary(model_kwargs: dict[str, Any]) -> None:
    torch.manual_seed(0)
    outputs, value = ActorCritic(EnvSpaces(BOX, BOX), n_outputs=3, **model_kwargs)(torch.randn(200, 3), None, None)
    assert outputs.abs().max() < 0.1
    assert value.std() > 0.1


def test_unknown_cell_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="cell must be one of lstm, gru, got 'rnn'"):
        RecurrentActorCritic(EnvSpaces(BOX, spaces.Discrete(2)), n_outputs=2, cell="rnn")


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("model_cls", [ActorCritic, RecurrentActorCritic])
def test_models_can_be_copied_and_pickled(model_cls: Any, normalize: bool) -> None:
    """Before and after use; a copy has its own weights, which NumPy inference uses."""
    torch.manual_seed(0)
    model = model_cls(EnvSpaces(BOX, spaces.Discrete(2)), n_outputs=2, normalize_observation=normalize)

    def values_of(of: Any) -> torch.Tensor:
        state = (of.initial_state(4),) if model_cls is RecurrentActorCritic else ()
        first = (torch.zeros(4, dtype=torch.bool),) if state else ()
        with torch.inference_mode():
            return of(torch.arange(12.0).reshape(4, 3) / 12, torch.zeros(4), torch.zeros(4), *first, *state)[1].clone()

    for used in (False, True):
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        expected = values_of(model)
        for other in copies:
            assert torch.equal(values_of(other), expected), used
            with torch.no_grad():
                for tensor in other.state_dict().values():
                    tensor.add_(0.25)
            assert not torch.equal(values_of(other), expected)
        assert torch.equal(values_of(model), expected)


# ---- weights ----

IMAGE = image(3, 36, 36)
AGENTS: dict[str, tuple[Any, EnvSpaces]] = {
    "categorical": (CategoricalPgAgent, EnvSpaces(BOX, spaces.Discrete(3))),
    "multi-discrete": (CategoricalPgAgent, EnvSpaces(BOX, spaces.MultiDiscrete([2, 3]))),
    "image": (CategoricalPgAgent, EnvSpaces(IMAGE, spaces.Discrete(3))),
    "gaussian": (GaussianPgAgent, EnvSpaces(BOX, BOX)),
    "lstm": (RecurrentCategoricalPgAgent, EnvSpaces(BOX, spaces.Discrete(3))),
    "gru": (
        lambda: RecurrentGaussianPgAgent(model_kwargs={"cell": "gru", "normalize_observation": True}),
        EnvSpaces(BOX, BOX),
    ),
}


@pytest.mark.parametrize("name", AGENTS)
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    make, env_spaces = AGENTS[name]

    def weights_of(seed: int, drawn_before: int) -> dict[str, torch.Tensor]:
        agent: Agent = make()
        torch.manual_seed(drawn_before)
        before = torch.get_rng_state()
        agent.initialize(env_spaces, seed=seed)
        assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"
        weights: dict[str, torch.Tensor] = agent.state_dict()["model"]
        return weights

    first, again, other = weights_of(3, 0), weights_of(3, 1), weights_of(4, 0)
    assert all(torch.equal(first[key], again[key]) for key in first)
    matrices = [key for key in first if first[key].ndim > 1]
    assert matrices
    assert not any(torch.equal(first[key], other[key]) for key in matrices)


class Shallow(torch.nn.Module):
    """A custom model over `Features`."""

    def __init__(self, spaces: EnvSpaces, n_outputs: int, gain: float) -> None:
        super().__init__()
        self.features = Features(spaces.observation)
        self.layer = torch.nn.Linear(self.features.size, n_outputs)
        self.gain = gain

    def forward(self, observation: Any, prev_action: Any, prev_reward: Any) -> Any:
        return self.layer(self.features(observation)), self.gain * prev_reward


@pytest.mark.parametrize("make", [CategoricalPgAgent, GaussianPgAgent])
def test_custom_model_gets_spaces_n_outputs_and_model_kwargs(make: Any) -> None:
    agent = make(ModelCls=Shallow, model_kwargs={"gain": 3.0})
    agent.initialize(EnvSpaces(spaces.Dict({"x": BOX}), BOX if make is GaussianPgAgent else spaces.Discrete(5)), seed=0)
    assert agent.model.layer.out_features == (3 if make is GaussianPgAgent else 5)
    inputs = StepInputs({"x": torch.zeros(2, 3)}, None, torch.tensor([1.0, 2.0]), torch.zeros(2, dtype=torch.bool))
    assert agent.value(inputs, None).tolist() == [3, 6]
