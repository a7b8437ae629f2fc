"""Invalid and failing environments in `SerialSampler`: one error says which, where and what; then all is closed."""

import logging
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace.agents.pg import CategoricalPgAgent
from headrace.errors import EnvContractError, EnvFailed, SamplerClosed, SamplerError
from headrace.samplers import BaseSampler, CpuSampler, SerialSampler
from tests.environments import BOX3, SEED, SPACES, EpisodeStep, InvalidOnce, raising, replace
from tests.faulty import OddConstructor, Unpicklable

INVALID_ENV = 2


class BrokenWords(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def sampler_of(made: list[InvalidOnce], change: Any = tuple, at: str = "step", **options: Any) -> SerialSampler:
    """Four environments; number 2 returns an invalid result. Its 7th step is row 6 of the first batch."""
    env_kwargs = {"change": change, "at": at, "made": made, "number": INVALID_ENV}
    env_kwargs |= {key: options.pop(key) for key in ("observation_space", "number", "info") if key in options}
    sizes = {"batch_T": 8, "batch_B": 4, "max_decorrelation_steps": 0, "eval_n_envs": 3}
    return SerialSampler(InvalidOnce, env_kwargs, **(sizes | options))


def use(sampler: SerialSampler) -> None:
    sampler.initialize(CategoricalPgAgent(), seed=SEED)
    sampler.obtain_samples(0)
    sampler.evaluate_agent(0)


def failure_of(sampler: SerialSampler, made: list[InvalidOnce], kind: type[SamplerError]) -> SamplerError:
    """Returns the error of the first call that fails, and checks what must hold after any error."""
    with pytest.raises(kind) as caught:
        use(sampler)
    error = caught.value
    assert type(error) is kind
    assert isinstance(str(error), str)
    assert_closed(sampler, made, error)
    return error


def assert_closed(sampler: SerialSampler, made: list[InvalidOnce], error: BaseException) -> None:
    for call in (
        lambda: sampler.obtain_samples(1),
        lambda: sampler.evaluate_agent(1),
        lambda: sampler.initialize(CategoricalPgAgent()),
    ):
        with pytest.raises(SamplerClosed) as refused:
            call()
        assert refused.value.__cause__ is error
    sampler.shutdown()
    sampler.shutdown()
    assert [env.closed for env in made] == [1] * len(made)


# ---- what is wrong with an answer: entry, value, words of the message ----

OBSERVATIONS: dict[str, tuple[Any, list[str]]] = {
    "wrong shape": (np.zeros(4, np.float32), ["observation = float32 [4]", "expected shape [3]"]),
    "broadcastable shape": (np.zeros(1, np.float32), ["observation = float32 [1]", "expected shape [3]"]),
    "scalar array": (np.zeros((), np.float32), ["observation = float32 []", "expected shape [3]"]),
    "row of a batch": (np.zeros((1, 3), np.float32), ["observation = float32 [1, 3]", "expected shape [3]"]),
    "int64": (np.full(3, 2**24 + 1), ["observation = 16777217 in int64 [3]", "expected dtype float32"]),
    "list": ([0.0, 0.0], ["observation = list", "expected a numpy array of float32 [3]"]),
    "number": (0.5, ["observation = float 0.5", "expected a numpy array of float32 [3]"]),
    "None": (None, ["observation = NoneType None", "expected a numpy array of float32 [3]"]),
    "torch tensor": (torch.zeros(3), ["observation = Tensor", "expected a numpy array of float32 [3]"]),
    "NaN": (np.array([0, np.nan, 0], np.float32), ["observation = nan", "expected finite"]),
    "Inf": (np.array([0, 0, np.inf], np.float32), ["observation = inf", "expected finite"]),
    "-Inf": (np.array([-np.inf, 0, 0], np.float32), ["observation = -inf", "expected finite"]),
    "float64 NaN": (np.array([0, np.nan, 0]), ["observation = nan", "expected finite"]),
}

NESTED = spaces.Dict({"x": spaces.Box(-1, 1, (2,), np.float32), "parts": spaces.Tuple((spaces.Discrete(3), BOX3))})
GOOD = {"x": np.zeros(2, np.float32), "parts": (1, np.zeros(3, np.float32))}
NESTED_OBSERVATIONS: dict[str, tuple[Any, list[str]]] = {
    "NaN in a leaf": (
        GOOD | {"parts": (1, np.array([0, 0, np.nan], np.float32))},
        ["observation['parts'][1] = nan", "expected finite"],
    ),
    "wrong shape of a leaf": (GOOD | {"x": np.zeros(3, np.float32)}, ["observation['x']", "expected shape [2]"]),
    "out of range": (GOOD | {"parts": (3, GOOD["parts"][1])}, ["observation['parts'][0] = int 3", "in [0, 3)"]),  # type: ignore[index]
    "key missing": ({"x": GOOD["x"]}, ["dict with the keys ['x']", "expected a dict with the keys ['parts', 'x']"]),
    "set for a tuple": (GOOD | {"parts": {1, 2}}, ["observation['parts'] = set", "a tuple of 2"]),
}

REWARDS: dict[str, tuple[Any, list[str]]] = {
    "array of one": (np.ones(1), ["reward = ndarray float64 [1]", "expected one number"]),
    "array of two": (np.ones(2), ["reward = ndarray float64 [2]", "expected one number"]),
    "list": ([1.0], ["reward = list float64 [1]", "expected one number"]),
    "str": ("1.0", ["reward = str", "expected one number"]),
    "None": (None, ["reward = NoneType", "expected one number"]),
    "dict": ({"a": 1.0}, ["reward = dict", "expected one number"]),
    "complex": (1j, ["reward = complex", "expected one number"]),
    "NaN": (float("nan"), ["reward = nan", "expected a finite float32"]),
    "Inf": (float("inf"), ["reward = inf", "expected a finite float32"]),
    "numpy -Inf": (np.float32("-inf"), ["reward = -inf", "expected a finite float32"]),
    "1e300": (1e300, ["reward = 1e+300", "expected a finite float32"]),
    "a number of 400 digits": (10**400, ["reward = ", "expected"]),
}

ENDS: dict[str, tuple[Any, list[str]]] = {
    "int 2": (2, ["= int 2", "expected a bool"]),
    "int -1": (-1, ["= int -1", "expected a bool"]),
    "None": (None, ["= NoneType None", "expected a bool"]),
    "str": ("False", ["= str 'False'", "expected a bool"]),
    "float": (0.5, ["= float 0.5", "expected a bool"]),
    "array of bool": (np.array([False]), ["= ndarray", "expected a bool"]),
    "numpy int": (np.int64(2), ["= int64", "expected a bool"]),
}

CASES = (
    [(f"observation {name}", 0, value, words, BOX3) for name, (value, words) in OBSERVATIONS.items()]
    + [(f"observation {name}", 0, value, words, NESTED) for name, (value, words) in NESTED_OBSERVATIONS.items()]
    + [(f"reward {name}", 1, value, words, BOX3) for name, (value, words) in REWARDS.items()]
    + [
        (f"terminated {name}", 2, value, [f"terminated {words[0]}", *words], BOX3)
        for name, (value, words) in ENDS.items()
    ]
    + [
        (f"truncated {name}", 3, value, [f"truncated {words[0]}", *words], BOX3)
        for name, (value, words) in ENDS.items()
    ]
)


@pytest.mark.parametrize(("entry", "value", "words", "space"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_invalid_result_of_step_is_named(entry: int, value: Any, words: list[str], space: spaces.Space[Any]) -> None:
    made: list[InvalidOnce] = []
    error = failure_of(sampler_of(made, replace(entry, value), observation_space=space), made, EnvContractError)
    for word in [*words, "InvalidOnce: step() returned", f"env {INVALID_ENV}", "stepping", "step 6", "this process"]:
        assert word in str(error)
    assert error.where is not None
    assert (error.where.env_id, error.where.phase, error.where.step) == (INVALID_ENV, "stepping", 6)


RESETS = [case for case in CASES if case[1] == 0]


@pytest.mark.parametrize(
    ("entry", "value", "words", "space"), [case[1:] for case in RESETS], ids=[c[0] for c in RESETS]
)
@pytest.mark.parametrize(("at", "phase"), [("reset", "resetting"), ("late reset", "stepping")])
def test_invalid_result_of_reset_is_named(
    at: str, phase: str, entry: int, value: Any, words: list[str], space: spaces.Space[Any]
) -> None:
    made: list[InvalidOnce] = []
    error = failure_of(sampler_of(made, replace(entry, value), at, observation_space=space), made, EnvContractError)
    for word in [*words, "InvalidOnce: reset() returned", f"env {INVALID_ENV}", phase]:
        assert word in str(error)
    assert error.where is not None
    assert error.where.env_id == INVALID_ENV
    if at == "late reset":
        assert error.where.step == 4


@pytest.mark.parametrize("batch_B", [1, 4])
@pytest.mark.parametrize("value", [np.ones(1), [1.0], None, "1.0"])
def test_single_nan_reward_in_a_row_is_named(value: Any, batch_B: int) -> None:
    made: list[InvalidOnce] = []
    sampler = sampler_of(made, replace(1, value), number=0, batch_B=batch_B, eval_n_envs=0)
    assert "reward" in str(failure_of(sampler, made, EnvContractError))


@pytest.mark.parametrize(
    ("answer", "at", "words"),
    [
        (lambda answer: (*answer[:2], False, {}), "step", ["step() must return (observation, reward, terminated"]),
        (lambda answer: (*answer, 0), "step", ["step() must return"]),
        (lambda answer: None, "step", ["step() must return"]),
        (lambda answer: answer[0], "step", ["step() must return"]),
        (lambda answer: answer[0], "reset", ["reset() must return (observation, info)", "old gym API"]),
        (lambda answer: answer[0], "late reset", ["reset() must return (observation, info)"]),
        (lambda answer: None, "reset", ["reset() must return (observation, info)"]),
        (lambda answer: (*answer, 0), "reset", ["reset() must return (observation, info)"]),
    ],
    ids=["4-tuple", "6-tuple", "None", "bare", "bare reset", "bare late reset", "None reset", "3-tuple reset"],
)
def test_result_of_wrong_length_is_named(answer: Any, at: str, words: list[str]) -> None:
    made: list[InvalidOnce] = []
    error = failure_of(sampler_of(made, answer, at), made, EnvContractError)
    for word in [*words, "InvalidOnce", f"env {INVALID_ENV}"]:
        assert word in str(error)


class NoSeed(EpisodeStep):
    """`reset` of the old API."""

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


def test_reset_without_seed_argument_is_named() -> None:
    with pytest.raises(SamplerError) as caught:
        SerialSampler(NoSeed, batch_T=2, batch_B=2).initialize(CategoricalPgAgent(), seed=SEED)
    assert type(caught.value) in (EnvContractError, EnvFailed)
    assert "unexpected keyword argument 'seed'; define reset(self, *, seed=None, options=None)" in str(caught.value)
    assert "cannot be unpacked" not in str(caught.value)  # it never returned


class NoSpaces(gym.Env[Any, Any]):
    """Has no spaces."""


class NoneSpace(gym.Env[Any, Any]):
    """Its observation space is not a space."""

    observation_space = None  # type: ignore[assignment]
    action_space = spaces.Discrete(2)


@pytest.mark.parametrize("env", [NoSpaces, NoneSpace])
def test_environment_without_spaces_is_named(env: type[gym.Env[Any, Any]]) -> None:
    with pytest.raises(EnvContractError) as caught:
        SerialSampler(env, batch_T=2, batch_B=2).initialize(CategoricalPgAgent(), seed=SEED)
    assert env.__name__ in str(caught.value) or "NoneType" in str(caught.value)


@pytest.mark.parametrize("thing", [None, 5, object(), "CartPole-v1", EpisodeStep])
def test_factory_that_returns_no_environment_is_named(thing: Any) -> None:
    def factory() -> Any:
        return thing

    with pytest.raises(EnvContractError, match=r"factory returned a .*not a gymnasium\.Env"):
        SerialSampler(factory, batch_T=2, batch_B=2).initialize(CategoricalPgAgent(), seed=SEED)


# ---- declared info ----

INFOS: dict[str, tuple[Any, tuple[str, tuple[int, ...]], list[str]]] = {
    "missing": (
        {"other": 1.0},
        ("float32", ()),
        ["info['known'] = nothing (the info dict has only 'other')", "as of all keys of env_info_keys"],
    ),
    "empty": (
        {},
        ("float32", ()),
        ["info['known'] = nothing (the info dict is empty), expected a value at every step"],
    ),
    "not a dict": (None, ("float32", ()), ["info['known'] = nothing (info is a NoneType, not a dict)"]),
    "list": ([], ("float32", ()), ["info['known'] = nothing (info is a list, not a dict)"]),
    "wrong shape": ({"known": np.ones(2, np.float32)}, ("float32", ()), ["float32 [2]", "expected float32 []"]),
    "broadcastable": ({"known": np.ones(1, np.float32)}, ("float32", (3,)), ["float32 [1]", "expected float32 [3]"]),
    "float for int": ({"known": 0.5}, ("int32", ()), ["float64 []", "expected int32 []"]),
    "str": ({"known": "fast"}, ("float32", ()), ["info['known'] = <U4 []", "expected float32 []"]),
    "None": ({"known": None}, ("float32", ()), ["info['known'] = object []", "expected float32 []"]),
    "ragged": ({"known": [[1.0], [1.0, 2.0]]}, ("float32", ()), ["info['known']", "expected float32 []"]),
    "NaN": ({"known": float("nan")}, ("float32", ()), ["info['known'] = nan", "expected finite"]),
    "Inf": ({"known": float("inf")}, ("float64", ()), ["info['known'] = inf", "expected finite"]),
    "too large for its dtype": ({"known": 2**40}, ("int32", ()), ["info['known']", "int32"]),
}


@pytest.mark.parametrize(("info", "declared", "words"), INFOS.values(), ids=INFOS.keys())
def test_info_field_that_differs_from_its_declaration_is_named(
    info: Any, declared: tuple[str, tuple[int, ...]], words: list[str]
) -> None:
    made: list[InvalidOnce] = []
    honest = {"known": np.ones(declared[1], declared[0])}
    error = failure_of(
        sampler_of(made, replace(4, info), info=honest, env_info_keys={"known": declared}), made, EnvContractError
    )
    for word in [*words, f"env {INVALID_ENV}", "stepping", "step 6"]:
        assert word in str(error)


@pytest.mark.parametrize("info", [None, [], "done"])
def test_last_info_that_is_not_a_dict_is_named(info: Any) -> None:
    made: list[InvalidOnce] = []
    error = failure_of(sampler_of(made, replace(4, info), "end"), made, EnvContractError)
    for word in (f"info = {type(info).__name__}", "expected a dict", f"env {INVALID_ENV}", "step 4"):
        assert word in str(error)


# ---- other phases ----


@pytest.mark.parametrize("entry", [0, 1, 2])
def test_invalid_result_during_decorrelation_is_named(entry: int) -> None:
    made: list[InvalidOnce] = []
    sampler = sampler_of(made, replace(entry, None), "first step", max_decorrelation_steps=9)
    error = failure_of(sampler, made, EnvContractError)
    assert error.where is not None
    assert (error.where.env_id, error.where.phase, error.where.step) == (INVALID_ENV, "decorrelating", 0)


@pytest.mark.parametrize("change", [replace(0, None), replace(1, None), replace(2, 2), raising(ValueError("unhappy"))])
def test_failure_in_an_evaluation_is_named(change: Any) -> None:
    made: list[InvalidOnce] = []
    sampler = sampler_of(made, change, "first step", number=1001)
    with pytest.raises((EnvContractError, EnvFailed)) as caught:
        use(sampler)
    assert caught.value.where is not None
    assert (caught.value.where.env_id, caught.value.where.phase, caught.value.where.step) == (1, "evaluating", 0)
    assert_closed(sampler, made, caught.value)


# ---- user code that raises ----

ERRORS: dict[str, tuple[BaseException, str]] = {
    "ValueError": (ValueError("the simulator is unhappy"), "ValueError: the simulator is unhappy"),
    "TypeError": (TypeError("cannot unpack"), "TypeError: cannot unpack"),
    "without words": (RuntimeError(), "RuntimeError"),
    "SystemExit": (SystemExit("the simulator left"), "SystemExit: the simulator left"),
    "GeneratorExit": (GeneratorExit(), "GeneratorExit"),
    "StopIteration": (StopIteration(3), "StopIteration: 3"),
    "broken __str__": (BrokenWords(), "BrokenWords: (its message could not be formatted: ValueError)"),
    "odd constructor": (OddConstructor(1, 2, third=3), "OddConstructor: 1 2 3"),
    "unpicklable": (Unpicklable("cannot travel"), "Unpicklable: cannot travel"),
}
PHASES = {
    "constructor": ("the constructor raised", "constructing the environment", None),
    "reset": ("reset() raised", "resetting", 0),
    "late reset": ("reset() raised", "stepping", 4),
    "step": ("step() raised", "stepping", 6),
}


@pytest.mark.parametrize(("thrown", "words"), ERRORS.values(), ids=ERRORS.keys())
@pytest.mark.parametrize("at", PHASES)
def test_environment_that_raises_is_named(at: str, thrown: BaseException, words: str) -> None:
    made: list[InvalidOnce] = []
    error = failure_of(sampler_of(made, raising(thrown), at), made, EnvFailed)
    said, phase, step = PHASES[at]
    assert error.message == f"InvalidOnce: {said} {words}"
    assert error.where is not None
    assert (error.where.env_id, error.where.phase, error.where.step) == (INVALID_ENV, phase, step)
    assert error.__cause__ is thrown
    assert "environments.py" in error.traceback_text
    assert type(thrown).__name__ in error.traceback_text


def test_error_in_close_is_named_and_other_environments_are_closed() -> None:
    made: list[InvalidOnce] = []
    sampler = sampler_of(made, raising(ValueError("the simulator is unhappy")), "close")
    sampler.initialize(CategoricalPgAgent(), seed=SEED)
    sampler.obtain_samples(0)
    with pytest.raises(
        EnvFailed, match=r"InvalidOnce: close\(\) raised ValueError: the simulator is unhappy"
    ) as caught:
        sampler.shutdown()
    assert caught.value.where is not None
    assert (caught.value.where.env_id, caught.value.where.phase) == (INVALID_ENV, "closing")
    assert_closed(sampler, made, caught.value)


def test_error_is_not_hidden_by_a_failing_close() -> None:
    made: list[InvalidOnce] = []

    def make() -> InvalidOnce:
        at = "step" if len(made) == INVALID_ENV else "close"  # env 2 fails in step; env 1 in close
        return InvalidOnce(raising(ValueError(at)), at, number=INVALID_ENV if at == "step" else 1, made=made)

    sampler = SerialSampler(make, batch_T=8, batch_B=4, max_decorrelation_steps=0)
    with pytest.raises(EnvFailed, match="ValueError: step"):
        with sampler.initialize(CategoricalPgAgent(), seed=SEED):
            sampler.obtain_samples(0)
    assert [env.closed for env in made] == [1] * 4


class ClosesBadly(EpisodeStep):
    """The third one cannot be made, and the others cannot be closed."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        if type(self).made == 3:
            raise ValueError("no third")

    def close(self) -> None:
        raise ValueError("cannot close")


def test_constructor_error_is_not_hidden_by_a_failing_close() -> None:
    with pytest.raises(EnvFailed, match="the constructor raised ValueError: no third"):
        SerialSampler(ClosesBadly, batch_T=2, batch_B=4).initialize(CategoricalPgAgent(), seed=SEED)


@pytest.mark.parametrize("at", PHASES)
def test_ctrl_c_in_an_environment_raises_keyboard_interrupt_and_closes_the_sampler(at: str) -> None:
    made: list[InvalidOnce] = []
    sampler = sampler_of(made, raising(KeyboardInterrupt()), at)
    with pytest.raises(KeyboardInterrupt) as caught:
        use(sampler)
    assert caught.value.__cause__ is None  # or Python prints a page of frames
    with pytest.raises(SamplerClosed) as refused:
        sampler.obtain_samples(1)
    assert isinstance(refused.value.__cause__, KeyboardInterrupt)
    assert [env.closed for env in made] == [1] * len(made)


def test_agent_that_raises_is_named() -> None:
    from headrace.errors import AgentFailed

    class Unhappy(CategoricalPgAgent):
        rows = 0

        def step(self, *args: Any) -> Any:
            self.rows += 1
            if self.rows == 5:
                raise ValueError("no idea")
            return super().step(*args)

    made: list[InvalidOnce] = []
    sampler = sampler_of(made)
    sampler.initialize(Unhappy(), seed=SEED)
    with pytest.raises(AgentFailed, match=r"Unhappy\.step\(\) raised ValueError: no idea") as caught:
        sampler.obtain_samples(0)
    assert caught.value.where is not None
    assert caught.value.where.phase == "choosing actions"
    assert caught.value.where.step == 3  # one call before the first batch
    assert_closed(sampler, made, caught.value)


def test_new_sampler_after_an_error_gives_the_same_batch() -> None:
    def batch() -> torch.Tensor:
        with sampler_of([]).initialize(CategoricalPgAgent(), seed=SEED) as sampler:
            return sampler.obtain_samples(0)[0].copy().env.observation

    before = batch()
    made: list[InvalidOnce] = []
    failure_of(sampler_of(made, replace(1, None)), made, EnvContractError)
    assert torch.equal(batch(), before)


# ---- what is allowed ----


@pytest.mark.parametrize(
    ("entry", "value", "recorded"),
    [
        (1, 3, 3.0),
        (1, np.int64(3), 3.0),
        (1, np.uint8(3), 3.0),
        (1, np.float64(0.5), 0.5),
        (1, np.float16(0.5), 0.5),
        (1, np.array(0.5), 0.5),
        (1, np.array(2), 2.0),
        (1, True, 1.0),
        (1, np.bool_(True), 1.0),
        (1, -(10**18), np.float32(-(10**18))),
        (1, 1e-60, 0.0),
        (2, np.bool_(True), True),
        (2, np.bool_(False), False),
        (3, np.bool_(True), True),
        (3, np.bool_(False), False),
    ],
)
def test_valid_environment_passes(entry: int, value: Any, recorded: Any) -> None:
    sampler = sampler_of([], replace(entry, value))
    with sampler.initialize(CategoricalPgAgent(), seed=SEED):
        samples, _ = sampler.obtain_samples(0)
        field = (None, samples.env.reward, samples.env.terminated, samples.env.truncated)[entry]
        assert field is not None
        assert field[6, INVALID_ENV].item() == recorded
        assert samples.env.is_first[7, INVALID_ENV].item() == (entry > 1 and recorded)
        sampler.evaluate_agent(0)


def test_undeclared_infos_within_an_episode_are_not_checked() -> None:
    sampler = sampler_of([], replace(4, None))
    with sampler.initialize(CategoricalPgAgent(), seed=SEED):
        sampler.obtain_samples(0)


@pytest.mark.parametrize(
    ("value", "declared", "recorded"),
    [
        (3, ("int32", ()), 3),
        (3, ("uint8", ()), 3),
        (3, ("float32", ()), 3.0),
        (True, ("bool", ()), True),
        (np.float32(0.5), ("float64", ()), 0.5),
        (0.5, ("float32", ()), 0.5),
        ([1, 2], ("float32", (2,)), [1.0, 2.0]),
        (np.array([[True]]), ("bool", (1, 1)), [[True]]),
    ],
)
def test_declared_infos_are_recorded(value: Any, declared: tuple[str, tuple[int, ...]], recorded: Any) -> None:
    sampler = SerialSampler(
        InvalidOnce, {"info": {"known": value}}, batch_T=8, batch_B=2, env_info_keys={"known": declared}
    )
    with sampler.initialize(CategoricalPgAgent(), seed=SEED):
        samples, _ = sampler.obtain_samples(0)
        info = samples.env.env_info["known"]
        assert info.numpy().dtype == declared[0]
        assert info.shape == (8, 2, *declared[1])
        assert info[5, 1].tolist() == recorded


# ---- the log ----

EITHER = pytest.mark.parametrize("cls", [SerialSampler, CpuSampler])


@EITHER
def test_cast_is_logged_once_with_the_name_of_the_environment(
    cls: type[BaseSampler], caplog: pytest.LogCaptureFixture
) -> None:
    class Float64(EpisodeStep):
        def _observation(self) -> np.ndarray:
            return super()._observation().astype(np.float64)

    with caplog.at_level(logging.DEBUG, "headrace"):
        sampler = cls(Float64, batch_T=9, batch_B=4, n_workers=2, start_method="fork")
        with sampler.initialize(CategoricalPgAgent(), seed=SEED):
            for itr in range(3):
                samples, _ = sampler.obtain_samples(itr)
            assert samples.env.observation.dtype == torch.float32
    said = [record for record in caplog.records if "float64" in record.getMessage()]
    assert len(said) == 1
    assert said[0].levelno == logging.WARNING
    assert "Float64" in said[0].getMessage()


@EITHER
def test_ends_that_are_0_or_1_are_cast_to_bool_and_logged(
    cls: type[BaseSampler], caplog: pytest.LogCaptureFixture
) -> None:
    class Numbers(EpisodeStep):
        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = super().step(action)
            return observation, reward, int(terminated), np.float32(truncated), info

    expected, _ = one_batch(EpisodeStep, SerialSampler)
    with caplog.at_level(logging.DEBUG, "headrace"):
        samples, _ = one_batch(Numbers, cls)
    assert expected.env.done.any()
    assert torch.equal(samples.env.terminated, expected.env.terminated)
    assert torch.equal(samples.env.truncated, expected.env.truncated)
    said = sorted(record.getMessage() for record in caplog.records if "it is cast" in record.getMessage())
    assert [line.partition(": ")[2] for line in said] == [
        "terminated is int, expected bool; it is cast",
        "truncated is float32, expected bool; it is cast",
    ]


def one_batch(make: Any, cls: type[BaseSampler]) -> Any:
    sampler = cls(make, batch_T=20, batch_B=4, n_workers=2, start_method="fork")
    with sampler.initialize(CategoricalPgAgent(), seed=SEED):
        samples, traj_infos = sampler.obtain_samples(0)
        return samples.copy(), traj_infos


@EITHER
def test_undeclared_info_keys_are_logged_once(cls: type[BaseSampler], caplog: pytest.LogCaptureFixture) -> None:
    keys = {"number": ("int32", ())}
    with caplog.at_level(logging.DEBUG, "headrace"):
        sampler = cls(EpisodeStep, batch_T=20, batch_B=4, env_info_keys=keys, n_workers=2, start_method="fork")
        with sampler.initialize(CategoricalPgAgent(), seed=SEED):
            for itr in range(3):
                sampler.obtain_samples(itr)
    said = [record.getMessage() for record in caplog.records if "info has keys" in record.getMessage()]
    assert len(said) == 1
    assert "odd, pair" in said[0]
    assert "number" not in said[0]
    assert "env_info_keys" in said[0]


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_float64_too_large_for_float32_is_not_finite() -> None:
    made: list[InvalidOnce] = []
    error = failure_of(sampler_of(made, replace(0, np.array([0, 1e300, 0]))), made, EnvContractError)
    assert "observation = inf" in str(error)


def test_discrete_observations_out_of_range_are_named_in_a_sampler() -> None:
    made: list[InvalidOnce] = []
    sampler = sampler_of(made, replace(0, 10), observation_space=SPACES["discrete from -2"])
    assert "an integer in [-2, 2)" in str(failure_of(sampler, made, EnvContractError))
