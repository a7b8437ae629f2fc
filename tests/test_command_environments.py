"""Commands try an environment in a child process; an error there is a single line."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

from headrace.cli.environments import factory_of, spaces_of
from headrace.cli.errors import CommandFailed, UsageError
from headrace.cli.video import require_video
from headrace.samplers.config import SamplerOptions
from headrace.types import EnvSpaces
from tests.leftovers import DEADLINE
from tests.walk import Walk

#: Processes in which `Marks` was made, as this process sees it.
MADE_IN: list[int] = []


class Marks(Walk):
    """Leaves a trace in the process that makes it, as a graphics context does."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        MADE_IN.append(os.getpid())
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (size,), np.float32)

    def render(self) -> Any:
        return np.zeros((4, 4, 3), np.uint8)


class OddSpace(gymnasium.spaces.Box):
    """Cannot be sent to another process."""

    def __init__(self) -> None:
        super().__init__(-1.0, 1.0, (3,), np.float32)
        self.note = lambda: None


class Odd(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = OddSpace()


def crashes() -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs() -> Any:
    time.sleep(DEADLINE)


def leaves() -> Any:
    raise SystemExit(3)


def refuses() -> Any:
    raise RuntimeError("no screen here")


def nothing() -> Any:
    return "an environment"


def made(name: str, **kwargs: Any) -> EnvSpaces:
    return spaces_of(factory_of(f"{__name__}:{name}", kwargs))


def test_environment_is_not_made_in_the_process_of_the_command() -> None:
    assert made("Marks", size=5) == EnvSpaces(
        gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32), gymnasium.spaces.Discrete(3)
    )
    assert MADE_IN == []


def test_rendering_is_tried_in_a_child_process() -> None:
    pytest.importorskip("imageio_ffmpeg")
    require_video(factory_of(f"{__name__}:Marks", {}), "auto")
    assert MADE_IN == []
    with pytest.raises(CommandFailed, match=r"returned a NoneType, expected a uint8 array \[H, W, 3\]"):
        require_video(factory_of(f"{__name__}:Unseen", {}), "auto")


class Unseen(Walk):
    def render(self) -> Any:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_child_process_uses_the_start_method_of_workers(start_method: str) -> None:
    spaces = spaces_of(factory_of("tests.walk:Walk", {}), start_method)
    assert spaces.action == gymnasium.spaces.Discrete(3)


def test_environment_whose_constructor_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SamplerOptions, "start_timeout", 0.5)
    with pytest.raises(CommandFailed, match=r"^WorkerHung: the process that tries the environment made no progress"):
        made("hangs")


@pytest.mark.parametrize(
    ("look", "kind", "says"),
    [
        (lambda: made("crashes"), CommandFailed, "WorkerCrashed: the process that tries the environment was killed by"),
        (lambda: made("leaves"), CommandFailed, "SystemExit: 3"),
        (lambda: made("refuses"), CommandFailed, "refuses could not be made: RuntimeError: no screen here"),
        (lambda: made("nothing"), CommandFailed, "nothing returned a str, not a gymnasium.Env; subclass"),
        (lambda: made("Odd"), CommandFailed, "Odd: its spaces cannot be pickled"),
        (lambda: made("Marks", width=3), UsageError, "its arguments go into --env-kwargs"),
    ],
    ids=["crash", "exit", "error", "no environment", "odd spaces", "wrong arguments"],
)
def test_failure_in_the_child_process_is_one_line(
    look: Callable[[], EnvSpaces], kind: type[CommandFailed], says: str
) -> None:
    with pytest.raises(CommandFailed) as caught:
        look()
    assert type(caught.value) is kind
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "worker 0" not in str(caught.value)
