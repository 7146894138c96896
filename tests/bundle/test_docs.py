"""The documentation says what the code does: every key and column, the commands of the pages, their links."""

from __future__ import annotations

import csv
import difflib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import torch
import yaml
from conftest import BUNDLE, ROOT
from monai.bundle import ConfigWorkflow

from scripts.cli.workflows import WORKFLOWS
from scripts.runtime.errors import UserError
from scripts.runtime.mixins import mixins
from scripts.runtime.options import OPTIONS, refuse_unknown

sys.path.insert(0, str(ROOT / "docs"))
import reference

CONFIGS = sorted((BUNDLE / "configs").glob("*.yaml"))
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), *(BUNDLE / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
)
FOREIGN = ["--conf", "--torch", "--only", "--build", "--dist", "--logdir"]  # options of other programs
OWN = ["mine.yaml", "rising.yaml"]  # mixins that the pages show
# above a block, invisible to readers: what running it needs, or the test that runs it, or that it is output
MARK = re.compile(r"(?:<!-- ((?:needs: |run by: |output)[^>]*) -->\n)?^```(\w*)\n(.*?)^```", re.S | re.M)


# --- the reference ------------------------------------------------------------------------------------------------


def _ids(content: Any, prefix: str = "") -> Iterator[str]:
    """Every key at any depth of the mappings, but MONAI's own words (_target_, _mode_ …)."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if not str(key).startswith("_"):
            yield f"{prefix}{key}"
            yield from _ids(value, f"{prefix}{key}#")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_key_of_every_config_has_its_line(path: Path) -> None:
    lines = re.findall(r"^\| `([^`]+)` \|", reference.config_page(path), re.M)
    expected = list(_ids(yaml.safe_load(path.read_text())))
    assert [line.removesuffix("…") for line in lines] == [name[:87] if len(name) > 90 else name for name in expected]


def test_a_line_has_default_type_range_and_comment() -> None:
    page = reference.config_page(BUNDLE / "configs" / "train.yaml")
    assert "| `lr_gamma` | `0.9` | number | above 0 to 1 | factor of the learning rate after each epoch |" in page
    assert "| `network_def` | `scripts.networks.HIEUNet` | object |" in page
    assert "| `amp` | `true` | true or false |  | mixed precision, on CUDA only |" in page
    # of a mixin that says nothing, what the config under it says
    assert re.search(r"\| `epochs` \| `30` .* \|", reference.config_page(BUNDLE / "configs" / "demo.yaml"))
    known = {key.id for path in CONFIGS for key in reference.keys_of(path)}
    assert set(reference.WORDS) <= known


def test_a_comment_that_goes_on_is_one(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "# --- a rule ---\nplain: 1\n"
        "one: [1, 2]                                  # first part\n"
        "                                             # second part\n"
        "# above\ntwo: '@losses#dice'\nthree:   # beside\n  inner: 5  # deep\n"
    )
    found = {key.id: (key.default, key.kind, key.comment) for key in reference.keys_of(tmp_path / "x.yaml")}
    assert found == {
        "plain": ("1", "whole number", ""),
        "one": ("[1, 2]", "list", "first part second part"),
        "two": ("@losses#dice", "reference", "above"),
        "three": ("", "section", "beside"),
        "three#inner": ("5", "whole number", "deep"),
    }


def test_every_registered_measure_has_its_line() -> None:
    from scripts.evaluation.measures import MEASURES

    page = reference.columns_page()
    for measure in MEASURES.values():
        assert re.search(rf"^\| `(native_|resampled_)?{measure.name}` \|", page, re.M)


def test_every_module_has_its_page() -> None:
    text = "\n".join(reference.api_pages().values()).split()
    modules = {
        ".".join(path.relative_to(BUNDLE).with_suffix("").parts).removesuffix(".__init__")
        for path in (BUNDLE / "scripts").rglob("*.py")
    }
    assert modules - {"scripts"} == {word for word in text if word.startswith("scripts.")}


# --- one version, one changelog -----------------------------------------------------------------------------------


def test_the_changelog_follows_the_metadata() -> None:
    assert (ROOT / "CHANGELOG.md").read_text() == reference.changelog(), "run `make changelog`"


def test_the_version_is_one() -> None:
    version = json.loads((BUNDLE / "configs" / "metadata.json").read_text())["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    stated = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert stated is None or stated[1] == version  # none where it is read from the metadata


# --- what the pages tell to type ----------------------------------------------------------------------------------


def blocks() -> Iterator[tuple[str, str, str, str]]:
    """Page, mark, language and text of every block."""
    for page in PAGES:
        for mark, language, text in MARK.findall(page.read_text()):
            yield str(page.relative_to(ROOT)), mark, language, text


def _commands() -> Iterator[Any]:
    for page, _, language, text in blocks():
        if language not in ("", "sh", "bash"):
            continue
        for line in lines_of(text):
            if line.startswith(("make ", "python -m monai.bundle", "hie-bundle ")) and "…" not in line:
                yield pytest.param(line, id=f"{page}: {line[:60]}")


def lines_of(text: str) -> list[str]:
    """Commands of a block, each in one line, with what the block has set (``C=…``) in its place, without comments."""
    lines, values = [], {}
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        command = re.sub(r"(^|\s)#.*", "", line).strip()
        for name, value in values.items():
            command = command.replace(f"${name}", value)
        if assigned := re.fullmatch(r"([A-Z]+)=(\S+)", command):
            values[assigned[1]] = assigned[2]
        elif command:
            lines.append(command)
    return lines


@pytest.mark.parametrize("command", _commands())
def test_commands_name_what_there_is(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets, configs, run ids and options of each command, also of those that need what a test has not."""
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in words[1:] if "=" not in word and word != "&&"} - {".", ".venv/bin/activate"} <= set(
            targets
        )
        return
    if words[0] == "hie-bundle":
        if words[1] not in WORKFLOWS or not words[2].startswith("--"):  # with files: commands of their own
            assert words[1] in ("segment", "doctor", "completion", *WORKFLOWS)
            return
        flow, values = WORKFLOWS[words[1]], {k: v for k, v in zip(words[2::2], words[3::2], strict=True) if k != "-o"}
        names = [f"hie_bundle/configs/{stem}.yaml" for stem in flow.configs]
        names += [str(file) for file in mixins(values.pop("--recipe", "paper"))]
        if "--tracking" in values:
            values["--tracking"] = str(BUNDLE / "configs" / f"tracking_{values['--tracking']}.yaml")
        words = ["python", "-m", "monai.bundle", "run", flow.run_id, "--config_file", str(names)]
        words += [word for pair in values.items() for word in pair]
    assert words[:3] == ["python", "-m", "monai.bundle"]
    if words[3] != "run":
        return
    positional = words[4] if not words[4].startswith("--") else "run"
    options = {words[i][2:]: words[i + 1] for i in range(4, len(words) - 1) if words[i].startswith("--")}
    files = options.pop("config_file")
    names = yaml.safe_load(files) if files.startswith("[") else [files]
    found = [next(p for p in (ROOT / name, BUNDLE / name) if p.is_file()) for name in names if name not in OWN]
    monkeypatch.setattr("monai.bundle.workflows._apply_logging_file", lambda *_: None)
    parsed = {name: yaml.safe_load(value) for name, value in options.items()}
    workflow = ConfigWorkflow([str(path) for path in found], workflow_type="train", **parsed)
    assert positional in workflow.parser
    refuse_unknown(workflow)


