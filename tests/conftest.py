"""What every test leaves behind is checked: no process, no thread, no name in /dev/shm."""

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
    """What needs CUDA is left out where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


def pytest_collection_finish() -> None:
    """What was loaded by now stays, so that the garbage collections of tests and of their workers need not look."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's own state directory stays as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True, scope="session")
def patience() -> Iterator[None]:
    """On a busy machine the interpreter that tries copies of environments may start late."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headrace.envs.copy_trial._WAIT_SECONDS", DEADLINE)
        yield


class TriedHere:
    """`FreshInterpreter` that calls its function here and now."""

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
    """For tests that write checkpoints of environments that behave: trying their copies starts no interpreter."""
    monkeypatch.setattr("headrace.envs.copy_trial.FreshInterpreter", TriedHere)


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """Fails a test that leaves a process, a thread or shared memory with a name, and ends what it left: a leak is one
    failure, and not that of every test behind it.
    """
    before = Leftovers()
    yield
    assert before.new() == []
