"""The check of the project's words (docs/prose.py)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytest.importorskip("proselint")
sys.path.insert(0, str(ROOT / "docs"))
import prose

PAGE = "# Page\n\nThe file stands\nin a folder, `takes away` and\n```\nspecks\n```\nremoves specks.\n"
MODULE = '"""Leave out specks."""\n\nNAME = "specks"  # what it takes away\nprint(f"Specks of {NAME} stand in it.")\n'


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    prose.CheckRegistry().register_many((prose.vocabulary(),))


@pytest.mark.parametrize(
    ("text", "of", "lines"), [(PAGE, prose.of_page, ["3", "8"]), (MODULE, prose.of_module, ["1", "3", "4", "4"])]
)
def test_words_are_found_in_prose_only(
    text: str, of: object, lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    (tmp_path / "file").write_text(text)
    found = prose.findings(tmp_path / "file", of)
    assert [re.match(r"file:(\d+): ", line)[1] for line in found] == lines


def test_pages_modules_and_configs_have_none() -> None:
    result = subprocess.run([sys.executable, ROOT / "docs" / "prose.py"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
