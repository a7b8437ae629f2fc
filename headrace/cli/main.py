"""The entry point `headrace`: runs a command, and turns its errors into one line and an exit status."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version

from headrace.cli.errors import CommandFailed, UsageError, unknown
from headrace.errors import CheckpointError, SamplerError

__all__ = ["main"]

#: For each command, the module with its function `run(args)`, and what it does.
_COMMANDS = {
    "train": ("headrace.cli.train", "train an agent, evaluate it, save a checkpoint and a learning curve"),
    "check-env": ("headrace.cli.check_env", "name each clause of the contract that an environment breaks"),
    "eval": ("headrace.cli.eval", "evaluate the agent of a run, and record videos of it"),
    "bench": ("headrace.cli.bench", "compare the samplers on this machine, and say which one to use"),
    "launch": ("headrace.cli.launch", "run an experiment of actor, policy, trainer and evaluation workers"),
    "top": ("headrace.cli.top", "show what the workers of such a run are doing"),
    "plot": ("headrace.cli.plot", "compare runs in one picture, with bands over seeds"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 1 after an error, 2 for wrong usage, 130 after Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(args)
        finally:
            if argv is None:  # the program ends, and another Ctrl-C must change neither its output nor its status
                signal.signal(signal.SIGINT, signal.SIG_IGN)
    except CommandFailed as error:
        return _complain(error, error.status)
    except KeyboardInterrupt as error:
        return _complain(str(error) or "interrupted", 130)
    except (SamplerError, CheckpointError, FloatingPointError, OSError) as error:
        return _complain(error, 1)


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print("usage: headrace COMMAND [OPTIONS]\n")
        for name, (_, purpose) in _COMMANDS.items():
            print(f"  {name:<10}{purpose}")
        print("\nheadrace COMMAND --help lists the options of a command.")
        if args:
            return 0
        raise UsageError("give a command, for example: headrace train --env CartPole-v1")
    if args[0] == "--version":
        print(f"headrace {version('headrace')}")
        return 0
    if args[0] not in _COMMANDS:
        raise unknown("command", args[0], _COMMANDS)
    module, _ = _COMMANDS[args[0]]
    try:
        command = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "tyro":
            raise
        raise CommandFailed('the command line needs tyro; pip install "headrace[cli]"') from error
    status: int = command.run(args[1:])
    return status


def _complain(error: object, status: int) -> int:
    """Prints an error on one line of standard error; returns `status`."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:  # without the error's number
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    print("headrace: " + " ".join(text.split()), file=sys.stderr)
    return status
