"""Saves the contents of a replay to disk, so that a run can be resumed; each save writes only the new rows."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import CheckpointError
from headrace.replays.records import Damaged, Head, Misplaced, Records
from headrace.replays.ring import ReplayRing, ReplaySpec
from headrace.storage import DIGEST_BYTES, Part, append_whole, framed, unframed

__all__ = ["ReplayFile"]

_log = logging.getLogger("headrace.replays")

_FORMAT = b"headrace replay 2\n"
_HEADER = re.compile(rb"(headrace replay [1-9][0-9]{0,8})\n([^\n]*)\n")
_LONGEST = 2**20  # bytes to read of a header that may be of another format
_NAME = re.compile(r"rows-[0-9]{19}\.bin")


@dataclass
class _Segment:
    """A file of records: its path, the number of the row after its last one, its size in bytes, whether it is torn."""

    path: Path
    stop: int = 0
    size: int = 0
    torn: bool = False


class ReplayFile:
    """A folder of segments: append-only files. A segment is removed when all of its rows have left the ring.

    A segment is a line with the format, a line with the layout of the rows, the SHA-256 of both lines (32 bytes), and
    records: raw arrays with their checksum (`headrace.replays.records`). It contains data only, no code. The file name
    is the number of its first row.

    Args:
        folder: where the segments are.
        spec: layout of the ring.
        segment_bytes: a segment that has reached this size is followed by a new one.
    """

    def __init__(self, folder: str | Path, spec: ReplaySpec, *, segment_bytes: int = 2**28) -> None:
        self.folder = Path(folder).absolute()
        self._records = Records(spec)
        self._header = b"".join(framed(_FORMAT + self._records.layout.encode() + b"\n"))
        self._segment_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._saved = 0  # number of the row after the last one on disk
        self._opened = False

    def save(self, ring: ReplayRing) -> int:
        """Writes the rows that were appended since the last save, in any process that can read the ring.

        The rows are on disk when this returns.

        Args:
            ring: the ring to save.

        Returns:
            The number of rows written.

        Raises:
            OSError: if the disk does not accept them. Earlier saves are intact, and the next save tries again.
            FileExistsError: if the folder has contents that were not loaded.
        """
        if not self._opened:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._paths():
                raise FileExistsError(
                    f"{self.folder} holds the contents of another replay; load them first, or give an empty folder"
                )
            self._opened = True
        cursor: int = ring.cursor[0]
        n_saved = 0
        while (first := max(self._saved, ring.oldest[0])) < cursor:
            record = self._records.of(ring, first, self._records.stop_after(first, cursor))
            if record is not None:  # else the rows were overwritten: continue with the rows that are there now
                self._append(*record)
                n_saved += record[0].n_rows
        for segment in self._segments[:-1]:
            if segment.stop <= ring.oldest[0]:
                self._remove(segment)
        return n_saved

    def load(self, ring: ReplayRing, until: int | None = None) -> int:
        """Loads what was saved into an empty ring, bit for bit.

        A tail that was torn by a crash is cut off with a warning; the row appended next then continues no episode. A
        damaged segment is renamed and missing rows are skipped, both with a warning.

        Args:
            ring: an empty ring.
            until: load only rows before this one, for a checkpoint older than the last save; later rows are discarded.
                None: all rows.

        Returns:
            The number of the row after the last one: the ring's `cursor`.

        Raises:
            FileNotFoundError: if nothing was saved.
            CheckpointError: for files of another layout or format.
            ValueError: for a ring that is not empty, or an `until` between two recurrent states.
        """
        if ring.cursor[0]:
            raise ValueError(f"the ring already has {ring.cursor[0]} rows; load into a new one, before any append")
        if until is not None and until % self._records.every:
            raise ValueError(
                f"until must be a multiple of the {self._records.every} rows from one recurrent state to the next, got "
                f"{until}; give the cursor that the ring had when it was saved"
            )
        paths = self._paths()
        if not paths:
            raise FileNotFoundError(f"{self.folder} holds no replay; give the folder of a saved one")
        self._segments, self._opened = [], True
        begin = cursor = oldest = 0
        for path in paths:
            segment = _Segment(path)
            for head, payload, end in self._whole(segment, ring, cursor):
                stop = head.stop if until is None else min(head.stop, until)
                if stop <= head.first:
                    break
                if head.first != cursor:
                    begin = head.first  # the rows in between are lost
                self._records.put(ring, head, payload, stop)
                cursor, oldest = stop, head.oldest
                if stop < head.stop:
                    break  # the loaded part will be saved again as its own record
                segment.stop, segment.size = stop, end
            self._keep(segment)
        if segment.torn if until is None else cursor < until:  # if torn after `until`, no row is missing
            ring.cut[0] = cursor
        self._say_what_is_missing(oldest, begin, cursor, until)
        self._saved = self._segments[-1].stop if self._segments else 0
        ring.oldest[0] = max(begin, oldest)
        ring.cursor[0] = cursor
        return cursor

    def _say_what_is_missing(self, oldest: int, begin: int, cursor: int, until: int | None) -> None:
        """Logs the rows that should exist besides the loaded ones, begin to cursor − 1."""
        missing = [(oldest, begin), (cursor, cursor if until is None else until)]
        rows = " and ".join(f"{first} to {stop - 1}" for first, stop in missing if first < stop)
        if rows:
            held = cursor - max(begin, oldest)
            _log.warning(
                "%s lacks rows %s, which were saved there; continuing with the %d others", self.folder, rows, held
            )

    def _paths(self) -> list[Path]:
        """Returns the segments in the folder, in the order of their rows."""
        return sorted(path for path in self.folder.glob("rows-*.bin") if _NAME.fullmatch(path.name) and path.is_file())

    def _whole(self, segment: _Segment, ring: ReplayRing, cursor: int) -> Iterator[tuple[Head, bytes, int]]:
        """Yields the records of a segment up to the first damaged one, with the offset of the byte after each.

        Args:
            segment: the segment to read.
            ring: the ring that is being loaded.
            cursor: number of the row after the last one that was loaded before this segment.
        """
        with segment.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = file.read(len(self._header))
            if found == self._header:
                segment.size = file.tell()
                next_row = int(segment.path.stem.removeprefix("rows-"))
                try:
                    while record := self._records.read(file, size - file.tell()):
                        head, payload = record
                        if head.first < max(next_row, cursor) or (head.first > next_row and not segment.stop):
                            raise Misplaced
                        if head.first == cursor and not self._records.continues(ring, head, payload):
                            raise Misplaced
                        yield head, payload, file.tell()
                        next_row = cursor = head.stop
                    return
                except Misplaced:
                    if not segment.stop:
                        self._put_aside(segment, "does not hold the rows that its name and the other segments imply")
                        return
                except Damaged:
                    pass
            elif not self._header.startswith(found):
                self._refuse_other(segment.path, found + file.read(_LONGEST))
                self._put_aside(segment, "is damaged, or no segment of a headrace replay")
                return
        segment.torn = True
        _log.warning(
            "%s has no complete record after byte %d of %d; it is truncated there; the records after it are lost",
            segment.path,
            segment.size,
            size,
        )

    def _keep(self, segment: _Segment) -> None:
        """Cuts off the part of a segment that was not loaded; removes a segment without loaded rows."""
        self._segments.append(segment)
        if not segment.stop:
            self._remove(segment)
        else:
            os.truncate(segment.path, segment.size)

    def _put_aside(self, segment: _Segment, why: str) -> None:
        """Renames a file that is not a segment of this replay, so that a person can examine it."""
        aside = segment.path.with_name(segment.path.name + ".damaged")
        os.replace(segment.path, aside)
        segment.torn = True
        _log.warning("%s %s: its rows are lost; the file is renamed to %s", segment.path, why, aside)

    def _refuse_other(self, path: Path, found: bytes) -> None:
        """Raises CheckpointError if the file begins like an intact segment of another format or layout."""
        lines = _HEADER.match(found)
        if lines is None or unframed(memoryview(found)[: lines.end() + DIGEST_BYTES], lines.end()) is None:
            return
        theirs, layout = lines[1].decode(), lines[2].decode(errors="replace")
        if lines[1] != _FORMAT.strip():
            raise CheckpointError(
                f"{path} is a {theirs!r} and this headrace reads {_FORMAT.strip().decode()!r}; load it with the "
                "headrace that wrote it"
            )
        raise CheckpointError(
            f"{path} holds rows of another layout, {layout}, and this replay has {self._records.layout}; make the "
            "replay as it was when it was saved, for the same environment"
        )

    def _append(self, head: Head, parts: Sequence[Part]) -> None:
        """Appends a record, completely or not at all."""
        if not self._segments or self._segments[-1].size >= self._segment_bytes:
            self._segments.append(_Segment(self.folder / f"rows-{head.first:019d}.bin"))
        segment = self._segments[-1]
        content = parts if segment.size else [self._header, *parts]
        try:
            segment.size = append_whole(segment.path, segment.size, content)
        except OSError as error:
            raise OSError(
                error.errno,
                f"rows {head.first} to {head.stop - 1} were not written to {segment.path} ({error.strerror}); what was "
                "saved before is untouched",
            ) from error
        segment.stop = self._saved = head.stop

    def _remove(self, segment: _Segment) -> None:
        segment.path.unlink(missing_ok=True)
        self._segments.remove(segment)
