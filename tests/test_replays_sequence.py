"""Sequence replay: sampled sequences equal those of a list of the appended rows, and nothing is missing in them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings, strategies as st

from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_paths
from headrace.replays import (
    PrioritizedSequenceReplay,
    ReplayFile,
    ReplayNotReady,
    ReplaySpec,
    ReplayWriter,
    Sequences,
    SequenceShape,
    UniformSequenceReplay,
    build_ring,
    make_sequence_replay,
    mixed_priorities,
    replay_spec,
)
from headrace.types import BatchSpec
from tests.replay_worlds import ACTION, Sampler, World

STATE = {"h": np.zeros(2, np.float32), "n": (np.zeros((), np.int64),)}
DISCOUNT = 0.9
Place = tuple[int, int, int] | None


class Appended:
    """Appends a world's batches to a ring, some of which get lost, and keeps the rows in a list.

    rows: for each row of the ring and each column the step (c, e, k), or None for padding.
    cuts: rows that do not continue the row before.
    """

    def __init__(self, world: World, batch: BatchSpec) -> None:
        self.world, self.batch = world, batch
        self.rows: list[list[Place]] = []
        self.cuts: set[int] = set()
        self._sampler = Sampler(world, batch)

    def next(self) -> Samples:
        """Returns a batch whose recurrent states are (row, column)."""
        samples = self._sampler.next()
        assert self.batch.state_interval is not None
        row = len(self.rows) + self.batch.state_interval * torch.arange(self.batch.n_states)
        where = torch.stack(torch.meshgrid(row, torch.arange(self.batch.B), indexing="ij"), dim=-1)
        samples.agent.state = {"h": where.float(), "n": (1000 * where[..., 0] + where[..., 1],)}
        self.rows += self._sampler.rows[-self.batch.T :]
        return samples

    def lose(self, writer: ReplayWriter) -> None:
        """Loses a batch."""
        self._sampler.next()
        self.cuts.add(len(self.rows))
        writer.cut()

    def ends(self, place: Place) -> tuple[bool, bool]:
        """Returns whether the episode is terminated and whether it is truncated in this step."""
        if place is None or place[2] + 1 < self.world.length(*place[:2]):
            return False, False
        return self.world.end(*place[:2])

    def is_first(self, row: int, place: Place) -> bool:
        return place is not None and (place[2] == 0 or row == 0)

    def joined(self, row: int, c: int) -> bool:
        """Whether nothing is missing between a row and the one before."""
        before, now = self.rows[row - 1][c], self.rows[row][c]
        goes_on = before is not None and not any(self.ends(before))
        if row not in self.cuts:
            return True
        return not goes_on and (now is None or self.is_first(row, now))

    def startable(self, shape: SequenceShape, oldest: int) -> set[tuple[int, int]]:
        """Returns the (row, column) at which sequences start."""
        assert self.batch.state_interval is not None
        found = set()
        for row in range(0, len(self.rows) - shape.length + 1, self.batch.state_interval):
            for c in range(self.batch.B):
                place = self.rows[row][c]
                begins = place is None or self.is_first(row, place) or (row > oldest and self.joined(row, c))
                whole = all(self.joined(later, c) for later in range(row + 1, row + shape.length))
                learn = range(row + shape.warmup_T, row + shape.warmup_T + shape.batch_T)
                if row >= oldest and begins and whole and any(self.rows[one][c] is not None for one in learn):
                    found.add((row, c))
        return found

    def inputs(self, shape: SequenceShape, row: int, c: int) -> list[Any]:
        """Returns the inputs of a sequence, one after another, with those for final observations; None for padding."""
        found: list[Any] = []
        for step in range(shape.length):
            place = self.rows[row + step][c]
            found.append(None if place is None else self.seen(place, self.is_first(row + step, place)))
            if self.ends(place) == (False, True) and shape.warmup_T <= step < shape.length - 1:
                assert place is not None
                found.append(self.seen((c, place[1], place[2] + 1), False))
        return found

    def seen(self, place: tuple[int, int, int], is_first: bool) -> tuple[Any, ...]:
        c, e, k = place
        previous = (0, 0.0) if is_first else (self.world.action(c, e, k - 1), self.world.reward(c, e, k - 1))
        return (self.world.observation(c, e, k).tolist(), *previous, is_first)


def check(appended: Appended, sequences: Sequences, shape: SequenceShape) -> set[tuple[int, int]]:
    """Compares every number of sequences with the list; returns where they start."""
    world, starts, inputs = appended.world, set(), sequences.inputs
    assert inputs.noise is None
    for i in range(len(sequences.weights)):
        row, c = (int(value) for value in sequences.state["h"][i])
        assert sequences.state["n"][0][i] == 1000 * row + c
        starts.add((row, c))
        columns = (inputs.observation, inputs.prev_action, inputs.prev_reward, inputs.is_first)
        came = list(zip(*(leaf[:, i].tolist() for leaf in columns), strict=True))
        for expected, found in zip(appended.inputs(shape, row, c), came, strict=False):
            assert expected in (None, found)
        for t in range(shape.batch_T):
            place = appended.rows[row + shape.warmup_T + t][c]
            assert sequences.valid[t, i] == (place is not None)
            if place is None:
                assert sequences.return_[t, i] == sequences.discount[t, i] == 0
                continue
            _, e, k = place
            m = min(shape.n_step, world.length(c, e) - k)
            terminated, _ = appended.ends((c, e, k + m - 1))
            total = sum(DISCOUNT**j * world.reward(c, e, k + j) for j in range(m))
            assert sequences.return_[t, i].item() == pytest.approx(total, rel=1e-6)
            assert sequences.discount[t, i].item() == pytest.approx(0.0 if terminated else DISCOUNT**m, rel=1e-6)
            assert sequences.action[t, i] == world.action(c, e, k)
            at, following = int(sequences.row[t, i]), int(sequences.next_row[t, i])
            assert came[at][0] == world.observation(c, e, k).tolist()
            if not terminated:
                assert came[following] == appended.seen((c, e, k + m), False)
    return starts


def made(world: World, batch: BatchSpec, shape: SequenceShape, n_rows: int, **more: Any) -> tuple[Any, Any, Appended]:
    size = n_rows * batch.B
    given = {"n_finals": size, "frames": world.n_frames, "discount": DISCOUNT, "seed": 1, **more}
    writer, replay = make_sequence_replay(batch, world.example, ACTION, STATE, size, shape, **given)
    return writer, replay, Appended(world, batch)


@settings(max_examples=25, deadline=None, phases=[Phase.reuse, Phase.generate])
@given(
    seed=st.integers(0, 99),
    mode=st.sampled_from(["mid_batch", "wait", "next_step"]),
    longest=st.sampled_from([2, 7, 30]),
    every=st.integers(1, 4),
    n_states=st.integers(1, 3),
    shape=st.builds(SequenceShape, st.integers(0, 5), st.integers(1, 6), st.integers(1, 4)),
    n_frames=st.sampled_from([0, 0, 3]),
    lost=st.sets(st.integers(1, 9), max_size=2),
    prioritized=st.booleans(),
)
def test_sequences_equal_those_of_a_list_of_episodes(
    seed: int,
    mode: str,
    longest: int,
    every: int,
    n_states: int,
    shape: SequenceShape,
    n_frames: int,
    lost: set[int],
    prioritized: bool,
) -> None:
    world = World(seed, mode, longest, first_step=2, n_frames=n_frames)
    batch = BatchSpec(every * n_states, 2, every)
    least = -(-(batch.T + shape.length + 3) // every) * every
    writer, replay, appended = made(world, batch, shape, least + every, prioritized=prioritized)
    for number in range(10):
        if number in lost:
            appended.lose(writer)
        writer.append(appended.next())
        expected = appended.startable(shape, max(0, len(appended.rows) - writer.spec.n_rows))
        assert len(replay) == len(expected) or n_frames  # stacks of the first row may not be known
        if len(replay):
            assert check(appended, replay.sample(4), shape) <= expected
        elif expected and not n_frames:
            raise AssertionError
    if len(replay):
        found = check(appended, replay.sample(40), shape)
        assert found == expected or n_frames or len(expected) > 3


SHAPE = SequenceShape(3, 4, 2)
BATCH = BatchSpec(6, 3, 3)


def filled(n: int = 12, n_rows: int = 60, **more: Any) -> tuple[Any, Any, Appended]:
    writer, replay, appended = made(World(3, longest=5), BATCH, SHAPE, n_rows, **more)
    for _ in range(n):
        writer.append(appended.next())
    return writer, replay, appended


def test_final_observations_are_rows_of_their_own() -> None:
    _, replay, appended = filled()
    sequences = replay.sample(50)
    assert len(sequences.inputs.is_first) > SHAPE.length
    check(appended, sequences, SHAPE)
    moved = (sequences.row != sequences.row[:1] + torch.arange(4)[:, None]).any()
    assert moved, "a time step comes after a final observation"


def test_wait_mode_has_padding_that_is_not_learned_from() -> None:
    writer, replay, appended = made(World(3, "wait", longest=4), BATCH, SHAPE, 60)
    for _ in range(9):
        writer.append(appended.next())
    valid = replay.sample(100).valid
    assert valid.any(dim=0).all(), "a sequence with nothing to learn from is not sampled"
    assert not valid.all()


def test_nothing_is_sampled_before_a_whole_sequence_is_there() -> None:
    writer, replay, appended = made(World(3, longest=99), BATCH, SHAPE, 60)
    writer.append(appended.next())
    with pytest.raises(
        ReplayNotReady, match=r"18 steps were appended, and this replay samples sequences of 3 \+ 4 \+ 2"
    ):
        replay.sample(1)
    writer.append(appended.next())
    assert check(appended, replay.sample(100), SHAPE) == {(row, c) for row in (0, 3) for c in range(3)}


@pytest.mark.parametrize(
    ("batch", "shape", "n_rows", "message"),
    [
        (BATCH, (3, 4, 2), 13, None),
        (
            BATCH,
            (30, 40, 2),
            60,
            "60 time steps is too small for batches of 6 time steps and sequences of 30 .* at least 78",
        ),
        (BatchSpec(6, 3), (3, 4, 2), 60, "state_interval=None; give the sampler a state_interval"),
        (BATCH, (-1, 4, 2), 60, "warmup_T must be at least 0, got -1"),
        (BATCH, (3, 0, 2), 60, "batch_T must be at least 1, got 0"),
        (BATCH, (3, 4, 0), 60, "n_step must be at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(batch: BatchSpec, shape: Any, n_rows: int, message: str | None) -> None:
    if message is None:
        writer, _, _ = made(World(1), batch, SequenceShape(*shape), n_rows)
        assert writer.spec.n_rows == 15, "rounded up to a multiple of the interval"
        return
    with pytest.raises(ValueError, match=message):
        made(World(1), batch, SequenceShape(*shape), n_rows)


def test_batches_without_states_are_refused() -> None:
    writer, _, appended = filled(0)
    samples = appended.next()
    samples.agent.state = None
    with pytest.raises(
        ValueError, match=r"samples.agent.state is None and this replay was made for .*float32 \[2, 3, 2\]"
    ):
        writer.append(samples)


# ---- priorities ----


def test_mixed_priorities_are_of_the_largest_and_the_mean_error() -> None:
    nan = np.nan
    errors = np.array([[1.0, nan, nan, 0.0], [3.0, 2.0, nan, 0.0], [2.0, nan, nan, 0.0]])
    assert mixed_priorities(errors, 0.9) == pytest.approx([0.9 * 3 + 0.1 * 2, 2.0, nan, 0.0], nan_ok=True)
    assert mixed_priorities(errors, 0.0) == pytest.approx([2.0, 2.0, nan, 0.0], nan_ok=True)


def errors_of(samples: Samples) -> np.ndarray:
    """The error of a step is its reward, plus 1; unknown where the action is 1."""
    return torch.where(samples.agent.action == 1, torch.nan, samples.env.reward + 1).numpy()


def expected_priority(replay: Any, appended: Appended, row: int, c: int, eta: float) -> float:
    learn = [appended.rows[row + SHAPE.warmup_T + t][c] for t in range(SHAPE.batch_T)]
    known = [appended.world.reward(*one) + 1 for one in learn if one and appended.world.action(*one) != 1]
    return (eta * max(known) + (1 - eta) * sum(known) / len(known) + replay.eps) ** replay.alpha if known else np.nan


@pytest.mark.parametrize("mode", ["mid_batch", "wait"])
def test_new_sequences_have_the_priority_of_their_errors(mode: str) -> None:
    """Also those whose learned time steps are spread over several batches."""
    world = World(3, mode, longest=5)
    writer, replay, appended = made(world, BATCH, SHAPE, 60, prioritized=True, errors=errors_of, eta=0.7)
    for _ in range(12):
        writer.append(appended.next())
        len(replay)
    sequences = replay.sample(400)
    values = dict(zip(sequences.indices.tolist(), replay._priorities(sequences.indices).tolist(), strict=True))
    starts = [tuple(int(value) for value in state) for state in sequences.state["h"]]
    assert len(values) > 20
    for index, (row, c) in zip(sequences.indices.tolist(), starts, strict=True):
        expected = expected_priority(replay, appended, row, c, 0.7)
        if not np.isnan(expected):
            assert values[index] == pytest.approx(expected, rel=1e-6)


def test_sequences_without_known_errors_have_the_largest_priority() -> None:
    nothing = lambda samples: np.full(samples.env.reward.shape, np.nan)  # noqa: E731
    writer, replay, appended = made(World(3), BATCH, SHAPE, 60, prioritized=True, errors=nothing)
    for _ in range(4):
        writer.append(appended.next())
    indices = np.unique(replay.sample(50).indices)[:2]
    replay.update_priorities(indices, np.array([5.0, 0.1]))
    writer.append(appended.next())
    replay.sample(1)
    values = replay._tree.values[replay._tree.values > 0]
    assert values.max() == pytest.approx((5.0 + replay.eps) ** replay.alpha)
    assert (values == values.max()).sum() > 1


def test_errors_that_do_not_fit_are_refused_and_the_ring_is_unchanged() -> None:
    for wrong in (lambda samples: np.zeros(3), lambda samples: np.full(samples.env.reward.shape, np.inf)):
        writer, _, appended = made(World(3), BATCH, SHAPE, 60, prioritized=True, errors=wrong)
        with pytest.raises(ValueError, match=r"ReplaySpec\.errors returned"):
            writer.append(appended.next())
        assert writer.ring.cursor[0] == writer.ring.oldest[0] == 0


def test_priorities_of_sequences_that_left_the_ring_are_ignored() -> None:
    writer, replay, appended = filled(prioritized=True)
    old = replay.sample(30)
    for _ in range(20):
        writer.append(appended.next())
    len(replay)
    before = replay._tree.values.copy()
    replay.update_priorities(old.indices, torch.full((30,), 1e6))
    assert np.array_equal(replay._tree.values, before)
    assert (before > 0).sum() == len(replay)


# ---- a writer that overtakes the reader, dies, or was saved ----


@pytest.mark.parametrize("prioritized", [False, True])
def test_sequences_overwritten_while_read_are_sampled_again(prioritized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, replay, appended = filled(prioritized=prioritized)
    real = replay._gather
    calls: list[int] = []

    def overtaken(index: np.ndarray, weights: np.ndarray) -> Any:
        if len(calls) < 3:
            for _ in range(2):
                writer.append(appended.next())
        found = real(index, weights)
        calls.append(len(index))
        return found

    monkeypatch.setattr(replay, "_gather", overtaken)
    sequences = replay.sample(60)
    assert 60 == calls[0] > calls[1] > 0
    assert check(appended, sequences, SHAPE) <= appended.startable(SHAPE, 0)


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


def test_writer_that_dies_during_an_append_leaves_whole_sequences() -> None:
    writer, replay, appended = filled()
    n_rows = len(appended.rows)
    dying = ReplayWriter(writer.spec, dataclasses.replace(writer.ring, totals=Fatal(writer.ring.totals)))
    with pytest.raises(Dies):
        dying.append(appended.next())
    del appended.rows[n_rows:]
    expected = appended.startable(SHAPE, n_rows + BATCH.T - 60)  # it had announced as many rows
    assert len(replay) == len(expected)
    assert check(appended, replay.sample(300), SHAPE) == expected
    appended.lose(writer)
    successor = ReplayWriter(writer.spec, writer.ring)
    for _ in range(4):
        successor.append(appended.next())
    expected = appended.startable(SHAPE, len(appended.rows) - 60)
    assert len(replay) == len(expected)
    check(appended, replay.sample(200), SHAPE)


def spec_of(**more: Any) -> ReplaySpec:
    return replay_spec(BATCH, World(3).example, ACTION, 180, n_finals=180, state=STATE, **more)


@pytest.mark.parametrize("errors", [None, errors_of])
def test_saved_sequences_are_sampled_again_bit_for_bit(errors: Any, tmp_path: Path) -> None:
    spec = spec_of(errors=errors)
    ring = build_ring(spec, np.zeros)
    writer, appended = ReplayWriter(spec, ring), Appended(World(3, longest=5), BATCH)
    replay = PrioritizedSequenceReplay(spec, ring, SHAPE, seed=4)
    file = ReplayFile(tmp_path, spec)
    for number in range(13):
        writer.append(appended.next())
        if number > 3:
            drawn = replay.sample(5)
            replay.update_priorities(drawn.indices, drawn.return_.abs().sum(dim=0))
        if number % 3 == 0:
            file.save(ring)
    file.save(ring)
    state = replay.state_dict()

    again = build_ring(spec, np.zeros)
    assert ReplayFile(tmp_path, spec).load(again, until=ring.cursor[0]) == 78
    other = PrioritizedSequenceReplay(spec, again, SHAPE, seed=99)
    other.load_state_dict(state)
    for _ in range(3):
        first, second = replay.sample(20), other.sample(20)
        for (path, leaf), (_, again_) in zip(tree_paths(first), tree_paths(second), strict=True):
            assert np.array_equal(leaf, again_), path
        samples = appended.next()
        writer.append(samples)
        ReplayWriter(spec, again).append(samples)


def test_saved_rows_end_at_a_state_so_that_appends_go_on_there(tmp_path: Path) -> None:
    spec = spec_of()
    ring = build_ring(spec, np.zeros)
    writer, appended = ReplayWriter(spec, ring), Appended(World(3), BATCH)
    file = ReplayFile(tmp_path, spec)
    file._records.most_rows = 3  # as if rows were large
    for _ in range(4):
        writer.append(appended.next())
    assert file.save(ring) == 24
    with pytest.raises(ValueError, match="until must be a multiple of the 3 rows"):
        ReplayFile(tmp_path, spec).load(build_ring(spec, np.zeros), until=8)
    (segment,) = tmp_path.glob("rows-*.bin")
    segment.write_bytes(segment.read_bytes()[:-1])  # a torn tail
    again = build_ring(spec, np.zeros)
    assert ReplayFile(tmp_path, spec).load(again) == 21
    del appended.rows[21:]
    appended.lose(ReplayWriter(spec, again))
    ReplayWriter(spec, again).append(appended.next())
    replay = UniformSequenceReplay(spec, again, SHAPE, discount=DISCOUNT)
    expected = appended.startable(SHAPE, 0)
    assert len(replay) == len(expected)
    assert check(appended, replay.sample(200), SHAPE) == expected
