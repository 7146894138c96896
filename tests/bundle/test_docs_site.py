"""The site of `make docs`: whole links, nothing from a network, no page wider than a phone (`make test-slow`)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import ROOT

PHONE = 390  # CSS pixels
# opens every page in a frame of a phone's width and tells how wide its content is
MEASURE = """<!DOCTYPE html><body><script>
const pages = %s, found = {};
async function measure() {
  for (const page of pages) {
    const frame = document.createElement("iframe");
    frame.style = "border: 0; width: %dpx; height: 800px";
    frame.src = page;
    document.body.append(frame);
    await new Promise(done => frame.onload = done);
    const shown = frame.contentDocument;
    found[page] = [shown.documentElement.scrollWidth, shown.querySelector("article").innerText.trim().length];
    frame.remove();
  }
  document.body.textContent = "measured " + JSON.stringify(found) + " end";
}
measure();
</script></body>"""


class Page(HTMLParser):
    """What a page refers to, what it loads, and where it can be referred to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors = {"", "__top"}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag in ("img", "script", "source", "iframe") and "src" in values:
            self.loaded.append(values["src"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(values["href"])
        elif tag == "a" and "href" in values:
            self.links.append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder], cwd=ROOT, capture_output=True,
        text=True, timeout=600, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_no_link_is_broken_and_nothing_comes_from_a_network(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 50
    broken = []
    for path, page in pages.items():
        for target in page.loaded + page.links:
            parts = urlsplit(target)
            if parts.scheme:
                if target in page.loaded and parts.scheme != "data":
                    broken.append(f"{path.relative_to(site)} loads {target}")
                continue
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not place.is_file():
                broken.append(f"{path.relative_to(site)}: {target}")
            elif place in pages and unquote(parts.fragment) not in pages[place].anchors:
                broken.append(f"{path.relative_to(site)}: no {target}")
    assert broken == []


@pytest.mark.slow
def test_pages_open_from_disk_on_a_phone(site: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or pytest.skip("no Chromium here")
    pages = [p.relative_to(site).as_posix() for p in sorted(site.rglob("*.html")) if p.name != "404.html"]
    (site / "measure.html").write_text(MEASURE % (json.dumps(pages), PHONE))
    result = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom",
         "--virtual-time-budget=600000", f"--user-data-dir={site.parent / 'browser'}",
         (site / "measure.html").as_uri()],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    (site / "measure.html").unlink()
    told = re.search("measured (.*) end", result.stdout)
    assert told, result.stderr[-2000:]
    found = json.loads(told[1])
    assert set(found) == set(pages)
    assert {page: width for page, (width, _) in found.items() if width > PHONE} == {}
    assert [page for page, (_, length) in found.items() if length < 50] == []
