"""Rows of numbers in a CSV file that is whole after every row."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path

from headrace.runners.logging.logger import Logger

__all__ = ["CsvLogger"]


class CsvLogger(Logger):
    """Writes each row to `path`, which must not exist: a run's numbers are never written over another's.

    A row may bring columns that earlier rows did not have (no episode had ended yet): the file is then rewritten with
    the longer header, the old rows empty there.

    keep_rows: go on with the file of a run that is resumed, whose first rows these many are; what follows them, and was
    not known to the checkpoint, is cut.
    """

    def __init__(self, path: str | Path, keep_rows: int | None = None) -> None:
        self.path = Path(path)
        self._columns: list[str] = []
        if keep_rows is not None and self.path.exists():
            self._file = self.path.open("a", newline="")
            self._rewrite(keep_rows)
            return
        try:
            self._file = self.path.open("x", newline="")
        except FileExistsError as error:
            raise FileExistsError(f"{path} is there already, from another run; choose another log directory") from error

    def row(self, row: Mapping[str, float]) -> None:
        """See `Logger`; flushed."""
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite()
        csv.DictWriter(self._file, self._columns).writerow(row)
        self._file.flush()

    def close(self) -> None:
        """See `Logger`."""
        self._file.close()

    def _rewrite(self, keep_rows: int | None = None) -> None:
        """The file again, with its columns and those that are new, and its first rows (None: all); through a temporary,
        so no moment has half a file.
        """
        self._file.close()
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = list(reader)[:keep_rows]
        self._columns = list(dict.fromkeys([*columns, *self._columns]))
        temporary = self.path.with_name(self.path.name + ".tmp")
        self._file = temporary.open("w", newline="")
        writer = csv.DictWriter(self._file, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        self._file.flush()
        os.replace(temporary, self.path)
