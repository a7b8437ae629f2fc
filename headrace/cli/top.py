"""`headrace top`: shows what the workers of a run are doing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.cli.errors import CommandFailed, UsageError
from headrace.cli.options import Positional, parse_options
from headrace.system.progress import table

__all__ = ["TopOptions", "run"]

_PROG = "headrace top"
_CLEAR = "\033[H\033[2J"


@dataclass(kw_only=True)
class TopOptions:
    """Shows the workers of a run that `headrace launch` started: their states, rates, queues and restarts."""

    run: Positional[Path] = Path()
    """The folder of the run."""
    json: bool = False
    """Print the present state once, as JSON."""
    once: bool = False
    """Print the table once."""
    interval: float = 1.0
    """Seconds between two looks."""


def run(args: Sequence[str]) -> int:
    """Shows the run until Ctrl-C; returns the exit status."""
    options = parse_options(TopOptions(), _PROG, args)
    if not options.interval > 0:
        raise UsageError(f"--interval must be above 0, got {options.interval}")
    if options.run == Path():
        raise UsageError(f"give the folder of a run, for example: {_PROG} runs/cartpole/default")
    before, begin = None, time.monotonic()
    while True:
        state = _state(options.run)
        if options.json:
            print(json.dumps(state))
            return 0
        now = time.monotonic()
        lines = table(state, before, now - begin)
        if not options.once and sys.stdout.isatty():
            print(_CLEAR, end="")
        print("\n".join(lines), flush=True)
        if options.once:
            return 0
        before, begin = state, now
        time.sleep(options.interval)


def _state(folder: Path) -> Any:
    path = folder / "status.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise CommandFailed(f"{folder} has no status.json; it is no run of headrace launch") from None
    except ValueError as error:
        raise CommandFailed(f"{path} is damaged: {error}") from None
