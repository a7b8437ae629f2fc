"""Breaks one line after the other, in copies of the package, and runs the tests that must fail.

Names on the command line choose mutants by a part of their file: `python -m tests.mutants samplers/loop`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent.parent
N_COPIES = 2
DEADLINE = 900.0  # seconds for the tests of one mutant; who takes longer hangs, and has been noticed
_FAILED = 1  # the exit status of pytest


def copied(folder: Path) -> Path:
    """The package and its tests, to be broken."""
    for name in ("headrace", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def outcome(mutant: Mutant, copy: Path) -> str:
    """ "caught", or why it is not."""
    path = copy / mutant.file
    whole = path.read_text()
    if whole.count(mutant.line) != 1:
        return f"is out of date: the file has its line {whole.count(mutant.line)} times"
    path.write_text(whole.replace(mutant.line, mutant.broken))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not (slow or gpu)", mutant.test],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "caught"
    finally:
        path.write_text(whole)
    return "caught" if done.returncode == _FAILED else f"passed (status {done.returncode})"


def main() -> int:
    """The number of mutants that nobody noticed."""
    chosen = [mutant for mutant in MUTANTS if not sys.argv[1:] or any(part in mutant.file for part in sys.argv[1:])]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(N_COPIES) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(N_COPIES):
            copies.put(copied(Path(folder) / str(number)))

        def tried(mutant: Mutant) -> str:
            copy = copies.get()
            try:
                return outcome(mutant, copy)
            finally:
                copies.put(copy)

        survivors = 0
        for mutant, found in zip(chosen, pool.map(tried, chosen), strict=True):
            survivors += found != "caught"
            print(f"{mutant.file}: {mutant.broken.strip()!r} {found} ({mutant.test})", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants were caught")
    return survivors


if __name__ == "__main__":
    raise SystemExit(main())
