"""The parameter database under attack: damage that an index does not know of, full disks, restless writers."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.errors import ParameterDBError
from headrace.services import ParameterDBClient
from tests.leftovers import DEADLINE, until
from tests.small_disk import fill, on_small_disk
from tests.test_parameter_db import db, file_of, flip, mongo_url, version_in, warnings_of, weights

pytest.importorskip("safetensors", reason="parameters are stored as safetensors files")

__all__ = ["db", "mongo_url"]  # fixtures

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ParameterDBClient]:
    with ParameterDBClient("experiment", "trial", tmp_path) as client:
        yield client


# ---- queries ----


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "removed"])
def test_no_query_returns_a_version_that_was_damaged_after_it_was_indexed(
    db: ParameterDBClient, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (1, 2, 3):
        db.push("policy", weights(version, 500), version, metadata={"level": version})
    query: dict[str, Any] = {"level": {"$gt": 0}}
    assert db.version_of("policy", query) == 3
    path = file_of(db, 3)
    if damage == "flipped":
        flip(path, 8 * path.stat().st_size - 5)  # of an array, not of the header
    elif damage == "removed":
        path.unlink()
    else:
        os.truncate(path, 0 if damage == "emptied" else path.stat().st_size - 1)
    caplog.set_level(logging.WARNING)
    assert db.version_of("policy", query) == 2
    assert db.metadata_of("policy", query) == {"level": 2}
    assert version_in(db.get("policy", query)) == 2
    assert {db.entry("policy", query, draw=(0, step)).version for step in range(20)} == {1, 2}
    db.tag("policy", query, "best")
    assert db.list_tags("policy")["best"] == 2
    assert db.update_metadata("policy", 2, {"level": 5}) == {"level": 5}
    assert db.clone("policy", f"copy_{damage}", query) == [2]
    said = warnings_of(caplog)
    assert all("version 2 is used instead" in one or "version 1 is used instead" in one for one in said)
    assert bool(said) == (damage != "removed")
    for version in (1, 2):
        os.truncate(file_of(db, version), 100)
    if damage != "removed":
        with pytest.raises(ParameterDBError, match=r"is damaged.*is damaged.*is damaged.*push it again"):
            db.version_of("policy", query)


def test_queries_see_whole_versions_alone_while_writers_are_killed(files: ParameterDBClient) -> None:
    """Each writer pushes, changes metadata and collects, until it is killed at any moment."""
    first = 1

    def write() -> None:
        for version in range(first, first + 10_000):
            files.push("policy", weights(version, 3000), version, metadata={"of": version, "odd": version % 2})
            files.update_metadata("policy", version, {"games": {"$inc": 1}})
            files.gc("policy", 3)

    files.push("policy", weights(0, 3000), 0, tags="first", metadata={"of": 0, "odd": 0})
    for _ in range(3):
        writer = FORK.Process(target=write)
        writer.start()
        wanted = first + 3
        try:
            for number in range(10_000):
                # The writer may not have pushed an odd version yet.
                asked = {"odd": number % 2} if number else {"of": 0}
                entry = files.entry("policy", asked, block=True, timeout=DEADLINE)
                assert version_in(entry.parameters) == entry.version == entry.metadata["of"]
                assert entry.metadata.get("games", 1) == 1
                if entry.version >= wanted:
                    break
            assert entry.version >= wanted
        finally:
            writer.kill()
            writer.join(DEADLINE)
        first = files.version_of("policy") + 1


def test_a_query_does_not_find_metadata_of_a_version_that_was_removed_and_pushed_again(db: ParameterDBClient) -> None:
    """With the same parameters, and the same number of changes."""
    for level in (1, 2, 3):
        db.push("policy", weights(1), 1)
        db.update_metadata("policy", 1, {"level": level})
        for other in (1, 2, 3):
            if other == level:
                assert db.version_of("policy", {"level": level}) == 1
            else:
                with pytest.raises(ParameterDBError, match="has no version"):
                    db.version_of("policy", {"level": other})
        db.clear("policy")


# ---- a name that is copied while it changes ----


def test_a_copy_of_a_name_that_is_pushed_and_collected_has_whole_versions(files: ParameterDBClient) -> None:
    def write() -> None:
        for version in range(3, 10_000):
            tag = "kept" if version % 7 == 0 else None
            files.push("policy", weights(version, 3000), version, tags=tag, metadata={"of": version})
            files.update_metadata("policy", version, {"games": {"$inc": 1}})
            files.gc("policy", 2)

    for version in (1, 2):
        files.push("policy", weights(version, 3000), version, tags=f"t{version}", metadata={"of": version})
    writer = FORK.Process(target=write)
    writer.start()
    try:
        for number in range(20):
            there = {*files.list_versions("policy")}
            copied = files.clone("policy", f"copy_{number}")
            assert {1, 2} <= {*copied} & there
            assert copied == files.list_versions(f"copy_{number}")
            for version in copied:
                entry = files.entry(f"copy_{number}", version)
                assert version_in(entry.parameters) == version == entry.metadata["of"]
            tags = files.list_tags(f"copy_{number}")
            assert (tags["t1"], tags["t2"]) == (1, 2)
            assert {*tags.values()} <= {*copied}
        assert writer.is_alive()
    finally:
        writer.kill()
        writer.join(DEADLINE)


def test_a_version_that_is_removed_while_a_name_is_copied_is_left_out(
    files: ParameterDBClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (1, 2, 3):
        files.push("policy", weights(version), version)
    monkeypatch.setattr("headrace.services.parameters.reading.time.sleep", lambda seconds: pytest.fail("waits"))
    read_bytes = Path.read_bytes

    def removes_another(path: Path) -> bytes:
        if path.name.startswith("v000000000001-"):
            file_of(files, 2).unlink(missing_ok=True)
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", removes_another)
        assert files.clone("policy", "copy") == [1, 3]
    assert warnings_of(caplog) == []
    for version in (1, 3):
        flip(file_of(files, version), 900)
    with pytest.raises(ParameterDBError, match="no version of policy could be copied"):
        files.clone("policy", "other")
    assert files.list_versions("other") == []


def test_a_collection_does_not_leave_a_damaged_version_alone(
    files: ParameterDBClient, caplog: pytest.LogCaptureFixture
) -> None:
    for version in range(5):
        files.push("policy", weights(version), version)
    for version in (3, 4):
        flip(file_of(files, version), 900)
    assert files.gc("policy", 0) == [0, 1, 3]
    assert version_in(files.get("policy")) == 2
    assert f"{file_of(files, 4)} is damaged" in "".join(warnings_of(caplog))
    files.push("policy", weights(5), 5)
    assert files.gc("policy", 0) == [2, 4]


# ---- full disks ----


def test_a_full_disk_loses_nothing_and_can_be_collected(tmp_path: Path) -> None:
    """With a real disk of 256 KiB."""

    def act() -> None:
        with ParameterDBClient("experiment", "trial", tmp_path / "disk") as db:
            for version in (1, 2):
                db.push("policy", weights(version, 5000), version, tags=f"t{version}", metadata={"a": version})
            assert db.version_of("policy", {"a": 2}) == 2
            fill(tmp_path / "disk" / "others")
            before = {path.name: path.read_bytes() for path in (db.folder / "policy").iterdir()}
            with pytest.raises(OSError, match=r"it needs [\d,]+ bytes, 0 are free there") as full:
                db.push("policy", weights(3, 5000), 3, tags="t3")
            assert full.value.errno == errno.ENOSPC
            with pytest.raises(OSError, match="was not written"):
                db.update_metadata("policy", 1, {"a": 5})
            with pytest.raises(OSError, match="was not written"):
                db.tag("policy", 2, "t1")
            assert {path.name: path.read_bytes() for path in (db.folder / "policy").iterdir()} == before
            assert version_in(db.get("policy")) == db.version_of("policy", {"a": 2}) == 2
            assert db.version_of("policy", "t1") == 1
            db.untag("policy", "t1")
            assert db.gc("policy", 0) == [1]  # which makes room
            db.push("policy", weights(3, 5000), 3)
            assert version_in(db.get("policy")) == 3

    on_small_disk(tmp_path / "disk", 256 * 2**10, act)


def test_without_room_for_an_index_versions_and_tags_can_be_read(tmp_path: Path) -> None:
    def act() -> None:
        with ParameterDBClient("experiment", "trial", tmp_path / "disk") as db:
            db.push("policy", weights(1), 1, tags="best", metadata={"a": 1})
            fill(tmp_path / "disk" / "others")
            with pytest.raises(
                ParameterDBError, match=r"index\.sqlite cannot be used \(.*full.*\).*by its number or tag"
            ):
                db.version_of("policy", {"a": 1})
            assert version_in(db.get("policy", "best")) == 1
            (tmp_path / "disk" / "others").unlink()
            assert db.version_of("policy", {"a": 1}) == 1

    on_small_disk(tmp_path / "disk", 128 * 2**10, act)


# ---- writers that are stopped ----


def test_a_writer_that_is_stopped_holds_up_no_reader_and_is_named(tmp_path: Path) -> None:
    with ParameterDBClient("experiment", "trial", tmp_path, timeout=0.1) as db:
        db.push("policy", weights(1), 1, metadata={"a": 1})
        stopped = FORK.Event()
        replace = os.replace

        def push() -> None:
            def stops(source: str, target: Path) -> None:
                stopped.set()
                os.kill(os.getpid(), signal.SIGSTOP)
                replace(source, target)

            os.replace = stops  # type: ignore[assignment]
            db.push("policy", weights(2), 2, metadata={"a": 1})

        writer = FORK.Process(target=push)
        writer.start()
        try:
            assert writer.pid is not None
            assert stopped.wait(DEADLINE)
            assert until(lambda: Path(f"/proc/{writer.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
            assert version_in(db.get("policy")) == db.version_of("policy", {"a": 1}) == 1
            with pytest.raises(ParameterDBError, match=f"process {writer.pid} has been writing in .*let it continue"):
                db.push("policy", weights(2), 2)
            os.kill(writer.pid, signal.SIGCONT)
            writer.join(DEADLINE)
            assert (writer.exitcode, version_in(db.get("policy"))) == (0, 2)
        finally:
            writer.kill()
            writer.join(DEADLINE)


def test_a_file_that_another_machine_removes_while_it_is_read_is_looked_for_again(
    files: ParameterDBClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system, which then says that the handle is stale."""
    for version in (1, 2):
        files.push("policy", weights(version), version, metadata={"a": 1})
    read_bytes, stale = Path.read_bytes, [file_of(files, 2)]

    def removed(path: Path) -> bytes:
        if path in stale:
            stale.remove(path)
            path.unlink()
            raise OSError(errno.ESTALE, "Stale file handle")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", removed)
    assert version_in(files.get("policy", {"a": 1})) == 1
    assert stale == []


def test_a_half_written_file_of_a_machine_that_crashed_is_no_version(files: ParameterDBClient) -> None:
    """Contents that a file system lost although the name is there: all lengths of a file, and zeros in its place."""
    files.push("policy", weights(1), 1, metadata={"a": 1})
    files.push("policy", weights(2), 2, metadata={"a": 1})
    path = file_of(files, 2)
    whole = path.read_bytes()
    for length in np.linspace(0, len(whole) - 1, 15).astype(int):
        for content in (whole[:length], whole[:length] + bytes(len(whole) - length)):
            (files.folder / ".index.sqlite").unlink(missing_ok=True)
            path.write_bytes(content)
            assert files.version_of("policy", {"a": 1}) == 1
            assert version_in(files.get("policy", {"a": 1})) == version_in(files.get("policy")) == 1
    path.write_bytes(whole)
    assert files.version_of("policy", {"a": 1}) == 2
