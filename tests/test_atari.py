"""Atari games with the classic wrappers: observations, scores, and ends of episodes."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import cv2
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.tree import tree_paths
from headrace.envs import EnvFactory, check_env, make_atari
from headrace.samplers import BaseSampler, CpuSampler, GpuSampler, SerialSampler
from tests.leftovers import DEADLINE

BREAKOUT = "ALE/Breakout-v5"
KEYS = {"score": ("float32", ()), "lives": ("int32", ())}


@pytest.fixture
def made() -> Iterator[Any]:
    """`make_atari`, whose games are closed afterwards."""
    games: list[gymnasium.Env[Any, Any]] = []

    def make(game_id: str, **options: Any) -> gymnasium.Env[Any, Any]:
        games.append(make_atari(game_id, **options))
        return games[-1]

    yield make
    for game in games:
        game.close()


def collected(cls: type[BaseSampler], EnvCls: Any, env_kwargs: dict[str, Any], B: int = 3, **options: Any) -> Any:
    sampler = cls(
        EnvCls,
        env_kwargs,
        batch_T=50,
        batch_B=B,
        max_decorrelation_steps=20,
        env_info_keys=KEYS if EnvCls is make_atari else None,
        deterministic=True,
        **options,
    )
    with sampler.initialize(CategoricalPgAgent(), seed=2):
        batches = [(samples.copy(), infos) for samples, infos in (sampler.obtain_samples(itr) for itr in range(2))]
    return batches


def assert_equal(first: Any, second: Any) -> None:
    for (samples, traj_infos), (others, other_infos) in zip(first, second, strict=True):
        for (path, leaf), (_, other) in zip(tree_paths(samples), tree_paths(others), strict=True):
            assert torch.equal(leaf, other), path
        assert traj_infos == other_infos


@pytest.mark.slow
def test_samplers_give_equal_pong_batches_and_stacks_restart_after_ends() -> None:
    """300 steps of three games, short enough that some end."""
    env_kwargs = {"max_frames": 150, "noop_max": 10}
    batches = collected(SerialSampler, make_atari, env_kwargs)
    assert_equal(batches, collected(CpuSampler, make_atari, env_kwargs, n_workers=2))
    n_ends = 0
    for samples, traj_infos in batches:
        assert samples.env.observation.shape == (50, 3, 4, 84, 84)
        assert samples.env.observation.dtype == torch.uint8
        assert samples.env.truncated.sum() == len(traj_infos)
        assert not samples.env.terminated.any()
        assert {info.info["score"] for info in traj_infos} <= {0.0, -1.0, -2.0, 1.0}
        for row, column in samples.env.is_first[1:].nonzero().tolist():  # row 0 follows the random steps
            frames = samples.env.observation[1 + row, column]
            assert all(torch.equal(frame, frames[0]) for frame in frames)
            n_ends += 1
    assert n_ends > 3


def test_registered_id_is_used_without_wrappers() -> None:
    """Gymnasium alone would not load the package that registers the id."""
    code = (
        "import sys\n"
        "from headrace.envs import EnvFactory\n"
        "factory = EnvFactory.of('ALE/Pong-v5', {'obs_type': 'ram'})\n"
        "assert factory().observation_space.shape == (128,)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=DEADLINE, check=False).returncode == 0
    env_kwargs = {"obs_type": "ram"}
    batches = collected(SerialSampler, "ALE/Pong-v5", env_kwargs, B=1)
    assert batches[0][0].env.observation.shape == (50, 1, 128)
    assert_equal(batches, collected(GpuSampler, "ALE/Pong-v5", env_kwargs, B=1, start_method="forkserver"))


def test_wrappers_are_the_classic_ones(made: Any) -> None:
    """Compared with the emulator's frames: skip, maximum of the last two, greyscale, size, order of the stack."""
    options = {"noop_max": 0, "fire_reset": False, "repeat_action_probability": 0.0}
    game = made(BREAKOUT, **options)
    raw = gymnasium.make(BREAKOUT, frameskip=1, repeat_action_probability=0.0, obs_type="grayscale")
    assert game.observation_space == spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert game.action_space == spaces.Discrete(4)
    observation, _ = game.reset(seed=5)
    screen, _ = raw.reset(seed=5)
    expected = [shrunk(screen)] * 4
    np.testing.assert_array_equal(observation, np.stack(expected))
    rng = np.random.default_rng(0)
    for _ in range(60):
        action = int(rng.integers(4))
        screens = []
        for _ in range(4):
            screen, _, over, _, _ = raw.step(action)
            screens.append(screen)
        assert not over
        expected = [*expected[1:], shrunk(np.maximum(screens[-1], screens[-2]))]
        np.testing.assert_array_equal(game.step(action)[0], np.stack(expected))
    raw.close()


