"""Texts and sequences in observations: arrays of a declared size and a length, in every sampler and command."""

import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_paths
from headrace.cli.build import TrainOptions
from headrace.cli.main import main
from headrace.cli.options import parse_options
from headrace.envs import Padded, VectorEnvs, check_env
from headrace.errors import EnvContractError
from headrace.samplers import BaseSampler, CpuSampler, SerialSampler
from tests.speaking import WORDS, Speaks

PAD = {"mission": 16, "bag.tools": 3, "bag.label": 3, "path.1": 4}


def batch_of(cls: type[BaseSampler], **options: Any) -> Samples:
    sampler = cls(Speaks, batch_T=9, batch_B=3, n_workers=2, deterministic=True, pad=PAD, **options)
    with sampler.initialize(CategoricalPgAgent(), seed=2):
        return sampler.obtain_samples(0)[0].copy()


def test_text_becomes_character_codes_and_a_length() -> None:
    env = Padded(Speaks(), {"bag.label": 3, "mission": 16})
    numbers = {character: number for number, character in enumerate(sorted(string.printable), 1)}
    for seed in range(9):
        observation, _ = env.reset(seed=seed)
        label, mission = observation["bag"]["label"], observation["mission"]
        n = label["length"]
        assert label["array"].tolist() == [1, 2, 3][:n] + [0] * (3 - n)  # of "abc", whatever the order in the space
        words = WORDS[n % 3]
        assert mission["length"] == len(words)
        assert mission["array"].tolist() == [numbers[one] for one in words] + [0] * (16 - len(words))
        assert mission["array"].dtype == np.uint8


def test_every_padded_observation_is_in_the_space_it_declares() -> None:
    env = Padded(Speaks(), PAD)
    lengths = set()
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        assert env.observation_space.contains(observation)
        tools = observation["bag"]["tools"]
        lengths.add(tools["length"])
        assert (tools["array"]["size"][: tools["length"]] >= 1).all()
        assert not tools["array"]["size"][tools["length"] :].any()
        assert not tools["array"]["kind"][tools["length"] :].any()
        assert observation["path"][1]["array"].tolist() == [*range(tools["length"]), *[0] * (4 - tools["length"])]
    assert lengths == {0, 1, 2, 3}


def test_whole_observation_can_be_a_text() -> None:
    class Says(Speaks):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Text(8)

        def _observation(self) -> Any:
            return "Zorro"

    env = Padded(Says(), {"": 6})
    observation, _ = env.reset(seed=0)
    assert observation["length"] == 5
    assert observation["array"].tolist()[5:] == [0]
    assert env.observation_space.contains(observation)


@pytest.mark.parametrize("start_method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_batches_are_the_same_in_every_sampler(start_method: str) -> None:
    serial, other = batch_of(SerialSampler), batch_of(CpuSampler, start_method=start_method)
    paths = [path for path, _ in tree_paths(serial)]
    assert ".env.observation['bag']['tools']['array']['size']" in paths
    for (path, leaf), (_, same) in zip(tree_paths(serial), tree_paths(other), strict=True):
        assert torch.equal(leaf, same), path
    assert serial.env.observation["mission"]["array"].shape == (9, 3, 16)
    assert serial.env.observation["bag"]["tools"]["array"]["size"].shape == (9, 3, 3, 2)


@pytest.mark.parametrize(
    ("pad", "says"),
    [
        ({}, "observation['bag']['label'] is "),
        ({**PAD, "mission": 9}, "of length 13, expected a length of at most 9, as set by pad"),
        ({**PAD, "bag.tools": 1}, "observation['bag']['tools'] = tuple"),
        ({**PAD, "here": 4}, "pad is for texts and sequences, but observation['here'] is Box"),
        ({**PAD, "hint": 4}, "pad has the key 'hint', but observation has no such part"),
        ({**PAD, "path.2": 4}, "pad has the key '2', but observation['path'] has no such part"),
    ],
    ids=["nothing declared", "longer text", "longer sequence", "a Box", "no such key", "no such part"],
)
def test_too_long_text_or_sequence_is_refused_with_its_path(pad: dict[str, int], says: str) -> None:
    sampler = SerialSampler(Speaks, batch_T=99, batch_B=3, pad=pad)
    with pytest.raises(EnvContractError) as caught:
        sampler.initialize(CategoricalPgAgent(), seed=2).obtain_samples(0)
    assert says in str(caught.value)
    if not pad:
        assert "pad={'bag.label': n} to the sampler for at most n characters (command line: --pad bag.label=n)" in str(
            caught.value
        )


@pytest.mark.parametrize(
    ("pad", "kind"),
    [(["mission"], TypeError), ({1: 2}, TypeError), ({"mission": 0}, ValueError), ({"mission": 1.5}, ValueError)],
)
def test_invalid_pad_is_refused_by_the_constructor(pad: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="pad must be a dict of maximum lengths by place"):
        SerialSampler(Speaks, batch_T=9, batch_B=3, pad=pad)
    with pytest.raises(ValueError, match="pad is for single environments"):
        SerialSampler(VectorEnvs("CartPole-v1"), batch_T=9, batch_B=3, pad={"mission": 3})


def test_check_env_suggests_and_accepts_pad() -> None:
    (violation,) = check_env(Speaks, n_steps=30)
    assert violation.clause == "fixed-shape"
    assert "observation['bag']['label']" in violation.came
    assert "pad={place: n} to the sampler (--pad place=n)" in violation.remedy
    assert check_env(Speaks, n_steps=30, pad=PAD) == []


TRAIN = ["train", "--env", "tests.speaking:Speaks", "--sampler", "serial", "--n-steps", "64", "--batch-B", "4"]
LENGTHS = ["--pad", *(f"{place}={n}" for place, n in PAD.items())]


def test_command_suggests_the_option_pad(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TRAIN) == 1
    err = capsys.readouterr().err
    assert err.startswith("headrace: observation['bag']['label'] is ")
    assert "--pad bag.label=n" in err
    assert main([*TRAIN, "--pad", "mission"]) == 2
    assert "expected place=n such as mission=48, got mission" in capsys.readouterr().err
    assert parse_options(TrainOptions(), "headrace train", LENGTHS).pad == PAD


@pytest.mark.slow
def test_agent_learns_from_padded_texts_and_is_evaluated_with_them(tmp_path: Path) -> None:
    small = ["--batch-T", "8", "--eval-episodes", "2", "--ppo.epochs", "1", "--log-dir", str(tmp_path / "run")]
    assert main([*TRAIN, *small, *LENGTHS]) == 0
    assert main(["eval", str(tmp_path / "run"), "--episodes", "2"]) == 0
