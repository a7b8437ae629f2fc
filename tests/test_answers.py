"""Results that look right and are not: array-like objects, masked arrays, actions that would have to be truncated."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace.agents.pg import CategoricalPgAgent, GaussianPgAgent, RecurrentCategoricalPgAgent
from headrace.envs import VectorEnvs
from headrace.errors import AgentFailed, EnvContractError
from headrace.policy import Policy
from headrace.samplers import AlternatingSampler, BaseSampler, CpuSampler, GpuSampler, SerialSampler
from headrace.types import AgentStep, EnvSpaces, StepInputs
from tests.aliasing import ACTION_SPACES, Careless, CarelessAgent
from tests.environments import BOX3, SEED, AnySpaces, EpisodeStep, InvalidOnce, replace
from tests.vector_worlds import InvalidOnceVector

INVALID_ENV = 2
NAN = float("nan")


class Lazy:
    """Has a shape and a dtype, and makes its array on demand, like LazyFrames."""

    shape, dtype = (3,), np.dtype(np.float32)

    def __init__(self, inside: Any) -> None:
        self._inside = inside

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self._inside


class ShapeLiar(np.ndarray):
    """One number with the shape of three."""

    shape = (3,)  # type: ignore[override]


class AlwaysSmall(float):
    """Not a number, but it compares as smaller than any number."""

    def __le__(self, other: Any) -> bool:
        return True

    __ge__ = __le__


class AlwaysBetween(int):
    """Compares as smaller and larger than any number."""

    def __le__(self, other: Any) -> bool:
        return True

    __ge__ = __lt__ = __gt__ = __le__


class Index:
    def __init__(self, value: Any) -> None:
        self._value = value

    def __index__(self) -> Any:
        return self._value


def masked(value: Any, dtype: Any = np.float32) -> Any:
    return np.ma.masked_array(np.asarray(value, dtype), mask=True)


def as_matrix(value: np.ndarray) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return np.matrix(value)


FINE = np.array([1, 2, 3], np.float32)
DISCRETE = spaces.Discrete(5)
SPEED = {"speed": ("float32", ())}

#: name: entry of the answer, value, observation space, words of the message.
INVALID_RESULTS: dict[str, tuple[int, Any, spaces.Space[Any], str]] = {
    "another shape inside": (0, Lazy(np.ones(1, np.float32)), BOX3, "observation = float32 [1], expected shape [3]"),
    "another dtype inside": (0, Lazy(np.full(3, 2**24 + 1)), BOX3, "in int64 [3], expected dtype float32"),
    "a mask inside": (0, Lazy(masked(FINE)), BOX3, "observation = a masked array of float32 [3]"),
    "a masked observation": (0, masked(FINE), BOX3, "array.filled(value) replaces the masked entries"),
    "a subclass of another shape": (0, np.ones(1, np.float32).view(ShapeLiar), BOX3, "expected shape [3]"),
    "a matrix": (0, as_matrix(FINE), BOX3, "observation = float32 [1, 3], expected shape [3]"),
    "a masked Discrete": (0, masked(3, np.int64), DISCRETE, "an integer in [0, 5)"),
    "a Discrete between all": (0, AlwaysBetween(9), DISCRETE, "an integer in [0, 5)"),
    "an index outside": (0, Index(-1), DISCRETE, "an integer in [0, 5)"),
    "an array of a Discrete": (0, np.array([3]), DISCRETE, "observation = int64 [1], expected an integer in [0, 5)"),
    "NaN below all": (1, AlwaysSmall(NAN), BOX3, "reward = nan, expected a finite float32"),
    "a masked reward": (1, masked(1.0), BOX3, "reward = a masked array"),
    "the masked constant": (1, np.ma.masked, BOX3, "reward = a masked array"),
    "a reward of words": (1, np.array("1.0"), BOX3, "expected one number"),
    "a reward with another inside": (1, Lazy(np.ones(1)), BOX3, "reward = Lazy float64 [1], expected one number"),
    "a masked end": (2, masked(True, bool), BOX3, "terminated = MaskedArray"),
    "a masked info": (4, {"speed": masked(1.0)}, BOX3, "info['speed'] = a masked array"),
    "NaN below all in an info": (4, {"speed": AlwaysSmall(NAN)}, BOX3, "info['speed'] = nan, expected finite"),
    "an info of another shape": (4, {"speed": Lazy(np.ones(1))}, BOX3, "info['speed'] = float64 [1], expected"),
}


def sampler_with_invalid_env(make: Any, entry: int, value: Any, space: spaces.Space[Any], **more: Any) -> SerialSampler:
    """Four environments; number 2 returns an invalid result in one step."""
    own = {"change": replace(entry, value), "observation_space": space, "info": {"speed": 1.0}, **more}
    return SerialSampler(make, own, batch_T=9, batch_B=4, max_decorrelation_steps=0, env_info_keys=SPEED)


@pytest.mark.parametrize("name", INVALID_RESULTS)
def test_array_like_step_results_are_checked_by_their_contents(name: str) -> None:
    entry, value, space, words = INVALID_RESULTS[name]
    with sampler_with_invalid_env(InvalidOnce, entry, value, space).initialize(
        CategoricalPgAgent(), seed=SEED
    ) as sampler:
        with pytest.raises(EnvContractError) as caught:
            sampler.obtain_samples(0)
    assert words in str(caught.value)
    assert caught.value.where is not None
    assert caught.value.where.env_id == INVALID_ENV


@pytest.mark.parametrize(
    ("value", "space", "recorded"),
    [
        (Lazy(FINE), BOX3, [1, 2, 3]),
        (FINE.view(np.recarray), BOX3, [1, 2, 3]),
        (as_matrix(FINE), spaces.Box(-9, 9, (1, 3), np.float32), [[1, 2, 3]]),
        (np.float32(0.5), spaces.Box(-9, 9, (), np.float32), 0.5),
        (np.array(3), DISCRETE, 3),
        (np.uint8(3), DISCRETE, 3),
        (Index(3), DISCRETE, 3),
    ],
)
def test_array_like_observations_with_valid_contents_are_recorded(
    value: Any, space: spaces.Space[Any], recorded: Any
) -> None:
    with sampler_with_invalid_env(InvalidOnce, 0, value, space).initialize(CategoricalPgAgent(), seed=SEED) as sampler:
        samples, _ = sampler.obtain_samples(0)
        assert samples.env.observation[7, INVALID_ENV].tolist() == recorded


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        (0, masked(np.ones((4, 3))), "observation = a masked array of float32 [4, 3]"),
        (0, Lazy(np.ones((4, 3), np.float32)), ""),
        (0, Lazy(np.ones((1, 3), np.float32)), "observation = float32 [1, 3]"),
        (0, np.ones((1, 3), np.float32).view(ShapeLiar), "observation = float32 [1, 3]"),
        (1, masked(np.ones(4)), "reward = a masked array"),
        (1, [1.0, [2.0]], "reward = list [1.0, [2.0]], expected numbers [4]"),
        (2, masked(np.zeros(4), bool), "terminated = a masked array of bool [4]"),
        (3, [False] * 3, "truncated = list"),
        (4, {"speed": masked(np.ones(4))}, "info['speed'] = a masked array"),
        (4, {"speed": np.ones(4), "_speed": np.ones(3, bool)}, "info['_speed'] = bool [3]"),
    ],
)
def test_array_like_results_of_vector_environments_are_checked_by_their_contents(
    entry: int, value: Any, words: str
) -> None:
    make = VectorEnvs(InvalidOnceVector)
    sampler = sampler_with_invalid_env(make, entry, value, BOX3, info={"speed": np.ones(4)})
    with sampler.initialize(CategoricalPgAgent(), seed=SEED):
        if not words:
            sampler.obtain_samples(0)
            return
        with pytest.raises(EnvContractError) as caught:
            sampler.obtain_samples(0)
    assert words in str(caught.value)


# ---- agents ----


class Changing(CategoricalPgAgent):
    """An agent whose outputs are valid until its 6th call; the first call is in `initialize`."""

    def __init__(self, change: Callable[[AgentStep], Any], call: int = 6) -> None:
        super().__init__()
        self._change, self._at, self._calls = change, call, 0

    def step(self, inputs: StepInputs, state: Any) -> Any:
        self._calls += 1
        answer = super().step(inputs, state)
        return self._change(answer) if self._calls == self._at else answer


def with_action(change: Callable[[torch.Tensor], Any]) -> Callable[[AgentStep], AgentStep]:
    return lambda step: AgentStep(change(step.action), step.agent_info, step.state)


def at(row: int, value: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda action: torch.where(torch.arange(len(action)) == row, value, action)


ACTIONS: dict[str, tuple[Callable[[AgentStep], Any], str, int | None]] = {
    "one for all": (with_action(lambda a: a[:1]), "action = int64 [1], expected indices in [0, 3), int64 [4]", None),
    "a column": (with_action(lambda a: a[:, None]), "action = int64 [4, 1]", None),
    "numbers with a fraction": (with_action(lambda a: a * 0 + 1.7), "action = float32 [4]", None),
    "below": (with_action(at(2, -1)), "action = -1, expected indices in [0, 3)", 2),
    "above": (with_action(at(3, 3)), "action = 3, expected indices in [0, 3)", 3),
    "far above": (with_action(lambda a: at(1, 2**32)(a)), "action = 4294967296, expected", 1),
    "above in a short dtype": (with_action(lambda a: at(0, 7)(a).to(torch.uint8)), "action = 7, expected", 0),
    "an array": (with_action(lambda a: a.numpy()), "action = a ndarray, expected a tensor", None),
    "a dtype that NumPy has not": (with_action(lambda a: a.to(torch.bfloat16)), "action = a Tensor, expected", None),
    "a tuple": (with_action(lambda a: (a,)), "action = a tuple, expected a tensor", None),
    "no AgentStep": (lambda step: (step.action, step.agent_info), "tuple", None),
    "no agent_info": (lambda step: AgentStep(step.action), "agent_info = NoneType None, expected a PgInfo", None),
    "another agent_info": (
        lambda step: AgentStep(step.action, (1, 2)),
        "agent_info = tuple (1, 2), expected a PgInfo",
        None,
    ),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_agent_outputs_are_checked_before_any_environment_steps(name: str) -> None:
    change, words, env_id = ACTIONS[name]
    made: list[Any] = []

    def make() -> AnySpaces:
        return AnySpaces(BOX3, spaces.Discrete(3), made)

    sampler = SerialSampler(make, batch_T=9, batch_B=4, max_decorrelation_steps=0)
    with sampler.initialize(Changing(change), seed=SEED), pytest.raises(AgentFailed) as caught:
        sampler.obtain_samples(0)
    assert f"Changing.step() returned {words}" in str(caught.value)
    assert caught.value.where is not None
    assert (caught.value.where.env_id, caught.value.where.step) == (env_id, 4)
    assert [len(env.actions) for env in made] == [4] * 4


def test_first_agent_output_must_be_an_agent_step() -> None:
    agent = Changing(lambda step: (step.action, step.agent_info), call=1)
    with pytest.raises(AgentFailed, match=r"Changing\.step returned tuple .*, expected an AgentStep"):
        SerialSampler(EpisodeStep, batch_T=9, batch_B=4).initialize(agent, seed=SEED)


def test_smaller_dtypes_and_booleans_are_valid_actions_if_lossless() -> None:
    for dtype in (torch.uint8, torch.int32, torch.bool):
        agent = Changing(with_action(partial(lambda dtype, a: a.clamp(max=1).to(dtype), dtype)), call=4)
        with SerialSampler(EpisodeStep, batch_T=9, batch_B=4).initialize(agent, seed=SEED) as sampler:
            assert sampler.obtain_samples(0)[0].agent.action[2].max() <= 1


class ChangingAnywhere(CarelessAgent):
    """Acts in every space; its actions are changed from its 4th call on."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__("")
        self._change, self._calls = change, 0

    def step(self, inputs: StepInputs, state: Any) -> AgentStep:
        self._calls += 1
        answer = super().step(inputs, state)
        return answer if self._calls < 4 else AgentStep(self._change(answer.action), answer.agent_info, answer.state)