def test_workflows_of_github_name_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        jobs = yaml.safe_load(path.read_text())["jobs"]
        steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
        assert set(re.findall(r"\bmake ([\w-]+)", "\n".join(steps))) <= targets, path


def test_a_command_with_a_mistake_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "python -m monai.bundle run training --config_file hie_bundle/configs/train.yaml --epoch 3"
    with pytest.raises(UserError, match="did you mean --epochs"):
        test_commands_name_what_there_is(command, monkeypatch)


@pytest.mark.parametrize("name", OWN)
def test_mixins_of_the_pages_work(name: str, tmp_path: Path) -> None:
    (text,) = [text for page, _, language, text in blocks() if language == "yaml" and text.startswith(f"# {name}")]
    (tmp_path / "my_network.py").write_text(
        "import torch\nclass MyNetwork(torch.nn.Conv3d):\n"
        "    def __init__(self, in_channels):\n        super().__init__(in_channels, 1, 1)\n"
    )
    (tmp_path / name).write_text(text.replace("/home/me/networks", str(tmp_path)))
    workflow = ConfigWorkflow(
        [str(BUNDLE / "configs" / "train.yaml"), str(tmp_path / name)], workflow_type="train", logging_file=False,
        features=[2, 4, 6, 8], dataset_dir=str(tmp_path), output_dir=str(tmp_path), ckpt_dir=str(tmp_path),
        device="cpu", num_workers=0,
    )  # fmt: skip
    workflow.initialize()
    get = workflow.parser.get_parsed_content
    if name == "mine.yaml":
        assert type(get("network")).__name__ == "MyNetwork"
        assert get("network")(torch.zeros(1, 2, 4, 4, 4)).shape == (1, 1, 4, 4, 4)
    if name == "rising.yaml":
        handler, weights = get("train#handlers")[-1], []
        for epoch in (1, 2, 40, 99, 200):
            handler._vc_kwargs["current_step"] = epoch
            get("loss")
            handler._parameter_setter(handler._value_calculator(**handler._vc_kwargs))
            weights.append(get("loss").boundary_weight)
        assert weights == pytest.approx([0.02, 0.03, 0.41, 1.0, 1.0], abs=0.011)
        assert weights == sorted(weights)


