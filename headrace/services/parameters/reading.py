"""Reads versions without a lock, while other processes write and remove some."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from headrace.services.parameters.choosing import Identifier, missing
from headrace.services.parameters.folder import Listing, NameFolder
from headrace.types import Tree

__all__ = ["ParameterEntry", "looked_up", "read_entry"]

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


def read_entry(folder: NameFolder, listing: Listing, version: int, mode: str) -> ParameterEntry:
    """Returns the parameters and the metadata of a version.

    Raises:
        Damaged: if it is damaged.
        FileNotFoundError: if a file was removed after the listing.
    """
    parameters = folder.parameters(listing, version, mode)
    return ParameterEntry(folder.path.name, version, parameters, folder.metadata(listing, version))
