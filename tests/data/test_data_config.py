"""The commands of data.yaml as users type them, and their knobs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bonbid_cases import write_case
from conftest import BUNDLE, ROOT
from monai.bundle import ConfigParser, ConfigWorkflow
from test_download import archives, cohort_zip, serve  # noqa: F401  (a fixture)

from scripts import data, phantom
from scripts.data import preparation
from scripts.io.volumes import read_volume
from scripts.report.cohort_figures import cohort_stats, contact_sheet

DATA = BUNDLE / "configs" / "data.yaml"
Run = Callable[..., Any]

COMMANDS: dict[str, Callable[..., Any]] = {
    "phantom": phantom.write_cohort,
    "phantom_stats": cohort_stats,
    "phantom_sheet": contact_sheet,
    "download": data.download,
    "check": data.check,
    "folds": data.write_datalist,
    "preprocessing": preparation.preprocess,
}
# decided in the config: what depends on other keys, on the terminal, or comes from the record
NOT_DEFAULTS = {
    "progress", "output_dir", "output_file", "dataset_dir", "num_cases", "base_url", "archives", "terms",
    "splits", "limits", "num_folds", "recipe_configs", "overrides",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")


def run(command: str, **options: Any) -> None:
    """The command in this process."""
    workflow = ConfigWorkflow(str(DATA), workflow_type=None, logging_file=False, run_id=command, **options)
    workflow.initialize()
    workflow.run()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_knob_is_a_key_with_the_functions_default(command: str) -> None:
    parser = ConfigParser()
    parser.read_config(str(DATA))
    declared = parser[command]["stats"] if command == "phantom_stats" else parser[command]
    parameters = dict(inspect.signature(COMMANDS[command]).parameters)
    if command == "phantom":  # takes them together
        del parameters["settings"]
        parameters |= inspect.signature(phantom.Settings).parameters
    assert set(declared) - {"_target_"} <= set(parameters)
    missing = set(parameters) - set(declared)
    elsewhere = {"folds": {"labels", "natives"}, "phantom_stats": {"fit"}}  # phantom_calibration fits
    assert missing <= {"progress"} | elsewhere.get(command, set())
    for name, parameter in parameters.items():
        if name in declared and name not in NOT_DEFAULTS and parameter.default is not inspect.Parameter.empty:
            value = parser.get_parsed_content(declared[name][1:])
            value = tuple(value) if isinstance(value, list) else value
            assert value == parameter.default, name
            assert declared[name] == f"@{name}" or command == "phantom_stats"


def test_limits_stand_in_one_place() -> None:
    """Their values are the class's, in every config, and each can be set on the command line."""
    for name in ("data", "train", "inference"):
        parser = ConfigParser()
        parser.read_config(str(DATA.with_name(f"{name}.yaml")))
        assert parser["limits"] == {"_target_": "scripts.data.Limits"}
        parser.update({"limits#grid_tolerance_mm": 0.5})
        assert parser.get_parsed_content("limits") == data.Limits(grid_tolerance_mm=0.5)


def test_archives_are_the_records() -> None:
    parser = ConfigParser()
    parser.read_config(str(DATA))
    assert parser["base_url"] == "https://zenodo.org/records/10602767/files"
    for split in data.SPLITS:
        assert parser["archives"][split]["name"] == f"BONBID2023_{split.capitalize()}.zip"
        assert len(bytes.fromhex(parser["archives"][split]["sha256"])) == 32


