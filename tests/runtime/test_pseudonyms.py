"""No case id, and no place of a file, in anything that is written with --anonymise_ids."""

from __future__ import annotations

import csv
import gzip
import hashlib
import hmac
import json
import logging
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import BUNDLE, TINY
from monai.bundle import ConfigWorkflow

from scripts.cli import main
from scripts.data.datalists import write_datalist
from scripts.data.folds import patient_of
from scripts.data.gate import check
from scripts.data.layout import find_cases
from scripts.data.preparation import preprocess
from scripts.data.privacy import original_id, pseudonymised, pseudonyms
from scripts.io.files import seen_from
from scripts.runtime.errors import DatasetError, UserError
from scripts.runtime.redaction import redacted

CONFIGS = BUNDLE / "configs"


def test_an_id_is_a_keyed_hash(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sixteen bytes or more \n")
    (tmp_path / "key").chmod(0o600)
    items = [{"case": case, "image": case} for case in ("A", "b/1", "é")]
    renamed = pseudonymised(items, tmp_path / "key")
    for item in renamed:
        digest = hmac.new(b"sixteen bytes or more", original_id(item).encode(), hashlib.sha256).hexdigest()
        assert item["case"] == f"case-{digest[:12]}"
        assert item["image"] == original_id(item)
    assert [item["case"] for item in renamed] == sorted(item["case"] for item in renamed)
    assert {original_id(item) for item in renamed} == {"A", "b/1", "é"}
    assert original_id(items[0]) == "A"


def test_scans_of_a_patient_stay_known_as_such(tmp_path: Path) -> None:
    """Folds of cases that were prepared under other ids would else have a patient on both sides."""
    cases = ["P1-VISIT_01", "P1-VISIT_02", "P2-VISIT_01", "P3"]
    names = pseudonyms(cases, tmp_path / "key")
    patients = [patient_of(names[case]) for case in cases]
    assert patients[0] == patients[1]
    assert len(set(patients)) == 3
    assert len(set(names.values())) == 4


def test_what_is_kept_of_a_message_has_the_other_ids(tmp_path: Path) -> None:
    names = pseudonyms(["X_1", "X_10", "7"], tmp_path / "key")
    text = "X_10: /d/Zmap_X_1-ADC_smooth2mm_clipped10.mha is cut short; 7 of 17, /d/7_lesion.mha"
    found = redacted(text)
    assert "X_1" not in found
    assert found.startswith(f"{names['X_10']}: /d/Zmap_{names['X_1']}-ADC")
    assert found.endswith(f"; 7 of 17, /d/{names['7']}_lesion.mha")


def test_the_key_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "new" / "key"
    with ThreadPoolExecutor(8) as pool:
        names = {
            found[0]["case"]
            for found in pool.map(lambda _: pseudonymised([{"case": "A", "image": "A.nii"}], file), range(8))
        }
    assert len(names) == 1
    assert len(file.read_text().strip()) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]
    assert pseudonymised([{"case": "A", "image": "A.nii"}], tmp_path / "other")[0]["case"] not in names
    file.write_text("short\n")
    with pytest.raises(DatasetError, match=r"has 5 bytes; it needs at least 16"):
        pseudonymised([{"case": "A", "image": "A.nii"}], file)
    with pytest.raises(DatasetError, match="is not a regular file"):
        pseudonymised([{"case": "A", "image": "A.nii"}], tmp_path)


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
    by_id = {
        item["case"]: item["original_id"]
        for item in pseudonymised([{"case": i, "image": f"{i}.mha"} for i in ids], key)
    }
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


