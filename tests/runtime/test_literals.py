"""Values of users are data: no text from a command line, from Python or from a file's name is evaluated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import BUNDLE
from monai.bundle import ConfigParser
from test_segmenter import ADC_ALONE, TINY, write_weights

from hie_bundle import Segmenter, UserError, segment
from scripts import cli
from scripts.cli.workflows import WORKFLOWS, values_of
from scripts.runtime.literals import literal, plain
from scripts.runtime.workflow import _FILES_ALONE, Workflow

CONFIGS = BUNDLE / "configs"
TOUCH = '$__import__("os").system("touch PWNED")or"x"'
TEXTS = [
    TOUCH, "$import os", "@seed", "@run", "$@seed", "%seed", "%other.yaml#x", "a#b", "a::b", "@##seed", "$'\\x41'",
    "$'", "$", "quote ' and \\ and \n and \u202e and \U0001f600 and \udcff", "{'_target_': 'os.getcwd'}", "$\u00e4#",
    "plain",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_as_it_is(text: str) -> None:
    value = {"text": text, "list": [text, (text,)], "path": Path("/a") / text, "number": 3, "none": None}
    expected = {**value, "list": [text, [text]], "path": f"/a/{text}"}
    parser = ConfigParser({"seed": 1, "run": "$1/0", "value": literal(value)})
    assert parser.get_parsed_content("value") == expected
    assert plain(literal(value)) == expected


@pytest.mark.parametrize("name", WORKFLOWS)
@pytest.mark.parametrize("text", TEXTS[:8:2])
def test_every_value_of_every_workflow(name: str, text: str) -> None:
    """Also in lists and beside other texts; whatever a workflow does with a value, this is what it gets."""
    files = [CONFIGS / f"{stem}.yaml" for stem in WORKFLOWS[name].configs]
    names = {value.name for file in files for value in values_of(file)} - {"bundle_root", *_FILES_ALONE}
    for given in ([text, {"within": text}],):
        workflow = Workflow([str(file) for file in files], logging_file=False, **dict.fromkeys(names, given))
        workflow.parser.parse()
        for one in names:
            assert workflow.parser.get_parsed_content(one) == given, one


def test_texts_of_earlier_versions_are_read() -> None:
    assert plain(r"$'a\x23b\u20acc'") == "a#b€c"


def test_objects_are_for_config_files() -> None:
    for value in ({"_target_": "os.system", "command": "touch PWNED"}, [{"a": {"_target_": "os.getcwd"}}]):
        with pytest.raises(UserError, match=r"--loss.*must be in a config file"):
            Workflow([str(CONFIGS / "train.yaml")], logging_file=False, loss=value)
    with pytest.raises(UserError, match="must be in a config file"):
        Workflow([str(CONFIGS / "train.yaml")], logging_file=False, **{"optimizer#_target_": "os.system"})


def call(*words: object) -> int:
    try:
        cli.main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("text", TEXTS[:8])
def test_paths_of_commands(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    name = text.replace("/", "_")
    for words in (
        ["adc", f"{name}.mha", "-o", "adc.nii.gz"], ["adc", name, "--adc_file", name], ["brain", name, "-o", name],
        ["scan", name, "-o", "out"], ["check", "--dataset_dir", name], ["atlas", name, "-o", "atlas"],
        ["train", "--dataset_dir", name, "--ckpt_dir", name], ["evaluate", "--ckpt_path", name],
        ["train", "--datalist", name], ["train", "--loss_name", name], ["train", "--recipe", name],
        ["dicom_seg", "--mask_file", name], ["zscore", "--adc_file", name, "--atlas_mean", name],
        ["segment", name, "-o", name], ["challenge", "--input", name],
    ):  # fmt: skip
        assert call(*words) == 1, words
        assert "Traceback" not in capsys.readouterr().err
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / name).mkdir()
    os.chdir(tmp_path / "here")
    assert call("scan", name, "-o", tmp_path / "out") == 1  # a shell's * in a stranger's folder
    assert name in capsys.readouterr().err


@pytest.mark.parametrize("text", TEXTS[:8])
def test_segmenting_with_any_name(text: str, tiny_cohort: Path, tmp_path: Path) -> None:
    adc = max((tiny_cohort / "BONBID2023_Test" / "1ADC_ss").iterdir())
    folder = tmp_path / text.replace("/", "_")
    folder.mkdir()
    maps = folder / f"{folder.name}.mha"
    shutil.copy(adc, maps)
    weights = write_weights(folder / f"{folder.name}.pt", [ADC_ALONE])
    made = Segmenter(str(weights), recipe=[ADC_ALONE], **TINY)
    assert [str(path) for path in made.checkpoints] == [str(weights)]
    segment(str(maps), output=folder / "m.nii.gz", weights=[weights], recipe=[ADC_ALONE], **TINY)
    assert (folder / "m.nii.gz").is_file()
    options = [f"--{name}={value}" for name, value in TINY.items()]
    out = folder / "out"
    assert call("segment", folder, "-o", out, "--weights", weights, "--recipe", ADC_ALONE, *options) in (0, 1)
    assert call("segment", maps, "-o", out, "--weights", weights, "--recipe", ADC_ALONE, *options) == 0
    assert list(out.iterdir())
    with pytest.raises((UserError, OSError)):
        Segmenter(text)
    with pytest.raises(RuntimeError, match="refuse_unknown"):
        Segmenter(str(weights), recipe=[ADC_ALONE], **{**TINY, "device": text})


def test_cases_are_written_where_the_name_says(tmp_path: Path) -> None:
    """In a process of its own, from the shell to the file."""
    name = "$(a) @seed %b #c"
    words = [sys.executable, "-c", "import hie_bundle; hie_bundle.main()", "phantom", "--dataset_dir", name]
    words += ["--num_train", "1", "--num_val", "0", "--num_test", "0", "--num_healthy", "2"]
    environment = {**os.environ, "PYTHONPATH": str(BUNDLE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / name).is_dir()
    assert list((tmp_path / name).rglob("*ADC_ss*"))
