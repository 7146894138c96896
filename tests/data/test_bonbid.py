"""Finding, listing and dividing the cases of a dataset."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from bonbid_cases import case_files, write_case, write_stacked
from conftest import BUNDLE
from monai.auto3dseg.utils import datafold_read
from monai.data import load_decathlon_datalist

from scripts import data
from scripts.runtime.errors import DatasetError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_bonbids_layout(tmp_path: Path) -> None:
    root = tmp_path / "data"
    train = write_case(root, "MGHNICU_010-VISIT_01", "Train")
    nested = write_case(root / "BONBID2023_Val", "MGHNICU_011-VISIT_02", "Val", seed=1)  # as the zip may unpack
    test = write_case(root, "MGHNICU_009-VISIT_01", "Test", seed=2, extension=".nii.gz")
    (root / "BONBID2023_Train" / "clinical.xlsx").write_bytes(b"")
    (root / "__MACOSX").mkdir()
    shutil.copy(train["adc"], root / "__MACOSX" / "MGHNICU_012-VISIT_01-ADC_ss.mha")
    shutil.copy(train["adc"], root / "BONBID2023_Train" / "1ADC_ss" / "._MGHNICU_010-VISIT_01-ADC_ss.mha")
    (root / "loop").symlink_to(root)
    assert data.find_cases(root) == [
        data.Case("MGHNICU_010-VISIT_01", "train", **train),
        data.Case("MGHNICU_011-VISIT_02", "val", **nested),
        data.Case("MGHNICU_009-VISIT_01", "test", **test),
    ]
    assert data.datalist(root, "val") == [
        {
            "image": [str(nested["adc"]), str(nested["zadc"])],
            "label": str(nested["label"]),
            "case": "MGHNICU_011-VISIT_02",
            "site": "MGH",
        }
    ]
    assert [item["case"][8:11] for item in data.datalist(root, None)] == ["009", "010", "011"]
    assert "label" not in data.datalist(root, None, labels=False)[0]
    # a split's own folder as dataset_dir
    assert [case.split for case in data.find_cases(root / "BONBID2023_Test")] == ["test"]


def _part_two(root: Path, case: str, seed: int, labels: bool = True) -> dict[str, Path]:
    """A case where the second part has it: hospitals' folders below the maps', no splits."""
    made = write_case(root / "made", case, None, seed=seed)
    found = {}
    for part, path in made.items():
        if part != "label" or labels:
            found[part] = root / path.parent.name / case[:3] / path.name
            found[part].parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, found[part])
    shutil.rmtree(root / "made")
    return found


def test_both_parts_of_bonbid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Part II joins the side of its patient in part I; one hospital trains, the other tests."""
    first = write_case(tmp_path, "MGHNICU_010-VISIT_01", "Test")
    second = tmp_path / "part2"
    _part_two(second, "MGHNICU_010-VISIT_01", 1)  # the same scan, which part I has with its label
    later = _part_two(second, "MGHNICU_010-VISIT_02", 2)
    for number in range(3):
        _part_two(second, f"MGHNICU_30{number}-VISIT_01", 3 + number)
        _part_two(second, f"BCHNICU_01{number}-VISIT_01", 6 + number, labels=number > 0)
    cases = {case.case: case for case in data.find_cases(tmp_path)}
    assert len(cases) == 8
    assert (cases["MGHNICU_010-VISIT_01"].split, cases["MGHNICU_010-VISIT_01"].adc) == ("test", first["adc"])
    assert (cases["MGHNICU_010-VISIT_02"].split, cases["MGHNICU_010-VISIT_02"].adc) == ("test", later["adc"])
    assert {case.site for case in cases.values()} == {"MGH", "BCH"}
    expected = second / "3LABEL" / "BCH" / "BCHNICU_010-VISIT_01_lesion.mha"
    assert cases["BCHNICU_010-VISIT_01"].item()["label"] == str(expected)
    with pytest.raises(DatasetError, match=r"3LABEL/BCH/BCHNICU_010-VISIT_01_lesion.mha"):
        data.check(tmp_path)
    assert "BCH" in capsys.readouterr().out
    for site in ("MGH", "BCH"):
        sides = {split: data.datalist(tmp_path, split, labels=False, test_site=site) for split in ("train", "test")}
        assert {item["site"] for item in sides["test"]} == {site}
        assert {item["site"] for item in sides["train"]} == {"MGH", "BCH"} - {site}
    folds = [data.datalist(tmp_path, "val", False, fold, 3, test_site="BCH") for fold in range(3)]
    assert sorted(item["case"] for fold in folds for item in fold) == sorted(c for c in cases if c[0] == "M")
    with pytest.raises(DatasetError, match=r"the cases in .* are from BCH, MGH"):
        data.datalist(tmp_path, "train", test_site="UCSF")


