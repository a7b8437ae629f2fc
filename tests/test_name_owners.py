"""Owners of names in other programs, which are killed, stopped and continued, and hostile names, on all stores."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import NameEntryError, NameEntryNotFoundError, NameLost
from headrace.services import RedisNameRecordRepository
from headrace.services.names.records import MAX_NAME
from tests.leftovers import DEADLINE, until
from tests.name_owner import Owner, owner_elsewhere
from tests.name_stores import RAY, SHARED, Backend, connect, everywhere, on, root, store, wait_for_the_end
from tests.redis_here import NEEDS_REDIS, RedisServer

__all__ = ["connect", "root", "store"]  # fixtures

TTL = 1.0
shared = on(*SHARED, RAY)


def gone(connect: Backend, root: str) -> None:
    """Waits until the name is gone for one that has known it, and sees that it is for one that has not."""
    names = connect()
    wait_for_the_end(lambda: names.find_subtree(root) == [])
    with pytest.raises(NameEntryNotFoundError):
        connect().get(root)


@shared
@pytest.mark.parametrize("end", [Owner.kill, Owner.stop])
def test_a_name_expires_when_its_owner_is_killed_or_stopped(
    connect: Backend, root: str, end: Callable[[Owner], None]
) -> None:
    names = connect()
    called = threading.Event()
    with owner_elsewhere(connect.address, root, TTL, connect.environ) as owner:
        assert owner.asked() == "own"
        watch = names.watch_names(root, called.set, poll_frequency=0.02)
        end(owner)
        gone(connect, root)
        assert called.wait(DEADLINE)
        assert watch.join(DEADLINE)
        names.add(root, "new")
        assert connect().get(root) == "new"


@shared
def test_a_stopped_owner_that_continues_learns_that_another_has_its_name(connect: Backend, root: str) -> None:
    names = connect()
    with owner_elsewhere(connect.address, root, TTL, connect.environ) as owner:
        assert owner.asked() == "own"
        owner.stop()
        gone(connect, root)
        names.add(root, "of another", keepalive_ttl=60)
        owner.resume()
        assert owner.said() == "lost given up"
        assert owner.asked().startswith(f"NameLost: name '{root}' was lost after ")
        assert connect().get(root) == "of another"
        names.require_own(root)


@shared
def test_a_stopped_owner_whose_name_nobody_took_has_it_again_and_is_told(connect: Backend, root: str) -> None:
    with owner_elsewhere(connect.address, root, TTL, connect.environ) as owner:
        owner.stop()
        gone(connect, root)
        owner.resume()
        assert owner.said() == "lost kept"
        assert owner.asked() == "own"
        assert connect().get(root) == "of the owner"


@everywhere
def test_an_owner_can_ask_whether_a_name_is_still_its_own(connect: Backend, root: str) -> None:
    owner, other = connect(), connect()
    for name in ("kept", "deleted", "replaced"):
        owner.add(f"{root}/{name}", "here", keepalive_ttl=60)
        owner.require_own(f"{root}/{name}")
    other.delete(f"{root}/deleted")
    other.add(f"{root}/replaced", "new", replace=True)
    owner.require_own(f"{root}/kept")
    for _ in range(2):  # and it remembers
        for name in ("deleted", "replaced"):
            with pytest.raises(
                NameLost, match=rf"name '{root}/{name}' was lost after .*deleted, or its name has another"
            ):
                owner.require_own(f"{root}/{name}")
    assert [(lost.name, lost.given_up) for lost in owner.lost] == [
        (f"{root}/deleted", True),
        (f"{root}/replaced", True),
    ]
    assert other.get(f"{root}/replaced") == "new"
    owner.add(f"{root}/deleted", "again", keepalive_ttl=60)
    owner.require_own(f"{root}/deleted")
    owner.add(f"{root}/staying", "here")
    for name in ("staying", "replaced", "unknown"):
        with pytest.raises(NameEntryNotFoundError, match="was not added with keepalive_ttl by this repository"):
            other.require_own(f"{root}/{name}")


@NEEDS_REDIS
def test_nobody_knows_whose_a_name_is_while_the_store_is_down(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    with RedisNameRecordRepository(server.url) as names:
        names.add("a", "here", keepalive_ttl=60)
        server.kill()
        with pytest.raises(NameEntryError, match=r"nobody knows whose name 'a' is now: .*Redis at") as caught:
            names.require_own("a")
        assert type(caught.value) is NameEntryError
        assert server.start()
        names.require_own("a")  # it came back empty, and has the record again
        assert names.get("a") == "here"
    server.kill()


@NEEDS_REDIS
def test_waiting_ends_in_time_if_the_server_does_nothing(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    with RedisNameRecordRepository(server.url, timeout=0.1) as names:
        with server.stopped():
            with pytest.raises(TimeoutError, match=r"no value within 0\.05 s \(Redis at .* failed"):
                names.wait("a", 0.05)
            watch = names.watch_names("a", lambda: pytest.fail("called"), poll_frequency=0.01, wait_timeout=0.05)
            assert watch.join(DEADLINE)
            assert isinstance(watch.error, TimeoutError)
        names.add("a", "here")
        assert names.wait("a", DEADLINE) == "here"
    server.kill()


# ---- many at once ----


def more_than(numbers: list[int], least: int) -> bool:
    return min(numbers) > least


@everywhere
def test_a_subtree_is_cleared_while_others_add_to_it(connect: Backend, root: str) -> None:
    """Everything that was there before is gone, nothing beside it, and who adds is never disturbed."""
    names, problems, n_added = connect(), [], [0, 0]
    done = threading.Event()
    names.add(f"{root}x", "beside")

    def add(number: int) -> None:
        try:
            with connect.connect() as own:
                while not done.is_set():
                    n_added[number] += 1
                    own.add(f"{root}/{number}/{n_added[number]}", "here", delete_on_exit=False)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        enough = max(n_added) + 2
        assert until(partial(more_than, n_added, enough))
        there = {*names.find_subtree(root)}
        names.clear_subtree(root)
        assert not there & {*names.find_subtree(root)}
    done.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert problems == []
    names.clear_subtree(root)
    assert names.find_subtree(root) == []
    assert names.get(f"{root}x") == "beside"


# ---- hostile names ----

PIECES = [
    *("..", ".", "/", "//", "~", "*", "?", "[a-z]", "{}", "\\", "%2F", "%", "+", " ", "\n", "\0", "\x1b[2J", "$(id)"),
    *(
        "`id`",
        ";",
        "|",
        "&",
        "'",
        '"',
        "a",
        "ä",
        "名",
        "\u202e",
        "\ud800",
        "😀",
        "lock",
        ".name",
        ".tmp",
        "instance",
        "-",
        "#",
    ),
]


def hostile_names() -> list[str]:
    draw = np.random.default_rng(0)
    return [
        *("", "/", "/etc/passwd", "../../etc/passwd", "a/../b", "..", "a/", "~/x", "-rf", "CON", "*", "a" * 10_000),
        *(
            "a" * 2**20,
            "ä" * 2**20,
            "../" * 2**18,
            "\n" * 2**20,
            "\ud800",
            "a\0b",
            "lock",
            "instance",
            "a.name",
            ".name",
            "a\u0301",
            "á",
        ),
        *("".join(PIECES[index] for index in draw.integers(0, len(PIECES), draw.integers(1, 6))) for _ in range(180)),
    ]


@everywhere
def test_hostile_names_are_refused_or_taken_literally(connect: Backend, root: str, tmp_path: Path) -> None:
    names = connect()
    beside = {*Path(connect.address).parent.iterdir()} if connect.kind == "folder" else set()
    added: dict[str, str] = {}
    refusals = []
    for number, name in enumerate(hostile_names()):
        whole = f"{root}/{name}"
        if whole in added:
            continue
        try:
            names.add(whole, str(number))
            added[whole] = str(number)
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert max(map(len, refusals)) < 300
    assert len(added) > 50
    assert all(name.isprintable() and len(name) <= MAX_NAME for name in added)
    assert not any(part in ("", ".", "..") for name in added for part in name.split("/"))
    other = connect()
    assert {name: other.get(name) for name in added} == added
    assert other.find_subtree(root) == sorted(added)
    if connect.kind == "folder":
        assert {*Path(connect.address).parent.iterdir()} == beside
        assert all(path.parent == Path(connect.address) for path in Path(connect.address).rglob("*"))
    for name in added:
        other.delete(name)
    assert names.find_subtree(root) == []
