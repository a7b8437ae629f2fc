"""`ReplayFile`: contents are restored bit for bit, intact after a crash, and each save writes only new rows."""

import hashlib
import io
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.buffers.tree import tree_leaves
from headrace.errors import CheckpointError
from headrace.replays import (
    ReplayFile,
    ReplayRing,
    ReplaySpec,
    ReplayWriter,
    UniformReplay,
    build_ring,
    records,
    replay_spec,
)
from headrace.storage import framed
from headrace.types import BatchSpec
from tests.replay_worlds import ACTION, Sampler, World, check, startable

BATCH = BatchSpec(5, 3)
N_ROWS = 23


def spec_of(world: World, **settings: Any) -> ReplaySpec:
    settings = {"frames": world.n_frames, "n_finals": 30, **settings}
    return replay_spec(BATCH, world.example, ACTION, N_ROWS * 3, **settings)


class Run:
    """A ring with its writer, sampler and file."""

    def __init__(self, folder: Path, world: World, segment_bytes: int = 2000, sampler: Sampler | None = None) -> None:
        self.spec = spec_of(world)
        self.world = world
        self.ring = build_ring(self.spec, np.zeros)
        self.writer = ReplayWriter(self.spec, self.ring)
        self.sampler = sampler or Sampler(world, BATCH)
        self.file = ReplayFile(folder, self.spec, segment_bytes=segment_bytes)

    def append(self, n: int = 1) -> None:
        for _ in range(n):
            self.writer.append(self.sampler.next())

    def replay(self) -> UniformReplay:
        return UniformReplay(self.spec, self.ring, n_step=2)


def window(ring: ReplayRing) -> list[np.ndarray]:
    """Returns everything that can be read from a ring, in the order of rows."""
    oldest, cursor = ring.oldest[0], ring.cursor[0]
    rows = np.arange(oldest, cursor) % N_ROWS
    by_row = [ring.observation, ring.action, ring.reward, ring.flags, ring.totals]
    ends = (ring.flags[rows] & 24) == 16
    slots = ring.final[rows][ends]
    finals = [ring.final_observation[slots], ring.final_row[slots]]
    return [np.array([oldest, cursor]), slots, *(leaf[rows] for leaf in by_row), *finals]


def same(ring: ReplayRing, other: ReplayRing) -> bool:
    return all(np.array_equal(one, two) for one, two in zip(window(ring), window(other), strict=True))