@pytest.mark.parametrize("relative", [False, True])
def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    write_case(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    item = data.datalist("data" if relative else tmp_path / "data", "train")[0]
    assert all(Path(path).is_absolute() and Path(path).exists() for path in (*item["image"], item["label"]))


def test_own_cohort_without_splits_and_stacked_files(tmp_path: Path) -> None:
    three = write_case(tmp_path, "baby7", split=None, extension=".nii.gz")
    stacked = write_stacked(tmp_path, "sub-01_ses-02")
    unlabelled = write_stacked(tmp_path, "sub-02", label=False)
    approved = write_stacked(tmp_path / "study", "sub-03", label=False)
    final = tmp_path / "study" / "labels" / "final" / "sub-03.nii.gz"  # as MONAI Label keeps them
    final.parent.mkdir(parents=True)
    shutil.copy(stacked["label"], final)
    shutil.copytree(final.parent, tmp_path / "study" / "labels" / "original")
    assert data.find_cases(tmp_path) == [
        data.Case("baby7", None, **three),
        data.Case("sub-01_ses-02", None, **stacked),
        data.Case("sub-02", None, **unlabelled),
        data.Case("sub-03", None, label=final, **approved),
    ]
    assert data.datalist(tmp_path, "train") == []
    items = data.datalist(tmp_path, None, labels=False)
    assert [item["image"] for item in items[1:]] == [str(f["stacked"]) for f in (stacked, unlabelled, approved)]
    data.require_usable(items, tmp_path, "inference")


def test_missing_files_are_listed_where_they_should_lie(tmp_path: Path) -> None:
    expected = {case: case_files(tmp_path, case) for case in ("a", "b", "c")}
    for case in expected:
        write_case(tmp_path, case)
    expected["a"]["zadc"].unlink()
    expected["b"]["label"].unlink()
    expected["c"]["adc"].unlink()
    expected["c"]["zadc"].unlink()
    items = data.datalist(tmp_path, "train")
    assert [(i["image"], i["label"]) for i in items] == [
        ([str(files["adc"]), str(files["zadc"])], str(files["label"])) for files in expected.values()
    ]
    # a label alone is nothing to segment
    assert [item["case"] for item in data.datalist(tmp_path, "train", labels=False)] == ["a", "b"]


@pytest.mark.parametrize("make", [False, True])
def test_no_data_is_harmless(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "data"
    if make:
        folder.mkdir()
    for split in (None, "train", "val", "test"):
        assert data.datalist(folder, split) == []
        assert data.datalist(folder, split, fold=0, num_folds=5) == []


def test_import_is_light() -> None:
    code = "import sys, scripts.data; print([m for m in ('torch', 'monai', 'itk', 'SimpleITK') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=BUNDLE, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("MGHNICU_010-VISIT_01-ADC_ss.mha", "MGHNICU_010-VISIT_01"),
        ("sub-01_ses-02.nii.gz", "sub-01_ses-02"),
        ("baby.7.nii", "baby.7"),
    ],
)
def test_output_names(name: str, case: str) -> None:
    assert data.output_name({"filename_or_obj": f"/data/{name}"}) == {"subject": case}


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("MGHNICU_010-VISIT_01", "MGHNICU_010"),
        ("MGHNICU_010-VISIT_02", "MGHNICU_010"),
        ("sub-01_ses-02_run-1", "sub-01"),
        ("sub-01_ses-acute", "sub-01"),
        ("sub-01_ses-followup", "sub-01"),
        ("sub-01_run-2", "sub-01"),
        ("site2_sub-01_ses-early", "site2_sub-01"),
        ("P1-V1", "P1"),
        ("P1-V2", "P1"),
        ("P1_T0", "P1"),
        ("P1 day 3", "P1"),
        ("P1_visit2", "P1"),
        ("P1_TP1", "P1"),
        ("P1-acute", "P1"),
        ("P1_follow-up", "P1"),
        ("P1_FU1", "P1"),
        ("HIE_012_2021-03-07", "HIE_012"),
        ("HIE_012_20210307", "HIE_012"),
        ("baby7", "baby7"),
        ("session", "session"),
        ("MGHNICU_010", "MGHNICU_010"),
        ("P1_2", "P1_2"),  # numbers of patients as likely as of visits
        ("cohort_preterm_3", "cohort_preterm_3"),
        ("P1_T1w", "P1_T1w"),
    ],
)
def test_patients(case: str, patient: str) -> None:
    assert data.patient_of(case) == patient


