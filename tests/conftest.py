"""What every test leaves behind is checked: no process, no thread, no name in /dev/shm."""

import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

torch.set_num_threads(1)  # two cores, and workers besides


def other_processes() -> set[int]:
    """Descendants of this process, but for the fork server and the resource tracker, which Python keeps."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
        except psutil.Error:
            continue
        own_server = "multiprocessing.forkserver" in command and child.ppid() == psutil.Process().pid
        if not own_server and "multiprocessing.resource_tracker" not in command:
            found.add(child.pid)
    return found


@pytest.fixture(autouse=True, scope="session")
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's own state directory stays as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """Fails a test that leaves a process, a thread or shared memory with a name."""
    shm = set(Path("/dev/shm").iterdir())
    threads = set(threading.enumerate())
    yield
    multiprocessing.active_children()  # reaps
    assert other_processes() == set()
    assert set(threading.enumerate()) <= threads
    assert set(Path("/dev/shm").iterdir()) <= shm
