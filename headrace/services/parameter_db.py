"""`ParameterDBClient`: parameters by name, and by version, tag or metadata, in a folder that processes share."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from headrace.errors import ParameterDBError
from headrace.schema import shown
from headrace.services.addresses import scheme_of
from headrace.services.parameters.checks import LATEST, NAME, checked_name, checked_tag, checked_version
from headrace.services.parameters.choosing import Chooser, Identifier, missing
from headrace.services.parameters.contents import MODES, packed, require_safetensors
from headrace.services.parameters.folder import Listing, NameFolder
from headrace.services.parameters.metadata import changed, plain_metadata
from headrace.services.parameters.mongo import require_mongo
from headrace.services.parameters.reading import ParameterEntry, looked_up, read_entry
from headrace.storage import state_folder
from headrace.types import Tree

__all__ = ["ParameterDBClient", "ParameterEntry"]

_log = logging.getLogger("headrace.services")

_SHORTEST, _LONGEST = 0.005, 0.1  # seconds between two looks for a version


class ParameterDBClient:
    """Pushes and gets versions of parameters. Any number of processes and machines that share the folder may do so.

    Parameters are nested dicts of arrays, torch tensors and numbers, e.g. a state dict. Files of versions contain data
    only and are checked when they are read. The files are all there is: the index for queries is a copy, which is
    brought up to date by each query, and made anew if it is missing or damaged.

    Args:
        experiment: name of the experiment.
        trial: name of the trial; trials have nothing in common.
        folder: folder of all experiments, local or shared. None: `headrace/parameters` in `$XDG_STATE_HOME`
            (`~/.local/state`), for the processes of one user on one machine.
        metadata: where queries are answered: "sqlite" or None, in a file in the folder; or "mongodb://host:port", in
            MongoDB (extra `mongo`).
        timeout: seconds to wait for another writer, or for MongoDB.

    Raises:
        ValueError: for a name with other characters than letters, digits, "_", "-" and ".", or another kind of `folder`
            or `metadata`.
        PermissionError: without `folder`, if other users could write into this user's.
        ImportError: if safetensors or pymongo is missing.
    """

    def __init__(
        self,
        experiment: str,
        trial: str,
        folder: str | Path | None = None,
        *,
        metadata: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        self.experiment, self.trial = checked_name(experiment, "experiment"), checked_name(trial, "trial")
        if scheme_of(str(folder)):
            raise ValueError(f'folder is "{scheme_of(str(folder))}://…", expected a folder, mounted if it is remote')
        root = state_folder("parameters") / "parameters" if folder is None else Path(folder).absolute()
        self.folder = root / experiment / trial
        self._arguments = (experiment, trial, root, metadata, timeout)
        mongo = None if metadata in (None, "sqlite") else metadata
        if mongo is not None:
            require_mongo(mongo)
        require_safetensors()
        self._timeout = timeout
        self._chooser = Chooser(self.folder, mongo, timeout)
        self._closed = False

    def __repr__(self) -> str:
        return f"ParameterDBClient({self.experiment!r}, {self.trial!r}, {str(self.folder.parent.parent)!r})"

    def __enter__(self) -> ParameterDBClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, self._arguments

    def close(self) -> None:
        """Closes connections; later calls raise ParameterDBError. Safe to call twice."""
        self._closed = True
        self._chooser.close()

    # ---- writing ----

    def push(
        self,
        name: str,
        parameters: Tree,
        version: int,
        tags: str | Iterable[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes a version. It is on disk when this returns, and is "latest" if there is no higher version.

        Args:
            name: name of the parameters, e.g. of a policy.
            parameters: nested dicts of arrays, tensors and numbers.
            version: number of the version, at least 0. To push the same contents again does nothing.
            tags: tags to set on this version.
            metadata: what is known about it: a dict of numbers, strings, booleans, None, and such dicts.

        Raises:
            TypeError: if the parameters contain something that is not data.
            ValueError: for a wrong name, tag, version or metadata.
            ParameterDBError: if the version exists with other contents, or another writer hangs.
            OSError: if the disk does not accept the file, with the bytes needed and free; the database is as it was.
        """
        number = checked_version(version)
        checked_tags = [checked_tag(tag) for tag in ([tags] if isinstance(tags, str) else tags or ())]
        folder = self._folder(name)
        content = packed(parameters, plain_metadata({} if metadata is None else metadata, "metadata"))
        with folder.locked() as listing:
            folder.add(listing, number, content)
            for tag in checked_tags:
                folder.write_tag(tag, number)

    def tag(self, name: str, identifier: Identifier, new_tag: str) -> None:
        """Sets a tag on a version, or moves it there. Versions with tags are never collected.

        Raises:
            ParameterDBError: if there is no such version.
        """
        checked_tag(new_tag)
        folder = self._existing(name)
        with folder.locked() as listing:
            folder.write_tag(new_tag, self._chooser.one(folder, listing, identifier))

    def untag(self, name: str, tag: str) -> None:
        """Removes a tag, if it is there; its version stays."""
        checked_tag(tag)
        folder = self._existing(name)
        with folder.locked():
            folder.remove_tag(tag)

    def update_metadata(self, name: str, version: int | str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Changes metadata of a version atomically: no change of another process is lost.

        Args:
            name: name of the parameters.
            version: number of the version, or a tag.
            changes: new values of fields; `{"$inc": n}` adds to a number; `{"$mean": x}` updates a running mean, whose
                number of values is in the field with "_count" added to its name; with `"$weight": n`, x counts n times.

        Returns:
            The metadata after the change.

        Raises:
            ValueError: for changes that are none of these.
            ParameterDBError: if there is no such version.
        """
        folder = self._existing(name)
        with folder.locked() as listing:
            number = self._chooser.one(folder, listing, version)
            metadata = changed(folder.metadata(listing, number), changes)
            folder.write_metadata(listing, number, metadata)
        return metadata

    def clone(
        self,
        name: str,
        new_name: str,
        identifier: Identifier | None = None,
        *,
        into: ParameterDBClient | None = None,
    ) -> list[int]:
        """Copies versions with their metadata under another name.

        Damaged versions are left out, with a warning, and so are those that are pushed or removed meanwhile.

        Args:
            name: what to copy.
            new_name: name of the copy; it must have no versions.
            identifier: the version to copy; None: all versions, with their tags.
            into: client of another experiment, trial or folder; None: this one.

        Returns:
            The versions that were copied.

        Raises:
            ParameterDBError: if there is nothing to copy, or if `new_name` has versions.
        """
        source, target = self._existing(name), (into or self)._folder(new_name)
        if identifier is None:
            versions, tags = sorted(source.listing().digests), self.list_tags(name)
        else:
            versions, tags = [self.version_of(name, identifier)], {}
        copied = []
        with target.locked() as there:
            if there.digests:
                raise ParameterDBError(f"{new_name} has {len(there.digests)} versions; clear it, or give another name")
            for version in versions:
                try:
                    found = looked_up(source, version, partial(source.copy_of, version=version))
                except ParameterDBError as error:
                    _log.warning("%s; version %d of %s is left out of the copy", error, version, name)
                    continue
                if found is None:
                    continue
                content, metadata = found
                target.add(there, version, content)
                if metadata is not None:
                    target.write_metadata(there, version, metadata)
                copied.append(version)
            for tag, version in tags.items():
                if tag != LATEST and version in copied:
                    target.write_tag(tag, version)
        if not copied:
            raise ParameterDBError(f"no version of {name} could be copied: all were damaged or removed meanwhile")
        return copied

    def clear(self, name: str) -> None:
        """Removes all versions and tags of a name."""
        folder = self._folder(name)
        if not folder.path.exists():
            return
        with folder.locked() as listing:
            for tag in listing.tags:
                folder.remove_tag(tag)
            for version in sorted(listing.digests):
                folder.remove(listing, version)

    def gc(self, name: str, max_untagged_version_count: int | None = None, ttl: float | None = None) -> list[int]:
        """Removes old versions; never one that has a tag, never the latest, and never the last one that is intact.

        Args:
            name: name of the parameters.
            max_untagged_version_count: how many of the others to keep, the highest ones; None: any number.
            ttl: seconds after which others are removed; None: never. The clock is that of the file system.

        Returns:
            The versions that were removed.

        Raises:
            ValueError: if both are None, or one is negative.
            ParameterDBError: if a tag cannot be read; nothing is removed then.
        """
        limits = [limit for limit in (max_untagged_version_count, ttl) if limit is not None]
        if not limits or min(limits) < 0:
            raise ValueError(
                f"max_untagged_version_count is {max_untagged_version_count} and ttl is {ttl}; expected at least one "
                "of them, not below 0"
            )
        folder = self._existing(name)
        with folder.locked() as listing:
            kept = {folder.tagged(tag) for tag in listing.tags} | {max(listing.digests, default=None)}
            others = sorted(listing.digests.keys() - kept, reverse=True)
            removed = set() if max_untagged_version_count is None else {*others[max_untagged_version_count:]}
            if ttl is not None:
                removed |= {version for version in others if folder.age(listing, version) > ttl}
            if len(listing.digests) - len(removed) == 1:
                removed -= folder.newest_intact(listing)
            for version in sorted(removed):
                folder.remove(listing, version)
        return sorted(removed)

    # ---- reading ----

    def get(
        self,
        name: str,
        identifier: Identifier = LATEST,
        *,
        block: bool = False,
        timeout: float = 60.0,
        mode: str = "numpy",
        draw: tuple[int, int] | None = None,
    ) -> Tree:
        """Returns the parameters of a version.

        What is in a damaged file is never returned. Instead of a damaged "latest", or of one that a query found, it is
        the version before, with a warning; a damaged version that was asked for by number or tag is an error.

        Args:
            name: name of the parameters.
            identifier: number of a version; a tag; "latest": the highest version; a query of metadata such as
                `{"win_rate": {"$gt": 0.5}}`; or, with MongoDB, a list of stages of an aggregation pipeline over
                documents with `version` and `metadata`. If several match a query, the newest is returned.
            block: whether to wait until there is such a version.
            timeout: seconds to wait at most.
            mode: "numpy": arrays; "torch": tensors on the CPU; "bytes": the contents of a safetensors file.
            draw: (seed, step): return a random one of those that match instead; the same address, the same draw.

        Raises:
            ParameterDBError: if there is no such version, or none that is intact.
            ValueError: for an identifier or a mode that is none of these.
        """
        return self.entry(name, identifier, block=block, timeout=timeout, mode=mode, draw=draw).parameters

    def entry(
        self,
        name: str,
        identifier: Identifier = LATEST,
        *,
        block: bool = False,
        timeout: float = 60.0,
        mode: str = "numpy",
        draw: tuple[int, int] | None = None,
    ) -> ParameterEntry:
        """Returns parameters as `get` does, whose arguments it has, with the number and metadata of their version."""
        if mode not in MODES:
            raise ValueError(f"mode is {shown(mode)}, expected one of {', '.join(MODES)}")
        folder = self._folder(name)

        def look(listing: Listing) -> ParameterEntry | None:
            versions = self._chooser.versions(folder, listing, identifier, draw)
            if not versions:
                return None
            return folder.first_intact(versions, partial(read_entry, folder, listing, mode=mode))

        deadline, pause = time.monotonic() + (timeout if block else 0.0), _SHORTEST
        while (entry := looked_up(folder, identifier, look)) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise missing(folder, identifier, f" after {timeout:g} seconds" if block else "")
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST)
        return entry

    def version_of(self, name: str, identifier: Identifier = LATEST) -> int:
        """Returns the version that an identifier stands for; raises ParameterDBError if there is none."""
        folder = self._folder(name)
        return looked_up(folder, identifier, lambda listing: self._chooser.one(folder, listing, identifier))

    def metadata_of(self, name: str, identifier: Identifier = LATEST) -> dict[str, Any]:
        """Returns the metadata of a version; raises ParameterDBError if there is none."""
        folder = self._folder(name)

        def look(listing: Listing) -> dict[str, Any]:
            return folder.metadata(listing, self._chooser.one(folder, listing, identifier))

        return looked_up(folder, identifier, look)

    def has_tag(self, name: str, tag: str) -> bool:
        """Returns whether a version has this tag; "latest" is there as soon as there is a version."""
        folder = self._folder(name)
        return bool(self._chooser.versions(folder, folder.listing(), checked_name(tag, "tag")))

    def list_tags(self, name: str) -> dict[str, int]:
        """Returns the version of each tag, "latest" included."""
        folder = self._folder(name)
        listing = folder.listing()
        found = {tag: folder.tagged(tag) for tag in listing.tags}
        if listing.digests:
            found[LATEST] = max(listing.digests)
        return {tag: version for tag, version in sorted(found.items()) if version in listing.digests}

    def list_versions(self, name: str) -> list[int]:
        """Returns the versions of a name, ascending."""
        return sorted(self._folder(name).listing().digests)

    def list_names(self) -> list[str]:
        """Returns the names that have versions, sorted."""
        names = sorted(os.listdir(self.folder)) if self.folder.is_dir() else []
        return [name for name in names if NAME.fullmatch(name) and self.list_versions(name)]

    def _folder(self, name: str) -> NameFolder:
        if self._closed:
            raise ParameterDBError("this ParameterDBClient is closed; make another one")
        return NameFolder(self.folder / checked_name(name, "name"), self._timeout)

    def _existing(self, name: str) -> NameFolder:
        """Returns the folder of a name that has versions, so that a wrong name makes no folder."""
        folder = self._folder(name)
        if not folder.listing().digests:
            raise missing(folder, LATEST)
        return folder


def _opened(experiment: str, trial: str, folder: Path, metadata: str | None, timeout: float) -> ParameterDBClient:
    """Returns the client that another process pickled."""
    return ParameterDBClient(experiment, trial, folder, metadata=metadata, timeout=timeout)
