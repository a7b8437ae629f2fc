"""Fixtures for all tests; after each test they check that it left no process, no thread and no name in /dev/shm."""

import gc
import importlib
import signal
from collections.abc import Callable, Iterator

import pytest
import torch

from tests.leftovers import DEADLINE, Leftovers

torch.set_num_threads(1)  # two cores, and workers besides
# A shell lets what it runs in the background ignore Ctrl-C, and the programs of tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests that need CUDA on machines without it."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


def pytest_collection_finish() -> None:
    """Excludes all objects that exist now from garbage collections, in tests and in workers, which saves time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gives the tests their own state directory instead of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True, scope="session")
def patience() -> Iterator[None]:
    """Waits longer for the interpreter that tries copies of environments, which may start late on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headrace.envs.copy_trial._WAIT_SECONDS", DEADLINE)
        yield


class TriedHere:
    """A `FreshInterpreter` that calls its function in the test's own process."""

    exitcode = 0

    def __init__(self, function: str, argument: bytes, seconds: float) -> None:
        module, _, name = function.partition(":")
        self.answer: str = getattr(importlib.import_module(module), name)(argument)

    def ended(self, seconds: float, tick: Callable[[], None]) -> bool:
        return True

    def close(self) -> None:
        pass


@pytest.fixture
def copies_tried_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries copies of environments in the test's own process, so that no interpreter is started."""
    monkeypatch.setattr("headrace.envs.copy_trial.FreshInterpreter", TriedHere)


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """Fails a test that leaves a process, a thread or named shared memory, and removes it, so that later tests do not
    fail.
    """
    before = Leftovers()
    yield
    assert before.new() == []
