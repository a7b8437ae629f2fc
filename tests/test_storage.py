"""Folders that outlive programs: the lock on what several processes change, and the one closed to other users."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

from headrace.services import ParameterDBClient
from headrace.storage import file_lock, state_folder
from tests.leftovers import DEADLINE, until

FORK = multiprocessing.get_context("fork")
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user, which root alone may do")
NOBODY = 65534


class Busy(Exception):
    """What the tests let a lock raise."""


def test_a_lock_that_a_stopped_process_holds_names_it_and_is_released_by_its_death(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = FORK.Event()

    def hold() -> None:
        with file_lock(path, DEADLINE, Busy):
            held.set()
            signal.pause()

    holder = FORK.Process(target=hold)
    holder.start()
    try:
        assert holder.pid is not None
        assert held.wait(DEADLINE)
        os.kill(holder.pid, signal.SIGSTOP)
        with (
            pytest.raises(
                Busy, match=rf"process {holder.pid} has been writing in {tmp_path} for 0.05 seconds.*stopped"
            ),
            file_lock(path, 0.05, Busy),
        ):
            pytest.fail("two hold the lock")
    finally:
        holder.kill()
    with file_lock(path, DEADLINE, Busy):
        pass
    holder.join(DEADLINE)


def test_a_lock_excludes_processes_and_threads(tmp_path: Path) -> None:
    """Each adds one to a number in a file, which is lost if two do so at once."""
    path = tmp_path / "number"
    path.write_text("0")

    def add() -> None:
        for _ in range(50):
            with file_lock(tmp_path / "lock", DEADLINE, Busy):
                path.write_text(str(int(path.read_text()) + 1))

    def add_in_threads() -> None:
        threads = [threading.Thread(target=add) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)

    processes = [FORK.Process(target=add_in_threads) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(DEADLINE)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert path.read_text() == "300"


def test_a_process_that_was_forked_under_a_lock_does_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path, DEADLINE, Busy):
        child = FORK.Process(target=signal.pause)
        child.start()
    try:
        assert until(lambda: child.is_alive())
        with file_lock(path, 0.0, Busy):
            pass
    finally:
        child.kill()
        child.join(DEADLINE)


@pytest.mark.parametrize("busy", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_a_file_server_refuses_is_waited_for_and_other_errors_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: int
) -> None:
    lock, answers = fcntl.flock, [busy, busy]

    def flock(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and answers:
            raise OSError(answers.pop(), "not now")
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with file_lock(tmp_path / "lock", DEADLINE, Busy):
        assert answers == []
    answers.append(errno.ENOLCK)
    with pytest.raises(OSError, match="not now"), file_lock(tmp_path / "lock", DEADLINE, Busy):
        pytest.fail("locked without a lock")


def test_a_lock_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"), file_lock(tmp_path / "lock", 0.0, Busy):
        pytest.fail("the link was followed")
    assert not (tmp_path / "elsewhere").exists()


# ---- the state folder ----


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_the_state_folder_is_closed_to_other_users(home: Path) -> None:
    before = os.umask(0)
    try:
        folder = state_folder("things")
        assert (folder, mode_of(folder)) == (home / "headrace", 0o700)
        folder.chmod(0o755)  # by an earlier version
        assert mode_of(state_folder("things")) == 0o700
        with ParameterDBClient("experiment", "trial") as db:
            assert db.folder.is_relative_to(folder)
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o720, 0o1777])
def test_a_state_folder_that_others_could_write_into_is_refused(home: Path, mode: int) -> None:
    folder = state_folder("things")
    folder.chmod(mode)
    remedy = rf"mode {mode:04o}\) and change parameters; look at what is in it, then run `chmod 700 {folder}`"
    with pytest.raises(PermissionError, match=remedy):
        ParameterDBClient("experiment", "trial")
    assert mode_of(folder) == mode
    folder.chmod(0o700)
    ParameterDBClient("experiment", "trial").close()


@AS_ROOT
@pytest.mark.parametrize("of_the_link", [False, True])
def test_a_state_folder_of_another_user_is_refused(home: Path, tmp_path: Path, of_the_link: bool) -> None:
    folder = state_folder("things")
    if of_the_link:
        folder.rename(tmp_path / "moved")
        folder.symlink_to(tmp_path / "moved")
    os.chown(folder, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(PermissionError, match=rf"{folder} belongs to another user, who could change parameters"):
        ParameterDBClient("experiment", "trial")
    os.chown(folder, os.geteuid(), os.getegid(), follow_symlinks=False)
    ParameterDBClient("experiment", "trial").close()  # a link of one's own is followed