def _nothing_names(ids: set[str], folder: Path) -> list[Path]:
    """The files there, none of which holds an id in its name or content."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for one in ids:
            assert one not in str(path.relative_to(folder))
            assert one.encode() not in content, path
    return files


@pytest.fixture
def one_broken(tiny_cohort: Path, tmp_path: Path) -> Path:
    """A file of one case is cut short, so that there is something to say."""
    data = shutil.copytree(tiny_cohort, tmp_path / "data")
    for split in ("Val", "Test"):
        shutil.rmtree(data / f"BONBID2023_{split}")
    file = next(data.rglob("*-ADC_ss.mha"))
    file.write_bytes(file.read_bytes()[:-10])
    return data


def test_a_checks_table_and_report(one_broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = find_cases(one_broken)
    ids = {case.case for case in cases} | {patient_of(case.case) for case in cases}
    (tmp_path / "out").mkdir()
    with pytest.raises(DatasetError) as caught:
        check(one_broken, tmp_path / "out" / "check.json", anonymise_ids=tmp_path / "key")
    assert "-ADC_ss.mha is truncated" in str(caught.value)  # on the screen, for who has to mend it
    printed = capsys.readouterr().out
    assert printed.count("\ncase-") == len(cases)
    assert not any(one in printed for one in ids)
    (file,) = _nothing_names(ids, tmp_path / "out")
    entries = json.loads(file.read_text())["cases"]
    assert [problem["file"] for entry in entries for problem in entry["problems"]] == ["adc"]


@pytest.mark.parametrize("format", ["native_stack", "nnunet", "resampled"])
def test_prepared_cases_and_folds_of_them(format: str, tiny_cohort: Path, tmp_path: Path) -> None:
    cases = find_cases(tiny_cohort)
    options: dict[str, Any] = {"recipe_configs": [CONFIGS / "train.yaml"], "overrides": {"spatial_size": [16, 16, 8]}}
    preprocess(tiny_cohort, tmp_path / "out", format, anonymise_ids=tmp_path / "key", **options)
    preprocess(tiny_cohort, tmp_path / "out", format, anonymise_ids=tmp_path / "key", **options)  # it goes on
    _nothing_names({case.case for case in cases}, tmp_path / "out")
    if format != "nnunet":
        names = set(pseudonyms([case.case for case in cases], tmp_path / "key").values())
        assert {case.case for case in find_cases(tmp_path / "out")} == names
    with pytest.raises(DatasetError, match="does not work for a data list, which names files; nothing was written"):
        write_datalist(tiny_cohort, tmp_path / "list.json", anonymise_ids=tmp_path / "key")
    with pytest.raises(DatasetError, match="cannot be combined; remove one"):
        preprocess(
            tiny_cohort, tmp_path / "x", format, patient_pattern="(.+)-", anonymise_ids=tmp_path / "key", **options
        )


def test_the_command_segments_under_other_ids(
    one_broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = {case.case for case in find_cases(one_broken)}
    out = tmp_path / "out"
    words = ["segment", str(one_broken), "-o", str(out), "--anonymise_ids", str(tmp_path / "key"), "--shard", "1/1"]
    words += ["--overlay", str(out / "o"), "--report", str(out / "r"), "--probabilities", "--json", "--device", "cpu"]
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert "-ADC_ss.mha is truncated" in printed.err
    assert not any(one in printed.out for one in ids)
    names = {path.name for path in _nothing_names(ids, out)}
    masks = [name for name in names if name.endswith("_lesion.nii.gz")]
    assert len(masks) == len(ids) - 1
    assert "manifest.csv" in names
    assert all(name.startswith("case-") for name in masks)


def test_what_ends_a_run_is_kept_without_the_id(tiny_cohort: Path, tmp_path: Path) -> None:
    """On the screen it names the file."""
    places = {"dataset_dir": str(tiny_cohort), "ckpt_dir": str(tmp_path / "m"), "output_dir": str(tmp_path / "e")}
    workflow = ConfigWorkflow(
        str(CONFIGS / "train.yaml"), workflow_type=None, run_id="training", logging_file=False, device="cpu",
        **{name: eval(value) for name, value in TINY.items()}, **places, anonymise_ids=str(tmp_path / "key"),
    )  # fmt: skip
    workflow.initialize()
    case = find_cases(tiny_cohort)[0]
    folder = workflow.parser.get_parsed_content("run_folder")
    workflow.parser.get_parsed_content("train#dataset#data")

    def fail() -> None:
        logging.getLogger(__name__).warning("%s is odd", case.adc)
        raise UserError(f"{case.adc} is broken")

    folder.claim()
    with pytest.raises(UserError, match=case.case):
        folder.recorded(fail)
    assert "is broken" in (tmp_path / "m" / "run.json").read_text()
    assert "is odd" in (tmp_path / "e" / "training.log").read_text()
    for path in _nothing_names({case.case}, tmp_path / "m") + _nothing_names({case.case}, tmp_path / "e"):
        assert path.is_file()


def test_a_key_that_others_see_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DatasetError, match="is inside the results"):
        pseudonyms(["A"], tmp_path / "out" / "key", output_dir=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    pseudonyms(["A"], tmp_path / "key", output_dir=tmp_path / "out")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(DatasetError, match="can be read by others: chmod 600"):
        pseudonyms(["A"], tmp_path / "key")
    for value in (True, "True", "", None):
        with pytest.raises(DatasetError, match="needs the path of a key file"):
            pseudonyms(["A"], value)  # type: ignore[arg-type]


def test_folders_that_name_a_patient_leave_kept_messages(tmp_path: Path) -> None:
    file = tmp_path / "Name^First_date" / "X-ADC_ss.mha"
    names = pseudonymised([{"case": "X", "image": [str(file), str(file)]}], tmp_path / "key")
    assert redacted(f"{file} is truncated") == f"{names[0]['case']}-ADC_ss.mha is truncated"