@pytest.mark.parametrize(
    ("action", "change", "words"),
    [
        ("box", lambda a: a * NAN, "action = nan, expected finite numbers, float32 [4, 2]"),
        ("box", lambda a: a.double() * 1e300, "expected finite numbers, float32 [4, 2]"),
        ("box scalar", lambda a: a / 0, "inf, expected finite numbers, float32 [4]"),
        (
            "discrete from 3",
            lambda a: a * 0 + 5,
            "action = 5, expected indices in [0, 4) (the sampler adds the start of the space, 3)",
        ),
        ("multi-discrete", lambda a: a * 0 + 3, "action = 3, expected indices below [3 5], int64 [4, 2]"),
        ("multi-discrete", lambda a: a.float(), "action = float32 [4, 2], expected indices below [3 5]"),
        ("multi-binary", lambda a: a * 0 + 2, "action = 2, expected zeros and ones, int8 [4, 3]"),
        ("multi-binary", lambda a: a.long() * 0 + 257, "action = 257, expected zeros and ones"),
        (
            "dict",
            lambda a: {"b": a["b"]},
            "action = dict with the keys ['b'], expected a dict with the keys ['a', 'b']",
        ),
        ("dict", lambda a: {"b": a["b"], "a": a["a"][:1]}, "expected a tuple of 2"),
        ("dict", lambda a: {"b": a["b"], "a": (a["a"][0] - 9, a["a"][1])}, "action['a'][0] = -"),
    ],
)
def test_actions_outside_any_kind_of_space_are_refused(action: str, change: Any, words: str) -> None:
    def make() -> Careless:
        return Careless("", ACTION_SPACES[action])

    with SerialSampler(make, batch_T=9, batch_B=4).initialize(ChangingAnywhere(change), seed=SEED) as sampler:
        with pytest.raises(AgentFailed) as caught:
            sampler.obtain_samples(0)
    assert words in str(caught.value)