def test_every_block_is_run_or_says_why_not() -> None:
    """What has no mark tests/bundle/test_docs_run.py runs; so it must be of a language that it knows."""
    for page in PAGES:
        text = page.read_text()
        assert len(MARK.findall(text)) == len(re.findall(r"^```", text, re.M)) / 2, page
        assert not re.search(r"\n\n {4,}(python|torchrun|make|hie-bundle|#!) ", text), (
            f"{page}: a block without a fence"
        )
    for page, mark, language, text in blocks():
        if mark.startswith("run by: "):
            assert (ROOT / mark.removeprefix("run by: ")).is_file(), (page, mark)
        elif not mark:
            assert language in ("", "python"), (page, text)
        if language == "json":
            json.loads(text)
    unmarked = {
        text.splitlines()[0].removeprefix("# ") for _, mark, _, text in blocks() if mark.endswith("test_docs.py")
    }
    assert unmarked - {*OWN} == {text.splitlines()[0] for *_, language, text in blocks() if language == "json"}


# --- figures ------------------------------------------------------------------------------------------------------

RESULTS = re.compile(r"<!-- results: (\S+) -->\n((?:\|.*\n)+)")


def _tables() -> Iterator[Any]:
    for page in PAGES:
        for name, table in RESULTS.findall(page.read_text()):
            yield pytest.param(name, table, id=f"{page.relative_to(ROOT)}: {table.splitlines()[0]}")


SIZES = {
    "empty": "no lesion|without a lesion", "<1 %": "< ?1 %|below 1 %", ">=1 %": ">= ?1 %", "1-5 %": "1-5 %",
    "5-20 %": "5-20 %", ">20 %": "> ?20 %",
}  # fmt: skip


def _plain(text: str) -> str:
    for sign, ascii_sign in {"−": "-", "–": "-", "≥": ">=", "×": "x", "`": ""}.items():
        text = text.replace(sign, ascii_sign)
    return text


def _words(text: str) -> set[str]:
    return set(re.findall(r"-?\d+(?:\.\d+)*|\w+", _plain(text).lower()))


