"""Rows of numbers in a CSV file that is whole after every row."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from headrace.runners.logging.logger import Logger
from headrace.storage import write_whole

__all__ = ["CsvLogger"]

_log = logging.getLogger("headrace.runners")


class CsvLogger(Logger):
    """Writes each row to `path`, which must not exist: a run's numbers are never written over another's.

    A row may bring columns that earlier rows did not have (no episode had ended yet): the file is then rewritten with
    the longer header, the old rows empty there. Rows that the disk does not take are kept, with a warning, and written
    once it does.

    keep_rows: go on with the file of a run that is resumed, whose first rows these many are; what follows them, and was
    not known to the checkpoint, is cut. Rows that are missing or damaged are said in the log.
    """

    def __init__(self, path: str | Path, keep_rows: int | None = None) -> None:
        self.path = Path(path).absolute()
        self._columns: list[str] = []
        self._size = 0  # of the file in bytes
        self._waiting: list[Mapping[str, float]] = []  # rows that are not in the file yet
        self._warned = False
        if keep_rows is not None and self.path.exists():
            self._restore(keep_rows)
            return
        try:
            self.path.open("xb").close()
        except FileExistsError as error:
            raise FileExistsError(f"{path} is there already, from another run; choose another log directory") from error
        if keep_rows:
            _log.warning("%s is not there: it begins anew, without the %d rows of the checkpoint", self.path, keep_rows)

    def progress(self, steps: int, mean_return: float = math.nan) -> None:
        """See `Logger`: rows that wait are tried again."""
        self._write()

    def row(self, row: Mapping[str, float]) -> None:
        """See `Logger`; it is in the file when this returns, or waits."""
        self._waiting.append(dict(row))
        self._write()

    def close(self) -> None:
        """See `Logger`. Rows that the disk does not take now are lost, and the log says so."""
        self._write()
        if self._waiting:
            _log.warning("%s is without its last %d rows, which the disk did not take", self.path, len(self._waiting))
            self._waiting.clear()

    def _restore(self, keep_rows: int) -> None:
        """Cuts the file behind the rows to keep, those of them that are whole."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        columns, rows, n_damaged = _parsed(content, keep_rows)
        if n_damaged:
            aside = self.path.with_name(self.path.name + ".damaged")
            write_whole(aside, [content])
            _log.warning("%s has %d rows that are damaged: they are left out, see %s", self.path, n_damaged, aside)
        if len(rows) + n_damaged < keep_rows:
            _log.warning("%s has %d rows, and the checkpoint was written with %d", self.path, len(rows), keep_rows)
        self._replace(columns, rows)

    def _write(self) -> None:
        """Writes what waits; warns where that fails, once for a disk that takes nothing for a while."""
        if not self._waiting:
            return
        columns = list(dict.fromkeys([*self._columns, *(name for row in self._waiting for name in row)]))
        try:
            if columns == self._columns and self.path.exists():
                self._append(_lines(columns, self._waiting))
            else:
                rows = _parsed(self.path.read_bytes())[1] if self.path.exists() else []
                self._replace(columns, [*rows, *self._waiting])
        except OSError as error:
            if not self._warned:
                _log.warning("%s did not take a row, which waits in memory until it does (%s)", self.path, error)
            self._warned = True
            return
        self._waiting.clear()
        self._warned = False

    def _append(self, content: bytes) -> None:
        """Adds to the file; where the disk does not take all of it, leaves it as it was and raises OSError."""
        with self.path.open("r+b", buffering=0) as file:
            file.seek(self._size)
            rest = memoryview(content)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except BaseException:
                file.truncate(self._size)
                raise
        self._size += len(content)

    def _replace(self, columns: list[str], rows: Iterable[Mapping[str, float | str]]) -> None:
        """Writes the file anew, whole or not at all; raises OSError."""
        header = [dict(zip(columns, columns, strict=True))] if columns else []
        content = _lines(columns, [*header, *rows])
        write_whole(self.path, [content])
        self._columns, self._size = columns, len(content)


def _lines(columns: list[str], rows: Iterable[Mapping[str, float | str]]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.DictWriter(buffer, columns).writerows(rows)
    return buffer.getvalue().encode()


def _parsed(content: bytes, n: int | None = None) -> tuple[list[str], list[dict[str, str]], int]:
    """The columns of a file, those of its first n rows (None: all) that are whole, and how many of them are not.

    Line by line, so that one that is damaged takes no other with it; a last one without an end is torn.
    """
    header, *lines = content.splitlines(keepends=True) or [b""]
    lines = lines[:n]
    columns = _values(header)
    if not columns or len(set(columns)) < len(columns):
        return [], [], len(lines)
    found = [_values(line) for line in lines]
    rows = [dict(zip(columns, values, strict=True)) for values in found if len(values) == len(columns)]
    return columns, rows, len(lines) - len(rows)


def _values(line: bytes) -> list[str]:
    """The values of a line; none where it is not one of a CSV file."""
    try:
        (values,) = csv.reader([line.decode()], strict=True)
    except (ValueError, csv.Error):
        return []
    return values if line.endswith(b"\n") else []
