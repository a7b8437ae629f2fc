"""Breaks one line after the other, in copies of the package, and runs the tests that must fail.

Names on the command line choose mutants by a part of their file: `python -m tests.mutants samplers/loop`.
"""

from __future__ import annotations

import ast
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import pytest

from tests.mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent.parent
N_PROCESSES = 2
CAUGHT = "caught"
#: Each of their modules has a mutant.
ROOMS = ("samplers", "envs", "buffers", "processes", "replays")
#: Loaded once, for all the processes that are forked here.
LIBRARIES = ("gymnasium", "matplotlib", "torch")


def prepare(mutant: Mutant, copy: Path) -> str:
    """Makes a copy of the package with the line broken; says if that cannot be done."""
    for name in ("headrace", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    path = copy / mutant.file
    whole = path.read_text()
    path.write_text(whole.replace(mutant.line, mutant.broken))
    n_found = whole.count(mutant.line)
    return "" if n_found == 1 else f"is out of date: its line is in the file {n_found} times"


def try_one(mutant: Mutant, copy: Path, tell: Connection) -> None:
    """Runs in a process that has loaded nothing of the package; sends "caught", "passed", or what is wrong."""
    if complaint := prepare(mutant, copy):
        tell.send(complaint)
        return
    for name in [name for name in sys.modules if name.split(".")[0] in ("headrace", "tests")]:
        del sys.modules[name]
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    with Path(os.devnull).open("w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not (slow or gpu)", mutant.test])
    found = {pytest.ExitCode.OK: "passed", pytest.ExitCode.TESTS_FAILED: CAUGHT}
    tell.send(found.get(pytest.ExitCode(status), f"could not be tried ({status!r})"))


def try_all(mutants: Sequence[Mutant], folder: Path) -> Iterator[tuple[Mutant, str]]:
    """Each mutant with what `try_one` tells, as they come."""
    fork = multiprocessing.get_context("fork")
    left = deque(enumerate(mutants))
    running: dict[Connection, tuple[multiprocessing.process.BaseProcess, Mutant, Path]] = {}
    while left or running:
        while left and len(running) < N_PROCESSES:
            number, mutant = left.popleft()
            hear, tell = fork.Pipe(duplex=False)
            process = fork.Process(target=try_one, args=(mutant, folder / str(number), tell))
            process.start()
            tell.close()
            running[hear] = process, mutant, folder / str(number)
        for ready in wait([*running], timeout=60.0):
            hear = cast("Connection[Any, Any]", ready)
            ended, mutant, copy = running.pop(hear)
            try:
                found = hear.recv()
            except EOFError:
                found = CAUGHT  # it ended the tests and all
            ended.join(60.0)
            ended.kill()
            shutil.rmtree(copy, ignore_errors=True)
            yield mutant, found


def without_mutant() -> list[str]:
    """Modules of the rooms that collect, store or start something which define a function, and have no mutant."""
    broken = {mutant.file for mutant in MUTANTS}
    modules = [path for room in ROOMS for path in sorted((ROOT / "headrace" / room).rglob("*.py"))]
    return [
        name
        for path in modules
        if (name := str(path.relative_to(ROOT))) not in broken
        and any(isinstance(node, ast.FunctionDef) for node in ast.walk(ast.parse(path.read_text())))
    ]


def main() -> int:
    """Returns the number of mutants that were not noticed, of test files that fail in unbroken code, and of modules
    without a mutant.
    """
    without = without_mutant()
    for name in without:
        print(f"{name} has no mutant", flush=True)
    chosen = [mutant for mutant in MUTANTS if not sys.argv[1:] or any(part in mutant.file for part in sys.argv[1:])]
    for library in LIBRARIES:
        importlib.import_module(library)
    # A test file that fails here without a broken line would catch every mutant.
    unbroken = {mutant.test: mutant._replace(broken=mutant.line) for mutant in chosen}
    failing, survivors = set(), 0
    with tempfile.TemporaryDirectory() as folder:
        for mutant, found in try_all([*unbroken.values()], Path(folder)):
            if not found.startswith("passed"):
                failing.add(mutant.test)
                print(f"{mutant.test} fails in unbroken code ({found})", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for mutant, found in try_all([mutant for mutant in chosen if mutant.test not in failing], Path(folder)):
            survivors += found != CAUGHT
            print(f"{mutant.file}: {mutant.broken.strip()!r} {found} ({mutant.test})", flush=True)
    print(
        f"{survivors} of {len(chosen)} mutants were not caught; {len(failing)} of {len(unbroken)} test files fail in "
        f"unbroken code; {len(without)} modules have no mutant"
    )
    return survivors + len(failing) + len(without)


if __name__ == "__main__":
    raise SystemExit(main())
