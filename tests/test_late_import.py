"""Callbacks on the first import of a module."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.processes.late_import import LateImport

NAME = "imported_late"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / f"{NAME}.py"
    path.write_text("value = 1\n")
    importlib.invalidate_caches()
    yield path
    sys.modules.pop(NAME, None)


@pytest.fixture
def calls() -> list[int]:
    """The value of the module at each call."""
    return []


@pytest.fixture
def called(calls: list[int]) -> Callable[[], None]:
    return lambda: calls.append(sys.modules[NAME].value)


def test_callback_runs_once_after_the_module_was_imported(
    module: Path, calls: list[int], called: Callable[[], None]
) -> None:
    hook = LateImport(NAME, called)
    importlib.import_module("colorsys")
    assert calls == []
    imported = importlib.import_module(NAME)
    assert calls == [1]
    assert imported.__file__ == str(module)
    assert hook not in sys.meta_path
    importlib.reload(imported)
    assert calls == [1]


def test_callback_that_was_cancelled_does_not_run(module: Path, calls: list[int], called: Callable[[], None]) -> None:
    hook = LateImport(NAME, called)
    hook.forget()
    hook.forget()
    assert importlib.import_module(NAME).value == 1
    assert calls == []


def test_callback_does_not_run_for_a_module_that_raises(
    module: Path, calls: list[int], called: Callable[[], None]
) -> None:
    LateImport(NAME, called)
    module.write_text("raise ValueError('half imported')\n")
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match="half imported"):
        importlib.import_module(NAME)
    assert calls == []
