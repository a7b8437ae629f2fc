"""Chooses versions: by number, by tag, by a query of metadata, or at random."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.errors import ParameterDBError
from headrace.rng import Stream, env_keys, uniforms
from headrace.schema import fields, shown, text
from headrace.services.parameters.checks import LATEST, checked_name, checked_version
from headrace.services.parameters.contents import Damaged
from headrace.services.parameters.folder import Listing, NameFolder, read_sealed, write_sealed
from headrace.services.parameters.index import Index, Query, SqliteIndex
from headrace.services.parameters.metadata import Pipeline, conditions
from headrace.services.parameters.mongo import MongoIndex
from headrace.storage import file_lock

__all__ = ["Chooser", "Identifier", "missing"]

_log = logging.getLogger("headrace.services")

#: What chooses a version: its number, a tag, a query of its metadata, or the stages of a pipeline of MongoDB.
Identifier = int | str | Mapping[str, Any] | Sequence[Mapping[str, Any]]

_ID = fields({"id": text(r"[0-9a-f]{32}")})


class Chooser:
    """Chooses among the versions of the names of one trial.

    Args:
        folder: folder of the trial.
        mongo: address of MongoDB for queries; None: they are answered by SQLite.
        timeout: seconds to wait for either.
    """

    def __init__(self, folder: Path, mongo: str | None, timeout: float) -> None:
        self._folder, self._timeout = folder, timeout
        self._index: Index
        if mongo is None:
            self._index = SqliteIndex(folder / ".index.sqlite", timeout)
        else:
            self._index = MongoIndex(mongo, self._id, timeout)

    def close(self) -> None:
        """Closes connections. Safe to call twice."""
        self._index.close()

    def one(self, folder: NameFolder, listing: Listing, identifier: Identifier) -> int:
        """Returns the version that an identifier stands for; of those that a query finds, the first that is intact.

        Raises:
            ParameterDBError: if there is none, or none that is intact.
            FileNotFoundError: if files were removed after the listing.
        """
        versions = self.versions(folder, listing, identifier)
        if not versions:
            raise missing(folder, identifier)
        if not isinstance(identifier, Mapping | list | tuple):
            return versions[0]

        def intact(version: int) -> int:
            folder.read(listing, version)
            return version

        return folder.first_intact(versions, intact)

    def versions(
        self, folder: NameFolder, listing: Listing, identifier: Identifier, draw: tuple[int, int] | None = None
    ) -> list[int]:
        """Returns the versions that an identifier stands for, the preferred one first.

        Args:
            folder: folder of the name.
            listing: what is in it.
            identifier: what to choose.
            draw: (seed, step) of the random number that chooses the first one; None: the newest is the first.

        Raises:
            FileNotFoundError: if files were removed after the listing.
        """
        found = self._found(folder, listing, identifier)
        if draw is None or not found:
            return found
        seed, step = draw
        uniform = float(uniforms(env_keys(seed, Stream.PARAMETERS, [0]), step, 1, 1)[0, 0, 0])
        first = int(uniform * len(found))
        return found[first:] + found[:first]

    def _found(self, folder: NameFolder, listing: Listing, identifier: Identifier) -> list[int]:
        if isinstance(identifier, str):
            if identifier == LATEST:
                return sorted(listing.digests, reverse=True)
            tagged = folder.tagged(checked_name(identifier, "identifier"))
            return [version for version in listing.digests if version == tagged]
        if isinstance(identifier, Mapping):
            return self._searched(folder, listing, conditions(identifier))
        if isinstance(identifier, list | tuple):
            return self._searched(folder, listing, Pipeline(identifier))
        number = checked_version(identifier)
        return [number] if number in listing.digests else []

    def _searched(self, folder: NameFolder, listing: Listing, query: Query) -> list[int]:
        def metadata_of(version: int) -> dict[str, Any] | None:
            try:
                return folder.metadata(listing, version)
            except Damaged as error:
                _log.warning("%s; no query finds it", error)
                return None

        if not folder.path.is_dir():
            return []
        return self._index.search(folder.path.name, listing.states(), metadata_of, query)

    def _id(self) -> str:
        """Returns the id of the folder, which keeps it apart from others on the same server."""
        path = self._folder / ".id"
        with file_lock(self._folder / ".lock", self._timeout, ParameterDBError):
            if not path.exists():
                write_sealed(path, {"id": os.urandom(16).hex()})
        found: str = read_sealed(path, _ID)["id"]
        return found


def missing(folder: NameFolder, identifier: Identifier, why: str = "") -> ParameterDBError:
    """Returns the error for an identifier that stands for no version; it says which versions there are."""
    listing = folder.listing()
    numbers = sorted(listing.digests)
    there = f"the versions {numbers[0]} to {numbers[-1]}" if numbers else "no version"
    tags = f", with the tags {', '.join(listing.tags)}" if listing.tags else ""
    return ParameterDBError(
        f"{folder.path} has no version {shown(identifier)}{why}; it has {there}{tags}; push it, or give another name, "
        "version, tag or query"
    )
