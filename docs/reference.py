"""What the documentation has from the code: the reference of configs and columns, the pages of the API, the changelog.

MkDocs calls :func:`on_files` (mkdocs.yml names this file under ``hooks``). ``python docs/reference.py changelog``
writes CHANGELOG.md from the one source, ``changelog`` in configs/metadata.json.
"""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hie_bundle"))
from scripts.runtime.options import OPTIONS

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "hie_bundle"
CONFIGS = BUNDLE / "configs"
OTHERS = ("demo_overlay.png", "data_license.txt", "segment.ipynb")  # in the bundle's docs, beside its pages
# what the bundle's classes check, not the options' schema
WORDS = {
    "format": "resampled, native_stack, nnunet",
    "split": "train, val, test",
}
RANGES = (
    WORDS
    | {
        name: re.sub("^a (whole )?number ?", "", str(allowed))  # the column beside it says what sort of value it is
        for name, allowed in OPTIONS.items()
        if not allowed.is_text or str(allowed)[:2] != "a "
    }
)


# --- configs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """One key of a config: its id, as on a command line, its value as it is written, and the comment beside it."""

    id: str
    value: Any
    comment: str

    @property
    def kind(self) -> str:
        """What sort of value it is."""
        if isinstance(self.value, str):
            if self.value.startswith("$"):
                return "expression"
            return "reference" if self.value.startswith("@") else "text"
        if isinstance(self.value, dict):
            return "object" if "_target_" in self.value else "section"
        names = {bool: "true or false", int: "whole number", float: "number", list: "list", type(None): "none"}
        return names[type(self.value)]

    @property
    def default(self) -> str:
        """The value in a line."""
        if isinstance(self.value, dict):
            return str(self.value.get("_target_", ""))
        if isinstance(self.value, list) and any(isinstance(one, dict) for one in self.value):
            return ", ".join(_name_of(one) for one in self.value)
        return json.dumps(self.value, ensure_ascii=False) if not isinstance(self.value, str) else self.value


def _name_of(entry: Any) -> str:
    return str(entry.get("_target_") or entry.get("name", "…")) if isinstance(entry, dict) else str(entry)


@cache
def keys_of(path: Path) -> tuple[Key, ...]:
    """Every key of a config, at any depth of its mappings, in the order of the file."""
    text = path.read_text()
    lines = text.splitlines()
    content = yaml.safe_load(text)
    return tuple(
        Key(name, value, _comment(lines, first, last))
        for name, value, first, last in _nodes(yaml.compose(text), content)
    )


def _nodes(node: Any, content: Any, prefix: str = "") -> Iterator[tuple[str, Any, int, int]]:
    content = {str(key): value for key, value in content.items()}
    for key, value in node.value:
        if key.value.startswith("_"):  # MONAI's own words, which say what the whole is
            continue
        name = prefix + key.value
        inside = value.start_mark.line if isinstance(value, yaml.MappingNode) else value.end_mark.line
        yield name, content[key.value], key.start_mark.line, max(inside, key.start_mark.line)
        if isinstance(value, yaml.MappingNode):
            yield from _nodes(value, content[key.value], name + "#")


def _comment(lines: list[str], first: int, last: int) -> str:
    """Beside the key, going on in lines of nothing else; or else in the line above."""
    for line in range(first, min(last, len(lines) - 1) + 1):
        if found := re.search(r"(?<=\S)\s+# (.*)$", lines[line]):
            parts = [found[1]]
            for following in lines[line + 1 :]:
                if not (more := re.fullmatch(r"\s{16,}# ?(.*)", following)):
                    break
                parts.append(more[1])
            return " ".join(parts).strip()
        if line == first and not lines[first].rstrip().endswith((":", ",")):
            break
    above = lines[first - 1].strip() if first else ""
    return above.removeprefix("# ") if re.match(r"# (?!---)", above) else ""


def config_page(path: Path) -> str:
    """The reference of one config."""
    intro = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        intro.append(line.removeprefix("#").removeprefix(" "))
    rows = ["| Key | Default | Type | Allowed values | Meaning |", "| --- | --- | --- | --- | --- |"]
    known = {key.id: key.comment for name in ("inference", "evaluate", "train")
             for key in keys_of(CONFIGS / f"{name}.yaml") if key.comment}  # fmt: skip
    for key in keys_of(path):
        cells = (
            _code(key.id),
            _code(key.default),
            key.kind,
            "" if (allowed := RANGES.get(key.id, "")) == key.kind else allowed,
            _cell(key.comment or known.get(key.id, "")),
        )
        rows.append("| " + " | ".join(cells) + " |")
    return f"# {path.name}\n\n{_prose(intro)}\n\n" + "\n".join(rows) + "\n"


def _prose(lines: list[str]) -> str:
    """The comment at the top of a config, its commands as blocks."""
    out, block = [], False
    for line in lines:
        command = line.startswith("  ")
        if command and not block:
            out += ["", "```"]
        if block and not command and line:
            out += ["```", ""]
            block = False
        block = block or command
        out.append(line.removeprefix("  ") if block else html.escape(line, quote=False).replace("_", r"\_"))
    return "\n".join([*out, "```"] if block else out)


