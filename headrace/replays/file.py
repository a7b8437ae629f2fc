"""The contents of a replay on disk, so that a run can go on with them: only what is new is written at each save."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import CheckpointError
from headrace.replays.records import Damaged, Head, Misplaced, Records
from headrace.replays.ring import ReplayRing, ReplaySpec
from headrace.storage import sync_directory

__all__ = ["ReplayFile"]

_log = logging.getLogger("headrace.replays")

_FORMAT = b"headrace replay 2\n"
_HEADER = re.compile(rb"(headrace replay [1-9][0-9]{0,8})\n([^\n]*)\n")
_DIGEST = hashlib.sha256().digest_size
_LONGEST = 2**20  # bytes of a header that may be another's
_NAME = re.compile(r"rows-[0-9]{19}\.bin")


@dataclass
class _Segment:
    """A file of records, the row after its last, and its length in bytes."""

    path: Path
    stop: int = 0
    size: int = 0
    torn: bool = False


class ReplayFile:
    """A folder of segments, files that are only ever appended to; one whose rows have all left the ring is removed.

    A segment is a line that names the format, a line with the layout of the rows, the SHA-256 of both (32 bytes), and
    records: raw arrays with their checksum (`headrace.replays.records`). They are data and nothing else. Its name says
    its first row.

    segment_bytes: a segment as large is followed by a new one.
    """

    def __init__(self, folder: str | Path, spec: ReplaySpec, *, segment_bytes: int = 2**28) -> None:
        self.folder = Path(folder).absolute()
        self._records = Records(spec)
        lines = _FORMAT + self._records.layout.encode() + b"\n"
        self._header = lines + hashlib.sha256(lines).digest()
        self._segment_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._saved = 0  # the row after the last on disk
        self._opened = False

    def save(self, ring: ReplayRing) -> int:
        """Writes the rows appended since the last save, in any process that sees the ring; returns how many.

        They are on the disk when this returns. Raises OSError where it does not take them: what was saved before is
        untouched, and the next save tries again. Raises FileExistsError for a folder with contents that were not
        loaded.
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
            record = self._records.of(ring, first, min(first + self._records.most_rows, cursor))
            if record is not None:  # else they were overwritten: on with what is there now
                self._append(*record)
                n_saved += record[0].n_rows
        for segment in self._segments[:-1]:
            if segment.stop <= ring.oldest[0]:
                self._remove(segment)
        return n_saved

    def load(self, ring: ReplayRing, until: int | None = None) -> int:
        """Puts what was saved into an empty ring, bit for bit; returns the row after the last, its `cursor`.

        until: only rows before this one, for a checkpoint older than the last save; the others are forgotten. A tail
        torn by a crash is cut off with a warning; what is appended next then continues nothing. A segment that is no
        whole one is put aside, rows that are missing are passed over; both with a warning.

        Raises FileNotFoundError if nothing was saved, CheckpointError for files of another layout or format, ValueError
        for a ring that is not empty.
        """
        if ring.cursor[0]:
            raise ValueError(f"the ring has {ring.cursor[0]} rows already; load into a new one, before any append")
        paths = self._paths()
        if not paths:
            raise FileNotFoundError(f"{self.folder} holds no replay; give the folder of one that was saved")
        self._segments, self._opened = [], True
        begin = cursor = oldest = 0
        for path in paths:
            segment = _Segment(path)
            for head, payload, end in self._whole(segment, ring, cursor):
                stop = head.stop if until is None else min(head.stop, until)
                if stop <= head.first:
                    break
                if head.first != cursor:
                    begin = head.first  # those between are lost
                self._records.put(ring, head, payload, stop)
                cursor, oldest = stop, head.oldest
                if stop < head.stop:
                    break  # what was taken of it is saved again, as a record of its own
                segment.stop, segment.size = stop, end
            self._keep(segment)
        if segment.torn if until is None else cursor < until:  # torn behind what is wanted, nothing is missing
            ring.cut[0] = cursor
        self._say_what_is_missing(oldest, begin, cursor, until)
        self._saved = self._segments[-1].stop if self._segments else 0
        ring.oldest[0] = max(begin, oldest)
        ring.cursor[0] = cursor
        return cursor

    def _say_what_is_missing(self, oldest: int, begin: int, cursor: int, until: int | None) -> None:
        """Logs which rows there should be besides begin to cursor − 1, those loaded."""
        missing = [(oldest, begin), (cursor, cursor if until is None else until)]
        rows = " and ".join(f"{first} to {stop - 1}" for first, stop in missing if first < stop)
        if rows:
            held = cursor - max(begin, oldest)
            _log.warning(
                "%s is without rows %s, which were saved there; going on with the %d others", self.folder, rows, held
            )

    def _paths(self) -> list[Path]:
        """The segments in the folder, in the order of their rows."""
        return sorted(path for path in self.folder.glob("rows-*.bin") if _NAME.fullmatch(path.name) and path.is_file())

    def _whole(self, segment: _Segment, ring: ReplayRing, cursor: int) -> Iterator[tuple[Head, bytes, int]]:
        """The records of a segment up to the first that is damaged, with the byte after each. cursor: the row after the
        last in the ring before this segment.
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
                        self._put_aside(segment, "does not hold the rows that its name and the others say")
                        return
                except Damaged:
                    pass
            elif not self._header.startswith(found):
                self._refuse_other(segment.path, found + file.read(_LONGEST))
                self._put_aside(segment, "is damaged, or not of a headrace replay")
                return
        segment.torn = True
        _log.warning(
            "%s has no whole rows after byte %d of %d: cut off there, what was saved behind it is lost",
            segment.path,
            segment.size,
            size,
        )

    def _keep(self, segment: _Segment) -> None:
        """Cuts off what was not taken from a segment; without any rows it is removed."""
        self._segments.append(segment)
        if not segment.stop:
            self._remove(segment)
        else:
            os.truncate(segment.path, segment.size)

    def _put_aside(self, segment: _Segment, why: str) -> None:
        """Gives a file that is no segment of this replay another name: a person may know what to do with it."""
        aside = segment.path.with_name(segment.path.name + ".damaged")
        os.replace(segment.path, aside)
        segment.torn = True
        _log.warning("%s %s: its rows are lost; it is now %s", segment.path, why, aside)

    def _refuse_other(self, path: Path, found: bytes) -> None:
        """Raises CheckpointError for the beginning of a whole segment of another format or layout."""
        lines = _HEADER.match(found)
        if lines is None or hashlib.sha256(lines[0]).digest() != found[lines.end() :][:_DIGEST]:
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

    def _append(self, head: Head, parts: list[bytes]) -> None:
        """Writes a record behind the others, whole or not at all."""
        if not self._segments or self._segments[-1].size >= self._segment_bytes:
            self._segments.append(_Segment(self.folder / f"rows-{head.first:019d}.bin"))
        segment = self._segments[-1]
        fresh = not segment.size
        size = segment.size
        try:
            with segment.path.open("ab") as file:
                file.truncate(size)  # of what a write that failed may have left
                for part in (self._header, *parts) if fresh else parts:
                    file.write(part)
                    size += len(part)
                file.flush()
                os.fsync(file.fileno())
            if fresh:
                sync_directory(self.folder)
        except OSError as error:
            raise OSError(
                error.errno,
                f"rows {head.first} to {head.stop - 1} were not written to {segment.path} ({error.strerror}); what was "
                "saved before is untouched",
            ) from error
        segment.stop, segment.size = head.stop, size
        self._saved = head.stop

    def _remove(self, segment: _Segment) -> None:
        segment.path.unlink(missing_ok=True)
        self._segments.remove(segment)
