"""Reads versions without a lock, while other processes write and remove some."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from headrace.services.parameters.choosing import Identifier, missing
from headrace.services.parameters.contents import Damaged
from headrace.services.parameters.folder import Listing, NameFolder
from headrace.types import Tree

__all__ = ["ParameterEntry", "first_intact", "looked_up"]

_log = logging.getLogger("headrace.services")

_Found = TypeVar("_Found")

_ATTEMPTS = 10
_PAUSE = 0.005  # seconds between two attempts


@dataclass(frozen=True)
class ParameterEntry:
    """One version of parameters.

    Args:
        name: name of the parameters.
        version: number of the version.
        parameters: tree of arrays and numbers.
        metadata: what is known about the version.
    """

    name: str
    version: int
    parameters: Tree
    metadata: dict[str, Any]


def looked_up(folder: NameFolder, identifier: Identifier, look: Callable[[Listing], _Found]) -> _Found:
    """Returns what `look` finds in a listing of the folder; a few times anew if files were removed after the listing.

    Raises:
        ParameterDBError: if files are removed faster than they can be read.
    """
    for _ in range(_ATTEMPTS):
        try:
            return look(folder.listing())
        except FileNotFoundError:
            time.sleep(_PAUSE)
    raise missing(folder, identifier, " that stays long enough to be read")


def first_intact(folder: NameFolder, listing: Listing, versions: list[int], mode: str) -> ParameterEntry:
    """Returns the first of the versions that is intact, with a warning for each one before it.

    Raises:
        Damaged: if none is intact.
        FileNotFoundError: if a file was removed after the listing.
    """
    damaged: list[str] = []
    for version in versions:
        try:
            parameters = folder.parameters(listing, version, mode)
            metadata = folder.metadata(listing, version)
        except Damaged as error:
            damaged.append(str(error))
            continue
        for sentence in damaged:
            _log.warning("%s; version %d is used instead", sentence, version)
        return ParameterEntry(folder.path.name, version, parameters, metadata)
    raise Damaged(f"{'; '.join(damaged)}; push it again, or get another version")
