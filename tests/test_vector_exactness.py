"""Rare cases of vector environments: masks of waiting columns, resets that take a step, last observations."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace.envs import VectorEnvs, make_envpool
from headrace.envs.spaces import Mismatch
from headrace.envs.vector.answers import VectorAnswers
from headrace.errors import EnvContractError, EnvFailed
from headrace.samplers import AlternatingSampler, BaseSampler, CpuSampler, GpuSampler, SerialSampler, TrajInfo
from tests.environments import raising, replace
from tests.quick import quick_and_slow
from tests.tasks import Masked
from tests.test_vector_envs import (
    INVALID_ENV,
    POOL,
    QUIET,
    SAMPLERS,
    InfoDiary,
    as_vector,
    assert_cartpoles,
    assert_error_names,
    assert_same,
    opened,
    pongs,
    run,
    single_worlds,
    use,
    with_cell,
    world_options,
    wrapped_world,
)
from tests.vector_worlds import ACTIONS, MODES, WORLD_INFO, InvalidOnceVector, World, side_by_side

OWN = {"action_space": ACTIONS["discrete from 2"]}


@QUIET
def test_envpool_cartpole_follows_its_dynamics() -> None:
    assert_cartpoles(run(SerialSampler, VectorEnvs(make_envpool), POOL, n=6), 500)


@pytest.mark.parametrize("mode", MODES)
def test_masks_apply_in_evaluations(mode: str) -> None:
    own = {"action_space": spaces.Discrete(4)}
    run(SerialSampler, *as_vector(Masked, mode, own), evaluations=1, eval_n_envs=3)


@pytest.mark.parametrize("options", [{"max_decorrelation_steps": 9}, {"reset_mode": "wait"}], ids=str)
def test_masks_apply_to_waiting_columns(options: Any) -> None:
    own = {"action_space": spaces.Discrete(4)}
    run(SerialSampler, *as_vector(Masked, "DISABLED", own), **options)


@pytest.mark.parametrize(("cls", "n_workers"), quick_and_slow(SAMPLERS[1:], [(CpuSampler, 3)]))
def test_next_step_mode_info_fields_do_not_depend_on_workers(cls: type[BaseSampler], n_workers: int) -> None:
    vector = as_vector(World, "NEXT_STEP", OWN)
    expected = run(SerialSampler, *vector, env_info_keys=WORLD_INFO)
    assert_same(expected, run(cls, *vector, n_workers=n_workers, env_info_keys=WORLD_INFO))


def test_next_step_mode_info_fields_of_one_environment() -> None:
    found = run(SerialSampler, *as_vector(World, "NEXT_STEP", OWN), batch_B=1, env_info_keys=WORLD_INFO)
    for samples, _ in found.batches:
        assert not samples.env.env_info["age"][~samples.env.valid].any()


@pytest.mark.parametrize("decorrelation", [0, 9])
def test_next_step_mode_traj_info_step_is_not_called_for_reset_steps(decorrelation: int) -> None:
    vector = as_vector(World, "NEXT_STEP", OWN)
    found = run(SerialSampler, *vector, TrajInfoCls=Calls, max_decorrelation_steps=decorrelation)
    for _, infos in found.batches:
        assert [vars(info)["Calls"] for info in infos] == [info.Length for info in infos]


@dataclass
class Calls(TrajInfo):
    Calls: int = 0

    def step(self, *told: Any) -> None:
        self.Calls += 1


@pytest.mark.parametrize(("cls", "n_workers"), quick_and_slow(SAMPLERS[:3], [(SerialSampler, 1)]))
def test_same_step_mode_traj_info_gets_the_last_info(cls: type[BaseSampler], n_workers: int) -> None:
    options = world_options("continuous", 0, InfoDiary)
    expected = single_worlds("continuous", 0, InfoDiary)
    own = {"action_space": ACTIONS["continuous"]}
    assert_same(expected, run(cls, *as_vector(World, "SAME_STEP", own), n_workers=n_workers, **options))


@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler])
@pytest.mark.parametrize("error", [RuntimeError("unhappy"), ValueError("unhappy"), SystemExit("unhappy")], ids=repr)
def test_exception_in_the_first_reset_raises_env_failed(error: BaseException, cls: type[BaseSampler]) -> None:
    with pytest.raises(EnvFailed) as caught:
        use(cls, InvalidOnceVector, {"change": raising(error), "at": "reset"})
    assert str(caught.value).startswith(f"InvalidOnceVector: reset() raised {type(error).__name__}: unhappy")


class UnhappyOnce(World):
    """The first reset of the third environment raises."""

    made = 0

    def __init__(self, **own: Any) -> None:
        super().__init__(**own)
        UnhappyOnce.made += 1
        self._unhappy = UnhappyOnce.made == 3

    def reset(self, **kwargs: Any) -> Any:
        if self._unhappy:
            self._unhappy = False
            raise ValueError("unhappy")
        return super().reset(**kwargs)


def test_error_of_the_first_reset_is_not_hidden() -> None:
    UnhappyOnce.made = 0
    with pytest.raises(EnvFailed, match="ValueError: unhappy"):
        run(SerialSampler, *as_vector(UnhappyOnce, "SAME_STEP", OWN))


def with_final(value: Any) -> Any:
    return lambda answer: replace(4, {"final_obs": value})(answer)


@pytest.mark.parametrize(
    ("final", "words"),
    [
        (np.full((4, 3), np.nan, np.float32), "final_obs = nan, expected finite"),
        (np.full(4, None, object), "final_obs"),
        (np.zeros((4, 4), np.float32), "final_obs"),
        (np.zeros((4, 3, 1), np.float32), "final_obs"),
        (np.full((4, 3), 2**40 + 1), "final_obs"),  # no float32 is that number
        (np.zeros((2, 3), np.float32), "final_obs"),
        ({"x": 1}, "final_obs"),
    ],
    ids=["NaN", "None", "shape", "another dimension", "dtype", "too few", "a dict"],
)
def test_final_observation_none_is_an_error(final: Any, words: str) -> None:
    """Row 2 ends alone."""
    with pytest.raises(EnvContractError) as caught:
        use(SerialSampler, InvalidOnceVector, {"change": with_final(final), "at": "end"})
    assert words in str(caught.value)
    assert caught.value.where is not None
    assert caught.value.where.env_id == INVALID_ENV


@pytest.mark.parametrize("separate", [False, True], ids=["one array", "an array for each environment"])
def test_final_observations_are_those_of_the_ended_columns(separate: bool) -> None:
    """Environments return them in one array over all environments or, as Gymnasium's do, in separate arrays."""
    final = np.arange(12, dtype=np.float32).reshape(4, 3)
    came: Any = final
    if separate:
        came = np.full(4, None, object)
        came[1:3] = [row for row in final[1:3]]
    answers = VectorAnswers(4, spaces.Box(-100, 100, (3,), np.float32), {}, no_cast)
    found = answers.final({"final_obs": came}, np.array([1, 2]))
    assert found.dtype == np.float32
    assert np.array_equal(found, final[1:3])
    final[2, 1] = np.nan
    with pytest.raises(Mismatch, match="final_obs = nan"):
        answers.final({"final_obs": came}, np.array([1, 2]))
    assert answers.mismatched == 2


