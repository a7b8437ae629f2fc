"""Writes log rows to a CSV file that is complete after every row."""

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
    """Writes each log row to a new file; numbers of another run are never overwritten.

    A row may have columns that earlier rows did not have (because no episode had ended yet): the file is then rewritten
    with the longer header, and the new columns of earlier rows are empty. Rows that the disk does not accept are kept
    in memory, with a warning, and are written as soon as the disk accepts them.

    Args:
        path: must not exist, unless `keep_rows` is given.
        keep_rows: number of rows to keep when a run is resumed; later rows, which the checkpoint does not know, are
            removed. Missing or damaged rows are reported in the log. None: a new run.

    Raises:
        FileExistsError: if `path` exists and `keep_rows` is None.
    """

    def __init__(self, path: str | Path, keep_rows: int | None = None) -> None:
        self.path = Path(path).absolute()
        self._columns: list[str] = []
        self._size = 0  # size of the file in bytes
        self._waiting: list[Mapping[str, float]] = []  # rows that are not yet in the file
        self._warned = False
        if keep_rows is not None and self.path.exists():
            self._restore(keep_rows)
            return
        try:
            self.path.open("xb").close()
        except FileExistsError as error:
            raise FileExistsError(f"{path} already exists, from another run; choose another log directory") from error
        if keep_rows:
            _log.warning("%s does not exist: it begins without the %d rows of the checkpoint", self.path, keep_rows)

    def progress(self, steps: int, mean_return: float = math.nan) -> None:
        """See `Logger`. Also retries rows that the disk did not accept."""
        self._write()

    def row(self, row: Mapping[str, float]) -> None:
        """See `Logger`. When this returns, the row is in the file, or waits in memory."""
        self._waiting.append(dict(row))
        self._write()

    def close(self) -> None:
        """See `Logger`. Rows that the disk still does not accept are lost, with a warning."""
        self._write()
        if self._waiting:
            _log.warning("%s lacks its last %d rows, which the disk did not accept", self.path, len(self._waiting))
            self._waiting.clear()

    def _restore(self, keep_rows: int) -> None:
        """Removes everything but the intact rows among the first `keep_rows`."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        columns, rows, n_damaged = _parsed(content, keep_rows)
        if n_damaged:
            aside = self.path.with_name(self.path.name + ".damaged")
            write_whole(aside, [content])
            _log.warning("%s has %d damaged rows, which are left out; see %s", self.path, n_damaged, aside)
        if len(rows) + n_damaged < keep_rows:
            _log.warning("%s has %d rows, but the checkpoint was written after %d", self.path, len(rows), keep_rows)
        self._replace(columns, rows)

    def _write(self) -> None:
        """Writes the waiting rows; if that fails, warns once until a write succeeds again."""
        if not self._waiting:
            return
        columns = list(dict.fromkeys([*self._columns, *(name for row in self._waiting for name in row)]))
        try:
            if columns == self._columns and self.path.is_file():
                self._append(_lines(columns, self._waiting))
            else:
                rows = _parsed(self.path.read_bytes())[1] if self.path.is_file() else []
                self._replace(columns, [*rows, *self._waiting])
        except OSError as error:
            if not self._warned:
                _log.warning("%s: a row was not written, and waits in memory until it can be (%s)", self.path, error)
            self._warned = True
            return
        self._waiting.clear()
        self._warned = False

    def _append(self, content: bytes) -> None:
        """Appends to the file; if the disk does not accept everything, restores the file and raises OSError."""
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
        """Rewrites the file, completely or not at all; raises OSError."""
        header = [dict(zip(columns, columns, strict=True))] if columns else []
        content = _lines(columns, [*header, *rows])
        write_whole(self.path, [content])
        self._columns, self._size = columns, len(content)


def _lines(columns: list[str], rows: Iterable[Mapping[str, float | str]]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.DictWriter(buffer, columns).writerows(rows)
    return buffer.getvalue().encode()


def _parsed(content: bytes, n: int | None = None) -> tuple[list[str], list[dict[str, str]], int]:
    """Returns the columns of a file, its intact rows among the first n (None: all), and the number of damaged ones.

    The file is parsed line by line, so that a damaged line does not affect others; a last line without a line end is
    torn.
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
    """Returns the values of a CSV line; an empty list if the line is damaged."""
    try:
        (values,) = csv.reader([line.decode()], strict=True)
    except (ValueError, csv.Error):
        return []
    return values if line.endswith(b"\n") else []
