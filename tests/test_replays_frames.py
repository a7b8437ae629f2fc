"""Stacked frames are rebuilt exactly as the wrapper made them, or refused."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FrameStackObservation, TimeLimit

from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.samples import Samples
from headrace.replays import make_replay
from headrace.samplers import SerialSampler
from headrace.types import BatchSpec
from tests.replay_worlds import ACTION, World, check, startable
from tests.test_replays import made


class Noise(gym.Env[np.ndarray, np.int64]):
    """Frames of noise; an episode is truncated after 9 steps, or terminates at one in 12."""

    observation_space = gym.spaces.Box(0, 255, (6, 6), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict[str, object]]:
        super().reset(seed=seed)
        return self._frame(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
        return self._frame(), 1.0, bool(self.np_random.random() < 1 / 12), False, {}

    def _frame(self) -> np.ndarray:
        return self.np_random.integers(0, 256, (6, 6), np.uint8)


def stacked(padding: str) -> gym.Env[np.ndarray, np.int64]:
    return FrameStackObservation(TimeLimit(Noise(), 9), 4, padding_type=padding)


@pytest.mark.parametrize("padding", ["reset", "zero"])
@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
def test_gymnasium_frame_stacks_are_rebuilt_bit_for_bit(padding: str, reset_mode: str) -> None:
    """The replay of frames gives what the replay of whole stacks gives."""
    sampler = SerialSampler(stacked, {"padding": padding}, batch_T=7, batch_B=3, reset_mode=reset_mode)
    example = np.zeros((4, 6, 6), np.uint8)
    with sampler.initialize(CategoricalPgAgent(model_kwargs={"hidden_sizes": (4,)}), seed=0):
        settings: dict[str, Any] = {"size": 120, "n_step": 2, "n_finals": 120}
        frames_writer, frames = make_replay(BatchSpec(7, 3), example, ACTION, frames=4, **settings)
        stacks_writer, stacks = make_replay(BatchSpec(7, 3), example, ACTION, **settings)
        for itr in range(30):
            samples, _ = sampler.obtain_samples(itr)
            frames_writer.append(samples)
            stacks_writer.append(samples)
    assert len(frames) > 30
    drawn = frames.sample(500)
    ready = stacks._window.ready if len(stacks) else None
    assert ready is not None
    assert (ready | ~frames._window.ready).all()
    whole, _ = stacks._gather(drawn.indices, np.ones(500, np.float32))
    assert torch.equal(drawn.inputs.observation, whole.inputs.observation)
    assert torch.equal(drawn.next_inputs.observation, whole.next_inputs.observation)
    assert (whole.discount == 0).any()
    assert torch.equal(drawn.discount, whole.discount)
    # What the replay of stacks has beyond: rows whose older frames have been overwritten.
    missing = (ready & ~frames._window.ready).nonzero()[0]
    rows = frames._window.index_of(missing) // 3
    assert (rows < frames_writer.ring.oldest[0] + 3).all()


def test_padding_of_another_kind_is_refused() -> None:
    writer, replay, sampler = made(World(2, n_frames=4, padding="custom", longest=3))
    with pytest.raises(ValueError, match=r"the first observation of an episode stacks other frames.*use frames=0"):
        writer.append(sampler.next())
    assert len(replay) == replay.n_appended == 0


def test_first_batch_may_start_in_the_middle_of_an_episode() -> None:
    """After decorrelation, the first stacks contain frames that were never appended."""
    world = World(2, n_frames=4, first_step=5, longest=30)
    writer, replay, sampler = made(world)
    writer.append(sampler.next())
    expected = startable(world, sampler.rows, 0, 1)
    assert {k for _, e, k in expected if e == 0} == {8}  # 5 + 3: the row of which all frames are there
    assert len(replay) == len(expected)
    for _ in range(9):
        writer.append(sampler.next())
    check(world, replay.sample(200), 1, 0.99)


def changed(samples: Samples, t: int, c: int, frame: int) -> Samples:
    samples.env.observation[t, c, frame, 0, 0] += 1
    return samples


@pytest.mark.parametrize("frame", [0, 1, 2])
def test_stack_that_does_not_slide_is_refused(frame: int) -> None:
    world = World(2, n_frames=4, longest=60)
    writer, replay, sampler = made(world)
    writer.append(sampler.next())
    with pytest.raises(ValueError, match="row 3 of the batch does not stack the frames of the row before it"):
        writer.append(changed(sampler.next(), 3, 1, frame))
    assert replay.n_appended == 15


@pytest.mark.parametrize("frame", [0, 1, 2])
@pytest.mark.parametrize("padding", ["reset", "zero"])
@pytest.mark.parametrize("before", [1, 2, 3, 6])
def test_stack_that_does_not_continue_the_last_batch_is_refused(frame: int, padding: str, before: int) -> None:
    """Also while the stack still has padding, and after the whole ring was overwritten."""
    world = World(2, n_frames=4, longest=90, padding=padding)
    writer, replay, sampler = made(world, BatchSpec(1, 3), 7)
    for _ in range(before):
        writer.append(sampler.next())
    with pytest.raises(ValueError, match=r"does not stack the frames of the last row before it: a batch is missing"):
        writer.append(changed(sampler.next(), 0, 1, frame))
    assert replay.n_appended == before * 3


def test_missing_batch_is_refused_without_a_cut() -> None:
    world = World(2, n_frames=4, longest=90)
    writer, replay, sampler = made(world)
    writer.append(sampler.next())
    sampler.next()
    del sampler.rows[5:10]
    samples = sampler.next()
    with pytest.raises(ValueError, match="a batch is missing"):
        writer.append(samples)
    writer.cut()
    writer.append(samples)
    transitions = replay.sample(100)
    assert {world.place(each.numpy()) for each in transitions.inputs.observation} == {
        (c, 0, k) for c in range(3) for k in (0, 1, 2, 3, 13)
    }
    check(world, transitions, 1, 0.99)
    for _ in range(3):  # the unknown frames of the cut are no reason to refuse
        writer.append(sampler.next())
    check(world, replay.sample(100), 1, 0.99)


def test_final_observation_that_does_not_slide_is_refused() -> None:
    writer, _, sampler = made(World(4, n_frames=3, longest=3))
    samples = sampler.next()
    samples.final.observation[:, 0] += 1
    with pytest.raises(ValueError, match="a final observation does not stack the frames of the row before it"):
        writer.append(samples)


def test_frames_of_any_size_are_compared() -> None:
    """The comparison takes whole words where it can."""
    batch = BatchSpec(3, 2)
    for shape in ((3, 5), (2, 4, 3), (16,)):
        frames = np.random.default_rng(0).integers(0, 256, (4, 2, *shape), np.uint8)
        writer, replay = make_replay(batch, np.zeros((2, *shape), np.uint8), ACTION, 30, frames=2)
        samples = made(World(0), batch, 9)[2].next()
        env = samples.env
        env.is_first[:], env.terminated[:], env.truncated[:] = torch.tensor([[True], [False], [False]]), False, False
        stack = np.stack([np.stack([frames[t], frames[t + 1]], axis=1) for t in range(3)])
        stack[0, :, 0] = stack[0, :, 1]
        stack[1, :, 0] = stack[0, :, 1]
        samples.env.observation = torch.from_numpy(stack)
        writer.append(samples)
        transitions = replay.sample(40)
        for index, found in zip(transitions.indices, transitions.inputs.observation, strict=True):
            assert np.array_equal(found, stack[index // 2, index % 2])
        stack[2, 1, 0, ..., -1] ^= 1
        again, _ = make_replay(batch, np.zeros((2, *shape), np.uint8), ACTION, 30, frames=2)
        with pytest.raises(ValueError, match="row 2"):
            again.append(samples)
