"""What every repository of names promises, on all of them: in memory, in a folder, on Redis, in a Ray actor."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from headrace.errors import NameEntryError, NameEntryExistsError, NameEntryNotFoundError
from headrace.services import MemoryNameRecordRepository, NameRecordRepository
from headrace.services.names.records import MAX_NAME, MAX_VALUE, Record, Records, new_token
from tests.leftovers import DEADLINE, until
from tests.name_stores import SHARED, Backend, connect, everywhere, on, root, store, wait_for_the_end

N_RACERS = 20

__all__ = ["connect", "root", "store"]  # fixtures


def expired(records: Records, name: str) -> None:
    """Adds a record whose owner does nothing more, and waits for its end."""
    assert records.put(Record(name, "of the dead", new_token(), 0.1), replace=False)
    wait_for_the_end(lambda: records.get(name) is None)


@everywhere
def test_values_are_found_under_their_names_by_other_repositories(connect: Backend, root: str) -> None:
    one, two = connect(), connect()
    values = ["tcp://10.0.0.1:5555", "", "näme 名前 \n\t'\"\\", "x" * MAX_VALUE, "é" * (MAX_VALUE // 2)]
    for number, value in enumerate(values):
        one.add(f"{root}/{number}", value)
    assert [two.get(f"{root}/{number}") for number in range(len(values))] == values


@everywhere
def test_a_name_that_exists_is_not_added_again_unless_it_is_replaced(connect: Backend, root: str) -> None:
    one, two = connect(), connect()
    one.add(root, "first")
    for other in (one, two):
        with pytest.raises(NameEntryExistsError, match=root):
            other.add(root, "second")
    assert two.get(root) == "first"
    two.add(root, "third", replace=True)
    assert one.get(root) == "third"
    one.reset()  # which does not delete the record of the other
    assert one.get(root) == "third"


@everywhere
def test_a_name_that_does_not_exist_is_not_found(connect: Backend, root: str) -> None:
    names = connect()
    names.add(f"{root}/a/b", "below")
    for name in (root, f"{root}/a", f"{root}/a/b/c"):
        with pytest.raises(NameEntryNotFoundError, match=name):
            names.get(name)
        with pytest.raises(NameEntryNotFoundError, match=name):
            names.delete(name)
    names.delete(f"{root}/a/b")
    with pytest.raises(NameEntryNotFoundError):
        names.get(f"{root}/a/b")
    names.add(f"{root}/a/b", "again")


@everywhere
def test_reset_deletes_own_names_alone_and_more_can_be_added(connect: Backend, root: str) -> None:
    one, two = connect(), connect()
    one.add(f"{root}/one", "1")
    one.add(f"{root}/kept", "2", delete_on_exit=False)
    two.add(f"{root}/two", "3")
    one.reset()
    assert two.find_subtree(root) == [f"{root}/kept", f"{root}/two"]
    one.add(f"{root}/one", "4")
    one.reset()
    assert two.find_subtree(root) == [f"{root}/kept", f"{root}/two"]
    two.delete(f"{root}/kept")


@everywhere
def test_subentries_get_names_of_their_own(connect: Backend, root: str) -> None:
    names = connect()
    found = [names.add_subentry(root, str(number)) for number in range(5)]
    assert len({*found}) == 5
    assert names.find_subtree(root) == sorted(found)
    assert [names.get(name) for name in found] == list("01234")


@everywhere
def test_a_subtree_has_its_root_and_all_below_and_nothing_beside(connect: Backend, root: str) -> None:
    names = connect()
    for name in ("a/bc", "a/b/2/deep/er", "a/b/1", "a/b", "a", "a/b*", "a/[b]", "a/?", "a/b%2F1", "a/b+1", "A/b/9"):
        names.add(f"{root}/{name}", name)
    assert names.find_subtree(f"{root}/a/b") == [f"{root}/{name}" for name in ("a/b", "a/b/1", "a/b/2/deep/er")]
    assert names.get_subtree(f"{root}/a/b") == ["a/b", "a/b/1", "a/b/2/deep/er"]
    for name in ("a/b*", "a/[b]", "a/?"):  # patterns of Redis
        names.add(f"{root}/{name}/x", "below")
        assert names.get_subtree(f"{root}/{name}") == [name, "below"]
    assert len(names.find_subtree(root)) == 14
    assert (names.find_subtree(f"{root}/b"), names.get_subtree(f"{root}/b")) == ([], [])


@everywhere
def test_clearing_a_subtree_deletes_its_root_too_and_names_of_others(connect: Backend, root: str) -> None:
    one, two = connect(), connect()
    for name in ("a", "a/b", "a/b/c", "ab"):
        one.add(f"{root}/{name}", name)
    two.clear_subtree(f"{root}/a")
    assert two.find_subtree(root) == [f"{root}/ab"]
    two.clear_subtree(f"{root}/a")


@everywhere
def test_waiting_ends_when_the_name_is_added(connect: Backend, root: str) -> None:
    names, other = connect(), connect()
    found: list[str] = []
    # In memory and on Redis the name is noticed at once, otherwise at the next look.
    poll_frequency = 2 * DEADLINE if connect.kind in ("memory", "redis") else 0.01
    thread = threading.Thread(target=lambda: found.append(names.wait(root, DEADLINE, poll_frequency)))
    thread.start()
    time.sleep(0.1)
    other.add(root, "here")
    thread.join(2 * DEADLINE)
    assert found == ["here"]
    assert names.wait(root, 0.0) == "here"


@everywhere
def test_waiting_in_vain_names_what_did_not_come(connect: Backend, root: str) -> None:
    with pytest.raises(TimeoutError, match=rf"name '{root}' had no value within 0.1 s"):
        connect().wait(root, 0.1, poll_frequency=0.02)


@everywhere
def test_a_watch_calls_when_a_name_that_appeared_has_gone(connect: Backend, root: str) -> None:
    names, other = connect(), connect()
    called = threading.Semaphore(0)
    watch = names.watch_names(root, called.release, poll_frequency=0.01)
    assert watch.missing == (root,)
    other.add(root, "here")
    assert until(lambda: not watch.missing)
    assert not called.acquire(timeout=0.05)
    other.delete(root)
    assert called.acquire(timeout=DEADLINE)
    assert watch.join(DEADLINE)
    assert (watch.done, watch.error) == (True, None)


@everywhere
def test_a_watch_calls_once_when_the_last_of_several_names_has_gone(connect: Backend, root: str) -> None:
    names, other = connect(), connect()
    called = threading.Semaphore(0)
    watched = [f"{root}/{number}" for number in range(3)]
    for name in watched:
        other.add(name, "here")
    watch = names.watch_names(watched, called.release, poll_frequency=0.01)
    for name in watched:
        assert not called.acquire(timeout=0.05)
        other.delete(name)
    assert called.acquire(timeout=DEADLINE)
    assert watch.join(DEADLINE)
    assert not called.acquire(blocking=False)


@everywhere
def test_a_watch_can_be_cancelled_and_ends_with_its_repository(connect: Backend, root: str) -> None:
    names = connect()
    names.add(root, "here", delete_on_exit=False)
    called: list[str] = []
    watches = [names.watch_names(root, lambda: called.append("called"), poll_frequency=0.01) for _ in range(2)]
    watches[0].cancel()
    assert [watch.done for watch in watches] == [True, False]
    names.close()
    assert watches[1].done
    connect().delete(root)
    assert called == []


@everywhere
def test_a_watch_of_a_name_that_never_comes_fails(connect: Backend, root: str) -> None:
    watch = connect().watch_names(root, lambda: pytest.fail("called"), poll_frequency=0.01, wait_timeout=0.05)
    assert watch.join(DEADLINE)
    with pytest.raises(TimeoutError, match=root):
        raise watch.error or AssertionError("no error")


@everywhere
def test_a_record_expires_without_its_owner_and_its_name_is_free(connect: Backend, root: str) -> None:
    records, names = connect.records(), connect()
    records.put(Record(f"{root}/dead", "of the dead", new_token(), 0.3), replace=False)
    names.add(f"{root}/alive", "of the living")
    wait_for_the_end(lambda: names.find_subtree(root) == [f"{root}/alive"])
    assert names.get_subtree(root) == ["of the living"]
    with pytest.raises(NameEntryNotFoundError):
        connect().get(f"{root}/dead")
    with pytest.raises(NameEntryNotFoundError):
        names.delete(f"{root}/dead")
    names.add(f"{root}/dead", "new")
    assert connect().get(f"{root}/dead") == "new"


@everywhere
def test_a_record_is_kept_alive_while_its_owner_lives(connect: Backend, root: str) -> None:
    owner, other = connect(), connect()
    owner.add(root, "here", keepalive_ttl=0.15)
    time.sleep(0.5)
    assert other.wait(root, DEADLINE) == "here"  # a machine that had no time for renewals lets it appear again
    owner.close()
    with pytest.raises(NameEntryNotFoundError):
        other.get(root)


@everywhere
def test_a_record_that_is_to_stay_expires_when_its_owner_has_closed(connect: Backend, root: str) -> None:
    owner, other = connect(), connect()
    owner.add(root, "here", delete_on_exit=False, keepalive_ttl=0.3)
    owner.close()
    wait_for_the_end(lambda: other.find_subtree(root) == [])


@everywhere
def test_renewals_and_removals_are_of_the_same_record_alone(connect: Backend, root: str) -> None:
    records = connect.records()
    old, new = (Record(root, value, new_token(), 60.0) for value in ("old", "new"))
    assert records.put(old, replace=False)
    assert records.renew(old)
    assert not records.put(new, replace=False)
    assert records.put(new, replace=True)
    assert not records.renew(old)
    assert not records.remove(root, old.token)
    assert records.get(root) == "new"
    assert records.remove(root, new.token)
    assert not records.renew(new)


@everywhere
def test_one_of_several_that_add_a_name_succeeds(connect: Backend, root: str) -> None:
    """Names that are free, and names whose records have expired."""
    records = connect.records()
    for number in range(5):
        expired(records, f"{root}/{number}")
    won = raced(connect, add_all, root)
    assert sorted(number for numbers in won for number in numbers) == [*range(10)]
    connect().clear_subtree(root)


@everywhere
def test_names_below_one_parent_come_and_go_at_the_same_time(connect: Backend, root: str) -> None:
    assert raced(connect, add_and_delete, root) == [[10]] * N_RACERS
    assert connect().find_subtree(root) == []


def add_all(names: NameRecordRepository, root: str) -> list[int]:
    won = []
    for number in range(10):
        try:
            names.add(f"{root}/{number}", str(os.getpid()), delete_on_exit=False)
            won.append(number)
        except NameEntryExistsError:
            continue
    return won


def add_and_delete(names: NameRecordRepository, root: str) -> list[int]:
    for _ in range(10):
        name = names.add_subentry(f"{root}/parent", "here", keepalive_ttl=60)
        assert name in names.find_subtree(root)
        names.delete(name)
    return [10]


def raced(connect: Backend, act: Callable[[NameRecordRepository, str], list[int]], root: str) -> list[list[int]]:
    """Returns what each of several found who act at the same time: processes where they can share names."""
    context: Any = multiprocessing.get_context("fork") if connect.kind in ("folder", "redis") else None
    make: Any = threading.Thread if context is None else context.Process
    barrier = threading.Barrier(N_RACERS) if context is None else context.Barrier(N_RACERS)
    found: Any = queue.SimpleQueue() if context is None else context.SimpleQueue()

    def run() -> None:
        with connect.connect() as names:
            barrier.wait(DEADLINE)
            found.put(act(names, root))

    racers = [make(target=run) for _ in range(N_RACERS)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(DEADLINE)
    results = []
    while not found.empty():
        results.append(found.get())
    assert len(results) == N_RACERS
    return results


@on(*SHARED)
def test_the_record_of_a_killed_process_expires(connect: Backend, root: str) -> None:
    def own() -> None:
        alive = connect.connect()  # it would delete the name when it is garbage collected
        alive.add(root, "here", keepalive_ttl=0.5)
        time.sleep(2 * DEADLINE)

    names = connect()
    owner = multiprocessing.get_context("fork").Process(target=own)
    owner.start()
    try:
        assert names.wait(root, DEADLINE) == "here"
        owner.kill()
        wait_for_the_end(lambda: names.find_subtree(root) == [])
        assert connect().find_subtree(root) == []  # for one that sees it for the first time, too
    finally:
        owner.kill()
        owner.join(DEADLINE)


@on(*SHARED)
def test_a_process_that_ends_without_close_deletes_its_names(connect: Backend, root: str) -> None:
    def own() -> None:
        alive.append(connect.connect())
        alive[0].add(f"{root}/deleted", "1")
        alive[0].add(f"{root}/kept", "2", delete_on_exit=False)

    alive: list[NameRecordRepository] = []
    owner = multiprocessing.get_context("fork").Process(target=own)
    owner.start()
    owner.join(DEADLINE)
    assert owner.exitcode == 0
    names = connect()
    assert names.find_subtree(root) == [f"{root}/kept"]
    names.delete(f"{root}/kept")


@on(*SHARED)
def test_a_forked_process_has_none_of_its_parents_names(connect: Backend, root: str) -> None:
    names = connect()
    names.add(f"{root}/parent", "here", keepalive_ttl=60)

    def use() -> None:
        names.add(f"{root}/child", names.get(f"{root}/parent"))
        names.close()

    child = multiprocessing.get_context("fork").Process(target=use)
    child.start()
    child.join(DEADLINE)
    assert child.exitcode == 0
    assert names.find_subtree(root) == [f"{root}/parent"]


@everywhere
def test_a_pickled_repository_sees_the_same_names(connect: Backend, root: str) -> None:
    names = connect()
    names.add(root, "here")
    if connect.kind == "memory":
        with pytest.raises(TypeError, match="use a folder, Redis or Ray"):
            pickle.dumps(names)
        return
    with pickle.loads(pickle.dumps(names)) as copy:
        assert copy.get(root) == "here"
    assert names.get(root) == "here"


@everywhere
def test_a_closed_repository_has_deleted_its_names_and_refuses_calls(connect: Backend, root: str) -> None:
    with connect() as names:
        names.add(f"{root}/deleted", "1")
        names.add(f"{root}/kept", "2", delete_on_exit=False)
    names.close()
    other = connect()
    assert other.find_subtree(root) == [f"{root}/kept"]
    other.delete(f"{root}/kept")
    calls: list[Callable[[], object]] = [
        lambda: names.add(root, "value"),
        lambda: names.get(root),
        lambda: names.find_subtree(root),
        lambda: names.delete(root),
        lambda: names.clear_subtree(root),
        lambda: names.wait(root, DEADLINE),
        lambda: names.watch_names(root, lambda: None),
        lambda: names.reset(),
        lambda: names.__enter__(),
    ]
    for call in calls:
        with pytest.raises(NameEntryError, match="closed"):
            call()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty part"),
        ("/a", "empty part"),
        ("a/", "empty part"),
        ("a//b", "empty part"),
        ("../a", r'part "\."'),
        ("a/./b", r'part "\."'),
        ("a\0b", "cannot be printed"),
        ("a\nb", "cannot be printed"),
        ("a\ud800", "cannot be printed"),
        ("a" * (MAX_NAME + 1), "at most 240"),
        ("ä" * (MAX_NAME // 6 + 1), "at most 240"),
    ],
)
def test_invalid_names_are_refused(name: str, why: str) -> None:
    with MemoryNameRecordRepository() as names:
        calls: list[Callable[[], object]] = [
            lambda: names.add(name, "value"),
            lambda: names.add_subentry(name, "value"),
            lambda: names.get(name),
            lambda: names.find_subtree(name),
            lambda: names.delete(name),
            lambda: names.clear_subtree(name),
            lambda: names.wait(name, 0.0),
            lambda: names.watch_names(["good", name], lambda: None),
        ]
        for call in calls:
            with pytest.raises(ValueError, match=why):
                call()


@everywhere
def test_the_longest_names_can_be_used(connect: Backend) -> None:
    names = connect()
    for name in ("a" * MAX_NAME, "a" * 118 + "/" + "b" * 121, "ä" * (MAX_NAME // 6)):
        names.add(name, "value")
        assert names.find_subtree(name) == [name]


def test_invalid_values_and_times_are_refused() -> None:
    with MemoryNameRecordRepository() as names:
        for value in ("x" * (MAX_VALUE + 1), "é" * (MAX_VALUE // 2 + 1), "\udcff"):
            with pytest.raises(ValueError, match="value "):
                names.add("a", value)
        with pytest.raises(TypeError, match="value must be a string, got bytes"):
            names.add("a", b"value")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="name must be a string, got int 3"):
            names.get(3)  # type: ignore[arg-type]
        for ttl in (0, -1, 0.01, float("inf"), float("nan")):
            with pytest.raises(ValueError, match=r"keepalive_ttl must be at least 0\.1 seconds"):
                names.add("a", "value", keepalive_ttl=ttl)
        with pytest.raises(TypeError, match="timeout must be a number of seconds, got NoneType"):
            names.wait("a", None)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="at least one name"):
            names.watch_names([], lambda: None)
        assert names.find_subtree("a") == []
