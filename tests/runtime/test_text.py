"""Ids of strangers in a terminal and in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from scripts.data import datalist
from scripts.report.tables import read_rows
from scripts.runtime.errors import DatasetError
from scripts.runtime.text import csv_table, csv_value, is_printable, printable, show_any_text

FORMULAS = ['=HYPERLINK("http://x";"y")', "@SUM(1+1)|cmd", "+1+cmd", "-2+3", "\t=1"]
ESCAPES = ["\x1b[31mred", "bell\x07", "two\nlines", "\u202egnp.exe", "\x9b31m", "\u2028"]


@pytest.mark.parametrize("case", FORMULAS)
def test_no_cell_is_a_formula_and_reading_gives_the_id_back(case: str, tmp_path: Path) -> None:
    (row,) = csv.DictReader(io.StringIO(csv_table([{"case": case, "dice": -0.5}])))
    assert row["case"][0] == "'"
    assert csv_value(row["case"]) == case
    assert row["dice"] == "-0.5"
    (tmp_path / "metrics.csv").write_text(csv_table([{"case": case, "dice": 1.0}]), encoding="utf-8")
    assert read_rows(tmp_path / "metrics.csv") == [{"case": case, "dice": 1.0}]


@pytest.mark.parametrize("text", ESCAPES)
def test_no_escape_reaches_a_terminal(text: str) -> None:
    assert not is_printable(text)
    shown = printable(text)
    assert all(one == "\n" or is_printable(one) for one in shown)
    assert is_printable("患者 é-1_(a)")


@pytest.mark.parametrize("text", ESCAPES)
def test_a_data_list_with_such_an_id_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    file.write_text(json.dumps({"training": [{"image": "a.nii", "label": "b.nii", "case": text}]}), encoding="utf-8")
    with pytest.raises(DatasetError, match="without control characters"):
        datalist(tmp_path, "train", file=file)


def test_output_in_another_encoding_loses_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """``LC_ALL=C`` without UTF-8 mode, and code pages of Windows."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for _ in range(2)]
    monkeypatch.setattr("sys.stdout", streams[0])
    monkeypatch.setattr("sys.stderr", streams[1])
    show_any_text()
    print("1350 ± 430")
    assert streams[0].buffer.getvalue() == b"1350 \\xb1 430\n"  # type: ignore[attr-defined]
