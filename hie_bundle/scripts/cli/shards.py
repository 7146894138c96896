"""Shards of a large folder: the cases of each worker, finished cases, and a table of all cases."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ..io.files import release_lock, sha256_of, take_lock, write_atomically
from ..runtime.conditions import differences
from ..runtime.errors import UserError
from ..runtime.text import csv_table

Item = TypeVar("Item")


class Shard:
    """One shard of a folder's cases, and their records.

    After writing the files of a case, each worker appends a line to ``records/<shard>_of_<count>.jsonl`` in the output
    folder. A restarted worker skips finished cases (:meth:`is_done`) of any shard. When every case has a line,
    ``manifest.csv`` is written with one row per case.

    Args:
        text: ``3/10``, the third of ten.
        output: folder of the masks.

    Raises:
        UserError: the text is not a valid shard.
    """

    def __init__(self, text: str, output: str | Path) -> None:
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        self.number, self.count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= self.number <= self.count:
            raise UserError(f"--shard '{text}' is not valid; write 3/10 for the third of ten.")
        self.output = Path(output)
        self.records = self.output / "records"
        self._file: BinaryIO | None = None

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """This worker's items; all workers must pass the same list."""
        return items[self.number - 1 :: self.count]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Lock this shard; a second worker gets a UserError."""
        self.records.mkdir(parents=True, exist_ok=True)
        path = self.records / f"{self.number}_of_{self.count}.jsonl"
        lock = path.with_suffix(".lock")
        take_lock(lock, f"Another process uses shard {self.number}/{self.count} of {self.output}.")
        with path.open("ab") as self._file:
            if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
                self._file.write(b"\n")  # ends the partial line of a killed worker
            try:
                yield
            finally:
                release_lock(lock, remove=True)
            if not path.is_file():
                raise UserError(f"{path} was removed during the run: its masks will be computed again.")

    def add(self, row: Mapping[str, Any], maps_sha256: str, files: Mapping[str, Path]) -> None:
        """Record a case with the hashes of its files by type, or with its ``error``."""
        assert self._file is not None
        hashes = {} if "error" in row else {f"{kind}_sha256": sha256_of(path) for kind, path in files.items()}
        line = json.dumps({**row, "maps_sha256": maps_sha256, **hashes}, ensure_ascii=False)
        try:
            self._file.write(line.encode(errors="backslashreplace") + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:  # the system does not name the file if the disk is full
            error.filename = self._file.name
            raise

    def rows(self) -> dict[str, dict[str, Any]]:
        """The last record of each case, from all shards."""
        rows: dict[str, dict[str, Any]] = {}
        for file in filter(Path.is_file, sorted(self.records.glob("*.jsonl"))):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                    case = str(row["case"])
                except (ValueError, TypeError, KeyError, RecursionError):  # truncated, or not a record
                    continue
                if "error" not in row or case not in rows:  # an error does not replace another shard's result
                    rows[case] = row
        return rows

    def is_done(
        self, row: Mapping[str, Any] | None, making: Mapping[str, Any], maps: Sequence[Path], files: Mapping[str, Path]
    ) -> bool:
        """Whether the record of a case shows complete files for these maps.

        Raises:
            UserError: the files were made with other weights, settings or names.
        """
        if row is None or "error" in row:
            return False
        names, wanted = ({k: Path(str(one[k])).name for k in files if k in row} for one in (row, files))
        before = {name: row.get(name) for name in making} | names
        for name, (old, new) in differences(before, json.loads(json.dumps({**making, **wanted}))).items():
            raise UserError(
                f"{self.output} has masks with other settings: {row['case']} with {name} {old}, not {new}. "
                "Choose another folder."
            )
        if row.get("maps_sha256") != hash_of(maps):
            return False
        return all(path.is_file() and row.get(f"{kind}_sha256") == sha256_of(path) for kind, path in files.items())

    def gather(self, maps: Mapping[str, Sequence[Path]]) -> Path | None:
        """Write ``manifest.csv`` if each case has a record of its maps; else return None."""
        rows = self.rows()
        if maps.keys() - rows.keys():
            return None
        if any(rows[case].get("maps_sha256") != hash_of(files) for case, files in maps.items()):
            return None
        table = [
            {n: "; ".join(map(str, v)) if isinstance(v, list) else v for n, v in rows[case].items() if n != "limits"}
            for case in maps
        ]
        names = list(dict.fromkeys(name for row in table for name in row))
        write_atomically(self.output / "manifest.csv", csv_table(table, names))
        return self.output / "manifest.csv"


def hash_of(maps: Sequence[Path]) -> str:
    """SHA-256 of a case's maps; empty if one is unreadable."""
    try:
        return sha256_of(*maps)
    except OSError:
        return ""