@pytest.mark.parametrize(("name", "table"), _tables())
def test_figures_of_a_table_stand_in_the_rows_of_its_csv_file(name: str, table: str) -> None:
    """The method whose words are all in a cell's row or column, the one with most words; the same lesion size."""
    with (ROOT / "docs" / "results" / name).open(newline="", encoding="utf-8") as file:
        known = list(csv.DictReader(file))
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    for row in rows:
        for column, cell in zip(header[1:], row[1:], strict=True):
            place = f"{header[0]}: {row[0]}, {column}"
            size = next(
                (size for size, words in SIZES.items() if re.search(words, _plain(f"{row[0]}, {column}"))), "all"
            )
            methods = [result["method"] for result in known if _words(result["method"]) <= _words(place)]
            most = max((len(_words(method)) for method in methods), default=0)
            values = [
                float(result[key])
                for result in known
                if len(_words(result["method"])) == most
                and result["method"] in methods
                and result.get("lesion_size", size) == size
                for key in ("mean_dice", "low", "high", column.lower().replace(" ", "_"))
                if result.get(key)
            ]
            for figure in re.findall(r"\d+\.\d+", cell):
                digits = len(figure.partition(".")[2])
                found = [f"{value:.{digits}f}" for value in values]
                assert figure in found, f"{place}: {figure} is none of {found} in docs/results/{name}"


def test_results_have_a_command_a_row() -> None:
    for path in sorted((ROOT / "docs" / "results").glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert rows, path
        for row in rows:
            assert all(row.get(name) for name in ("command", "version")), (path.name, row)
            assert len(row) == len(rows[0]), (path.name, row)  # DictReader adds None for a cell too many


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_files_and_options_of_a_page_exist(page: Path) -> None:
    """Names in running text; those of the blocks are tested as commands."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    code = re.findall(r"`([^`\n]+)`", text)
    wrong = [name for name in code if re.fullmatch(r"scripts(\.\w+)+", name) and locate(name) is None]
    for name in code:
        if re.fullmatch(
            r"(hie_bundle/|docs/|tests/|scripts/|configs/|integrations/)[\w/.-]*\.(py|yaml|md|csv|json)", name
        ):
            wrong += [name] if not any((base / name).exists() for base in (ROOT, BUNDLE)) else []
    known = (
        {key.id.split("#")[0] for path in CONFIGS for key in reference.keys_of(path)} | set(OPTIONS) | {"config_file"}
    )
    source = "".join(path.read_text() for path in (BUNDLE / "scripts" / "cli").rglob("*.py"))
    for option in re.findall(r"`[^`\n]*?(--[a-z][a-z0-9_]*)", text):
        wrong += [option] if option[2:] not in known and option[2:] not in source and option not in FOREIGN else []
    assert wrong == []


# --- links --------------------------------------------------------------------------------------------------------


def test_links_lead_somewhere() -> None:
    made = reference.pages()
    site = {p.relative_to(ROOT / "docs").as_posix(): p.read_text() for p in (ROOT / "docs").rglob("*.md")} | made
    others = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs" / "figures").iterdir()}
    others |= {f"results/{path.name}" for path in (ROOT / "docs" / "results").glob("*.csv")}
    others |= {f"bundle/{name}" for name in reference.OTHERS}
    broken = []
    for page, text in site.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.S)):
            if target.startswith(("http", "mailto:")):
                continue
            name, _, anchor = target.partition("#")
            place = (Path("/") / Path(page).parent / name).resolve().relative_to("/").as_posix() if name else page
            if place not in site and place not in others:
                broken.append(f"{page}: {target}")
            elif anchor and place in site:
                titles = [re.sub(r"[^\w\- ]", "", t.lower()).strip().replace(" ", "-")
                          for t in re.findall(r"^#+ (.*)$", site[place], re.M)]  # fmt: skip
                if anchor not in titles:
                    broken.append(f"{page}: {target}; near: {difflib.get_close_matches(anchor, titles, 1)}")
    assert broken == []
