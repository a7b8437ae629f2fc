"""Indexes of metadata, which answer queries. An index is a copy of what is in the files, and follows them."""

from __future__ import annotations

import json
import logging
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from headrace.errors import ParameterDBError
from headrace.services.parameters.metadata import Condition, Pipeline, matches
from headrace.storage import digest

__all__ = ["Entry", "Index", "Query", "SqliteIndex"]

_log = logging.getLogger("headrace.services")

#: A version, the state of its files, and its metadata.
Entry = tuple[int, str, dict[str, Any]]
#: What an index is asked for.
Query = Sequence[Condition] | Pipeline


class Index(ABC):
    """Finds versions by their metadata."""

    def search(
        self, name: str, states: Mapping[int, str], metadata_of: Callable[[int], dict[str, Any] | None], query: Query
    ) -> list[int]:
        """Returns the versions that a query matches, the newest first, or in the order of a pipeline.

        The index is brought up to date first: it reads the metadata of versions whose files have changed.

        Args:
            name: name of the parameters.
            states: for each version in the folder, a text that changes whenever its metadata may change.
            metadata_of: returns the metadata of a version; None leaves the version out.
            query: what to find.
        """
        known = self._states(name)
        changed = [version for version, state in states.items() if known.get(version) != state]
        read = [(version, states[version], metadata_of(version)) for version in changed]
        entries = [(version, state, metadata) for version, state, metadata in read if metadata is not None]
        gone = known.keys() - states.keys()
        if entries or gone:
            self._change(name, entries, gone)
        return [version for version in self._found(name, query) if version in states]

    @abstractmethod
    def close(self) -> None:
        """Closes connections. Safe to call twice."""

    @abstractmethod
    def _states(self, name: str) -> dict[int, str]:
        """Returns the versions in the index with their states."""

    @abstractmethod
    def _change(self, name: str, entries: Sequence[Entry], gone: Collection[int]) -> None:
        """Writes entries, and removes versions."""

    @abstractmethod
    def _found(self, name: str, query: Query) -> list[int]:
        """Returns the versions in the index that a query matches."""


class SqliteIndex(Index):
    """An index in an SQLite file.

    A connection exists for one transaction only, so that threads and forked processes may share the object. Changes
    are journaled by rollback: the write-ahead log of SQLite needs shared memory, which network file systems lack.

    Args:
        path: the file; it is made if it does not exist, and made anew if it is damaged.
        timeout: seconds to wait for another process that writes.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout

    def search(
        self, name: str, states: Mapping[int, str], metadata_of: Callable[[int], dict[str, Any] | None], query: Query
    ) -> list[int]:
        """See `Index`."""
        try:
            try:
                return super().search(name, states, metadata_of, query)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                _log.warning("%s is damaged (%s); it is made anew from the files beside it", self._path, error)
                for suffix in ("", "-journal"):
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)
                return super().search(name, states, metadata_of, query)
        except sqlite3.Error as error:  # locked for too long, a full disk, a folder that may not be written
            raise ParameterDBError(
                f"{self._path} cannot be used ({error}); get a version by its number or tag, or remove that file, "
                "which is made anew"
            ) from error

    def close(self) -> None:
        """See `Index`."""

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=self._timeout, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS versions (name TEXT NOT NULL, version INTEGER NOT NULL, "
                "state TEXT NOT NULL, metadata TEXT NOT NULL, checksum TEXT NOT NULL, PRIMARY KEY (name, version))"
            )
            yield connection

    def _states(self, name: str) -> dict[int, str]:
        with self._opened() as connection:
            return dict(connection.execute("SELECT version, state FROM versions WHERE name = ?", (name,)))

    def _change(self, name: str, entries: Sequence[Entry], gone: Collection[int]) -> None:
        texts = [(version, state, json.dumps(metadata)) for version, state, metadata in entries]
        rows = [(name, *row, _checksum(name, *row)) for row in texts]
        with self._opened() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("DELETE FROM versions WHERE name = ? AND version = ?", [(name, old) for old in gone])
            connection.executemany("INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?, ?)", rows)
            connection.execute("COMMIT")

    def _found(self, name: str, query: Query) -> list[int]:
        if isinstance(query, Pipeline):
            raise ValueError(
                'a list of stages is for metadata="mongodb://…"; give a dict, which every kind of metadata understands'
            )
        with self._opened() as connection:
            rows = connection.execute(
                "SELECT version, state, metadata, checksum FROM versions WHERE name = ? ORDER BY version DESC", (name,)
            ).fetchall()
        for *row, checksum in rows:
            if _checksum(name, *row) != checksum:  # SQLite itself does not notice changed values
                raise sqlite3.DatabaseError(f"version {row[0]} of {name} does not have its checksum")
        return [version for version, _, metadata, _ in rows if matches(query, json.loads(metadata))]


def _checksum(name: str, version: int, state: str, metadata: str) -> str:
    return digest(f"{name} {version} {state} {metadata}".encode())[:8].hex()