def shrunk(screen: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.resize(screen, (84, 84), interpolation=cv2.INTER_AREA))


def test_rewards_are_clipped_but_not_the_score(made: Any) -> None:
    clipped, raw = made("ALE/SpaceInvaders-v5"), made("ALE/SpaceInvaders-v5", clip_rewards=False)
    for game in (clipped, raw):
        game.reset(seed=1)
    rng = np.random.default_rng(0)
    total, largest = 0.0, 0.0
    for _ in range(400):
        action = int(rng.integers(6))
        _, reward, *_, info = clipped.step(action)
        _, points, terminated, truncated, twin = raw.step(action)
        assert reward == np.sign(points)
        total, largest = total + points, max(largest, points)
        assert info["score"] == twin["score"] == total
        if terminated or truncated:
            break
    assert largest >= 5


@pytest.mark.parametrize("episodic_life", [False, True])
def test_lost_life_ends_an_episode_only_with_episodic_life(made: Any, episodic_life: bool) -> None:
    game = made(BREAKOUT, episodic_life=episodic_life)
    _, info = game.reset(seed=3)
    assert info["lives"] == 5
    rng = np.random.default_rng(6)
    ends: list[int] = []
    frame, score = info["episode_frame_number"], 0.0
    while not ends or ends[-1]:
        _, _, terminated, truncated, info = game.step(int(rng.integers(4)))
        assert not truncated
        assert info["episode_frame_number"] > frame
        frame, score = info["episode_frame_number"], info["score"]
        if terminated:
            ends.append(info["lives"])
            _, info = game.reset()
            if info["lives"] < 5 or ends[-1]:  # the same game goes on
                assert info["score"] >= score
                assert info["episode_frame_number"] > frame
                frame = info["episode_frame_number"]
    assert ends == ([4, 3, 2, 1, 0] if episodic_life else [0])
    assert score > 0
    assert (info["lives"], info["score"]) == (5, 0.0)
    assert info["episode_frame_number"] < frame


def test_game_over_the_frame_limit_is_truncated_and_the_next_starts_fresh(made: Any) -> None:
    game = made(BREAKOUT, episodic_life=True, max_frames=60, fire_reset=False)
    game.reset(seed=3)
    while True:
        _, _, terminated, truncated, info = game.step(0)
        if terminated or truncated:
            break
    assert (terminated, truncated, info["lives"]) == (False, True, 5)
    assert game.reset()[1]["episode_frame_number"] <= 30


def test_fire_starts_the_game(made: Any) -> None:
    """Breakout does not start without FIRE."""
    for fire_reset, lives in ((True, 4), (False, 5)):
        game = made(BREAKOUT, fire_reset=fire_reset, episodic_life=True)
        for _ in range(2):  # a second life, too
            game.reset()
            for _ in range(100):
                _, _, terminated, _, info = game.step(0)
                if terminated:
                    break
            assert terminated is fire_reset
            assert info["lives"] == lives
            lives -= fire_reset


def test_game_starts_with_a_random_number_of_no_ops(made: Any) -> None:
    game = made("ALE/Pong-v5", fire_reset=False)
    begun = {game.reset(seed=seed)[1]["episode_frame_number"] for seed in range(6)}
    assert len(begun) > 1
    assert begun <= set(range(1, 31))
    assert made("ALE/Pong-v5", fire_reset=False, noop_max=0).reset(seed=0)[1]["episode_frame_number"] == 0


def test_full_action_space_is_optional(made: Any) -> None:
    assert made("ALE/Pong-v5", full_action_space=True).action_space == spaces.Discrete(18)
    assert made("PongNoFrameskip-v4").action_space == spaces.Discrete(6)


@pytest.mark.parametrize(
    "options",
    [
        {"screen_size": 36, "noop_max": 3},
        pytest.param({"game_id": BREAKOUT, "episodic_life": True}, marks=pytest.mark.slow),
    ],
    ids=["pong", "breakout by lives"],
)
def test_the_games_keep_the_contract(options: dict[str, Any]) -> None:
    assert check_env("headrace.envs.atari:make_atari", options, n_steps=40) == []


def test_making_a_game_prints_nothing() -> None:
    code = "from headrace.envs import make_atari; env = make_atari(); env.reset(seed=0); env.step(0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("package", ["ale_py", "cv2"])
def test_missing_package_error_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "headrace\[atari\]"'):
        make_atari()


def test_unknown_atari_id_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ValueError, match=r'pip install "headrace\[atari\]"'):
        EnvFactory.of("ALE/Pong-v5", None)


def test_lazily_exported_name_is_found_as_env() -> None:
    assert EnvFactory.of("headrace.envs:make_atari", {"game_id": BREAKOUT}).make is make_atari
