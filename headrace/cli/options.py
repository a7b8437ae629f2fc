"""Options of a command: a dataclass in, an instance of it out; what is wrong is one line."""

from __future__ import annotations

import contextlib
import difflib
import io
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes as Unprefixed, Positional

from headrace.cli.errors import UsageError

__all__ = ["Positional", "Unprefixed", "parse_options"]

_Options = TypeVar("_Options")


def parse_options(default: _Options, prog: str, args: Sequence[str]) -> _Options:
    """`default` with what the options say instead; a dataclass, the docstrings of its fields are the help.

    Raises UsageError for options that are not there or do not parse; SystemExit(0) after printing the help.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options, rest = tyro.cli(
                type(default), default=default, prog=prog, args=list(args), return_unknown_args=True
            )
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise UsageError(f"{_first_sentence(complaint.getvalue())}; see {prog} --help") from None
    if rest:
        flags = {flag.lower(): flag for flag in ("--help", *_flags(options))}
        near = difflib.get_close_matches(rest[0].lower().replace("_", "-"), flags, n=1, cutoff=0.5)
        hint = f"did you mean {flags[near[0]]}?" if near else f"see {prog} --help"
        raise UsageError(f"unknown option {rest[0]!r}; {hint}")
    return options


def _first_sentence(box: str) -> str:
    """The complaint without the box tyro draws around it: the lines above the first rule."""
    lines: list[str] = []
    for line in box.splitlines():
        text = line.strip().strip("│╭╮╰╯").strip()
        if line.strip().startswith(("╭", "╰")) or not text:
            continue
        if set(text) <= {"─"}:
            break
        lines.append(text)
    sentence = " ".join(lines).split(" Got errors:")[0]
    return sentence.rstrip(".") or "the options do not parse"


def _flags(options: Any, prefix: str = "--") -> list[str]:
    """Every option as a user writes it: `--batch-T`, `--ppo.epochs`."""
    flags: list[str] = []
    for field in fields(options):
        value, flag = getattr(options, field.name), prefix + field.name.replace("_", "-")
        flags += _flags(value, flag + ".") if is_dataclass(value) else [flag]
    return flags