@pytest.mark.parametrize("n_frames", [0, 3])
@pytest.mark.parametrize("largest", [1, 900, 2**26])
@pytest.mark.parametrize("mode", ["mid_batch", "wait"])
def test_contents_are_restored_bit_for_bit(
    n_frames: int, largest: int, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each save and after each load, with records of one row and of all."""
    monkeypatch.setattr(records, "_LARGEST", largest)
    run = Run(tmp_path, World(5, mode, n_frames=n_frames))
    for number in range(24):
        run.append(1 + number % 2)
        if number % 3:
            run.file.save(run.ring)
            again = Run(tmp_path, run.world, sampler=run.sampler)
            assert again.file.load(again.ring) == run.ring.cursor[0]
            assert same(again.ring, run.ring)
            if number % 4 == 0:
                run = again
    replay = run.replay()
    expected = startable(run.world, run.sampler.rows, run.ring.oldest[0], 2)
    assert set(check(run.world, replay.sample(400), 2, 0.99)) == expected


def test_save_writes_only_new_rows(tmp_path: Path) -> None:
    run = Run(tmp_path, World(5), segment_bytes=2**20)
    run.append()
    assert run.file.save(run.ring) == 5
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    assert run.file.save(run.ring) == 0
    assert path.read_bytes() == before
    run.append(2)
    assert run.file.save(run.ring) == 10
    after = path.read_bytes()
    assert after[: len(before)] == before
    assert len(before) < len(after) < 4 * len(before)


def test_segments_of_overwritten_rows_are_removed(tmp_path: Path) -> None:
    run = Run(tmp_path, World(5))
    sizes = []
    for _ in range(40):
        run.append()
        run.file.save(run.ring)
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert max(sizes) < sizes[0] * 9
    firsts = sorted(int(path.stem.removeprefix("rows-")) for path in tmp_path.iterdir())
    assert firsts[0] <= run.ring.oldest[0] < firsts[1]


def test_rows_overwritten_before_a_save_are_skipped(tmp_path: Path) -> None:
    run = Run(tmp_path, World(5))
    run.append()
    run.file.save(run.ring)
    run.append(9)
    assert run.file.save(run.ring) == N_ROWS
    again = Run(tmp_path, run.world)
    again.file.load(again.ring)
    assert same(again.ring, run.ring)


def test_rows_overwritten_while_copied_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, World(5))
    run.append(4)

    def overtake(lock: Any) -> None:
        monkeypatch.undo()
        run.append(1)

    monkeypatch.setattr(records, "fence", overtake)
    assert run.file.save(run.ring) == 18  # rows 2 to 19; the last 5 came later
    run.file.save(run.ring)
    again = Run(tmp_path, run.world)
    again.file.load(again.ring)
    assert same(again.ring, run.ring)


def saved(folder: Path, n_batches: int = 3, segment_bytes: int = 2**20) -> Run:
    run = Run(folder, World(5, longest=30), segment_bytes)
    for _ in range(n_batches):
        run.append()
        run.file.save(run.ring)
    return run


def newest(folder: Path) -> Path:
    return max(folder.iterdir())


@pytest.mark.parametrize("left", [0.0, 0.02, 0.5, 0.999])
def test_torn_tail_is_cut_off_with_a_warning(left: float, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Earlier rows are there, and later ones do not continue their episodes."""
    run = saved(tmp_path, 2)
    path, two = newest(tmp_path), newest(tmp_path).stat().st_size
    run.append()
    run.file.save(run.ring)
    third = path.stat().st_size - two
    os.truncate(path, two + max(1, int(left * third)))
    again = Run(tmp_path, run.world, sampler=run.sampler)
    with caplog.at_level(logging.WARNING, "headrace.replays"):
        assert again.file.load(again.ring) == 10
    assert f"no complete record after byte {two} of" in caplog.text
    assert path.stat().st_size == two
    assert np.array_equal(again.ring.observation[:10], run.ring.observation[:10])
    del again.sampler.rows[10:15]
    again.append()
    expected = startable(run.world, again.sampler.rows, 0, 2)
    replay = again.replay()
    assert len(replay) == len(expected)
    assert set(check(run.world, replay.sample(300), 2, 0.99)) == expected
    assert again.file.save(again.ring) == 5
    third_run = Run(tmp_path, run.world)
    assert third_run.file.load(third_run.ring) == 15
    assert same(third_run.ring, again.ring)


def test_segment_without_a_complete_record_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = saved(tmp_path, 2, segment_bytes=1)
    path = newest(tmp_path)
    for size in (30, 3, 0):
        os.truncate(path, size)
        again = Run(tmp_path, run.world)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "headrace.replays"):
            assert again.file.load(again.ring) == 5
        assert "no complete record after byte 0" in caplog.text
        assert not path.exists()
        path.write_bytes(b"headrace replay 1\nbatch_B")


def flipped(at: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(len(content) * at)] ^= 16
        path.write_bytes(content)

    return damage


def test_inconsistent_records_with_a_valid_checksum_are_refused() -> None:
    """Records of rows that cannot be in the ring together."""
    spec = spec_of(World(5))
    ring = build_ring(spec, np.zeros)
    ring.cursor[0], ring.oldest[0] = 40, 30
    made = records.Records(spec).of(ring, 35, 40)
    assert made is not None
    _, (packed, _, *payload) = made
    for first, oldest, good in ((35, 30, True), (35, 36, False), (35, 16, False)):
        lying = bytes(packed[:4]) + struct.pack("<QQ", first, oldest) + bytes(packed[20:])
        whole = b"".join(framed(lying, payload))
        if good:
            assert records.Records(spec).read(io.BytesIO(whole), len(whole)) is not None
        else:
            with pytest.raises(records.Damaged):
                records.Records(spec).read(io.BytesIO(whole), len(whole))


