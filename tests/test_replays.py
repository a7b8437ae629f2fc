"""Replay buffers: each number of a transition is the one that was appended, and nothing else is ever sampled."""

import pytest

from headrace.replays import ReplayNotReady, make_replay
from headrace.types import BatchSpec
from tests.replay_worlds import ACTION, Sampler, World, check, startable

MODES = ["mid_batch", "wait", "next_step"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize(("n_frames", "padding"), [(0, ""), (4, "reset"), (3, "zero"), (1, "reset")])
@pytest.mark.parametrize("T", [1, 5])
def test_what_is_sampled_is_what_was_appended(mode: str, n_step: int, n_frames: int, padding: str, T: int) -> None:
    world = World(3, mode, first_step=2, n_frames=n_frames, padding=padding)
    batch = BatchSpec(T, 3)
    sampler = Sampler(world, batch)
    writer, replay = make_replay(
        batch, world.example, ACTION, 3 * 23, n_step=n_step, discount=0.9, frames=n_frames, n_finals=69
    )
    assert len(replay) == replay.n_appended == 0
    with pytest.raises(ReplayNotReady, match="0 steps were appended"):
        replay.sample(1)
    for number in range(60 // T):
        writer.append(sampler.next())
        oldest = max(0, (number + 1) * T - 23)
        expected = startable(world, sampler.rows, oldest, n_step)
        assert len(replay) == len(expected)
        assert replay.n_appended == sum(step is not None for row in sampler.rows for step in row)
        if expected:
            found = set(check(world, replay.sample(20), n_step, 0.9))
            assert found <= expected
    found = set(check(world, replay.sample(700), n_step, 0.9))
    assert found == expected
