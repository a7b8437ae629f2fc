"""Names when something fails: stores that are down or lose their data, dead owners, clocks that jump, odd files."""

from __future__ import annotations

import errno
import fcntl
import gc
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import NameEntryError, NameEntryNotFoundError
from headrace.services import (
    LostRecord,
    MemoryNameRecordRepository,
    NFSNameRecordRepository,
    RayNameRecordRepository,
    RedisNameRecordRepository,
    make_repository,
)
from headrace.services.names import folder as folder_module
from headrace.services.names.folder import FolderRecords, folder_time
from headrace.services.names.own import OwnRecords
from headrace.services.names.records import MemoryRecords, Record, new_token
from headrace.services.names.redis_server import RedisRecords
from tests.leftovers import DEADLINE, until
from tests.ray_here import NEEDS_RAY, small_ray
from tests.redis_here import NEEDS_REDIS, RedisServer

TTL = 300.0


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Server:
    """A store that can be down, and can come back empty."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.down = False
        self.n_calls = 0
        self.records = MemoryRecords(clock)

    def restart(self) -> None:
        self.down, self.records = False, MemoryRecords(self.clock)

    def close(self) -> None:
        """Does nothing, as closing a connection."""

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.n_calls += 1
            if self.down:
                raise NameEntryError("connection refused")
            return getattr(self.records, method)(*arguments, **options)

        return call


def a_record(name: str = "a", ttl: float | None = TTL) -> Record:
    return Record(name, "here", new_token(), ttl)


class Owner:
    """The records of an owner, on a store whose clock the test sets."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.server = Server(self.clock)
        self.told: list[LostRecord] = []
        store: Any = self.server
        self.own = OwnRecords(store, self.told.append, self.clock, in_thread=False)

    def turn(self) -> float:
        """Lets time pass until something is due, and does it; returns how long that was."""
        seconds = self.own.renew_due()
        self.clock.now += seconds
        self.own.renew_due()
        return seconds


@pytest.fixture
def owner() -> Iterator[Owner]:
    found = Owner()
    yield found
    found.server.down = False
    found.own.close()


# ---- renewals ----


def test_a_record_is_renewed_after_each_third_of_its_time(owner: Owner) -> None:
    assert owner.own.add(a_record(), True, False)
    owner.own.renew_due()
    n_calls = owner.server.n_calls
    assert [round(owner.turn()) for _ in range(10)] == [100] * 10
    assert owner.server.n_calls == n_calls + 10
    assert owner.server.records.get("a") == "here"
    owner.clock.now += TTL
    assert owner.server.records.get("a") is None


def test_a_store_that_comes_back_empty_gets_the_records_within_two_renewals(owner: Owner) -> None:
    assert owner.own.add(a_record(), True, False)
    owner.server.down = True
    pauses = [owner.turn() for _ in range(40)]
    assert pauses[1] < 1.0
    assert pauses[1:8] == sorted(pauses[1:8])
    assert max(pauses) <= TTL / 3 + 1e-6
    assert sum(pauses) > 2 * TTL
    (lost,) = owner.told  # once
    assert (lost.name, lost.given_up, lost.reason) == ("a", False, "NameEntryError: connection refused")
    assert lost.seconds > TTL
    owner.server.restart()
    assert owner.turn() <= TTL / 3 + 1e-6
    assert owner.server.records.get("a") == "here"
    owner.turn()
    assert owner.own.lost == (lost,)


def test_a_store_that_lost_its_data_between_two_renewals_gets_the_records_again(owner: Owner) -> None:
    assert owner.own.add(a_record(), True, False)
    owner.server.restart()
    owner.turn()
    assert owner.server.records.get("a") == "here"
    assert owner.told == []


@pytest.mark.parametrize("replaced", [False, True])
def test_a_record_that_somebody_deleted_or_replaced_is_given_up(owner: Owner, replaced: bool) -> None:
    assert owner.own.add(a_record(), True, False)
    new = Record("a", "of another", new_token(), None)
    assert owner.server.records.put(new, replace=True) if replaced else owner.server.records.remove("a")
    owner.turn()
    assert owner.own.renew_due() == float("inf")
    assert owner.server.records.get("a") == ("of another" if replaced else None)
    assert [(lost.name, lost.given_up) for lost in owner.told] == [("a", True)]
    owner.own.reset()
    assert owner.server.records.get("a") == ("of another" if replaced else None)


def test_an_owner_that_was_stopped_adds_its_record_again_and_is_told(owner: Owner) -> None:
    assert owner.own.add(a_record(), True, False)
    owner.clock.now += 2 * TTL
    assert owner.server.records.get("a") is None
    owner.own.renew_due()
    assert owner.server.records.get("a") == "here"
    assert [(lost.name, lost.given_up) for lost in owner.told] == [("a", False)]