def test_patients_by_a_pattern() -> None:
    cases = ["A7s1", "A7s2", "B1s1"]
    for pattern in (r"^(.+)s\d", r"(?P<visit>s\d)?(?P<patient>^[A-Z]\d)", r"^[A-Z]\d"):
        assert data.patients_of(cases, pattern) == {"A7s1": "A7", "A7s2": "A7", "B1s1": "B1"}
    assert len(set(data.patients_of(cases).values())) == 3
    with pytest.raises(DatasetError, match="is not a valid regular expression"):
        data.patients_of(cases, "(")
    with pytest.raises(DatasetError, match="finds no patient in the names of these cases: B1s1"):
        data.patients_of(cases, "^A7")


# --- splits and folds ---------------------------------------------------------------------------------------------


def test_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    write_case(tmp_path, "p1-VISIT_01", "Train")
    write_case(tmp_path, "p1-VISIT_02", "Test")
    with pytest.raises(DatasetError, match=r"several splits.*\n  p1 is in both train and test"):
        data.datalist(tmp_path, "train")
    with pytest.raises(DatasetError, match="p1 is in both val and test"):
        data.datalist(tmp_path, "val", fold=0, num_folds=2)
    assert len(data.datalist(tmp_path, None)) == 2


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 cases of train and val, of 23 patients, and 3 of test, with lesions of every size class (210 brain voxels)."""
    root = tmp_path_factory.mktemp("cohort")
    sizes = [0] * 4 + [1] * 9 + [6] * 6 + [30] * 5 + [80] * 3
    for number, size in enumerate(sizes):
        case = f"MGHNICU_{number:03d}-VISIT_01"
        if number in (5, 14, 20, 26):  # second visits of patients 0, 1, 2, 3
            case = f"MGHNICU_{(5, 14, 20, 26).index(number):03d}-VISIT_02"
        write_case(root, case, "Val" if number in (4, 7, 15) else "Train", seed=number, lesion_voxels=size)
    for number in range(3):
        write_case(root, f"MGHNICU_1{number:02d}-VISIT_01", "Test", seed=100 + number)
    return root


@pytest.mark.parametrize(
    ("visits", "pattern"), [(("sub-{}_ses-acute", "sub-{}_ses-followup"), None), (("P{}-V1", "P{}-V2"), None),
                            (("a{}b", "a{}c"), r"^(a\d+)")]
)  # fmt: skip
def test_no_patient_is_on_two_sides(
    visits: tuple[str, str], pattern: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for number in range(4):
        for place, visit in enumerate(visits):
            write_case(tmp_path, visit.format(number), "Train", seed=number, lesion_voxels=6 * place)
    options: dict[str, Any] = {"num_folds": 4, "patient_pattern": pattern}
    data.write_datalist(tmp_path, tmp_path / "list.json", **options)
    assert "training, fold 0: 2 cases of 1 patient (" in capsys.readouterr().out
    for fold in range(4):
        with caplog.at_level("INFO"):
            sides = [{i["case"] for i in data.datalist(tmp_path, s, fold=fold, **options)} for s in ("train", "val")]
        assert f"val, fold {fold} of 4: 2 cases of 1 patient" in caplog.text
        assert f"train, fold {fold} of 4: 6 cases of 3 patients" in caplog.text
        patients = [set(data.patients_of(side, pattern).values()) for side in sides]
        assert not patients[0] & patients[1]
        for split, side in zip(("train", "val"), sides, strict=True):  # the list knows its patients
            assert {i["case"] for i in data.datalist("", split, file=tmp_path / "list.json", fold=fold)} == side


def test_a_data_list_says_whose_case_it_is(tmp_path: Path) -> None:
    def write(second: str) -> Path:
        entries = [{"image": "x.nii.gz", "label": "y.nii.gz", "case": "x1", "patient": "x"},
                   {"image": "z.nii.gz", "label": "y.nii.gz", "case": "z1", "patient": second}]  # fmt: skip
        file = tmp_path / "list.json"
        file.write_text(json.dumps({"training": entries[:1], "test": entries[1:]}))
        return file

    assert len(data.datalist("", "train", file=write("z"))) == 1
    with pytest.raises(DatasetError, match="x is in both train and test"):
        data.datalist("", "train", file=write("x"))


@pytest.mark.parametrize("source", ["folds", "official", "list"])
def test_an_inner_split_leaves_the_fold_alone(source: str, cohort: Path, tmp_path: Path) -> None:
    """The weights are chosen on a part of the training cases, alike in lesion sizes, no patient on two sides."""
    options: dict[str, Any] = {"dataset_dir": cohort}
    if source != "official":
        options |= {"fold": 1, "num_folds": 3}
    if source == "list":
        data.write_datalist(cohort, tmp_path / "list.json", num_folds=3)
        options = {"dataset_dir": "", "file": tmp_path / "list.json", "fold": 1}

    def cases(split: str, **more: Any) -> set[str]:
        return {item["case"] for item in data.datalist(split=split, **options, **more)}

    train, val = cases("train"), cases("val")
    inner_train, inner_val = cases("train", inner_folds=4), cases("val", inner_folds=4)
    assert inner_train | inner_val == train
    assert not inner_train & inner_val
    assert not val & (inner_train | inner_val)
    patients = [set(data.patients_of(side).values()) for side in (inner_train, inner_val)]
    assert not patients[0] & patients[1]
    assert abs(len(patients[1]) - len(patients[0] | patients[1]) / 4) <= 1
    assert cases("test", inner_folds=4) == cases("test")
    for wrong in (1, "auto", 2.5):
        with pytest.raises(DatasetError, match="--inner_folds must be an integer of at least 2"):
            cases("val", inner_folds=wrong)


def test_whether_cases_are_held_out() -> None:
    trained = {"fold": 1, "num_folds": 5, "inner_folds": None}
    assert str(data.held_out(trained, "val", 1, 5)).startswith("no: they chose the weights")
    assert str(data.held_out(trained, "train", 1, 5)).startswith("no: the network was trained on them")
    assert data.held_out(trained, "test", None, None) == "yes"
    assert data.held_out({**trained, "inner_folds": 4}, "val", 1, 5) == (
        "yes: the weights were chosen on 1/4 of the training cases"
    )
    assert data.held_out(trained, "val", 2, 5) is None  # the weights of another fold: they saw these cases, perhaps
    assert data.held_out({"loss": "dice"}, "val", 1, 5) is None
    assert data.held_out(None, "val", 1, 5) is None
    assert data.held_out(trained, "test", None, None, "BCH") is None  # cases of that hospital were trained on, perhaps


def test_limits_reach_the_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_case(tmp_path, "a-VISIT_01")
    write_case(tmp_path, "b-VISIT_01", seed=1)
    seen = []

    def note(items: Any, limits: Any = None) -> Any:
        seen.append(limits)
        return data.check_items(items, limits)

    monkeypatch.setattr("scripts.data.datalists.check_items", note)
    limits = data.Limits(zadc_limit=50.0)
    data.datalist(tmp_path, "val", fold=0, num_folds=2, limits=limits)
    data.write_datalist(tmp_path, tmp_path / "list.json", num_folds=2, limits=limits)
    assert seen == [limits] * 3  # for each call, and for the printed sizes


@pytest.mark.parametrize("num_folds", [2, 3, 5])
def test_folds_are_balanced_and_separate(cohort: Path, num_folds: int) -> None:
    everything = {item["case"] for split in ("train", "val") for item in data.datalist(cohort, split)}
    size = {report.case: report.lesion_fraction for report in data.check_items(data.datalist(cohort, None))}
    validated: list[str] = []
    classes: list[Counter[str]] = []
    patients_of_fold = []
    for fold in range(num_folds):
        train = {item["case"] for item in data.datalist(cohort, "train", fold=fold, num_folds=num_folds)}
        val = {item["case"] for item in data.datalist(cohort, "val", fold=fold, num_folds=num_folds)}
        assert train | val == everything
        assert not {data.patient_of(case) for case in train} & {data.patient_of(case) for case in val}
        validated += val
        largest: dict[str, float] = {}
        for case in val:
            largest[data.patient_of(case)] = max(size[case] or 0.0, largest.get(data.patient_of(case), 0.0))
        classes.append(Counter(data.size_class(fraction) for fraction in largest.values()))
        patients_of_fold.append(len(largest))
        assert len(data.datalist(cohort, "test", fold=fold, num_folds=num_folds)) == 3
    assert sorted(validated) == sorted(everything)
    assert max(patients_of_fold) - min(patients_of_fold) <= 1
    for name in ("empty", "<1 %", "1–5 %", "5–20 %", ">20 %"):
        counts = [count[name] for count in classes]
        assert sum(counts) > 0 or name == "empty"
        assert max(counts) - min(counts) <= 1, name


def test_folds_depend_on_the_seed_alone(cohort: Path, tmp_path: Path) -> None:
    def sides(root: Path, seed: int) -> list[list[str]]:
        return [[i["case"] for i in data.datalist(root, "val", fold=f, num_folds=3, seed=seed)] for f in range(3)]

    assert sides(cohort, 0) == sides(cohort, 0)
    assert sides(cohort, 0) != sides(cohort, 1)
    elsewhere = shutil.copytree(cohort, tmp_path / "copy")
    assert sides(elsewhere, 0) == sides(cohort, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "training"}, "no split 'training'; choose one of train, val, test"),
        ({"split": "train", "fold": 1}, "both --fold and --num_folds"),
        ({"split": "train", "num_folds": 3}, "both --fold and --num_folds"),
        ({"split": "train", "fold": 3, "num_folds": 3}, "no fold 3 of 3; folds count from 0"),
        ({"split": "train", "file": "absent.json"}, r"absent.json cannot be read"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        data.datalist(tmp_path, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_written_folds_are_read_by_monai_and_auto3dseg(cohort: Path, tmp_path: Path, elsewhere: bool) -> None:
    root = cohort if elsewhere else shutil.copytree(cohort, tmp_path / "cohort")
    file = (tmp_path / "lists" if elsewhere else root) / "folds.json"
    data.write_datalist(root, file, num_folds=3, seed=4)
    assert [path for path in file.parent.iterdir() if path.name.startswith(".")] == []
    written = json.loads(file.read_text())
    assert written["numTraining"] == len(written["training"]) == 27
    assert Path(written["training"][0]["label"]).is_absolute() == elsewhere
    training = load_decathlon_datalist(file, data_list_key="training")
    assert len(load_decathlon_datalist(file, data_list_key="test")) == 3
    assert all(Path(path).exists() for item in training for path in (*item["image"], item["label"]))
    for fold in range(3):
        ours = {split: data.datalist(root, split, fold=fold, num_folds=3, seed=4) for split in ("train", "val", "test")}
        for split, items in ours.items():
            assert data.datalist("/nowhere", split, file=file, fold=fold) == items
        sides = datafold_read(str(file), str(file.parent), fold)
        for side, split in zip(sides, ("train", "val"), strict=True):
            assert sorted(item["label"] for item in side) == sorted(item["label"] for item in ours[split])
    with pytest.raises(DatasetError, match="has no fold 3; it has 0, 1, 2"):
        data.datalist(root, "val", file=file, fold=3)
    with pytest.raises(DatasetError, match="choose the fold with --fold"):
        data.datalist(root, "val", file=file)


def test_written_official_split(cohort: Path, tmp_path: Path) -> None:
    root = shutil.copytree(cohort, tmp_path / "cohort")
    data.write_datalist(root, root / "list.json")
    for split in (None, "train", "val", "test"):
        assert data.datalist(root, split, file=root / "list.json") == data.datalist(root, split)


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    files = write_case(tmp_path, "p1-VISIT_01", split=None)
    stacked = write_stacked(tmp_path, "p2")
    entries = [
        {"image": [files[part].relative_to(tmp_path).as_posix() for part in ("adc", "zadc")], "label": "l.mha"},
        {"image": "p2.nii.gz"},
    ]
    file = tmp_path / "list.json"
    file.write_text(json.dumps({"training": entries[:1], "test": [entries[1]["image"]]}))
    assert data.datalist(tmp_path, "train", file=file) == [
        {
            "image": [str(files["adc"]), str(files["zadc"])],
            "label": str(tmp_path / "l.mha"),
            "case": "p1-VISIT_01",
        }
    ]
    assert data.datalist(tmp_path, "test", file=file) == [{"image": str(stacked["stacked"]), "case": "p2"}]
    assert data.datalist(tmp_path, "val", file=file) == []
    file.write_text(json.dumps({"training": entries, "validation": [{"image": "p1-VISIT_02.nii.gz", "label": "x"}]}))
    with pytest.raises(DatasetError, match="p1 is in both train and val"):
        data.datalist(tmp_path, "train", file=file)
    for content in ("{", "[]", '{"training": [1]}', '{"training": [{"label": "x"}]}', '{"training": {"a": 1}}'):
        file.write_text(content)
        with pytest.raises(DatasetError, match=r"list.json cannot be read"):
            data.datalist(tmp_path, "train", file=file)


# --- the same maps twice ------------------------------------------------------------------------------------------


def test_a_copy_of_a_case_in_another_split_is_refused(tmp_path: Path) -> None:
    files, other = write_case(tmp_path, "a", "Train"), write_case(tmp_path, "b", "Test", seed=1)
    assert data.datalist(tmp_path, "train")
    for part in ("adc", "zadc", "label"):
        shutil.copy(files[part], other[part])
    for split in ("train", "test"):
        with pytest.raises(DatasetError, match=r"the same maps twice.*\n.*a-ADC_ss.* \(train\) and .*b-ADC_ss"):
            data.datalist(tmp_path, split)
    with pytest.raises(DatasetError, match="is a copy of"):
        data.check(tmp_path, tmp_path / "report.json")


def test_copies_in_two_folds_are_not_written_to_a_list(tmp_path: Path) -> None:
    cases = [write_case(tmp_path, f"p{number}", seed=number) for number in range(6)]
    data.write_datalist(tmp_path, tmp_path / "list.json", num_folds=3)
    fold = {entry["case"]: entry["fold"] for entry in json.loads((tmp_path / "list.json").read_text())["training"]}
    (tmp_path / "list.json").unlink()
    other = next(number for number in range(1, 6) if fold[f"p{number}"] != fold["p0"])
    for part in ("adc", "zadc", "label"):
        shutil.copy(cases[0][part], cases[other][part])
    with pytest.raises(DatasetError, match=r"the same maps twice.*\n.*\(fold \d\) and .*\(fold \d\)"):
        data.write_datalist(tmp_path, tmp_path / "list.json", num_folds=3)
    assert not (tmp_path / "list.json").exists()


def test_files_that_are_twice_in_a_data_list_are_refused(tmp_path: Path) -> None:
    files = [write_case(tmp_path, case, seed=seed) for seed, case in enumerate("ab")]
    entries = [{"image": [str(f["adc"]), str(f["zadc"])], "label": str(f["label"]), "case": c}
               for f, c in zip(files, "ab", strict=True)]  # fmt: skip
    file = tmp_path / "list.json"
    for lists in (
        {"training": entries, "test": [{**entries[0], "case": "c"}]},
        {"training": [*entries, {**entries[1], "case": "c"}]},
    ):
        file.write_text(json.dumps(lists))
        with pytest.raises(DatasetError, match="the same maps twice"):
            data.datalist(tmp_path, "train", file=file)
    file.write_text(json.dumps({"training": entries}))
    assert len(data.datalist(tmp_path, "train", file=file)) == 2


def test_labels_without_a_lesion_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_case(tmp_path, "a", "Train", lesion_voxels=0)
    write_case(tmp_path, "b", "Val", seed=1, lesion_voxels=0)
    train, val = (data.datalist(tmp_path, split) for split in ("train", "val"))
    with pytest.raises(DatasetError, match="All 1 training labels are empty"):
        data.require_usable(train + val, tmp_path, "training", validation=val)
    write_case(tmp_path, "a", "Train")
    data.require_usable(train + val, tmp_path, "training", validation=val)
    assert "All 1 labels of the validation cases are empty" in caplog.text