def _code(text: str) -> str:
    short = text if len(text) <= 90 else text[:87] + "…"
    return "`" + re.sub(r"\s+", " ", short).replace("|", "∣") + "`" if short else ""


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", r"\|").replace("*", r"\*").replace("_", r"\_")


# --- columns, changelog ---------------------------------------------------------------------------------------------


def columns_page() -> str:
    """Every column of metrics.csv, from its registration."""
    from scripts.evaluation import metrics  # noqa: F401
    from scripts.evaluation.measures import MEASURES

    rows = ["| Column | Name | Unit | Better | Meaning |", "| --- | --- | --- | --- | --- |"]
    for measure in MEASURES.values():
        alone = measure.group == "case" or measure.name.startswith("baseline")
        name = measure.name if alone else f"{measure.grid or 'native'}_{measure.name}"
        rows.append(
            f"| `{name}` | {_cell(measure.label)} | {measure.unit} | {measure.better} | {_cell(measure.meaning)} |"
        )
    return (
        "# Columns of metrics.csv\n\n"
        "One row a case. Columns that begin with `native_` are measured on the files' grid, those that begin with "
        "`resampled_` on the network's grid (the paper's protocol). Columns without a prefix depend on no grid. An "
        "ensemble adds `member_<n>_dice`, the Dice of each member alone.\n\n" + "\n".join(rows) + "\n"
    )


def changelog() -> str:
    """CHANGELOG.md."""
    entries = json.loads((CONFIGS / "metadata.json").read_text())["changelog"]
    parts = ["# Changelog\n\nWritten by `make changelog` from `changelog` in hie_bundle/configs/metadata.json.\n"]
    for version, text in entries.items():
        points = "\n".join(f"- {point}" for point in re.split(r";\s+", text))
        parts.append(f"## {version}\n\n{points}\n")
    return "\n".join(parts)


def index_page(made: list[str]) -> str:
    """What there is of configs and modules."""
    docstring = (BUNDLE / "scripts" / "__init__.py").read_text().split('"""')[1]
    listed = {part: "\n".join(f"- [{Path(p).stem}]({part}/{Path(p).name})" for p in made if f"/{part}/" in p)
              for part in ("configs", "api")}  # fmt: skip
    return (
        "# Configs and API\n\nEvery key of every config with its default. Each is an option of the command: "
        "`--epochs 50`, `--train#dataset#cache_rate 0.5`.\n\n"
        f"{listed['configs']}\n\n## Python\n\nThe map:\n\n```\n{docstring.strip()}\n```\n\n{listed['api']}\n"
    )


# --- pages that MkDocs gets ---------------------------------------------------------------------------------------


def api_pages() -> dict[str, str]:
    """A page for each module or package under scripts/, by its name."""
    scripts = BUNDLE / "scripts"
    pages = {}
    for path in sorted(scripts.iterdir()):
        if path.suffix == ".py" and path.stem != "__init__":
            pages[path.stem] = [f"scripts.{path.stem}"]
        elif (path / "__init__.py").is_file():
            inner = sorted(module.stem for module in path.glob("*.py") if module.stem != "__init__")
            pages[path.name] = [f"scripts.{path.name}", *(f"scripts.{path.name}.{module}" for module in inner)]
    return {name: "\n\n".join(f"::: {module}" for module in modules) + "\n" for name, modules in pages.items()}


def pages() -> dict[str, str]:
    """Every page that is made rather than written, by its place in the site."""
    made = {f"reference/configs/{path.stem}.md": config_page(path) for path in sorted(CONFIGS.glob("*.yaml"))}
    made |= {f"reference/api/{name}.md": text for name, text in api_pages().items()}
    made |= {f"bundle/{path.name.replace('README', 'model_card')}": _linked(path.read_text())
             for path in sorted((BUNDLE / "docs").glob("*.md"))}  # fmt: skip
    made["reference/index.md"] = index_page(sorted(made))
    made["reference/columns.md"] = columns_page()
    made["changelog.md"] = changelog()
    return made


def _linked(text: str) -> str:
    """Link the result files that a page of the bundle names; the bundle alone does not hold them."""
    return re.sub(r"`docs/results/(\w+\.csv)`", r"[`docs/results/\1`](../results/\1)", text)


def on_files(files: Any, config: Any) -> Any:
    """MkDocs' event: add what is made."""
    from mkdocs.structure.files import File

    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    for name in OTHERS:
        files.append(File.generated(config, f"bundle/{name}", abs_src_path=str(BUNDLE / "docs" / name)))
    return files


if __name__ == "__main__":
    if sys.argv[1:] != ["changelog"]:
        sys.exit("usage: python docs/reference.py changelog")
    (ROOT / "CHANGELOG.md").write_text(changelog())