def test_a_record_that_expires_while_it_is_renewed_is_added_again(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert owner.own.add(a_record(), True, False)
    records = owner.server.records
    renew = records.renew

    def slowly(record: Record) -> bool:
        owner.clock.now += 0.02 * TTL
        return renew(record)

    monkeypatch.setattr(records, "renew", slowly)
    owner.clock.now += 0.99 * TTL
    owner.own.renew_due()
    assert records.get("a") == "here"
    assert [(lost.name, lost.given_up) for lost in owner.told] == [("a", False)]


def test_the_time_while_a_machine_is_suspended_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_gettime, suspended = time.clock_gettime, [0.0]
    counting = {time.CLOCK_BOOTTIME: suspended}
    monkeypatch.setattr(time, "clock_gettime", lambda which: clock_gettime(which) + sum(counting.get(which, [])))
    told: list[LostRecord] = []
    records = MemoryRecords()
    own = OwnRecords(records, told.append, in_thread=False)
    assert own.add(a_record(), True, False)
    suspended[0] = 2 * TTL
    assert records.get("a") is None
    own.renew_due()
    assert records.get("a") == "here"
    assert [(lost.name, lost.given_up) for lost in told] == [("a", False)]
    own.close()


def test_a_name_that_another_took_from_a_stopped_owner_stays_with_the_other(owner: Owner) -> None:
    assert owner.own.add(a_record(), True, False)
    owner.clock.now += 2 * TTL
    assert owner.server.records.put(Record("a", "of another", new_token(), None), replace=False)
    owner.own.renew_due()
    assert owner.server.records.get("a") == "of another"
    assert [lost.given_up for lost in owner.told] == [True]


def test_renewals_go_on_when_the_owners_function_raises(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()

    def on_lost(lost: LostRecord) -> None:
        raise ValueError("I do not want to hear that")

    with MemoryNameRecordRepository(MemoryRecords(clock), on_lost=on_lost, clock=clock) as names:
        names.add("a", "1", keepalive_ttl=0.3)
        names.delete("a")
        names.add("a", "2", keepalive_ttl=0.3)
        clock.now += 1.0  # the thread will notice that it is late
        assert until(lambda: names.lost)
        assert until(lambda: "I do not want to hear that" in caplog.text)
        assert names.get("a") == "2"


def test_names_that_cannot_be_deleted_do_not_stop_close(owner: Owner, caplog: pytest.LogCaptureFixture) -> None:
    assert owner.own.add(a_record("a"), True, False)
    assert owner.own.add(a_record("b", None), True, False)
    owner.server.down = True
    with pytest.raises(NameEntryError, match="refused"):
        owner.own.reset()
    owner.own.close()
    assert "still there: a (for 300 s); until somebody deletes them: b" in caplog.text


# ---- in memory ----


def test_a_repository_that_is_dropped_deletes_its_names() -> None:
    records = MemoryRecords()
    names = MemoryNameRecordRepository(records)
    names.add("a", "here", keepalive_ttl=60)
    del names
    gc.collect()
    assert records.get("a") is None


def test_names_in_memory_are_refused_in_a_forked_process() -> None:
    def use() -> None:
        with pytest.raises(NameEntryError, match="exist in process"):
            names.get("a")

    with MemoryNameRecordRepository() as names:
        names.add("a", "here")
        child = multiprocessing.get_context("fork").Process(target=use)
        child.start()
        child.join(DEADLINE)
        assert child.exitcode == 0
        assert names.get("a") == "here"


# ---- in a folder ----


def shifted(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Sets the clock of the file system forward or back, for those that ask for the time."""
    monkeypatch.setattr(folder_module, "folder_time", lambda folder: folder_time(folder) + seconds)


def test_a_clock_that_is_set_forward_does_not_end_what_a_reader_has_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    reader, record = FolderRecords(tmp_path, clock), a_record()
    assert reader.put(record, replace=False)
    assert reader.get("a") == "here"
    shifted(monkeypatch, 3600.0)
    clock.now += 0.9 * TTL
    assert reader.get("a") == "here"
    new = FolderRecords(tmp_path, clock)
    assert new.get("a") is None  # it cannot know, until the next renewal
    (path,) = tmp_path.glob("*.name")
    os.utime(path, (folder_time(tmp_path) + 3600.0,) * 2)  # a renewal
    for one in (reader, new):
        assert one.get("a") == "here"
    clock.now += 1.1 * TTL
    for one in (reader, new):
        assert one.get("a") is None


def test_a_clock_that_is_set_back_keeps_a_dead_record_for_its_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    assert FolderRecords(tmp_path, clock).put(a_record(), replace=False)
    shifted(monkeypatch, -3600.0)
    reader = FolderRecords(tmp_path, clock)
    assert reader.get("a") == "here"
    clock.now += 0.9 * TTL
    assert reader.get("a") == "here"
    clock.now += 0.2 * TTL
    assert reader.get("a") is None


def test_readers_see_renewals(tmp_path: Path) -> None:
    clock = Clock()
    reader, record = FolderRecords(tmp_path, clock), a_record()
    owner = FolderRecords(tmp_path)
    assert owner.put(record, replace=False)
    for _ in range(3):
        assert reader.get("a") == "here"
        clock.now += 0.9 * TTL
        time.sleep(0.02)  # file systems may count time in steps of some ms
        assert owner.renew(record)
    assert reader.get("a") == "here"


def test_files_of_dead_owners_are_removed_when_a_reader_has_seen_no_renewal_for_long(tmp_path: Path) -> None:
    clock = Clock()
    reader = FolderRecords(tmp_path, clock)
    for name in ("top/dead", "top/renewed"):
        assert reader.put(a_record(name), replace=False)
    assert len(reader.subtree("top")) == 2
    clock.now += TTL + 700.0
    os.utime(tmp_path / "top+renewed.name", (time.time() + 1.0,) * 2)
    assert [*reader.subtree("top")] == ["top/renewed"]
    assert [path.name for path in tmp_path.glob("*.name")] == ["top+renewed.name"]


def test_what_is_no_record_is_no_name(tmp_path: Path) -> None:
    records = FolderRecords(tmp_path)
    assert records.put(a_record("whole"), replace=False)
    content = (tmp_path / "whole.name").read_bytes()
    for name, damaged in {
        "empty": b"",
        "cut": content[:-1],
        "changed": content[:-3] + b"???",
        "text": b"x" * 80,
    }.items():
        (tmp_path / f"{name}.name").write_bytes(damaged)
    os.mkfifo(tmp_path / "pipe.name")
    (tmp_path / "folder.name").mkdir()
    (tmp_path / "link.name").symlink_to(tmp_path / "whole.name")
    (tmp_path / "notes.txt").write_text("of somebody else")
    names = ["empty", "cut", "changed", "pipe", "folder", "link", "notes.txt"]
    assert [name for name in names if records.get(name) is not None] == []
    assert [*records.subtree("whole"), *records.subtree("notes.txt"), *records.subtree("cut")] == ["whole"]
    for name in names:
        if name == "folder":
            with pytest.raises(NameEntryError, match=r"folder\.name"):
                records.put(a_record(name), replace=False)
        else:
            assert records.put(a_record(name), replace=False)
            assert records.get(name) == "here"
    assert (tmp_path / "notes.txt").read_text() == "of somebody else"
    assert records.get("whole") == "here"


def test_files_that_killed_writers_left_are_removed(tmp_path: Path) -> None:
    killed = multiprocessing.get_context("fork").Process(target=killed_while_it_writes, args=(tmp_path,))
    killed.start()
    killed.join(DEADLINE)
    (unfinished,) = tmp_path.glob("*.tmp")
    linked = tmp_path / f"{new_token()}.new"
    of_others = [tmp_path / name for name in ("notes.new", "data.tmp", "a.new.tmp")]
    for path in (linked, *of_others):
        path.write_bytes(b"unfinished")
    FolderRecords(tmp_path)
    assert unfinished.exists()
    assert linked.exists()
    for path in (unfinished, linked, *of_others):
        os.utime(path, (time.time() - 7200.0,) * 2)
    FolderRecords(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(of_others)


def killed_while_it_writes(folder: Path) -> None:
    def die(descriptor: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = die  # type: ignore[assignment]
    FolderRecords(folder).put(a_record(), replace=False)


def test_a_removed_folder_is_a_store_that_lost_its_data(tmp_path: Path) -> None:
    clock, folder = Clock(), tmp_path / "names"
    records = FolderRecords(folder, clock)
    own = OwnRecords(records, None, clock, in_thread=False)
    assert own.add(a_record(), True, False)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert records.get("a") is None
    assert records.subtree("a") == {}
    clock.now += TTL / 2
    own.renew_due()
    assert records.get("a") == "here"
    own.close()
    assert records.subtree("a") == {}


def test_a_lock_that_a_stopped_process_holds_is_waited_for_with_a_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = FolderRecords(tmp_path)
    assert records.put(a_record(), replace=False)
    monkeypatch.setattr(folder_module, "_LOCK_SECONDS", 0.05)
    with open(tmp_path / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(
            NameEntryError, match=rf"process {os.getpid()} has been writing in {tmp_path} for 0.05 seconds"
        ):
            records.put(a_record("b"), replace=False)
        assert records.get("a") == "here"  # reading needs no lock
    assert records.put(a_record("b"), replace=False)


def test_a_free_name_is_added_once_even_where_locks_do_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "file_lock", lambda *_: nullcontext())
    records = FolderRecords(tmp_path)
    linked = folder_module._linked

    def another_is_first(new: Path, path: Path) -> bool:
        monkeypatch.setattr(folder_module, "_linked", linked)
        assert FolderRecords(tmp_path).put(a_record(), replace=False)
        return linked(new, path)

    monkeypatch.setattr(folder_module, "_linked", another_is_first)
    assert not records.put(Record("a", "too late", new_token(), TTL), replace=False)
    assert records.get("a") == "here"


@pytest.mark.parametrize("n_stale", [1, 2, 9])
def test_a_file_that_another_machine_replaces_while_it_is_opened_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_stale: int
) -> None:
    records, open_file, left = FolderRecords(tmp_path), os.open, n_stale
    assert records.put(a_record(), replace=False)

    def stale(path: Any, *arguments: Any, **options: Any) -> int:
        nonlocal left
        if str(path).endswith(".name") and left:
            left -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "open", stale)
    assert records.get("a") == ("here" if n_stale < 3 else None)  # always replaced: somebody removes and adds it
    left = 0
    assert records.get("a") == "here"


def test_a_repeated_call_of_nfs_is_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr("os.link", link_twice)
    records = FolderRecords(tmp_path)
    assert records.put(a_record(), replace=False)
    assert not records.put(a_record(), replace=False)


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NameEntryError, match=r"the folder of names .*/file cannot be used \(FileExistsError"):
        NFSNameRecordRepository(tmp_path / "file")


# ---- on Redis ----


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    found = RedisServer(tmp_path)
    yield found
    found.kill()


@NEEDS_REDIS
def test_names_return_when_redis_was_down_and_comes_back_empty(server: RedisServer) -> None:
    told: list[LostRecord] = []
    found: list[str] = []
    owner = RedisNameRecordRepository(server.url, on_lost=told.append)
    with owner, RedisNameRecordRepository(server.url) as other:
        owner.add("a", "here", keepalive_ttl=0.3)
        waiting = threading.Thread(target=lambda: found.append(other.wait("late", DEADLINE)))
        waiting.start()
        server.kill()
        with pytest.raises(NameEntryError, match=rf"Redis at redis://127.0.0.1:{server.port} failed"):
            other.get("a")
        assert until(lambda: told)
        assert (told[0].name, told[0].given_up) == ("a", False)
        assert server.start()
        assert other.wait("a", DEADLINE) == "here"
        owner.add("late", "too")
        waiting.join(DEADLINE)
        assert found == ["too"]
        assert all(not lost.given_up for lost in told)


@NEEDS_REDIS
@pytest.mark.slow
def test_names_return_each_time_that_redis_is_down(server: RedisServer) -> None:
    """Shorter and longer than the time to live, fifty times, and once for 10 s."""
    told: list[LostRecord] = []
    owner = RedisNameRecordRepository(server.url, on_lost=told.append)
    with owner, RedisNameRecordRepository(server.url) as other:
        owner.add("a", "here", keepalive_ttl=0.6)
        for seconds in [0.04 * (cycle % 25) for cycle in range(50)] + [10.0]:
            server.kill()
            time.sleep(seconds)
            assert server.start()
            assert other.wait("a", DEADLINE) == "here"
        assert told
        assert not any(lost.given_up for lost in told)


@NEEDS_REDIS
def test_a_server_that_was_emptied_gets_the_records_again(server: RedisServer) -> None:
    clock = Clock()
    records = RedisRecords(server.url, "headrace", DEADLINE)
    own = OwnRecords(records, None, clock, in_thread=False)
    try:
        assert own.add(a_record(), True, False)
        importlib.import_module("redis").Redis.from_url(server.url).flushall()
        assert records.get("a") is None
        clock.now += TTL / 2
        own.renew_due()
        assert records.get("a") == "here"
        assert own.lost == ()
    finally:
        own.close()


@NEEDS_REDIS
def test_names_of_other_prefixes_are_others_and_large_subtrees_are_complete(server: RedisServer) -> None:
    with (
        RedisNameRecordRepository(server.url) as one,
        RedisNameRecordRepository(server.url, "head*") as two,
        RedisNameRecordRepository(server.url, "other") as three,
    ):
        for number in range(1001):
            one.add(f"a/{number:04}", str(number))
        two.add("a/x", "two")
        assert one.get_subtree("a") == [str(number) for number in range(1001)]
        assert (two.get_subtree("a"), three.get_subtree("a")) == (["two"], [])
        two.clear_subtree("a")
        assert len(one.find_subtree("a")) == 1001


@NEEDS_REDIS
def test_a_call_that_was_repeated_finds_its_own_record(server: RedisServer) -> None:
    records = RedisRecords(server.url, "headrace", DEADLINE)
    record = a_record()
    assert records.put(record, replace=False)
    assert records.put(record, replace=False)
    assert not records.put(a_record(), replace=False)
    records.close()


@NEEDS_REDIS
def test_a_server_that_does_not_answer_is_waited_for_with_a_deadline(server: RedisServer) -> None:
    with RedisNameRecordRepository(server.url, timeout=0.2) as names:
        names.add("a", "1")
        names.add("b", "2")
        with server.stopped(), pytest.raises(NameEntryError, match="Timeout"):
            names.get("a")
        assert names.wait("b", DEADLINE) == "2"  # and not the late reply to the call before


@NEEDS_REDIS
def test_a_server_that_nobody_runs_is_one_sentence_without_the_password(server: RedisServer) -> None:
    server.kill()
    with RedisNameRecordRepository(f"redis://user:secret@127.0.0.1:{server.port}/2") as names:
        with pytest.raises(NameEntryError, match="check that the server runs") as caught:
            names.get("a")
        with pytest.raises(TimeoutError, match="check that the server runs"):
            names.wait("a", 0.05)
        assert "secret" not in f"{caught.value} {names!r}"
    assert server.start()


def test_absent_redis_is_one_sentence_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ImportError, match=r'^names on Redis need redis-py \(.*\); pip install "headrace\[redis\]"$'):
        RedisNameRecordRepository()


# ---- in a Ray actor ----


def test_absent_ray_is_one_sentence_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'^Ray is not installed \(.*\); pip install "headrace\[ray\]"$'):
        make_repository("ray")


@pytest.mark.programs
@NEEDS_RAY
def test_names_return_when_the_actor_has_died_and_end_with_the_session() -> None:
    with small_ray() as ray:
        owner, other = RayNameRecordRepository(), RayNameRecordRepository()
        owner.add("a", "here", keepalive_ttl=0.6)
        assert other.get("a") == "here"
        ray.kill(ray.get_actor("headrace-names", namespace="headrace"))
        assert other.wait("a", DEADLINE) == "here"
    with pytest.raises(NameEntryError, match="the Ray session has ended"):
        other.get("a")
    owner.close()
    other.close()


# ---- which one ----


def test_a_repository_is_made_from_a_word_a_folder_or_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for spec in (tmp_path / "a", f"{tmp_path}/a", "nfs:a", f"nfs:{tmp_path}/a", "./a"):
        with make_repository(spec) as names:
            assert isinstance(names, NFSNameRecordRepository)
            assert make_repository(names) is names
            assert repr(names) == f"NFSNameRecordRepository('{tmp_path}/a')"
    with make_repository("memory") as names:
        assert isinstance(names, MemoryNameRecordRepository)
    for wrong in ("memroy", "", "nfs:", "http"):
        with pytest.raises(ValueError, match=f'a repository of names is "memory".*got {wrong!r}'):
            make_repository(wrong)
    with pytest.raises(TypeError, match="got int 3"):
        make_repository(3)  # type: ignore[arg-type]


PROGRAM = """
import sys
from headrace.services import make_repository
names = make_repository(sys.argv[1])
names.add("deleted", "1")
names.add("expiring", "2", keepalive_ttl=60)
names.add("kept", "3", delete_on_exit=False)
if len(sys.argv) > 2:
    raise SystemExit(int(sys.argv[2]))
"""


@pytest.mark.programs
@pytest.mark.parametrize("exit_code", [[], ["3"]])
def test_a_program_that_ends_deletes_its_names(tmp_path: Path, exit_code: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), *exit_code], timeout=DEADLINE, check=False, capture_output=True
    )
    assert (done.returncode, done.stderr) == (int(exit_code[0]) if exit_code else 0, b"")
    with make_repository(tmp_path) as names:
        assert names.get("kept") == "3"
        for name in ("deleted", "expiring"):
            with pytest.raises(NameEntryNotFoundError):
                names.get(name)