def test_actions_out_of_range_of_an_integer_box_are_refused() -> None:
    space = spaces.Box(0, 255, (2,), np.uint8)

    def make() -> AnySpaces:
        return AnySpaces(BOX3, space)

    class Bytes(CarelessAgent):
        def step(self, inputs: StepInputs, state: Any) -> AgentStep:
            answer = super().step(StepInputs({"x": inputs.observation}, None, None, None, inputs.noise), state)
            return AgentStep(torch.full((len(inputs.noise), 2), 300), answer.agent_info, answer.state)

    with SerialSampler(make, batch_T=9, batch_B=4).initialize(Bytes(""), seed=SEED) as sampler:
        with pytest.raises(AgentFailed, match=r"action = 300, expected whole numbers, uint8 \[4, 2\]"):
            sampler.obtain_samples(0)


@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler, GpuSampler, AlternatingSampler])
def test_actions_are_checked_in_every_sampler_and_in_evaluations(cls: type[BaseSampler]) -> None:
    """The error has the env id in every sampler."""
    sampler = cls(EpisodeStep, batch_T=4, batch_B=4, n_workers=2, eval_n_envs=4, max_decorrelation_steps=0)
    with sampler.initialize(Greedy(), seed=SEED):
        sampler.obtain_samples(0)
        with pytest.raises(AgentFailed, match=r"Greedy\.step\(\) returned action = -3, expected indices") as caught:
            sampler.evaluate_agent(0)
    assert caught.value.where is not None
    assert caught.value.where.env_id in ((1, 3) if cls is not SerialSampler else (1,))