def no_cast(path: str, came: Any, dtype: Any) -> None:
    raise AssertionError(f"{path} was cast from {came} to {dtype}")


def test_final_info_without_the_ended_column_is_an_error() -> None:
    change = lambda answer: replace(4, {**answer[4], "final_info": np.full(4, None, object)})(answer)  # noqa: E731
    with pytest.raises(EnvContractError):
        use(SerialSampler, InvalidOnceVector, {"change": change, "at": "end"})


SPEED = {"speed": np.zeros(4, np.float32)}


@pytest.mark.parametrize(
    "info",
    [
        {"speed": np.ones(4, np.float32), "_speed": np.array([True, True, False, True])},
        {"speed": np.array([0, 0, np.nan, 0], np.float32)},
    ],
    ids=["missing in row 2", "NaN in row 2"],
)
def test_wrong_info_of_one_column_is_an_error(info: Any) -> None:
    with pytest.raises(EnvContractError) as caught:
        use(
            SerialSampler,
            InvalidOnceVector,
            {"change": replace(4, info), "info": SPEED},
            env_info_keys={"speed": ("float32", ())},
        )
    assert_error_names(caught.value, "info['speed']", INVALID_ENV, "stepping, step 5")


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("index", [0, 1])
def test_numbers_beyond_float32_are_errors(index: int) -> None:
    def change(answer: list[Any]) -> Any:
        array = answer[index].astype(np.float64)
        array[INVALID_ENV] = 1e300
        return replace(index, array)(answer)

    with pytest.raises(EnvContractError) as caught:
        use(SerialSampler, InvalidOnceVector, {"change": change})
    assert caught.value.where is not None
    assert caught.value.where.env_id == INVALID_ENV


