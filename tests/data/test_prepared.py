"""Evaluating cases that were resampled offline: the figures are those of the files that they were made from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from conftest import BUNDLE, TINY
from monai.bundle import ConfigWorkflow

from scripts import data, report
from scripts.data.preparation import preprocess
from scripts.runtime.errors import user_error

CONFIGS = BUNDLE / "configs"
SETTINGS: dict[str, Any] = {name: yaml.safe_load(value) for name, value in TINY.items()} | {"device": "cpu"}


def _workflow(*names: str, **options: Any) -> ConfigWorkflow:
    workflow = ConfigWorkflow([str(CONFIGS / f"{name}.yaml") for name in names], workflow_type="train",
                              meta_file=str(CONFIGS / "metadata.json"), logging_file=False,
                              **{**SETTINGS, "threshold": 0.018, **options})  # fmt: skip
    workflow.initialize()
    return workflow


def _evaluate(folder: Path, run_id: str = "evaluating", **options: Any) -> list[dict[str, Any]]:
    workflow = _workflow("train", "evaluate", output_dir=str(folder), **options)
    workflow.parser.get_parsed_content(run_id)
    return report.read_rows(folder / "metrics.csv")


@pytest.fixture(scope="module")
def cohorts(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Raw and resampled cases side by side, and weights that were trained for an epoch."""
    root = tmp_path_factory.mktemp("prepared")
    shutil.copytree(tiny_cohort, root / "raw")
    preprocess(root / "raw", root / "resampled", recipe_configs=[CONFIGS / "train.yaml"],
               overrides={"spatial_size": SETTINGS["spatial_size"]}, num_workers=1)  # fmt: skip
    _workflow("train", dataset_dir=str(root / "raw"), ckpt_dir=str(root / "models"), epochs=1,
              output_dir=str(root / "training")).run()  # fmt: skip
    return {name: root / name for name in ("raw", "resampled", "models")}


@pytest.fixture(scope="module")
def raw(cohorts: dict[str, Path]) -> list[dict[str, Any]]:
    """What an evaluation of the raw test cases measures; its masks are in ``raw_results/masks``."""
    folder = cohorts["raw"].parent / "raw_results"
    return _evaluate(folder, dataset_dir=str(cohorts["raw"]), split="test", ckpt_dir=str(cohorts["models"]))


def test_the_data_list_names_the_files_that_were_read(cohorts: dict[str, Path], tmp_path: Path) -> None:
    raw, resampled = cohorts["raw"], cohorts["resampled"]
    content = json.loads((resampled / "datalist.json").read_text())
    assert all(path.startswith("../raw/") for path in content["test"][0]["native_image"])
    moved = tmp_path / "elsewhere"
    for folder in (raw, resampled):
        shutil.copytree(folder, moved / folder.name)
    for options in ({"dataset_dir": moved / "resampled"},
                    {"dataset_dir": "", "file": moved / "resampled" / "datalist.json"}):  # fmt: skip
        items = data.datalist(split="test", native=True, **options)
        assert [data.as_native(item) for item in items] == data.datalist(moved / "raw", "test")
        assert not any("native_image" in item for item in data.datalist(split="test", **options))


def test_figures_are_those_of_the_raw_data(cohorts: dict[str, Path], raw: list[dict[str, Any]], tmp_path: Path) -> None:
    prepared = _evaluate(tmp_path, dataset_dir="/nowhere", datalist=str(cohorts["resampled"] / "datalist.json"),
                         split="test", ckpt_dir=str(cohorts["models"]))  # fmt: skip
    assert len(prepared) == 3
    for ours, theirs in zip(raw, prepared, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["native_dice"] > 0
        assert ours["brain_ml"] > 100
        for column, value in ours.items():
            expected = value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=1e-4, nan_ok=True)
            assert theirs[column] == expected, column
    for file in (cohorts["raw"].parent / "raw_results" / "masks").iterdir():
        masks = [nib.load(path) for path in (file, tmp_path / "masks" / file.name)]
        np.testing.assert_allclose(masks[0].affine, masks[1].affine, atol=1e-4)
        arrays = [np.asarray(mask.dataobj) for mask in masks]
        assert (arrays[0] != arrays[1]).mean() < 1e-4  # probabilities differ by rounding


def test_scoring_reaches_the_native_labels(cohorts: dict[str, Path], raw: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = _evaluate(tmp_path / "scored", "scoring", dataset_dir=str(cohorts["resampled"]), split="test",
                     predictions_dir=str(cohorts["raw"].parent / "raw_results" / "masks"))  # fmt: skip
    for ours, theirs in zip(raw, rows, strict=True):
        assert theirs["native_dice"] == ours["native_dice"]
        assert theirs["size_class"] == ours["size_class"]
        assert theirs["brain_ml"] == pytest.approx(ours["brain_ml"])


def test_what_cannot_be_measured_is_left_out_and_named(
    cohorts: dict[str, Path], raw: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The prepared cases alone, as on another machine."""
    alone = tmp_path / "alone"
    shutil.copytree(cohorts["resampled"], alone)
    options = {"split": "test", "ckpt_dir": str(cohorts["models"])}
    rows = _evaluate(tmp_path / "out", dataset_dir=str(alone), **options)
    assert "original files of the cases" in caplog.text
    assert "there will be no results on the native grid" in caplog.text
    for row, known in zip(rows, raw, strict=True):
        assert not any(name.startswith("native_") for name in row)
        assert not {"brain_ml", "lesion_fraction", "baseline_dice", "largest_distance_mm"} & row.keys()
        assert row["size_class"] == "unknown"
        assert row["resampled_dice"] == pytest.approx(known["resampled_dice"], abs=1e-3)
    assert "(mean Dice, resampled grid)" in (tmp_path / "out" / "comparison.txt").read_text()
    assert "nothing could be measured on the native grid" in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "overlays").exists()
    # masks of another tool cannot be compared with anything
    with pytest.raises(RuntimeError) as caught:
        _evaluate(tmp_path / "scored", "scoring", dataset_dir=str(alone), split="test",
                  predictions_dir=str(cohorts["raw"].parent / "raw_results" / "masks"))  # fmt: skip
    assert "3 of 3 cases" in str(user_error(caught.value))
    assert "Prepare the cases again" in str(user_error(caught.value))


def test_a_missing_native_file_among_others_stops_the_run(cohorts: dict[str, Path], tmp_path: Path) -> None:
    for name in ("raw", "resampled"):
        shutil.copytree(cohorts[name], tmp_path / name)
    gone = next((tmp_path / "raw" / "BONBID2023_Test" / "3LABEL").iterdir())
    gone.unlink()
    with pytest.raises(RuntimeError) as caught:
        _evaluate(tmp_path / "out", dataset_dir=str(tmp_path / "resampled"), split="test", ckpt_dir="/nowhere")
    assert f"{gone} is missing" in str(user_error(caught.value))
    assert "1 of 3 cases" in str(user_error(caught.value))