@pytest.mark.parametrize("where", ["root", "bundle", "elsewhere"])
def test_from_anywhere(where: str, tmp_path: Path, monai_bundle: Run) -> None:
    """Three commands, each a process of its own: one that succeeds, one that finds fault, one without data."""
    cwd, config = {
        "root": (ROOT, "hie_bundle/configs/data.yaml"),
        "bundle": (BUNDLE, "configs/data.yaml"),
        "elsewhere": (tmp_path, str(DATA)),
    }[where]
    folder = tmp_path / "data"
    if where == "root":
        monai_bundle(
            "run", "phantom", cwd=cwd, config_file=config, output_dir=folder, num_train=1, num_val=1, num_test=1,
            matrix_sizes="[40]", slice_range="[10,12]", fine_mm=4.0, atlas_step_mm=4.0, num_healthy=4, num_workers=1,
        )  # fmt: skip
        assert [case.split for case in data.find_cases(folder)] == ["train", "val", "test"]
    elif where == "bundle":
        write_case(folder, "good", "Train")
        bad = write_case(folder, "bad", "Train")["label"]
        bad.write_bytes(b"")
        result = monai_bundle("run", "check", cwd=cwd, config_file=config, dataset_dir=folder, check=False)
        assert result.returncode == 1
        assert "2 cases of 2 patients, 1 unusable" in result.stdout
        message = result.stderr[result.stderr.rindex("error:") :]
        assert message == f"error: 1 of 2 cases cannot be used:\n  bad\n    {bad} has no complete MetaImage header\n"
        assert "Traceback" not in result.stderr
    else:
        result = monai_bundle("run", "folds", cwd=cwd, config_file=config, dataset_dir="data", check=False)
        assert result.returncode == 1
        assert f"run download --config_file {DATA} --dataset_dir data" in result.stderr
        assert "Traceback" not in result.stderr


def test_phantom_figures_and_sheet(tiny_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("phantom_stats", dataset_dir=str(tiny_cohort))
    assert "baseline_dice" in capsys.readouterr().out
    run("phantom_sheet", dataset_dir=str(tiny_cohort), output_file=str(tmp_path / "sheet.png"), num_cases=3)
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_check_reports(tiny_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("check", dataset_dir=str(tiny_cohort), report_file=str(tmp_path / "report.json"))
    table = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    cases = data.find_cases(tiny_cohort)
    assert [entry["case"] for entry in report["cases"]] == [case.case for case in cases]
    assert report["summary"]["cases"] == 10
    assert report["summary"]["unusable"] == 0
    for entry in report["cases"]:
        line = next(line for line in table.splitlines() if line.startswith(entry["case"]))
        assert "×".join(map(str, entry["shape"])) in line
        assert f"{100 * entry['lesion_fraction']:.2f}" in line
    with pytest.raises(RuntimeError) as error:
        run("check", dataset_dir=str(tiny_cohort), report_file=str(tmp_path / "report.json" / "x"))
    assert "choose another --report_file" in str(error.value.__cause__)


def test_folds_command(tiny_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "folds.json"
    run("folds", dataset_dir=str(tiny_cohort), output_file=str(file), num_folds=3, seed=1)
    assert "training, fold 2:" in capsys.readouterr().out
    for fold in range(3):
        direct = data.datalist(tiny_cohort, "val", fold=fold, num_folds=3, seed=1)
        assert data.datalist("", "val", file=file, fold=fold) == direct


def test_download_command(tmp_path: Path, serve: Any, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    data = cohort_zip(tmp_path, "Val", 2)
    server = serve({"BONBID2023_Val.zip": data})
    options = {"dataset_dir": str(tmp_path / "data"), "base_url": server.url, "archives": archives(val=data)}
    run("download", splits="val", **options)
    output = capsys.readouterr().out
    assert "https://doi.org/10.5281/zenodo.10602767" in output
    assert "2 cases, verified" in output
    run("download", splits=("val",), **options)
    assert "already downloaded and verified" in capsys.readouterr().out


def test_preprocessing_command(tiny_cohort: Path, tmp_path: Path) -> None:
    run("preprocessing", dataset_dir=str(tiny_cohort), output_dir=str(tmp_path / "out"), spatial_size=[24, 24, 16])
    volume = read_volume(tmp_path / "out" / "train" / f"{data.find_cases(tiny_cohort)[0].case}.nii.gz")
    assert volume.array.shape == (24, 24, 16, 2)
    assert len(data.datalist("", None, file=tmp_path / "out" / "datalist.json")) == 10