class Greedy(CategoricalPgAgent):
    """Returns an invalid action in the second row of an evaluation."""

    def step(self, inputs: StepInputs, state: Any) -> AgentStep:
        answer = super().step(inputs, state)
        return AgentStep(at(1, -3)(answer.action), answer.agent_info) if self._greedy else answer


class Valued(RecurrentCategoricalPgAgent):
    """Returns a value, or a state, of another shape."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self._change = change

    def value(self, inputs: StepInputs, state: Any) -> torch.Tensor:
        value = super().value(inputs, state)
        return value[:1] if self._change == "value" else value

    def step(self, inputs: StepInputs, state: Any) -> AgentStep:
        answer = super().step(inputs, state)
        if self._change == "no state":
            answer.state = None
        elif self._change == "state" and len(answer.action) > 1:
            answer.state = tuple(part[:1] for part in answer.state)
        return answer


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("value", r"Valued\.value\(\) returned value = float32 \[1\], expected one entry per environment"),
        ("state", r"Valued\.step\(\) returned state\[0\] = float32 \[1, 64\], expected one entry per environment"),
        ("no state", r"Valued\.step\(\) returned state = NoneType None, expected a tuple of 2"),
    ],
)
def test_values_and_states_of_wrong_shape_are_not_broadcast(change: str, words: str) -> None:
    sampler = SerialSampler(EpisodeStep, batch_T=1, batch_B=4, max_decorrelation_steps=0)
    with sampler.initialize(Valued(change), seed=SEED, bootstrap_value=True):
        with pytest.raises(AgentFailed, match=words):
            sampler.obtain_samples(0)


class InPlace(CategoricalPgAgent):
    """Writes into one of its inputs in its 5th call."""

    def __init__(self, field: str, write: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self._field, self._write, self._calls = field, write, 0

    def step(self, inputs: StepInputs, state: Any) -> AgentStep:
        self._calls += 1
        if self._calls == 5:
            self._write(getattr(inputs, self._field))
        return super().step(inputs, state)


@pytest.mark.parametrize("cls", [SerialSampler, GpuSampler])
@pytest.mark.parametrize(
    ("field", "write"),
    [
        ("observation", lambda x: x.sub_(0.5)),
        ("observation", lambda x: x[1].detach().add_(1)),
        ("prev_action", lambda x: x.zero_()),
        ("prev_reward", lambda x: torch.tanh(x, out=x)),
        ("is_first", lambda x: x.logical_not_()),
        ("noise", lambda x: x.clamp_(0.1, 0.9)),
    ],
)
def test_agent_that_writes_into_its_inputs_raises_agent_failed(cls: type[BaseSampler], field: str, write: Any) -> None:
    sampler = cls(EpisodeStep, batch_T=9, batch_B=4, n_workers=1, max_decorrelation_steps=0)
    with sampler.initialize(InPlace(field, write), seed=SEED), pytest.raises(AgentFailed) as caught:
        sampler.obtain_samples(0)
    assert f"InPlace.step() wrote into inputs.{field}, which is the memory of the batch" in str(caught.value)
    assert caught.value.where is not None
    assert caught.value.where.step == 3


def test_agent_outputs_are_checked_with_samples_device() -> None:
    for agent, words in (
        (InPlace("observation", lambda x: x.sub_(0.5)), "wrote into inputs.observation"),
        (Changing(lambda step: AgentStep(step.action, None)), "agent_info = NoneType None"),
        (Changing(lambda step: AgentStep(step.action, _shorter(step.agent_info))), "agent_info.value = float32 [1]"),
    ):
        sampler = SerialSampler(EpisodeStep, batch_T=9, batch_B=4, samples_device="cpu")
        with sampler.initialize(agent, seed=SEED), pytest.raises(AgentFailed) as caught:
            sampler.obtain_samples(0)
        assert words in str(caught.value)


def _shorter(info: Any) -> Any:
    return type(info)(info.dist, info.value[:1])


def test_policy_checks_the_outputs_of_its_agent() -> None:
    for agent, space, words in (
        (
            Changing(with_action(lambda a: a * 0 + 9), call=1),
            spaces.Discrete(3),
            "returned action = 9, expected indices",
        ),
        (Nowhere(), spaces.Box(-1, 1, (2,), np.float32), "returned action = nan, expected finite numbers"),
    ):
        agent.initialize(EnvSpaces(BOX3, space), seed=0)
        with pytest.raises(AgentFailed, match=words.replace("(", r"\(")):
            Policy(agent)(FINE)


class Nowhere(GaussianPgAgent):
    def step(self, inputs: StepInputs, state: Any) -> AgentStep:
        answer = super().step(inputs, state)
        return AgentStep(answer.action * NAN, answer.agent_info)
