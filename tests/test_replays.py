"""Replay buffers: sampled transitions equal the appended ones, and nothing else is sampled."""

import dataclasses
import gc
import pickle
import weakref
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from headrace.buffers.samples import Samples
from headrace.buffers.shared import measure
from headrace.errors import NotEnoughMemory
from headrace.replays import (
    ReplayNotReady,
    ReplaySpec,
    ReplayWriter,
    Transitions,
    UniformReplay,
    build_ring,
    make as make_module,
    make_replay,
    replay_spec,
    shared_ring,
)
from headrace.types import BatchSpec, StepInputs
from tests.replay_worlds import ACTION, Sampler, World, check, startable

MODES = ["mid_batch", "wait", "next_step"]
BATCH = BatchSpec(5, 3)


def made(world: World, batch: BatchSpec = BATCH, n_rows: int = 19, **settings: Any) -> tuple[Any, Any, Sampler]:
    """A writer, a replay of so many rows with room for every final observation, and a sampler."""
    settings = {"n_finals": n_rows * batch.B, "frames": world.n_frames, **settings}
    return *make_replay(batch, world.example, ACTION, n_rows * batch.B, **settings), Sampler(world, batch)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n_frames", "padding"), [(0, ""), (4, "reset"), (3, "zero"), (1, "reset")])
