"""The page as its readers meet it: complete in itself, harmless, readable without script, sortable with one."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shutil
import subprocess
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from test_report import many_rows

from scripts import report
from scripts.evaluation.measures import column
from scripts.report.case_evaluation import CaseEvaluation
from scripts.report.groups import grouped

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.in_cell:
            self.rows[-1][-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    def attributes(self, tag: str, name: str) -> list[str]:
        return [str(attrs[name]) for kind, attrs in self.elements if kind == tag and name in attrs]

    @property
    def table(self) -> list[list[str]]:
        """The rows of all tables, as words."""
        return [[" ".join(cell.split()) for cell in row] for row in self.rows]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def _views(rows: list[dict[str, Any]]) -> dict[str, list[report.SliceView]]:
    rng = np.random.default_rng(0)
    adc = rng.uniform(100, 2000, (20, 24, 6))
    truth, pred = np.zeros(adc.shape, bool), np.zeros(adc.shape, bool)
    truth[5:9, 5:9, 2] = pred[12:18, 6:9, 4] = True
    slices = report.CaseSlices({"ADC": adc, "ZADC": adc / 1000}, {"truth": truth, "pred": pred}, np.diag([1, 1, 3, 1]))
    return {row["case"]: slices.views_of_errors() for row in rows}


def _write(folder: Path, rows: list[dict[str, Any]], info: dict[str, Any] | None = None, **more: Any) -> str:
    summary = report.write_results(rows, folder, info or {})
    report.write_report(folder / "report.html", rows, summary, **more)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = many_rows(20)
    rows[3]["case"] = EVIL
    for row in rows:
        row |= {"member_1_dice": row["native_dice"] * 0.9}
    curves = {"loss": {i: 1 / i for i in range(1, 50)}, "val_mean_dice": {1: 0.2, 2: 0.4}}
    info = {"split": "test", "dataset_dir": f"/data/{EVIL}", "features": [8, 16], **report.provenance()}
    return _write(
        tmp_path_factory.mktemp("page"), rows, info, views=_views(rows), curves=curves, windows={"ADC": (0, 2500)}
    )


def test_nothing_is_fetched_and_no_other_script_runs(page_text: str) -> None:
    page = Page(page_text)
    for tag, attrs in page.elements:
        for name in ("src", "href", "xlink:href", "data", "action"):
            if attrs.get(name):
                assert str(attrs[name]).startswith(("data:image/", "#")), (tag, name)
    assert not page.count("link")
    assert not page.count("iframe")
    assert "@import" not in page_text
    assert "url(" not in page_text
    (policy,) = (attrs["content"] for tag, attrs in page.elements if "http-equiv" in attrs)
    assert "default-src 'none'" in str(policy)
    (script,) = re.findall(r"<script>(.*?)</script>", page_text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in str(policy)


def test_names_of_cases_and_folders_are_harmless(page_text: str) -> None:
    page = Page(page_text)
    assert page.count("script") == 1
    assert EVIL not in page_text.replace("<script>(", "")
    assert any(row and row[0] == EVIL for row in page.table)  # and yet shown as it is
    assert f"/data/{EVIL}" in page.text


def test_what_a_screen_reader_needs(page_text: str) -> None:
    page = Page(page_text)
    assert page.attributes("html", "lang") == ["en"]
    assert len(page.attributes("img", "alt")) == page.count("img") >= 10
    assert all(len(alt) > 20 for alt in page.attributes("img", "alt"))
    assert len(page.attributes("th", "scope")) == page.count("th")
    assert page.count("caption") == page.count("table")
    pictures = [attrs for tag, attrs in page.elements if tag == "svg"]
    assert all("aria-label" in attrs or "aria-hidden" in attrs for attrs in pictures)
    identifiers = Counter(str(attrs["id"]) for _, attrs in page.elements if "id" in attrs)
    assert max(identifiers.values()) == 1
    anchors = [href[1:] for href in page.attributes("a", "href")]
    assert set(anchors) <= set(identifiers)
    assert page.count("h1") == 1


def test_every_case_is_there_worst_first(page_text: str) -> None:
    page = Page(page_text)
    start = next(i for i, row in enumerate(page.table) if row and row[0] == "Case")
    header, cases = page.table[start], [row for row in page.table[start + 1 :] if row]
    assert len(cases) == 20
    dice = [float(row[header.index("Dice")]) for row in cases]
    assert dice == sorted(dice)
    assert page.count("article") == 20
    headings = [str(attrs["id"]) for tag, attrs in page.elements if tag == "article"]
    assert headings == [f"case-{i}" for i in range(1, 21)]


def test_figures_of_the_page_are_those_of_the_summary(tmp_path: Path) -> None:
    rows = many_rows(25)
    text = _write(tmp_path, rows)
    summary = report.summarise(rows)["metrics"]
    page = Page(text)
    line = next(row for row in page.table if row and row[0].startswith("MSD (mm)"))
    figures = summary["native_paper_msd_mm"]
    assert f"{figures['mean']:.2f}" in line[1]
    assert f"{figures['low']:.2f} to {figures['high']:.2f}" in line[1]
    assert line[-2] == "Inf"
    assert line[-1] == f"{figures['defined']} / {figures['undefined']} / {figures['infinite']}"
    dice = summary["native_dice"]
    assert f"mean Dice {dice['mean']:.3f} 95 % CI {dice['low']:.3f} to {dice['high']:.3f}" in page.text


@pytest.mark.parametrize("count", [1, 2])
def test_the_least_that_there_can_be(count: int, tmp_path: Path) -> None:
    rows = [
        {
            "case": f"{i}", "size_class": "<1 %", "lesion_fraction": 0.001, "lesion_ml": 1.0, "predicted_ml": 0.0,
            "native_dice": 0.0, "native_masd_mm": math.nan, "native_paper_msd_mm": math.inf,
        }
        for i in range(count)
    ]  # fmt: skip
    page = Page(_write(tmp_path, rows))
    assert "Training" not in page.text
    assert "Ensemble" not in page.text
    assert "resampled grid" not in page.text
    assert page.count("article") == 0
    assert "mean MASD –" in page.text


def test_every_column_has_a_table() -> None:
    names = [*many_rows(1)[0], "member_2_dice", "resampled_hd95_mm"]
    shown = {known.name: group.title for group, members in grouped(names) for known in members}
    describing = {"case", "size_class", "lesion_fraction", "brain_ml", "lesion_ml", "predicted_ml"}
    assert set(names) - set(shown) == describing
    with pytest.raises(ValueError, match="'unheard_of' is not registered"):
        grouped([*names, "unheard_of"])
    assert column("native_paper_nsd").origin == "paper’s"
    assert column("resampled_nsd").origin == "challenge’s, resampled"
    assert column("member_2_dice").label == "Dice of model 2"


def test_provenance_names_checkpoints_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    found = report.provenance([tmp_path / "model.pt"], tmp_path / "eval")
    assert found["checkpoints"] == [{"path": "../model.pt", "sha256": hashlib.sha256(b"weights").hexdigest()}]
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", found["date"])


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
def test_sorting_and_filtering_in_a_browser(page_text: str, tmp_path: Path) -> None:
    clicks = """<script>
      const write = (id, textContent) =>
        document.body.append(Object.assign(document.createElement("pre"), {id, textContent}));
      const shown = (all, name) => [...document.querySelectorAll(all)].filter((one) => !one.hidden)
        .map((one) => one.querySelector(name).textContent.trim()).join("|");
      const show = (id) => write(id, shown("#case-table tbody tr", "th") + "#" + shown("article", "h3"));
      const click = (text) => [...document.querySelectorAll("#case-table thead button")]
        .find((one) => one.textContent.startsWith(text)).click();
      write("wide", document.documentElement.scrollWidth);
      click("MASD"); show("up"); click("MASD"); show("down"); click("Case"); show("names");
      const box = document.getElementById("search");
      box.value = "CASE-1"; box.dispatchEvent(new Event("input")); show("filtered");
    </script>"""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page_text).replace(
        "</body>", clicks + "</body>"
    )
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    result = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--window-size=800,900",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    orders = {}
    for name in ("up", "down", "names", "filtered"):
        found = re.search(rf'<pre id="{name}">(.*?)</pre>', result.stdout, re.DOTALL)
        assert found, name
        table, pictures = (part.split("|") for part in found[1].split("#"))
        assert table == pictures  # the pictures follow the table
        orders[name] = table
    rows = many_rows(20)
    masd = {row["case"]: row["native_masd_mm"] for row in rows}
    masd["&lt;script&gt;alert(1)&lt;/script&gt;"] = masd.pop("case-3")
    for name, step in (("up", 1), ("down", -1)):
        values = [masd[case] for case in orders[name]]
        defined = [value for value in values if not math.isnan(value)]
        assert defined == sorted(defined, reverse=step < 0)
        assert all(math.isnan(value) for value in values[len(defined) :])  # undefined ones last, both ways
    assert orders["names"][1:] == [f"case-{i}" for i in range(20) if i != 3]  # numbers as numbers
    assert sorted(orders["filtered"]) == sorted(["case-1", *(f"case-{i}" for i in range(10, 20))])
    width = re.search(r'<pre id="wide">(\d+)</pre>', result.stdout)
    assert width
    assert int(width[1]) <= 800  # no scrolling of the whole page to the side


@pytest.mark.slow
def test_a_page_of_fifty_cases_is_small_and_soon_there(tmp_path: Path) -> None:
    """Time of this process: other work on the machine does not count."""
    rng = np.random.default_rng(0)
    shape = (192, 192, 40)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    brain = (grid**2).sum(0) < 0.8
    affine = torch.diag(torch.tensor([-1.1, 1.1, 3.0, 1.0], dtype=torch.float64))
    evaluation = CaseEvaluation(str(tmp_path))
    drawing = 0.0
    for number in range(50):
        maps = np.stack([rng.normal(1350, 430, shape), rng.normal(0.35, 2.5, shape)]) * brain
        truth, pred = (
            ((grid - rng.uniform(-0.3, 0.3, (3, 1, 1, 1))) ** 2).sum(0) < rng.uniform(0.001, 0.05) for _ in range(2)
        )
        item = {
            name: MetaTensor(torch.as_tensor(array.astype(np.float32)), affine=affine)
            for name, array in (("native_image", maps), ("native_label", truth[None]), ("native_pred", pred[None]))
        }
        evaluation.cases.append(evaluation.measure({"case": f"case-{number}", **item}))
        start = time.process_time()
        evaluation.cases[-1].views = evaluation.draw({"case": f"case-{number}", **item})
        drawing += time.process_time() - start
    start = time.process_time()
    evaluation.completed()
    assert drawing + time.process_time() - start < 60
    assert (tmp_path / "report.html").stat().st_size < 15e6