@pytest.mark.parametrize("at", [0.4, 0.45, 0.6, 0.99])
def test_any_flipped_bit_is_detected(at: float, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = saved(tmp_path)
    flipped(at)(newest(tmp_path))
    again = Run(tmp_path, run.world)
    with caplog.at_level(logging.WARNING, "headrace.replays"):
        cursor = again.file.load(again.ring)
    assert cursor < 15
    assert "no complete record after byte" in caplog.text
    rows = slice(0, cursor)
    assert np.array_equal(again.ring.observation[rows], run.ring.observation[rows])


def test_rows_after_a_damaged_segment_are_loaded(tmp_path: Path) -> None:
    run = saved(tmp_path, 4, segment_bytes=1)
    flipped(0.9)(sorted(tmp_path.iterdir())[1])
    again = Run(tmp_path, run.world)
    assert again.file.load(again.ring) == 20
    assert again.ring.oldest[0] == 10
    rows = slice(10, 20)
    assert np.array_equal(again.ring.observation[rows], run.ring.observation[rows])
    expected = startable(run.world, run.sampler.rows, 10, 2)
    assert set(check(run.world, again.replay().sample(300), 2, 0.99)) == expected


@pytest.mark.parametrize("segment_bytes", [1, 2**20])
@pytest.mark.parametrize("until", [15, 13, 10, 3, 0])
def test_loading_for_a_checkpoint_before_the_last_save(until: int, segment_bytes: int, tmp_path: Path) -> None:
    """Only rows before the checkpoint are loaded; later ones are discarded and saved again when they come."""
    run = saved(tmp_path, 3, segment_bytes)
    sampler = run.sampler
    again = Run(tmp_path, run.world, segment_bytes)
    assert again.file.load(again.ring, until=until) == until
    rows = slice(0, until)
    assert np.array_equal(again.ring.observation[rows], run.ring.observation[rows])
    again.sampler = sampler
    again.append()
    again.file.save(again.ring)
    third = Run(tmp_path, run.world)
    assert third.file.load(third.ring) == until + 5
    assert same(third.ring, again.ring)


def test_loading_for_a_checkpoint_after_the_last_save(tmp_path: Path) -> None:
    run = saved(tmp_path, 2)
    run.append()  # not saved
    again = Run(tmp_path, run.world, sampler=run.sampler)
    assert again.file.load(again.ring, until=15) == 10
    again.append()
    del again.sampler.rows[10:15]
    expected = startable(run.world, again.sampler.rows, 0, 2)
    assert len(again.replay()) == len(expected)


def test_final_entries_after_the_checkpoint_do_not_replace_older_ones(tmp_path: Path) -> None:
    """The room for final observations is reused sooner than that for rows."""
    world = World(4, longest=3)
    spec = spec_of(world, n_finals=8)
    ring, sampler, file = build_ring(spec, np.zeros), Sampler(world, BATCH), ReplayFile(tmp_path, spec)
    writer = ReplayWriter(spec, ring)
    for _ in range(2):
        writer.append(sampler.next())
    file.save(ring)
    expected = startable(world, sampler.rows[:8], ring.oldest[0], 2)
    again = build_ring(spec, np.zeros)
    ReplayFile(tmp_path, spec).load(again, until=8)
    found = set(check(world, UniformReplay(spec, again, n_step=2).sample(300), 2, 0.99))
    assert found == expected


def test_wrong_lengths_allocate_no_memory(tmp_path: Path) -> None:
    run = saved(tmp_path, 1)
    path = newest(tmp_path)
    content = bytearray(path.read_bytes())
    header = content.index(b"\n", content.index(b"\n") + 1) + 1 + 32
    assert content[header : header + 4] == b"rows"
    for first, oldest, n_rows, n_finals in (
        (0, 0, 2**32 - 1, 0),
        (0, 0, 5, 2**32 - 1),
        (2**64 - 1, 0, 5, 0),
        (0, 2**64 - 1, 5, 0),
        (0, 0, 0, 0),
        (0, 0, 23, 30),
    ):
        content[header + 4 : header + 28] = struct.pack("<QQII", first, oldest, n_rows, n_finals)
        path.write_bytes(content)
        again = Run(tmp_path, run.world)
        assert again.file.load(again.ring) == 0
        assert not path.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"headrace replay 3\nbatch_B 3\n", "is a 'headrace replay 3' and this headrace reads 'headrace replay 2'"),
        (
            b"headrace replay 2\nbatch_B 4; n_rows\n",
            "holds rows of another layout, batch_B 4; n_rows, and this replay has",
        ),
    ],
)
def test_segments_of_other_formats_and_layouts_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / f"rows-{0:019d}.bin").write_bytes(content + hashlib.sha256(content).digest() + bytes(1000))
    run = Run(tmp_path, World(5))
    with pytest.raises(CheckpointError, match=message):
        run.file.load(run.ring)
    assert run.ring.cursor[0] == 0