@pytest.mark.parametrize(
    ("T", "n_step"), [(1, 3), (5, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 1), (5, 3)))]
)
def test_sampled_transitions_equal_the_appended_ones(
    mode: str, n_step: int, n_frames: int, padding: str, T: int
) -> None:
    world = World(3, mode, first_step=2, n_frames=n_frames, padding=padding)
    writer, replay, sampler = made(world, BatchSpec(T, 3), n_step=n_step, discount=0.9)
    assert len(replay) == replay.n_appended == 0
    with pytest.raises(ReplayNotReady, match="0 steps were appended"):
        replay.sample(1)
    for number in range(40 // T):
        writer.append(sampler.next())
        expected = startable(world, sampler.rows, max(0, (number + 1) * T - 19), n_step)
        assert len(replay) == len(expected)
        assert replay.n_appended == sum(step is not None for row in sampler.rows for step in row)
        if expected:
            assert set(check(world, replay.sample(3), n_step, 0.9)) <= expected
    assert set(check(world, replay.sample(300), n_step, 0.9)) == expected


def test_transitions_are_sampled_uniformly() -> None:
    world = World(1, longest=4)
    writer, replay, sampler = made(world)
    for _ in range(4):
        writer.append(sampler.next())
    counts = np.unique(replay.sample(20_000).indices, return_counts=True)[1]
    assert len(counts) == len(replay)
    expected = 20_000 / len(replay)
    assert ((counts - expected) ** 2 / expected).sum() < 2 * len(replay)  # χ², mean len − 1


def test_few_transitions_in_a_ring_full_of_padding_are_sampled() -> None:
    """One column of 200 has steps that can be sampled."""
    batch = BatchSpec(4, 200)
    world = World(2, longest=50)
    writer, replay, sampler = made(world, batch, 9)
    samples = sampler.next()
    samples.env.valid[:, 1:] = False
    samples.env.terminated[:] = samples.env.truncated[:] = False
    samples = samples.with_final(samples[:, :0].final)
    writer.append(samples)
    assert replay.n_appended == 4
    counts = np.unique(replay.sample(3000).indices, return_counts=True)
    assert counts[0].tolist() == [0, 200, 400]
    assert counts[1].min() > 800


def test_sample_is_a_copy_in_torch_tensors() -> None:
    world = World(1)
    writer, replay, sampler = made(world)
    writer.append(sampler.next())
    transitions = replay.sample(6)
    before = pickle.dumps(transitions)
    for _ in range(6):
        writer.append(sampler.next())
    assert pickle.dumps(transitions) == before
    assert isinstance(transitions, Transitions)
    assert isinstance(transitions.inputs, StepInputs)
    assert transitions.inputs.noise is transitions.next_inputs.noise is None
    shapes = {name: (value.dtype, tuple(value.shape)) for name, value in vars(transitions).items() if name in FIELDS}
    assert shapes == FIELDS
    for inputs in (transitions.inputs, transitions.next_inputs):
        assert inputs.observation.dtype == torch.float32
        assert inputs.observation.shape == (6, 3)
        assert inputs.prev_action.dtype == torch.int64
        assert inputs.prev_reward.dtype == torch.float32
        assert inputs.is_first.dtype == torch.bool


FIELDS = {
    "return_": (torch.float32, (6,)),
    "discount": (torch.float32, (6,)),
    "weights": (torch.float32, (6,)),
    "action": (torch.int64, (6,)),
}


def tree_samples(batch: BatchSpec) -> tuple[Any, Any, Samples]:
    """Examples and a batch of Dict observations and Tuple actions."""
    observation = {"image": np.zeros((2, 2), np.uint8), "x": (np.zeros(3, np.float32), np.zeros((), np.int64))}
    action = (np.zeros((), np.int64), np.zeros(2, np.float32))
    samples = Sampler(World(0, longest=100), batch).next()
    count = np.arange(batch.size).reshape(batch.T, batch.B)
    samples.env.observation = {
        "image": torch.from_numpy(np.broadcast_to(count[..., None, None], (*count.shape, 2, 2)).astype(np.uint8)),
        "x": (torch.from_numpy(count[..., None].repeat(3, 2).astype(np.float32)), torch.from_numpy(count)),
    }
    samples.agent.action = (torch.from_numpy(count + 1), torch.from_numpy(count[..., None].repeat(2, 2)).float())
    return observation, action, samples


def test_observations_and_actions_can_be_trees() -> None:
    observation, action, samples = tree_samples(BATCH)
    writer, replay = make_replay(BATCH, observation, action, 60)
    writer.append(samples)
    transitions = replay.sample(20)
    index = torch.from_numpy(transitions.indices)
    for inputs, where in ((transitions.inputs, index), (transitions.next_inputs, index + 3)):
        assert torch.equal(inputs.observation["x"][1], where)
        assert torch.equal(inputs.observation["x"][0], where[:, None].expand(-1, 3).float())
        assert torch.equal(inputs.observation["image"], where[:, None, None].expand(-1, 2, 2).to(torch.uint8))
    assert torch.equal(transitions.action[0], index + 1)
    assert torch.equal(transitions.next_inputs.prev_action[1], index[:, None].expand(-1, 2).float())
    first = transitions.inputs.is_first
    assert torch.equal(transitions.inputs.prev_action[0], torch.where(first, 0, index - 2))
    with pytest.raises(ValueError, match=r"samples.env.observation is float32 \[5, 3, 3\] and this replay was made"):
        writer.append(Sampler(World(0), BATCH).next())


def test_rows_are_dropped_when_there_is_no_room_for_final_observations() -> None:
    """Otherwise the last steps of episodes would never be sampled."""
    world = World(4, longest=3)
    writer, replay, sampler = made(world, n_rows=40, n_finals=10)
    for _ in range(16):
        writer.append(sampler.next())
        cut = [
            t
            for t, row in enumerate(sampler.rows)
            for c, e, k in filter(None, row)
            if k + 1 == world.length(c, e) and world.end(c, e) == (False, True)
        ]
        oldest = max(len(sampler.rows) - 40, cut[-11] + 1 if len(cut) > 10 else 0)
        expected = startable(world, sampler.rows, oldest, 1)
        assert len(replay) == len(expected)
    assert oldest > len(sampler.rows) - 40
    assert set(check(world, replay.sample(800), 1, 0.99)) == expected


def test_appended_steps_are_counted_after_all_rows_were_dropped() -> None:
    """A writer dies after it has announced that it will overwrite the last row."""
    writer, replay, sampler = made(World(4, longest=1), BatchSpec(1, 3), n_finals=3)
    for _ in range(2):
        writer.append(sampler.next())
    samples = sampler.next()
    samples.env.truncated[:], samples.env.terminated[:] = True, False
    writer.append(samples)
    dying = ReplayWriter(writer.spec, dataclasses.replace(writer.ring, totals=Fatal(writer.ring.totals)))
    samples = sampler.next()
    samples.env.truncated[:], samples.env.terminated[:] = True, False
    with pytest.raises(Dies):
        dying.append(samples)
    assert writer.ring.oldest[0] == writer.ring.cursor[0] == 3
    assert (len(replay), replay.n_appended) == (0, 9)
    with pytest.raises(ReplayNotReady, match="9 steps were appended"):
        replay.sample(1)


def test_count_overwritten_while_read_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    writer, replay, sampler = made(World(8))
    writer.append(sampler.next())

    def overtake(lock: Any) -> None:
        monkeypatch.undo()
        for _ in range(5):
            writer.append(sampler.next())

    monkeypatch.setattr("headrace.replays.window.fence", overtake)
    assert replay.n_appended == 90


@pytest.mark.parametrize("looks", [1, 2, 3, 4, 5])
def test_reader_retries_after_the_writer_overwrote_the_whole_ring(looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(8)
    writer, replay, sampler = made(world)
    writer.append(sampler.next())
    left = [looks]

    def overtake(lock: Any) -> None:
        left[0] -= 1
        if not left[0]:
            for _ in range(5):
                writer.append(sampler.next())

    monkeypatch.setattr("headrace.replays.window.fence", overtake)
    sampled = set(check(world, replay.sample(60), 1, 0.99))
    assert sampled <= startable(world, sampler.rows, writer.ring.oldest[0], 1)


def test_reader_retries_if_its_rows_were_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer overwrites the rows before their flags are read, and the new batch is all padding."""
    world = World(8)
    writer, replay, sampler = made(world)
    writer.append(sampler.next())
    real = writer.ring.flags

    class Overtaken:
        def __getitem__(self, rows: Any) -> Any:
            monkeypatch.undo()
            for _ in range(5):
                writer.append(sampler.next())
            return np.zeros_like(real[rows])

    monkeypatch.setattr(replay._window, "ring", dataclasses.replace(writer.ring, flags=Overtaken()))
    sampled = set(check(world, replay.sample(60), 1, 0.99))
    assert sampled <= startable(world, sampler.rows, writer.ring.oldest[0], 1)


def test_batch_with_more_truncated_episodes_than_n_finals_is_refused() -> None:
    writer, replay, sampler = made(World(4, longest=1), n_finals=2)
    with pytest.raises(ValueError, match=r"episodes of one batch were truncated and there is room for n_finals=2"):
        writer.append(sampler.next())
    assert (len(replay), replay.n_appended) == (0, 0)


def test_batch_without_final_observations_is_refused() -> None:
    writer, replay, sampler = made(World(4, longest=2))
    samples = sampler.next()
    with pytest.raises(ValueError, match=r"samples.final has the last observation of 0; append batches as the sampler"):
        writer.append(samples.with_final(samples[:, :0].final))
    assert writer.ring.cursor[0] == writer.ring.oldest[0] == 0
    writer.append(samples)
    assert len(replay) > 0


def test_new_sampler_does_not_continue_episodes_of_the_old_one() -> None:
    """Although the row before its first row did not end an episode."""
    world = World(5, longest=40)
    writer, replay, sampler = made(world, n_step=2)
    writer.append(sampler.next())
    other = dataclasses.replace(world, seed=6)
    again = Sampler(other, BATCH)
    for c in range(3):
        again._episode[c] = 100  # told apart
    writer.append(again.next())
    rows = sampler.rows + again.rows
    expected = startable(world, sampler.rows, 0, 2) | {step for step in startable(other, again.rows, 0, 2)}
    assert len(replay) == len(expected) < len(startable(world, rows, 0, 2)) + 6
    starts = {world.place(observation.numpy()) for observation in replay.sample(300).inputs.observation}
    assert starts == expected


def test_no_transition_crosses_a_cut() -> None:
    world = World(5, longest=40)
    writer, replay, sampler = made(world, n_step=1)
    writer.append(sampler.next())
    sampler.next()  # lost
    del sampler.rows[5:10]
    writer.cut()
    writer.append(sampler.next())
    expected = startable(world, sampler.rows, 0, 1)
    assert len(replay) == len(expected)
    assert set(check(world, replay.sample(300), 1, 0.99)) == expected


@pytest.mark.parametrize("prioritized", [False, True])
def test_transitions_overwritten_while_read_are_sampled_again(
    prioritized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other transitions are kept, even if they are overwritten while the replacements are copied."""
    world = World(8)
    writer, replay, sampler = made(world, n_step=2, prioritized=prioritized)
    for _ in range(4):
        writer.append(sampler.next())
    first = replay.sample(20)
    replay.update_priorities(first.indices, torch.linspace(0.1, 3.0, 20))
    real = replay._gather
    calls: list[np.ndarray] = []
    oldest: list[int] = []
    whole: set[Any] = set()  # at any moment

    def overtaken(index: np.ndarray, weights: np.ndarray) -> Any:
        found = real(index, weights)
        calls.append(index.copy())
        whole.update(startable(world, sampler.rows, writer.ring.oldest[0], 2))
        if len(calls) < 3:
            writer.append(sampler.next())
        oldest.append(writer.ring.oldest[0])
        return found

    monkeypatch.setattr(replay, "_gather", overtaken)
    transitions = replay.sample(60)
    assert set(check(world, transitions, 2, 0.99)) <= whole
    assert len(calls) == 3
    assert 60 == len(calls[0]) > len(calls[1]) > len(calls[2])
    kept = calls[0] >= (oldest[0] + 1) * 3  # the row before an index is read, too
    assert kept.any()
    assert np.array_equal(transitions.indices[kept], calls[0][kept])
    held = replay._window.holds(transitions.indices)
    expected = replay._priorities(transitions.indices[held]) ** -0.4
    ratio = transitions.weights.numpy()[held] / expected
    assert np.allclose(ratio, ratio[0])
    assert transitions.weights.max() == 1


def test_reader_slower_than_the_writer_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    writer, replay, sampler = made(World(8))
    writer.append(sampler.next())
    real = replay._gather
    monkeypatch.setattr(replay, "_gather", lambda index, weights: (real(index, weights)[0], index * 0 - 3))
    monkeypatch.setattr("headrace.replays.replay._TRIES", 5)
    with pytest.raises(RuntimeError, match="overwritten faster than they are read"):
        replay.sample(2)


def test_rows_are_announced_before_they_are_written_and_published_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fence after each step, because processors may reorder memory accesses."""
    writer, _, sampler = made(World(8), BatchSpec(5, 3))
    ring = writer.ring
    for _ in range(4):
        writer.append(sampler.next())
    before, seen = ring.observation.copy(), []
    monkeypatch.setattr(
        "headrace.replays.writer.fence",
        lambda lock: seen.append((ring.oldest[0], ring.cursor[0], np.array_equal(ring.observation, before))),
    )
    writer.append(sampler.next())
    assert seen == [(6, 20, True), (6, 20, False)]
    assert ring.cursor[0] == 25


def test_oldest_is_read_after_a_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before rows are read, and after they have been copied."""
    writer, replay, sampler = made(World(8))
    writer.append(sampler.next())
    calls: list[str] = []
    real = replay._gather
    monkeypatch.setattr("headrace.replays.window.fence", lambda lock: calls.append("fence"))
    monkeypatch.setattr(replay, "_gather", lambda *args: calls.append("gather") or real(*args))  # type: ignore[func-returns-value]
    replay.sample(1)
    assert calls == ["fence", "fence", "gather", "fence"]


class Dies(Exception):
    pass


class Fatal:
    """An array that raises when it is written to."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __getitem__(self, index: Any) -> Any:
        return self._array[index]

    def __setitem__(self, index: Any, values: Any) -> None:
        raise Dies


@pytest.mark.parametrize("field", ["reward", "flags", "totals"])
def test_writer_that_dies_during_an_append_leaves_earlier_rows(field: str) -> None:
    world = World(9)
    writer, replay, sampler = made(world)
    for _ in range(5):
        writer.append(sampler.next())
    assert len(replay) == len(startable(world, sampler.rows, 6, 1))
    n_appended = replay.n_appended
    dying = ReplayWriter(writer.spec, dataclasses.replace(writer.ring, **{field: Fatal(getattr(writer.ring, field))}))
    with pytest.raises(Dies):
        dying.append(Sampler(dataclasses.replace(world, seed=1), BATCH).next())
    expected = startable(world, sampler.rows, 11, 1)  # it had announced 5 rows
    assert len(replay) == len(expected)
    assert replay.n_appended == n_appended
    assert set(check(world, replay.sample(300), 1, 0.99)) == expected
    # The next one goes on where it had been.
    successor = ReplayWriter(writer.spec, writer.ring)
    for _ in range(7):
        successor.append(sampler.next())
        oldest = writer.ring.oldest[0]
        assert oldest == len(sampler.rows) - 19
        expected = startable(world, sampler.rows, oldest, 1)
        assert len(replay) == len(expected)
        assert set(check(world, replay.sample(20), 1, 0.99)) <= expected


def test_next_writer_never_moves_oldest_back() -> None:
    """Its batch may be refused or late; the announced rows are torn nevertheless."""
    writer, _, sampler = made(World(9))
    for _ in range(4):
        writer.append(sampler.next())
    dying = ReplayWriter(writer.spec, dataclasses.replace(writer.ring, totals=Fatal(writer.ring.totals)))
    with pytest.raises(Dies):
        dying.append(sampler.next())
    oldest = writer.ring.oldest[0]
    shorter = dataclasses.replace(writer.spec, batch=BatchSpec(1, 3))
    ReplayWriter(shorter, writer.ring).append(Sampler(World(9), BatchSpec(1, 3)).next())
    assert writer.ring.oldest[0] == oldest > 1


def test_random_numbers_come_from_the_seed_and_continue_from_a_state() -> None:
    world = World(1)
    writer, replay, sampler = made(world, seed=4)
    writer.append(sampler.next())
    again, other = (UniformReplay(writer.spec, writer.ring, seed=seed) for seed in (4, 5))
    draws = [each.sample(20).indices.tolist() for each in (replay, again, other)]
    assert draws[0] == draws[1] != draws[2]
    other.load_state_dict(replay.state_dict())
    assert other.sample(20).indices.tolist() == replay.sample(20).indices.tolist()
    replay.update_priorities(np.zeros(1), torch.ones(1))  # does nothing


def test_replay_attached_by_descriptor_is_the_same() -> None:
    world = World(1)
    spec = replay_spec(BATCH, world.example, ACTION, 60)
    arena, ring = shared_ring(spec)
    assert arena.fd is not None
    arena2, ring2 = shared_ring(spec, arena.fd)
    sampler, replay = Sampler(world, BATCH), UniformReplay(spec, ring2)
    ReplayWriter(spec, ring).append(sampler.next())
    check(world, replay.sample(20), 1, 0.99)
    arena.close_fd()
    arena2.fd = None


def test_writer_keeps_no_reference_to_a_batch() -> None:
    writer, _, sampler = made(World(1))
    samples = sampler.next().copy()
    gone = weakref.ref(samples.env.observation)
    writer.append(samples)
    del samples
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"n_rows": 5},
            "a replay of 5 time steps is too small for batches of 5; make it at least 6 time steps, 18 steps in all",
        ),
        ({"n_finals": 0}, "n_finals must be at least 1"),
        ({"frames": -1}, "frames must be .*, got -1"),
        (
            {"frames": 4},
            r"frames=4 needs observations of one uint8 array \[4, ...\], got float32 \[3\]",
        ),
        ({"frames": 3}, r", got float32 \[3\]"),
    ],
)
def test_invalid_specs_are_refused(settings: dict[str, Any], message: str) -> None:
    given = {"batch": BATCH, "n_rows": 60, "observation": World().example, "action": ACTION, "n_finals": 3, **settings}
    with pytest.raises(ValueError, match=message):
        ReplaySpec(**given)


def test_invalid_replays_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"too small for batches of 5 time steps and transitions of up to 9 steps .* at least 15 time",
    ):
        made(World(), n_rows=14, n_step=9)
    with pytest.raises(ValueError, match="n_step must be at least 1, got 0"):
        made(World(), n_step=0)


def test_replay_too_large_for_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_module, "available_memory", lambda: 2**30)
    stack = np.zeros((4, 84, 84), np.uint8)
    with pytest.raises(NotEnoughMemory, match=r"1,000,000 steps needs 27.95 GiB, but only 1.00 are free; make it"):
        make_replay(BatchSpec(10, 10), stack, ACTION, 1_000_000)
    with pytest.raises(NotEnoughMemory, match="a replay of 1,000,000 steps"):
        shared_ring(replay_spec(BatchSpec(10, 10), stack, ACTION, 1_000_000))


def test_a_million_steps_of_pong_take_less_than_seven_and_a_half_gigabytes() -> None:
    stack = np.zeros((4, 84, 84), np.uint8)
    for batch in (BatchSpec(64, 64), BatchSpec(1, 1), BatchSpec(4, 32)):
        spec = replay_spec(batch, stack, ACTION, 1_000_000, frames=4)
        assert spec.size >= 1_000_000
        nbytes = measure(partial(build_ring, spec))
        per_step = 84 * 84 + 8 + 4 + 1 + 4  # frame, action, reward, flags, place of the final observation
        expected = spec.size * per_step + spec.n_rows * 16 + spec.n_finals * (84 * 84 + 8)
        assert expected <= nbytes < expected + 2000
        assert nbytes < 7.5e9
