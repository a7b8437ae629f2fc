"""A program that owns a name: `python -m tests.name_owner address name seconds`, told by lines what to do.

It adds the name and says "added"; then, for each line that it reads, it says "own" or the error of `require_own`.
Each record that it lost is a line "lost", with "given up" or "kept".
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import IO

from headrace.errors import NameEntryError
from headrace.services import (
    LostRecord,
    NFSNameRecordRepository,
    RayNameRecordRepository,
    RedisNameRecordRepository,
)
from tests.leftovers import DEADLINE, until

__all__ = ["Owner", "owner_elsewhere"]


class Owner:
    """The program, running."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: Queue[str] = Queue()
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()

    def said(self) -> str:
        """Returns the next line, which has to come."""
        return self._lines.get(timeout=DEADLINE)

    def asked(self) -> str:
        """Returns what it says of its name; what was lost is said before."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.said()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self._process.pid}/stat")
        assert until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(DEADLINE)

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self._lines.put(line.rstrip("\n"))


@contextmanager
def owner_elsewhere(address: str, name: str, seconds: float, environ: Mapping[str, str]) -> Iterator[Owner]:
    """Runs the program until the end of the context; yields it when it has added the name."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.name_owner", address, name, str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
    with process:
        owner = Owner(process)
        try:
            assert owner.said() == "added"
            yield owner
        finally:
            owner.kill()


def main(address: str, name: str, seconds: str) -> None:
    def tell(lost: LostRecord) -> None:
        print("lost", "given up" if lost.given_up else "kept", flush=True)

    names: NFSNameRecordRepository | RedisNameRecordRepository | RayNameRecordRepository
    if address == "ray":
        names = RayNameRecordRepository(on_lost=tell)
    elif address.startswith("redis://"):
        names = RedisNameRecordRepository(address, on_lost=tell)
    else:
        names = NFSNameRecordRepository(address, on_lost=tell)
    names.add(name, "of the owner", keepalive_ttl=float(seconds))
    print("added", flush=True)
    for _ in sys.stdin:
        try:
            names.require_own(name)
            print("own", flush=True)
        except NameEntryError as error:
            print(f"{type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
