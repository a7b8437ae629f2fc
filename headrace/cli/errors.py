"""What a command says when it cannot go on: one line, and an exit status."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["CommandFailed", "UsageError", "require_at_least", "unknown"]


class CommandFailed(Exception):
    """Ends the program with its text, on one line, and `status`."""

    status = 1


class UsageError(CommandFailed):
    """The command line was wrong; the text says what to write instead."""

    status = 2


def unknown(what: str, name: str, known: Iterable[str], listing: str = "") -> UsageError:
    """`name` is not a `what`: says the nearest of those known, else all of them, or `listing`: how to see them."""
    names = sorted(known)
    # Without the module before an id: it is the same in all, which would make all of them near.
    bare = {one.rpartition(":")[2]: one for one in names}
    lower = {one.lower(): full for one, full in bare.items()}
    near = difflib.get_close_matches(name.rpartition(":")[2].lower(), lower, n=1, cutoff=0.5)
    if near:
        return UsageError(f"unknown {what} {name!r}; did you mean {lower[near[0]]!r}?")
    return UsageError(f"unknown {what} {name!r}; " + (listing or f"there is {', '.join(names)}"))


def require_at_least(least: int, option: str, value: int) -> None:
    """Raises UsageError, naming the option, for less."""
    if value < least:
        raise UsageError(f"--{option} must be at least {least}, got {value}")
