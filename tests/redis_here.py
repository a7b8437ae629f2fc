"""A Redis server of the tests' own, on loopback."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.leftovers import DEADLINE, until

__all__ = ["NEEDS_REDIS", "RedisServer"]

NEEDS_REDIS = pytest.mark.skipif(
    shutil.which("redis-server") is None or importlib.util.find_spec("redis") is None,
    reason='needs the program redis-server (Debian: apt-get install redis-server) and pip install "headrace[redis]"',
)
_TRIES = 5  # to find a port that nobody else takes before the server does


class RedisServer:
    """A server that keeps nothing on disk; it can be killed and started again, empty, at the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        for _ in range(_TRIES):
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port: int = free.getsockname()[1]
            if self.start():
                return
        raise AssertionError(f"redis-server did not start in {_TRIES} tries")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> bool:
        """Returns whether the server runs."""
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self._folder}
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
        assert until(lambda: process.poll() is not None or self._answers())
        self._process = process
        return process.poll() is None

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(DEADLINE)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Lets the server do nothing for a while."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(5) == b"+PONG"
        except OSError:
            return False
