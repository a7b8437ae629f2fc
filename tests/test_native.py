"""The compiled inner loop of `ScalarEnvs` against pure Python: the same records, the same errors."""

import importlib
import importlib.util
import logging
import pickle
import random
import signal
import sys
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import headrace
from headrace import compiled
from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.tree import allocate_like, tree_leaves, tree_map
from headrace.envs import stepping
from headrace.envs.infos import InfoField
from headrace.envs.scalar import ScalarEnvs
from headrace.envs.spaces import Mismatch, null_value
from headrace.errors import SamplerError
from headrace.processes.status import Status
from headrace.rng import Stream, env_keys, uniforms
from headrace.samplers import SerialSampler
from headrace.types import StepRow

needs_native = pytest.mark.skipif(compiled.stepping is None, reason=f"no compiled part: {headrace.native()}")

SPACES: list[spaces.Space[Any]] = [
    spaces.Box(-9, 9, (3,), np.float32),
    spaces.Box(-9, 9, (2, 2), np.float64),
    spaces.Box(0, 255, (4, 4, 3), np.uint8),
    spaces.Box(-1, 1, (), np.float32),
    spaces.Box(-1, 1, (2,), np.float16),
    spaces.Discrete(5, start=-2),
    spaces.MultiDiscrete([3, 4]),
    spaces.MultiBinary(3),
    spaces.Dict({"a": spaces.Box(-9, 9, (2,), np.float32), "b": spaces.Discrete(3)}),
    spaces.Tuple((spaces.Discrete(3), spaces.Dict({"x": spaces.Box(-1, 1, (1,), np.float32)}))),
]
Answer = namedtuple("Answer", "observation reward terminated truncated info")  # a subclass of tuple


class _Subclass(np.ndarray):
    pass


class _Liar:
    shape, dtype = (3,), np.dtype(np.float32)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.zeros(7, np.float32)


class _Float(float):
    def __le__(self, other: object) -> bool:
        return True

    def __ge__(self, other: object) -> bool:
        return True


