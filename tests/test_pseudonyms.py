"""No case id, and no place of a file, in anything that is written with --anonymise_ids."""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import BUNDLE, TINY

from scripts.bonbid import DatasetError, find_cases, own_name, pseudonymised
from scripts.files import seen_from

CONFIGS = BUNDLE / "configs"


def test_an_id_is_a_keyed_hash(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sixteen bytes or more \n")
    items = [{"case": case, "image": case} for case in ("A", "b/1", "é")]
    renamed = pseudonymised(items, tmp_path / "key")
    for item in renamed:
        digest = hmac.new(b"sixteen bytes or more", own_name(item).encode(), hashlib.sha256).hexdigest()
        assert item["case"] == f"case-{digest[:12]}"
        assert item["image"] == own_name(item)
    assert [item["case"] for item in renamed] == sorted(item["case"] for item in renamed)
    assert {own_name(item) for item in renamed} == {"A", "b/1", "é"}
    assert own_name(items[0]) == "A"


def test_the_key_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "new" / "key"
    with ThreadPoolExecutor(8) as pool:
        names = {found[0]["case"] for found in pool.map(lambda _: pseudonymised([{"case": "A"}], file), range(8))}
    assert len(names) == 1
    assert len(file.read_text().strip()) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]
    assert pseudonymised([{"case": "A"}], tmp_path / "other")[0]["case"] not in names
    file.write_text("short\n")
    with pytest.raises(DatasetError, match=r"key has 5 bytes; 16 are the least"):
        pseudonymised([{"case": "A"}], file)
    with pytest.raises(DatasetError, match="Is a directory"):
        pseudonymised([{"case": "A"}], tmp_path)


def test_paths_near_a_file_are_relative_and_others_are_names(tmp_path: Path) -> None:
    assert seen_from(tmp_path / "eval" / "a", tmp_path / "eval") == "a"
    assert seen_from(tmp_path / "models" / "model.pt", tmp_path / "eval") == "../models/model.pt"
    assert seen_from("/somewhere/else/data", tmp_path / "eval") == "data"


def test_nothing_that_is_written_names_a_case_or_a_folder(
    tiny_cohort: Path, tmp_path: Path, monai_bundle: Callable[..., Any]
) -> None:
    data = shutil.copytree(tiny_cohort, tmp_path / "where it lies" / "data")
    ids = {case.case for case in find_cases(data)}
    out, key = tmp_path / "out", tmp_path / "secret" / "key"
    common: dict[str, Any] = {
        **TINY, "dataset_dir": data, "anonymise_ids": key, "device": "cpu", "output_dir": out / "eval",
    }  # fmt: skip
    files = f"['{CONFIGS / 'train.yaml'}','{CONFIGS / 'evaluate.yaml'}']"
    weights = {"ckpt_dir": out / "models", "ckpt_path": out / "models" / "model.pt"}
    monai_bundle("run", "training", config_file=str(CONFIGS / "train.yaml"), epochs=1, verbose=True, **common,
                 ckpt_dir=out / "models")  # fmt: skip
    monai_bundle("run", "evaluating", config_file=files, split="test", **common, **weights)
    inference = {name: value for name, value in common.items() if name != "batch_size"}
    monai_bundle("run", config_file=str(CONFIGS / "inference.yaml"), split="test",
                 **{**inference, "output_dir": out / "masks"}, ckpt_path=weights["ckpt_path"])  # fmt: skip
    masks = {path.name.removesuffix("_lesion.nii.gz") for path in (out / "masks").glob("*_lesion.nii.gz")}
    with (out / "eval" / "metrics.csv").open() as file:
        assert {row["case"] for row in csv.DictReader(file)} == masks
    assert len(masks) == 3
    assert all(name.startswith("case-") for name in masks)
    # masks of these names, and of the cases' own, are scored
    options = {**common, "output_dir": out / "scored", "predictions_dir": out / "masks", "split": "test"}
    result = monai_bundle("run", "scoring", config_file=files, check=False, **options)
    assert result.returncode != 0
    by_id = {item["case"]: item["own_name"] for item in pseudonymised([{"case": i} for i in ids], key)}
    (tmp_path / "named").mkdir()
    for name in masks:
        shutil.copy(out / "masks" / f"{name}_lesion.nii.gz", tmp_path / "named" / f"{by_id[name]}_lesion.nii.gz")
    shutil.rmtree(out / "scored", ignore_errors=True)
    monai_bundle("run", "scoring", config_file=files, **{**options, "predictions_dir": tmp_path / "named"})
    assert json.loads((out / "eval" / "metrics.json").read_text())["info"]["dataset_dir"] == "data"
    found = [path for path in out.rglob("*") if path.is_file()]
    assert len(found) > 20
    for path in found:
        relative = str(path.relative_to(out))
        content = path.read_bytes()
        for case in ids:
            assert case not in relative
            assert case.encode() not in content, relative
        if path.suffix in (".csv", ".html", ".txt", ".png") or path.name in ("metrics.json", "thresholds.json"):
            assert b"where it lies" not in content, relative
            assert str(tmp_path).encode() not in content, relative
