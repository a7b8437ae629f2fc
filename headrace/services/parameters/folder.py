"""The folder of one name: a file per version, files for changed metadata and for tags, and a lock.

::

    v000000000012-<sha256>.safetensors    a version; its name has the checksum of its contents
    v000000000012.000000003-<hash>.json   its metadata after the third change; those after the second are kept too
    tag.best                              the version that a tag stands for
    lock                                  locked by whoever writes

A version file is never changed. Every file gets its name when it is completely on disk, so readers need no lock. The
system releases the lock of a writer that dies; the next writer removes what it left behind. "latest" is no file: it is
the highest version, so a trainer that lags behind another cannot move it back.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from headrace.errors import ParameterDBError
from headrace.schema import Kind, anything, fields, text, whole
from headrace.services.parameters.checks import MOST_VERSION, NAME
from headrace.services.parameters.contents import Damaged, header_of_file, unpacked
from headrace.services.parameters.metadata import plain_metadata
from headrace.storage import DIGEST_BYTES, digest, file_lock, framed, make_folder, unframed, write_whole
from headrace.types import Tree

__all__ = ["Listing", "NameFolder", "read_sealed", "write_sealed"]

_log = logging.getLogger("headrace.services")

_Read = TypeVar("_Read")

_VERSION = re.compile(r"v(\d{12,19})-([0-9a-f]{64})\.safetensors")
_REVISION = re.compile(r"v(\d{12,19})\.(\d{9,19}-[0-9a-f]{16})\.json")
_TAG = re.compile(rf"tag\.({NAME.pattern})")
_TAG_FILE = fields({"tag": text(), "version": whole(0, MOST_VERSION)})
_METADATA_FILE = fields({"version": whole(0, MOST_VERSION), "metadata": anything})


@dataclass(frozen=True)
class Listing:
    """The files in a folder at one moment.

    Args:
        digests: SHA-256 of the file of each version, in hex.
        revisions: for each version, the changes of metadata that have a file, ascending: number and start of SHA-256.
        tags: names of tags.
        leftovers: files of a writer that died.
    """

    digests: dict[int, str] = field(default_factory=dict)
    revisions: dict[int, list[str]] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    def states(self) -> dict[int, str]:
        """Returns, for each version, a text that changes when its contents or its metadata change."""
        return {
            version: f"{content[:16]}.{self.revisions.get(version, [''])[-1]}"
            for version, content in self.digests.items()
        }


class NameFolder:
    """Reads and writes the files of one name.

    Args:
        path: the folder; it is made when the first version is written.
        timeout: seconds to wait for another writer.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self.path = path
        self._timeout = timeout

    def listing(self) -> Listing:
        """Returns what is in the folder; nothing, if there is no folder."""
        listing = Listing()
        try:
            names = sorted(os.listdir(self.path))
        except FileNotFoundError:
            return listing
        for name in names:
            if name.endswith(".tmp"):  # as no name of a tag does
                listing.leftovers.append(name)
            elif version := _VERSION.fullmatch(name):
                listing.digests[int(version[1])] = version[2]
            elif revision := _REVISION.fullmatch(name):
                listing.revisions.setdefault(int(revision[1]), []).append(revision[2])
            elif tag := _TAG.fullmatch(name):
                listing.tags.append(tag[1])
        return listing

    @contextmanager
    def locked(self) -> Iterator[Listing]:
        """Excludes other writers, removes what dead ones left behind, and yields what is in the folder.

        Raises:
            ParameterDBError: if another process writes for longer than the timeout.
        """
        make_folder(self.path)
        with file_lock(self.path / "lock", self._timeout, ParameterDBError):
            # On a network file system, to create a file is what makes this machine ask the server for the list of the
            # folder again; a cached list could lack the version that another machine has just written.
            (self.path / "look.tmp").touch()
            listing = self.listing()
            for name in listing.leftovers:
                (self.path / name).unlink(missing_ok=True)
            for version in listing.revisions.keys() - listing.digests.keys():
                self._forget_metadata(version, listing.revisions.pop(version))
            yield listing

    # ---- versions ----

    def parameters(self, listing: Listing, version: int, mode: str) -> Tree:
        """Returns the parameters of a version, see `unpacked`.

        Raises:
            FileNotFoundError: if it is not there, or was removed after the listing.
            Damaged: if it is damaged, or was not written by a parameter database.
        """
        content = self.read(listing, version)
        try:
            return unpacked(content, mode)
        except Damaged as error:
            raise Damaged(f"{self._path(listing, version)} is damaged: {error}") from error

    def copy_of(self, listing: Listing, version: int) -> tuple[bytes, dict[str, Any] | None] | None:
        """Returns the verified contents of a version, and its metadata, None if they were never changed; None if the
        listing does not have it.

        Raises:
            FileNotFoundError: if it was removed after the listing.
            Damaged: if it is damaged.
        """
        if version not in listing.digests:
            return None
        content = self.read(listing, version)
        return content, self.metadata(listing, version) if version in listing.revisions else None

    def first_intact(self, versions: list[int], read: Callable[[int], _Read]) -> _Read:
        """Returns what `read` returns for the first version that is intact, with a warning for each one before it.

        Raises:
            Damaged: if none is intact.
            FileNotFoundError: if a file was removed after it was listed.
        """
        damaged: list[str] = []
        for version in versions:
            try:
                found = read(version)
            except Damaged as error:
                damaged.append(str(error))
                continue
            for sentence in damaged:
                _log.warning("%s; version %d is used instead", sentence, version)
            return found
        raise Damaged(f"{'; '.join(damaged)}; push it again, or get another version")

    def newest_intact(self, listing: Listing) -> set[int]:
        """Returns the highest version that is intact; an empty set if there is none."""
        for version in sorted(listing.digests, reverse=True):
            try:
                self.read(listing, version)
            except Damaged as error:
                _log.warning("%s", error)
                continue
            return {version}
        return set()

    def read(self, listing: Listing, version: int) -> bytes:
        """Returns the verified contents of a version.

        Raises:
            FileNotFoundError: if it is not there, or was removed after the listing.
            Damaged: if its checksum does not match.
        """
        path = self._path(listing, version)
        with _reading(path):
            content = path.read_bytes()
        if digest(content).hex() != listing.digests[version]:
            raise Damaged(f"{path} is damaged: its checksum does not match")
        return content

    def add(self, listing: Listing, version: int, content: bytes) -> None:
        """Writes a version, inside of `locked`; does nothing if it is there with the same contents.

        Raises:
            ParameterDBError: if it is there with other contents.
            OSError: if the disk does not accept the file; the folder is then as it was.
        """
        path = self._file(version, digest(content).hex())
        damaged = None
        if version in listing.digests:
            try:
                self.read(listing, version)
            except Damaged as error:
                _log.warning("%s; it is written anew", error)
                damaged = self._path(listing, version)
            else:
                if path == self._path(listing, version):
                    return
                raise ParameterDBError(
                    f"version {version} of {self.path.name} exists with other parameters or metadata, perhaps from "
                    "another trainer; push a higher version, or use another name or trial"
                )
        write_whole(path, [content], before=None if damaged is None else damaged.unlink)

    def remove(self, listing: Listing, version: int) -> None:
        """Removes a version, inside of `locked`."""
        self._path(listing, version).unlink(missing_ok=True)
        self._forget_metadata(version, listing.revisions.get(version, []))

    def age(self, listing: Listing, version: int) -> float:
        """Returns the seconds since a version was written, both times being those of the file system, in `locked`."""
        lock = self.path / "lock"
        os.utime(lock)
        return lock.stat().st_mtime - self._path(listing, version).stat().st_mtime

    # ---- tags ----

    def tagged(self, tag: str) -> int | None:
        """Returns the version that a tag stands for; None if there is no such tag.

        Raises:
            Damaged: if the file of the tag is damaged.
        """
        try:
            found = read_sealed(self.path / f"tag.{tag}", _TAG_FILE)
        except FileNotFoundError:
            return None
        if found["tag"] != tag:
            raise Damaged(f"{self.path / f'tag.{tag}'} is the file of tag {found['tag']!r}; tag a version anew")
        version: int = found["version"]
        return version

    def write_tag(self, tag: str, version: int) -> None:
        """Sets or moves a tag, inside of `locked`."""
        write_sealed(self.path / f"tag.{tag}", {"tag": tag, "version": version})

    def remove_tag(self, tag: str) -> None:
        """Removes a tag, inside of `locked`."""
        (self.path / f"tag.{tag}").unlink(missing_ok=True)

    # ---- metadata ----

    def metadata(self, listing: Listing, version: int) -> dict[str, Any]:
        """Returns the metadata of a version after all changes, or, with a warning, before one whose file is damaged.

        Raises:
            FileNotFoundError: if a file was removed after the listing.
            Damaged: if the header of the version's file is damaged.
        """
        for revision in reversed(listing.revisions.get(version, [])):
            path = self._metadata_file(version, revision)
            try:
                found = read_sealed(path, _METADATA_FILE)
                return plain_metadata(found["metadata"], "its metadata")
            except (Damaged, ValueError) as error:
                _log.warning("%s; the metadata before this change is used instead", error)
        path = self._path(listing, version)
        with _reading(path):
            try:
                return header_of_file(path).metadata
            except Damaged as error:
                raise Damaged(f"{path} is damaged: {error}") from error

    def write_metadata(self, listing: Listing, version: int, metadata: dict[str, Any]) -> None:
        """Writes metadata after a change, inside of `locked`."""
        revisions = listing.revisions.get(version, [])
        number = 1 + (int(revisions[-1].partition("-")[0]) if revisions else 0)
        values = {"version": version, "metadata": metadata}
        # With a number alone, an index could not tell it from the same change of a version that was removed before.
        revision = f"{number:09d}-{digest(json.dumps(values).encode()).hex()[:16]}"
        write_sealed(self._metadata_file(version, revision), values)
        self._forget_metadata(version, revisions[:-1])

    def _forget_metadata(self, version: int, revisions: list[str]) -> None:
        for revision in revisions:
            self._metadata_file(version, revision).unlink(missing_ok=True)

    def _path(self, listing: Listing, version: int) -> Path:
        """Returns the file of a version; raises FileNotFoundError if the listing has none."""
        if version not in listing.digests:
            raise FileNotFoundError(errno.ENOENT, f"no version {version}", str(self.path))
        return self._file(version, listing.digests[version])

    def _file(self, version: int, sha256: str) -> Path:
        return self.path / f"v{version:012d}-{sha256}.safetensors"

    def _metadata_file(self, version: int, revision: str) -> Path:
        return self.path / f"v{version:012d}.{revision}.json"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raises FileNotFoundError or Damaged for what can happen while a file in a shared folder is read."""
    if path.exists() and not path.is_file():  # reading a pipe would block
        raise Damaged(f"{path} is not a file")
    try:
        yield
    except OSError as error:
        if error.errno == errno.ESTALE:  # removed by another machine, on a network file system
            raise FileNotFoundError(errno.ENOENT, "removed", str(path)) from error
        if error.errno == errno.EIO:
            raise Damaged(f"{path} cannot be read ({error.strerror})") from error
        raise


def write_sealed(path: Path, values: dict[str, Any]) -> None:
    """Writes a small file: values as JSON, and their checksum.

    Raises:
        OSError: if the disk does not accept the file; an existing one is unchanged.
    """
    write_whole(path, framed(json.dumps(values).encode() + b"\n"))


def read_sealed(path: Path, kind: Kind) -> dict[str, Any]:
    """Returns the values in a file that `write_sealed` wrote.

    Raises:
        FileNotFoundError: if there is no file.
        Damaged: if it is damaged, or its values are not of that kind.
    """
    with _reading(path):
        content = path.read_bytes()
    n_bytes = len(content) - DIGEST_BYTES
    if n_bytes < 0 or unframed(memoryview(content), n_bytes) is None:
        raise Damaged(f"{path} is damaged: its checksum does not match")
    try:
        values: dict[str, Any] = json.loads(content[:n_bytes])
        kind(values, "its content")
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} was not written by a parameter database ({error})") from error
    return values