def changed(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"replay 2", b"replay 3"), (b"n_rows 23", b"n_rows 24"), (b"headrace", b"handrace")],
    ids=["format", "layout", "name"],
)
@pytest.mark.parametrize("which", [0, 1, -1])
def test_damaged_header_loses_only_its_rows(
    which: int, old: bytes, new: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not taken for the header of another version."""
    run = saved(tmp_path, 4, segment_bytes=1)
    path = sorted(tmp_path.iterdir())[which]
    changed(path, old, new)
    again = Run(tmp_path, run.world)
    with caplog.at_level(logging.WARNING, "headrace.replays"):
        assert again.file.load(again.ring, until=20) == (15 if which == -1 else 20)
    damaged, missing = (record.getMessage() for record in caplog.records)
    assert damaged.startswith(f"{path} is damaged")
    lost = {0: "0 to 4", 1: "0 to 9", -1: "15 to 19"}[which]
    assert missing.startswith(f"{tmp_path} lacks rows {lost}")
    assert path.with_name(path.name + ".damaged").exists()


@pytest.mark.parametrize(
    ("gone", "lost", "held"),
    [(0, "0 to 4", 15), (1, "0 to 9", 10), (-1, "15 to 19", 15)],
    ids=["first", "middle", "last"],
)
def test_missing_segment_is_logged(
    gone: int, lost: str, held: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = saved(tmp_path, 4, segment_bytes=1)
    sorted(tmp_path.iterdir())[gone].unlink()
    again = Run(tmp_path, run.world)
    with caplog.at_level(logging.WARNING, "headrace.replays"):
        again.file.load(again.ring, until=20)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"{tmp_path} lacks rows {lost}, which were saved there; continuing with the {held}"
    )


def test_swapped_segments_are_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = saved(tmp_path / "one", 4, segment_bytes=1)
    paths = sorted((tmp_path / "one").iterdir())
    contents = [path.read_bytes() for path in paths]
    paths[1].write_bytes(contents[2])
    paths[2].write_bytes(contents[1])
    again = Run(tmp_path / "one", run.world)
    with caplog.at_level(logging.WARNING, "headrace.replays"):
        assert again.file.load(again.ring, until=20) == 20
    assert again.ring.oldest[0] == 15
    assert np.array_equal(again.ring.observation[15:20], run.ring.observation[15:20])
    for path, content in zip(paths[1:3], (contents[2], contents[1]), strict=True):
        assert f"{path} does not hold the rows that its name and the other segments imply" in caplog.text
        assert path.with_name(path.name + ".damaged").read_bytes() == content


def test_segment_of_another_run_is_put_aside(tmp_path: Path) -> None:
    """A segment of a run whose episodes were truncated elsewhere; nothing else distinguishes it."""
    run = saved(tmp_path / "one", 4, segment_bytes=1)
    other = Run(tmp_path / "two", World(6, longest=4), segment_bytes=1)
    for _ in range(4):
        other.append()
        other.file.save(other.ring)
    name = sorted((tmp_path / "one").iterdir())[2].name
    (tmp_path / "one" / name).write_bytes((tmp_path / "two" / name).read_bytes())
    again = Run(tmp_path / "one", run.world)
    assert again.file.load(again.ring, until=20) == 20
    assert (tmp_path / "one" / f"{name}.damaged").exists()
    assert again.ring.oldest[0] == 15


def test_named_pipe_in_the_folder_does_not_block(tmp_path: Path) -> None:
    run = saved(tmp_path, 2, segment_bytes=1)
    path = newest(tmp_path)
    path.unlink()
    os.mkfifo(path)
    again = Run(tmp_path, run.world)
    assert again.file.load(again.ring, until=10) == 5


def test_replay_of_another_layout_is_named(tmp_path: Path) -> None:
    saved(tmp_path)
    spec = spec_of(World(5), n_finals=31)
    with pytest.raises(CheckpointError, match=r"n_finals 30.*and this replay has .*n_finals 31.*float32|<f4 \[3\]"):
        ReplayFile(tmp_path, spec).load(build_ring(spec, np.zeros))


def test_wrong_use_of_replay_file_is_refused(tmp_path: Path) -> None:
    run = saved(tmp_path / "one")
    with pytest.raises(ValueError, match="the ring already has 15 rows"):
        run.file.load(run.ring)
    other = Run(tmp_path / "one", run.world)
    other.append()
    with pytest.raises(FileExistsError, match="holds the contents of another replay; load them first"):
        other.file.save(other.ring)
    nobody = Run(tmp_path / "two", run.world)
    with pytest.raises(FileNotFoundError, match="holds no replay"):
        nobody.file.load(nobody.ring)
    (tmp_path / "one" / "notes.txt").write_text("kept")
    again = Run(tmp_path / "one", run.world)
    assert again.file.load(again.ring) == 15
    assert (tmp_path / "one" / "notes.txt").read_text() == "kept"


@pytest.mark.parametrize("segment_bytes", [1, 2**20])
def test_full_disk_leaves_earlier_saves_intact(
    segment_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved(tmp_path, 2, segment_bytes)
    run.append()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)  # what was written lies there, torn or not
        with pytest.raises(OSError, match=r"rows 10 to 14 were not written .*No space left.*saved before is untouched"):
            run.file.save(run.ring)
    assert run.file.save(run.ring) == 5
    again = Run(tmp_path, run.world)
    assert again.file.load(again.ring) == 15
    assert same(again.ring, run.ring)


def test_tree_observations_are_saved(tmp_path: Path) -> None:
    observation = {"image": np.zeros((2, 2), np.uint8), "x": (np.zeros(3, np.float32), np.zeros((), np.bool_))}
    spec = ReplaySpec(BatchSpec(2, 3), 7, observation, (ACTION, np.zeros(2)), 4)
    ring, again = build_ring(spec, np.zeros), build_ring(spec, np.zeros)
    random = np.random.default_rng(0)
    for leaf in tree_leaves((ring.observation, ring.action, ring.reward)):
        leaf[...] = random.integers(0, 2, leaf.shape)
    ring.flags[:], ring.totals[:, 0] = 1, 3 * np.arange(1, 8)
    ring.cursor[0] = 7
    ReplayFile(tmp_path, spec).save(ring)
    assert ReplayFile(tmp_path, spec).load(again) == 7
    for one, two in zip(tree_leaves(vars(ring)), tree_leaves(vars(again)), strict=True):
        assert np.array_equal(one, two)
