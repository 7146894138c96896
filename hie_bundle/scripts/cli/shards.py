"""Shares of a large folder: the cases of a worker, those that are done, and one table of all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from ..io.files import release_lock, sha256_of, take_lock, write_atomically
from ..runtime.conditions import differences
from ..runtime.errors import UserError
from ..runtime.text import csv_table

__all__ = ["Shard"]

Item = TypeVar("Item")


class Shard:
    """One share of a folder's cases, and their records.

    Each worker appends a line a case to ``records/<shard>_of_<count>.jsonl`` in the output folder, after the case's
    files are there. A worker that is started again skips the cases that are done (:meth:`is_done`), whichever share
    they were in. Once every case has a line, ``manifest.csv`` has one row for each.

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
        """This worker's share of the items, which all workers list in one order; each item is in one share."""
        return items[self.number - 1 :: self.count]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Keep a second worker off this share.

        Raises:
            UserError: when another works on it.
        """
        self.records.mkdir(parents=True, exist_ok=True)
        path = self.records / f"{self.number}_of_{self.count}.jsonl"
        take_lock(path, f"Another process works on shard {self.number}/{self.count} of {self.output}.")
        with path.open("a", encoding="utf-8") as self._file:
            if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
                self._file.write("\n")  # of a worker that died while it wrote
            try:
                yield
            finally:
                release_lock(path)

    def add(self, row: Mapping[str, Any], maps: Sequence[Path], files: Mapping[str, Path]) -> None:
        """Record a case whose files are there, or what was wrong with it (``error``).

        Args:
            row: of the manifest.
            maps: that were segmented; their hash is recorded.
            files: that were written, by kind; likewise.
        """
        assert self._file is not None
        hashes = {} if "error" in row else {f"{kind}_sha256": sha256_of(path) for kind, path in files.items()}
        self._file.write(json.dumps({**row, "maps_sha256": _hash(maps), **hashes}, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def rows(self) -> dict[str, dict[str, Any]]:
        """The last record of each case, of all shares."""
        rows: dict[str, dict[str, Any]] = {}
        for file in sorted(self.records.glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                    case = row["case"]
                except (json.JSONDecodeError, TypeError, KeyError):  # cut off, or not a record
                    continue
                if "error" not in row or case not in rows:  # a case that another share has mended stays so
                    rows[case] = row
        return rows

    def is_done(self, row: Mapping[str, Any] | None, making: Mapping[str, Any], maps: Sequence[Path],
                files: Mapping[str, Path]) -> bool:  # fmt: skip
        """Whether a case has whole files of these maps.

        Args:
            row: its record.
            making: weights and settings; part of each record.
            maps: that are to be segmented.
            files: that are to be written, by kind.

        Raises:
            UserError: when its files were made with other weights, settings or names.
        """
        if row is None or "error" in row:
            return False
        other = differences({name: row.get(name) for name in making}, json.loads(json.dumps(making)))
        names, wanted = ({k: Path(one[k]).name for k in files if k in row} for one in (row, files))
        other |= differences(names, wanted)
        for name, (before, now) in other.items():
            raise UserError(
                f"{self.output} has masks of other settings: {row['case']} with {name} {before}, not {now}. "
                "Choose another folder."
            )
        if row.get("maps_sha256") != _hash(maps):
            return False
        return all(path.is_file() and row.get(f"{kind}_sha256") == sha256_of(path) for kind, path in files.items())

    def gather(self, maps: Mapping[str, Sequence[Path]]) -> Path | None:
        """Write ``manifest.csv`` if each case has a record of its maps; None while some have none.

        Args:
            maps: by case.
        """
        rows, cases = self.rows(), list(maps)
        if not maps.keys() <= rows.keys() or any(rows[case].get("maps_sha256") != _hash(maps[case]) for case in cases):
            return None
        names = [name for name in dict.fromkeys(name for case in cases for name in rows[case]) if name != "limits"]
        joined = [
            {n: "; ".join(map(str, v)) if isinstance(v, list) else v for n, v in rows[case].items()} for case in cases
        ]
        write_atomically(self.output / "manifest.csv", csv_table(joined, names))
        return self.output / "manifest.csv"


def _hash(maps: Sequence[Path]) -> str:
    """SHA-256 of a case's maps; empty where one cannot be read."""
    try:
        return sha256_of(*maps)
    except OSError:
        return ""
