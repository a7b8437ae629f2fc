"""Checks of names, tags and versions. Names become names of files, so none may lead out of its folder."""

from __future__ import annotations

import operator
import re
from typing import Any

from headrace.schema import shown

__all__ = ["LATEST", "MOST_VERSION", "NAME", "checked_name", "checked_tag", "checked_version"]

#: The tag of the highest version.
LATEST = "latest"
#: The largest integer of SQLite and MongoDB.
MOST_VERSION = 2**63 - 1
#: Names of experiments, trials, parameters and tags. Files that are being written end in ".tmp".
NAME = re.compile(r"(?!.*\.tmp\Z)[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def checked_name(name: Any, what: str) -> str:
    """Returns a name; raises ValueError if it cannot be a name."""
    if type(name) is not str or not NAME.fullmatch(name):
        raise ValueError(
            f"{what} is {shown(name)}, expected 1 to 100 letters, digits, '_', '-' and '.', beginning with a letter, a "
            "digit or '_' and not ending in .tmp"
        )
    return name


def checked_tag(tag: Any) -> str:
    """Returns a tag that may be set; raises ValueError if it may not."""
    if checked_name(tag, "tag") == LATEST:
        raise ValueError("the tag is 'latest', which is always the highest version; give another tag")
    return str(tag)


def checked_version(version: Any) -> int:
    """Returns a version as a Python integer; raises ValueError if it is none."""
    try:
        number = -1 if isinstance(version, bool) else operator.index(version)
    except TypeError:
        number = -1
    if not 0 <= number <= MOST_VERSION:
        raise ValueError(f"version is {shown(version)}, expected a whole number from 0 to {MOST_VERSION}")
    return number
