"""Errors that end a command: one line of text, and an exit status."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from headrace.config import nearest_name

__all__ = ["CommandFailed", "UsageError", "no_such_file", "require_at_least", "unknown"]


class CommandFailed(Exception):
    """Ends the program with its text, on one line, and with exit status `status`."""

    status = 1


class UsageError(CommandFailed):
    """Raised if the command line is wrong; the text says what to write instead."""

    status = 2


def unknown(what: str, name: str, known: Iterable[str], listing: str = "") -> UsageError:
    """Returns the error for an unknown name, which suggests the most similar known name.

    Args:
        what: what the name should name, e.g. "sampler".
        name: the unknown name.
        known: all known names.
        listing: what to say if no known name is similar. Default: all known names.
    """
    names = sorted(known)
    # Compare without the module before an id: it is the same in all names, which would make all of them similar.
    bare = {one.rpartition(":")[2]: one for one in names}
    near = nearest_name(name.rpartition(":")[2], bare)
    remedy = f"did you mean {bare[near]!r}?" if near else listing or f"choose one of {', '.join(names)}"
    return UsageError(f"unknown {what} {name!r}; {remedy}")


def no_such_file(path: Path, remedy: str) -> UsageError:
    """Returns the error for a file or folder that does not exist, which suggests the most similar name beside it.

    Args:
        path: path that does not exist.
        remedy: what to say if no name beside it is similar.
    """
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest_name(path.name, beside)
    return UsageError(f"{path} does not exist; {f'did you mean {path.parent / near}?' if near else remedy}")


def require_at_least(least: int, option: str, value: int) -> None:
    """Raises UsageError, which names the option, if its value is less than `least`."""
    if value < least:
        raise UsageError(f"--{option} must be at least {least}, got {value}")
