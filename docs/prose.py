"""Check the prose of pages, docstrings, comments and messages with proselint and the words of ``vocabulary.yaml``.

``python docs/prose.py`` lists the findings and fails if there are any.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Callable
from pathlib import Path

import yaml
from proselint.checks import __register__
from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, CheckFlags, types
from proselint.tools import LintFile

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = ROOT / "docs" / "vocabulary.yaml"
# proselint's own checks that fit technical prose; the others look for clichés, politics and typography
CHECKS = ("misc.illogic", "nonwords", "redundancy", "uncomparables", "vocabulary")


def vocabulary() -> Check:
    """The vocabulary as one of proselint's checks."""
    words = yaml.safe_load(VOCABULARY.read_text(encoding="utf-8"))
    items = {f"(?:{pattern.replace(' ', chr(92) + 's+')})": instead for pattern, instead in words.items()}
    flags = CheckFlags(allow_quotes=True)  # a docstring is one quotation to proselint
    return Check(types.PreferredForms(items), path="vocabulary", message="'{1}': write {0}.", flags=flags)


def _blank(text: str, sign: str = " ") -> str:
    return re.sub(r"\S", sign, text)


def of_page(text: str) -> str:
    """A page's prose in its place: without code, comments and addresses."""
    text = re.sub(r"^```.*?^```|<!--.*?-->|\]\([^)]*\)|\d", lambda m: _blank(m[0]), text, flags=re.S | re.M)
    return re.sub(r"`[^`\n]*`", lambda m: _blank(m[0], "x"), text)


def of_config(text: str) -> str:
    """The comments of a YAML file in their places."""
    return re.sub(r"^[^#\n]*", lambda m: _blank(m[0]), text, flags=re.M)


def of_module(text: str) -> str:
    """The docstrings, comments and messages (texts of at least four words) of a Python file in their places."""
    lines = text.splitlines(keepends=True)
    kept = [_blank(line) for line in lines]
    for node in ast.walk(ast.parse(text)):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [str(part.value) for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        if isinstance(node, ast.expr) and "x".join(texts).count(" ") > 2:
            for number in range(node.lineno - 1, node.end_lineno or 0):
                kept[number] = lines[number]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            for number in range(node.body[0].lineno - 1, node.body[0].end_lineno or 0):
                kept[number] = lines[number]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            kept[row - 1] = kept[row - 1][:column] + lines[row - 1][column:]
    return re.sub(r"``[^`]*``", lambda m: _blank(m[0], "x"), "".join(kept))


def findings(path: Path, prose: Callable[[str], str]) -> list[str]:
    """What is found in one file, as file:line: message."""
    text = re.sub(r" {2,}", " ", prose(path.read_text(encoding="utf-8")))
    config = {"max_errors": 1000, "checks": dict.fromkeys(CHECKS, True)}
    results = LintFile(str(path), text).lint(config) if text.strip() else []  # type: ignore[arg-type]
    return [
        f"{path.relative_to(ROOT)}:{found.pos[0]}: {' '.join(found.check_result.message.split())}" for found in results
    ]


def main() -> int:
    """Print the findings; 1 if there are any."""
    CheckRegistry().register_many((*__register__, vocabulary()))
    pages = [
        *ROOT.glob("*.md"),
        *(p for part in ("docs", "hie_bundle", "integrations") for p in (ROOT / part).rglob("*.md")),
    ]
    wrong = [line for page in sorted(pages) if page.name != "CHANGELOG.md" for line in findings(page, of_page)]
    wrong += [line for path in sorted((ROOT / "hie_bundle").rglob("*.py")) for line in findings(path, of_module)]
    wrong += [
        line for path in sorted((ROOT / "hie_bundle" / "configs").glob("*.yaml")) for line in findings(path, of_config)
    ]
    print("\n".join([*wrong, f"prose: {len(wrong)} findings in pages, Python files and configs"]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
