"""Shares of a large folder: which cases a worker segments, what is done already, and one table of all of them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from ..io.files import take_lock, write_atomically
from ..runtime.errors import UserError

__all__ = ["Shard"]

Item = TypeVar("Item")


class Shard:
    """One share of a folder's cases, and the records of what was done with them.

    Each worker appends a line a case to ``records/<shard>_of_<count>.jsonl`` in the output folder, after the case's
    files are there. One that is started again leaves out the cases that have a mask and a line, whichever share they
    were in; a case that a worker died with has no line, and is segmented again. Once every case has a line,
    ``manifest.csv`` has one row for each.

    Args:
        text: ``3/10``, the third of ten.
        output: the folder of the masks.

    Raises:
        UserError: when the text names no share.
    """

    def __init__(self, text: str, output: str | Path) -> None:
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        self.number, self.count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= self.number <= self.count:
            raise UserError(f"--shard is '{text}'; write 3/10 for the third of ten.")
        self.output = Path(output)
        self.records = self.output / "records"
        self._file: TextIO | None = None

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Its share of what all workers see in the same order; each item is in one share."""
        return items[self.number - 1 :: self.count]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Keep a second worker off this share.

        Raises:
            UserError: when another works on it.
        """
        self.records.mkdir(parents=True, exist_ok=True)
        path = self.records / f"{self.number}_of_{self.count}.jsonl"
        with path.open("a", encoding="utf-8") as self._file:
            if not take_lock(self._file):
                raise UserError(f"Another process works on shard {self.number}/{self.count} of {self.output}.")
            if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
                self._file.write("\n")  # of a worker that died while it wrote
            yield

    def add(self, row: Mapping[str, Any]) -> None:
        """Record a case whose files are there, or what was wrong with it (``error``)."""
        assert self._file is not None
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def rows(self) -> dict[str, dict[str, Any]]:
        """The last record of each case, of all shares."""
        rows: dict[str, dict[str, Any]] = {}
        for file in sorted(self.records.glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:  # cut off, see above
                    continue
                if "error" not in row or row["case"] not in rows:  # what another share mended stays mended
                    rows[row["case"]] = row
        return rows

    def done(self, how: Mapping[str, Any]) -> set[str]:
        """The cases that have a mask.

        Args:
            how: what the masks were made with, part of each record.

        Raises:
            UserError: when some were made with something else.
        """
        rows = {case: row for case, row in self.rows().items() if "error" not in row}
        done = {case: row for case, row in rows.items() if (self.output / Path(row["mask"]).name).is_file()}
        for case, row in done.items():
            if other := [name for name, value in how.items() if row.get(name) != value]:
                raise UserError(
                    f"{self.output} holds masks that were made otherwise: {case} with {other[0]} {row.get(other[0])}, "
                    f"not {how[other[0]]}. Choose another folder."
                )
        return set(done)

    def gather(self, cases: Sequence[str]) -> Path | None:
        """Write ``manifest.csv`` if each case has its record; None while some have none."""
        rows = self.rows()
        if not all(case in rows for case in cases):
            return None
        names = list(dict.fromkeys(name for case in cases for name in rows[case]))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {n: "; ".join(map(str, v)) if isinstance(v, list) else v for n, v in rows[case].items()} for case in cases
        )
        write_atomically(self.output / "manifest.csv", text.getvalue())
        return self.output / "manifest.csv"