def test_discrete_observations_of_any_integer_type_are_recorded() -> None:
    use(SerialSampler, InvalidOnceVector, {"observation_space": spaces.Discrete(5, dtype=np.int32)})


@QUIET
def test_envpool_discrete_observations_are_recorded() -> None:
    run(SerialSampler, VectorEnvs(make_envpool), {"task_id": "FrozenLake-v1"})


def test_discrete_observations_outside_their_space_are_errors() -> None:
    with pytest.raises(EnvContractError) as caught:
        use(
            SerialSampler,
            InvalidOnceVector,
            {"change": with_cell(0, INVALID_ENV, 77), "observation_space": spaces.Discrete(5)},
        )
    assert caught.value.where is not None
    assert caught.value.where.env_id == INVALID_ENV


def test_first_step_is_padding_after_an_end_in_decorrelation() -> None:
    samples = run(SerialSampler, *as_vector(World, "NEXT_STEP", OWN), max_decorrelation_steps=9).batches[0][0]
    env = samples.env
    assert (~env.valid[0]).any()
    assert torch.equal(env.is_first[0], env.valid[0])


def wrapped_vector(num_envs: int) -> Any:
    return gym.wrappers.vector.RecordEpisodeStatistics(side_by_side(num_envs, World, "NEXT_STEP", OWN))


def test_call_envs_reaches_vector_environments_through_their_wrappers() -> None:
    with opened(SerialSampler, 1, VectorEnvs(wrapped_vector)) as sampler:
        assert sampler.call_envs("lengthen", 3) == [("longer by", 3)] * 5


@pytest.mark.parametrize(("cls", "n_workers"), [(SerialSampler, 1), (CpuSampler, 3), (AlternatingSampler, 2)])
def test_call_envs_of_some_environments_does_not_depend_on_workers(cls: type[BaseSampler], n_workers: int) -> None:
    """Only these environments are called, or the call is refused if it would reach others."""
    with opened(cls, n_workers, *as_vector(wrapped_world, "SAME_STEP")) as sampler:
        try:
            sampler.call_envs("lengthen", 3, env_ids=[1])
        except ValueError:
            return
        assert sampler.call_envs("lengthening") == [0, 3, 0, 0, 0]


@pytest.mark.parametrize("cls", [CpuSampler, GpuSampler])
def test_call_envs_arguments_may_be_local_functions(cls: type[BaseSampler]) -> None:
    with opened(cls, 2) as sampler:
        with pytest.raises((TypeError, ValueError), match="args"):
            sampler.call_envs("lengthen", lambda: 3)
        sampler.obtain_samples(0)


def test_call_envs_of_an_unknown_method_is_an_error() -> None:
    sampler = opened(SerialSampler, 1, VectorEnvs("CartPole-v1"))
    with pytest.raises(EnvFailed, match="have an attribute 'missing'"):
        sampler.call_envs("missing")


@pytest.mark.slow
def test_last_info_has_no_final_observation() -> None:
    for _, infos in pongs("SAME_STEP", 1).batches:
        for info in infos:
            assert "final_obs" not in info.info
            assert "_final_obs" not in info.info


@pytest.mark.parametrize("size", [3, 5])
def test_vector_environment_of_wrong_size_is_closed(size: int) -> None:
    made: list[InvalidOnceVector] = []

    def other_size(num_envs: int) -> Any:
        return InvalidOnceVector(size, made=made)

    with pytest.raises(EnvContractError):
        use(SerialSampler, other_size, {})
    assert [env.closes for env in made] == [1]


@pytest.mark.parametrize("name", ["Nothing-v0", "ALE/Nothing-v5"])
def test_unknown_vector_id_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        VectorEnvs(name)
