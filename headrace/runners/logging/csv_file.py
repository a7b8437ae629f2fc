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
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = self.path.open("x", newline="")
        except FileExistsError as error:
            raise FileExistsError(f"{path} is there already, from another run; choose another log directory") from error
        self._columns: list[str] = []

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

    def _rewrite(self) -> None:
        """The file again, with the columns as they are now; through a temporary, so no moment has half a file."""
        self._file.close()
        with self.path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        temporary = self.path.with_name(self.path.name + ".tmp")
        self._file = temporary.open("w", newline="")
        writer = csv.DictWriter(self._file, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        self._file.flush()
        os.replace(temporary, self.path)