class Scripted(gymnasium.Env[Any, Any]):
    """Returns what it is told."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space = space
        self.answer: Any = None
        self.first: Any = (null_value(space), {})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return _given(self.first)

    def step(self, action: Any) -> Any:
        return _given(self.answer)


def _given(answer: Any) -> Any:
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _odd(value: Any, rng: random.Random) -> Any:
    """Something like `value`, but not quite."""
    if isinstance(value, dict):
        key = rng.choice(list(value))
        changes: list[Callable[[], Any]] = [
            lambda: {**value, key: _odd(value[key], rng)},
            lambda: {**value, "more": 1},
            lambda: {other: own for other, own in value.items() if other != key},
            lambda: tuple(value.values()),
            lambda: dict(reversed(value.items())),
        ]
        return rng.choice(changes)()
    if isinstance(value, tuple):
        place = rng.randrange(len(value))
        return rng.choice(
            [
                lambda: (*value[:place], _odd(value[place], rng), *value[place + 1 :]),
                lambda: list(value),
                lambda: value[:-1],
            ]
        )()
    array = np.array(value)
    read_only = _unwritable(array.copy())
    holes = np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array
    odd: list[Callable[[], Any]] = [
        lambda: read_only,
        lambda: holes,
        lambda: np.asfortranarray(array),
        lambda: array.view(_Subclass),
        lambda: array.tolist(),
        lambda: array.astype(np.float64),
        lambda: array.astype(np.float64) + 0.5,
        lambda: array.astype(np.int8),
        lambda: array.astype(array.dtype.newbyteorder()),
        lambda: array.astype(np.float32) * np.float32("nan"),
        lambda: array.astype(np.float64) + np.inf,
        lambda: array[None],
        lambda: array[..., :1] if array.ndim else array,
        lambda: np.ma.masked_array(array, array == array),
        lambda: array.astype(object),
        lambda: array[()],
        lambda: array.item(0),
        lambda: 10**30,
        lambda: None,
        lambda: "x",
        _Liar,
    ]
    return rng.choice(odd)()


REWARDS: list[Any] = [
    0.0, -1.5, 1, True, 2**60 + 1, 10**400, 3e38, 1e39, -1e39, float("nan"), float("inf"), np.float64(2.5),
    np.float32(0.1), np.int64(3), np.float64("nan"), np.array(1.0), np.array([1.0]), _Float("nan"), _Float(1.0),
    None, "1", 1 + 0j,
]  # fmt: skip
FLAGS: list[Any] = [False, True, np.False_, np.True_, 0, 1, 2, None, "yes", np.array(True), 1.0]


DECLARED: dict[str, tuple[str, tuple[int, ...]]] = {
    "speed": ("float32", ()),
    "energy": ("float64", ()),
    "lives": ("int16", ()),
    "alive": ("bool", ()),
    "place": ("float32", (3,)),
    "cell": ("int64", (2,)),
}
USUAL_INFO: list[dict[str, Any]] = [
    {"speed": 0.5, "energy": 1.5, "lives": 3, "alive": True, "place": np.ones(3, np.float32), "cell": np.arange(2)},
    {
        "speed": np.float64(0.1),
        "energy": np.float32(0.1),
        "lives": np.int64(4),
        "alive": np.False_,
        "place": np.full(3, 0.1),
        "cell": np.array([5, 6]),
        "more": "undeclared",
    },
]
#: Values of info fields; which of them fit depends on the declaration.
VALUES: list[Any] = [
    0.5, -0.0, 1e300, 1e39, 5e-46, float("nan"), float("-inf"), 0, 3, -3, 300, 40_000, 70_000, 2**24 + 1, 2**53 + 1,
    -(2**63), 2**63, 2**64, 10**30, 2**60 + 2**36 + 1, True, False, np.True_, np.False_, np.float64(0.1),
    np.float64("nan"), np.float32(0.1), np.float16(2), np.longdouble(1) / 3, np.int8(-5), np.int16(-300),
    np.int32(70_000), np.int64(2**40), np.int64(2**60 + 1), np.uint8(200), np.uint8(1), np.uint16(40_000),
    np.uint64(2**63 + 5), np.longlong(4), np.array([False, True]), np.array(2.5), np.array(3), np.array(True),
    np.array(0.1, np.float32), np.array(float("nan")), np.ones(1), np.ones(3, np.float32), np.full(3, 0.1),
    np.full(3, 1e300), np.array([1, float("nan"), 3]), np.arange(3),
    np.arange(2), np.arange(3, dtype=np.int16), np.arange(6.0)[::2], np.arange(6, dtype=np.float32)[::2],
    np.broadcast_to(np.float32(1), (3,)), np.ones((1, 3)), np.ones(3, ">f4"), np.array(0.5, ">f8"),
    np.ones(3, np.float16), np.array([True, False, True]), np.ones(0), np.ones(3, np.float32).view(_Subclass),
    np.ma.masked_array(np.ones(3), [False, True, False]), np.ones(3, object),
    np.arange(7, dtype=np.int8)[1:5].view(np.int16),
    np.zeros(25, np.int8)[1:].view(np.float64), [1.0, 2.0, 3.0], [1, 2], (1, 2, 3), [True, False, True], [[1], [2, 3]],
    [], None, "x", b"x", 1j, object(), {}, {"a": 1}, _Float(0.5), _Float("nan"), signal.SIGTERM, _Liar(),
    np.datetime64("2000-01-01"), np.timedelta64(3),
]  # fmt: skip


def _unwritable(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


VALUES += [_unwritable(np.ones(3, np.float32)), _unwritable(np.array(0.5))]


def _info(rng: random.Random) -> Any:
    """A random info dict: usual in most fields."""
    info: Any = dict(rng.choice(USUAL_INFO))
    for key in DECLARED:
        if rng.random() < 0.03:
            info[key] = rng.choice(VALUES)
    form: list[Callable[[], Any]] = [
        lambda: {key: value for key, value in info.items() if key != rng.choice([*DECLARED])},
        lambda: OrderedDict(info),
        lambda: defaultdict(float, speed=0.5),
        lambda: list(info),
        dict,
        lambda: None,
        lambda: 3,
    ]
    return rng.choice(form)() if rng.random() < 0.1 else info


def _answer(space: spaces.Space[Any], rng: random.Random) -> Any:
    """A random answer: usual in most parts, so that each odd part is also met alone."""
    observation = space.sample()
    observation = int(observation) if isinstance(space, spaces.Discrete) and rng.random() < 0.7 else observation
    odd = rng.random
    parts = (
        _odd(observation, rng) if odd() < 0.15 else observation,
        rng.choice(REWARDS) if odd() < 0.15 else 1.0,
        rng.choice(FLAGS) if odd() < 0.1 else False,
        rng.choice(FLAGS) if odd() < 0.1 else False,
        _info(rng),
    )
    form: list[Callable[[], Any]] = [
        lambda: list(parts),
        lambda: Answer(*parts),
        lambda: parts[:4],
        lambda: None,
        lambda: RuntimeError("no"),
    ]
    return rng.choice(form)() if odd() < 0.05 else parts


def _first(space: spaces.Space[Any], rng: random.Random) -> Any:
    """A random answer of a reset."""
    answer = _answer(space, rng)
    return (answer[0], {}) if isinstance(answer, tuple) and len(answer) == 5 else answer


@contextmanager
def without_native(pure: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if pure:
            patch.setattr(compiled, "stepping", None)
        yield


def _record(
    space: spaces.Space[Any], answers: list[Any], firsts: list[Any], pure: bool, infos: bool, declared: bool
) -> Any:
    """What a step of environments that give these answers, to resets in it too, records, or its error."""
    n = len(answers)
    keys = DECLARED if declared else None
    status = Status()
    made = [Scripted(space) for _ in answers]
    # As a worker allocates it: a dtype that was pickled is equal to, but not the same object as, that of the space.
    observation = allocate_like(pickle.loads(pickle.dumps(null_value(space))), (n,), np.zeros)
    info = {key: np.zeros((n, *shape), dtype) for key, (dtype, shape) in DECLARED.items()} if declared else None
    floats = [leaf for leaf in (*tree_leaves(observation), *tree_leaves(info)) if leaf.dtype.kind == "f"]
    ends = np.zeros((2, n), np.bool_)
    out = StepRow(observation, np.zeros(n, np.float32), ends[0], ends[1], info, floats, [{}] * n if infos else None)
    with without_native(pure):
        envs = ScalarEnvs(
            made, range(7, 7 + n), [(i, i) for i in range(n)], name="S", status=status, env_info_keys=keys
        )
        envs.reset(None, observation)
        for env, answer, first in zip(made, answers, firsts, strict=True):
            env.answer, env.first = answer, first
        try:
            found = envs.step(np.zeros(n, np.int64), out)
        except SamplerError as error:
            return type(error).__name__, error.message, error.where
    written = [leaf.tobytes() for leaf in tree_leaves((observation, out.reward, ends, info))]
    final = tree_map(np.copy, found.observation) if len(found.columns) else None
    infos_of = repr(out.infos), repr(found.infos), repr(final)  # arrays in them do not compare to one truth value
    return written, infos_of, found.columns.tolist(), envs.notes, list(status.line)


@needs_native
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_compiled_stepping_records_and_refuses_like_pure_python(space: spaces.Space[Any]) -> None:
    rng = random.Random(str(space))
    space.seed(3)
    refused = 0
    for case in range(350):
        answers = [_answer(space, rng) for _ in range(3)]
        infos, declared = case % 5 == 0, case % 3 == 0
        firsts = [_first(space, rng) for _ in range(3)]
        found = _record(space, answers, firsts, False, infos, declared)
        assert found == _record(space, answers, firsts, True, infos, declared), (answers, firsts)
        refused += isinstance(found[0], str)
    assert 50 < refused < 330  # both kinds were met


@needs_native
def test_usual_result_is_recorded_without_python(monkeypatch: pytest.MonkeyPatch) -> None:
    space = spaces.Dict({"a": spaces.Box(-9, 9, (2,), np.float32), "b": spaces.Discrete(3)})
    monkeypatch.setattr(ScalarEnvs, "_record", lambda *args: pytest.fail("recorded in Python"))
    record_first, n_resets = ScalarEnvs._record_first, 0

    def counted(*args: Any) -> None:
        nonlocal n_resets
        n_resets += 1
        record_first(*args)

    monkeypatch.setattr(ScalarEnvs, "_record_first", counted)
    monkeypatch.setattr(InfoField, "write", lambda *args: pytest.fail("recorded in Python"))
    answers: list[Any] = [
        ({"a": np.full(2, i, np.float32), "b": i}, float(i), i == 1, False, USUAL_INFO[i % 2] | {"energy": float(i)})
        for i in range(3)
    ]
    firsts: list[Any] = [(null_value(space) | {"b": 2}, {})] * 3
    written, _, ended, *_ = _record(space, answers, firsts, False, False, True)
    assert ended == [1]
    assert n_resets == 3  # those before the step
    assert written[0] == np.array([[0, 0], [0, 0], [2, 2]], np.float32).tobytes()
    assert written[1] == np.array([0, 2, 2]).tobytes()
    of_info = dict(zip(DECLARED, written[4:], strict=True))
    assert of_info["speed"] == np.array([0.5, 0.1, 0.5], np.float32).tobytes()
    assert of_info["energy"] == np.arange(3.0).tobytes()
    assert of_info["lives"] == np.array([3, 4, 3], np.int16).tobytes()
    assert of_info["alive"] == np.array([True, False, True]).tobytes()
    assert of_info["place"] == np.array([[1] * 3, [0.1] * 3, [1] * 3], np.float32).tobytes()
    assert of_info["cell"] == np.array([[0, 1], [5, 6], [0, 1]]).tobytes()


def _expected(value: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray | None:
    """What NumPy makes of a value, if it has the shape and its kind of number may be recorded as this dtype."""
    try:
        array = np.asanyarray(value)
    except ValueError:
        return None
    kinds = {"b": "bu", "u": "bui", "i": "bui", "f": "buif"}[dtype.kind]
    if isinstance(array, np.ma.MaskedArray) or array.shape != shape or array.dtype.kind not in kinds:
        return None
    with np.errstate(all="ignore"):
        cast = np.asarray(array).astype(dtype)
    return cast if dtype.kind == "f" or np.array_equal(cast, array) else None


PARTS = [stepping, pytest.param(compiled.stepping, marks=needs_native)]


@pytest.mark.parametrize("shape", [(), (3,), (2,)], ids=str)
@pytest.mark.parametrize("dtype", [*"fdeg?bBhHilQ", ">f4", ">i2"])
@pytest.mark.parametrize("part", PARTS, ids=["pure", "native"])
def test_info_field_is_recorded_as_numpy_casts_it(part: Any, dtype: str, shape: tuple[int, ...]) -> None:
    field = InfoField("k", np.dtype(dtype), shape)
    n_recorded = 0
    for value in VALUES:
        to = np.full((3, *shape), 7, dtype)
        fields = part.Fields([field], {"k": to})
        expected = _expected(value, field.dtype, shape)
        if expected is None:
            with pytest.raises(Mismatch, match=r"^info\['k'\] = "):
                fields.write(1, {"k": value})
            expected = np.full(shape, 7, dtype)
        else:
            fields.write(1, {"k": value})
            n_recorded += 1
        # As words, in which NaN equals NaN and −0 differs from 0.
        assert repr(to.tolist()) == repr([np.full(shape, 7, dtype).tolist(), expected.tolist(), to[0].tolist()]), value
    assert n_recorded


@needs_native
@pytest.mark.parametrize("size", [1, 3])
def test_noise_is_that_of_the_numpy_twin(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = env_keys(5, Stream.ACTION, range(7))
    for first_step in (0, 17, 2**62):  # the last one wraps around
        drawn = uniforms(keys, first_step, 50, size)
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "batch", None)
            assert np.array_equal(uniforms(keys, first_step, 50, size), drawn)
    assert 0.4 < drawn.mean() < 0.6


@pytest.mark.parametrize(
    ("module", "level", "reason"),
    [
        (SimpleNamespace(VERSION=0), logging.WARNING, "belong to another version of headrace"),
        (RuntimeError("numpy.dtype size changed"), logging.WARNING, "RuntimeError: numpy.dtype size changed"),
        (ImportError("undefined symbol: PyWho"), logging.WARNING, "ImportError: undefined symbol: PyWho"),
        (ModuleNotFoundError("headrace._native.stepping"), logging.INFO, "were not built"),
    ],
    ids=["old", "numpy", "symbol", "missing"],
)
def test_unusable_compiled_part_is_logged_and_pure_python_is_used(
    module: Any, level: int, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def imported(name: str) -> Any:
        if isinstance(module, Exception):
            raise module
        return module

    try:
        with monkeypatch.context() as patch:
            patch.setattr(importlib, "import_module", imported)
            patch.delenv("HEADRACE_PURE", raising=False)
            spec = importlib.util.spec_from_file_location("compiled_again", compiled.__file__)
            assert spec is not None
            assert spec.loader is not None
            again = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(again)
        assert again.stepping is None
        assert reason in again.native()
        monkeypatch.setattr(compiled, "note", again.note)
        monkeypatch.setattr(compiled, "stepping", None)
        caplog.set_level(logging.INFO, "headrace")
        with SerialSampler("CartPole-v1", batch_T=4, batch_B=2).initialize(CategoricalPgAgent(), seed=0) as sampler:
            sampler.obtain_samples(0)
        said = [record for record in caplog.records if "pure Python" in record.message]
        assert [(record.levelno, reason in record.message) for record in said] == [(level, True)]
    finally:
        sys.modules.pop("compiled_again", None)
