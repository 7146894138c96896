"""The command ``hie-bundle``: what it writes, prints and returns; and that it says what the configs say."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import typer
import yaml
from conftest import BUNDLE, ROOT
from monai.bundle.reference_resolver import ReferenceResolver
from PIL import Image
from processes import NO_NETWORK
from test_segmenter import ADC_ALONE, TINY, write_weights

from scripts import cli
from scripts.cli.segment import find_jobs
from scripts.cli.workflows import WORKFLOWS, parsed, separated
from scripts.evaluation.calibration import Calibration, calibration_file
from scripts.inference.segmenter import CAUTION, Segmenter
from scripts.io.files import write_json
from scripts.phantom import write_phantom_atlas
from scripts.report.pictures import CaseSlices
from scripts.runtime.errors import UserError
from scripts.scanner.regions import RegionAtlas

CONFIGS = BUNDLE / "configs"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: exit status, stdout, stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        status, root = 0, logging.getLogger()
        for handler in list(root.handlers):  # an earlier test's, whose stream pytest has closed
            if getattr(getattr(handler, "stream", None), "closed", False):
                root.removeHandler(handler)
        try:
            cli.main([str(word) for word in words])
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "model.pt", [ADC_ALONE])


@pytest.fixture
def options(weights: Path) -> list[str]:
    tiny = [f"--{name}={value}" for name, value in TINY.items()]
    return [f"--weights={weights}", f"--recipe={ADC_ALONE}", *tiny]


@pytest.fixture
def cohort(tiny_cohort: Path, tmp_path: Path) -> Path:
    """Three cases without labels, the first without a ZADC map."""
    root = tmp_path / "cohort"
    for name in ("1ADC_ss", "2Z_ADC"):
        shutil.copytree(tiny_cohort / "BONBID2023_Test" / name, root / name)
    min((root / "2Z_ADC").iterdir()).unlink()
    return root


def test_two_files(run: Run, options: list[str], weights: Path, cohort: Path, tmp_path: Path) -> None:
    adc, zadc = (max((cohort / name).iterdir()) for name in ("1ADC_ss", "2Z_ADC"))
    out = tmp_path / "out"
    status, text, err = run("segment", "--json", adc, zadc, "-o", out / "mask.mha", "--probabilities", "--overlay",
                            out / "picture.png", "--report", out / "page.html", *options)  # fmt: skip
    assert (status, err) == (0, "")
    told = json.loads(text)
    assert told["caution"] == CAUTION
    assert told["weights"][0]["path"] == str(weights)
    (case,) = told["cases"]
    found = Segmenter(weights, recipe=[ADC_ALONE], **TINY).result(adc, zadc)
    mask, source = (SimpleITK.ReadImage(str(path)) for path in (out / "mask.mha", adc))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(mask).T, found.mask)
    for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(mask, get)() == pytest.approx(getattr(source, get)(), abs=1e-6)
    assert case["mask"] == str(out / "mask.mha")
    assert case["lesion_ml"] == pytest.approx(found.lesion_ml, abs=1e-4)
    assert case["lesions"] == found.lesions
    probability = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(case["probability"])).T
    assert case["probability"] == str(out / "mask_probability.mha")
    np.testing.assert_array_equal(probability >= 0.5, found.mask == 1)
    picture = np.asarray(Image.open(out / "picture.png").convert("RGB"))
    outline = np.array([0xE6, 0x9F, 0x00])
    assert (np.abs(picture.astype(int) - outline).max(-1) < 12).sum() > 50
    page = (out / "page.html").read_text()
    assert f"{found.lesion_ml:.2f} ml" in page
    upright = nibabel.as_closest_canonical(nibabel.Nifti1Image(found.mask, found.affine))
    slices = np.asarray(upright.dataobj).any((0, 1)).sum()
    assert page.count('class="outline pred"') == 2 * min(8, slices)
    assert "http" not in page.replace("http-equiv", "")


def test_the_table_of_lesions(run: Run, options: list[str], cohort: Path, tmp_path: Path) -> None:
    """Against SimpleITK's statistics of the written mask and maps, case by case."""
    out, pages = tmp_path / "out", tmp_path / "pages"
    assert run("segment", cohort, "-o", out, "--lesions", "--probabilities", "--report", pages, *options)[0] == 0
    tables = sorted(out.glob("*_lesions.csv"))
    assert len(tables) == 3
    for number, table in enumerate(tables):
        case = table.name.removesuffix("_lesions.csv")
        with table.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        mask, probability = (SimpleITK.ReadImage(str(out / f"{case}_{n}.nii.gz")) for n in ("lesion", "probability"))
        adc = SimpleITK.ReadImage(str(next((cohort / "1ADC_ss").glob(f"{case}*"))), SimpleITK.sitkFloat32)
        adc.CopyInformation(mask)
        probability.CopyInformation(mask)
        labels = SimpleITK.ConnectedComponent(mask, True)
        shapes = SimpleITK.LabelShapeStatisticsImageFilter()
        shapes.Execute(labels)
        expected = []
        for label in shapes.GetLabels():
            inside = SimpleITK.GetArrayFromImage(labels) == label
            x, y, z = shapes.GetCentroid(label)
            in_adc, in_probability = (SimpleITK.GetArrayFromImage(one)[inside] for one in (adc, probability))
            expected.append([shapes.GetPhysicalSize(label) / 1000, -x, -y, z, in_adc.mean(), in_adc.min(),
                             in_probability.mean()])  # fmt: skip
        names = ("volume_ml", "x_mm", "y_mm", "z_mm", "mean_adc", "lowest_adc", "mean_probability")
        found = [[float(row[name]) for name in names] for row in rows]
        np.testing.assert_allclose(sorted(found), sorted(expected), rtol=1e-4, atol=1e-3)
        assert all((row["mean_z"] == "") == (number == 0) for row in rows)  # the first has no ZADC map
        page = (pages / f"{case}.html").read_text()
        assert len(re.findall(r'<tr>\s*<th scope="row">\d', page)) == len(rows)
    assert sum(len(table.read_text().splitlines()) for table in tables) > 6


def test_calibrated_probabilities(run: Run, options: list[str], weights: Path, cohort: Path, tmp_path: Path) -> None:
    """Of the weights and settings that it was fitted for; the mask stays."""
    adc, zadc = (max((cohort / name).iterdir()) for name in ("1ADC_ss", "2Z_ADC"))
    words = [
        "segment",
        adc,
        zadc,
        "-o",
        tmp_path / "a.nii.gz",
        "--lesions",
        "--probabilities",
        "--calibrated",
        *options,
    ]
    status, _, err = run(*words)
    assert status == 1
    assert "calibration.json is not a calibration" in err
    segmenter = Segmenter(weights, recipe=[ADC_ALONE], **TINY)
    made = Calibration(segmenter.making, 3, ([0.0, 0.5, 1.0], [0.0, 0.1, 1.0]), [1.0, 0.0, 0.5])
    write_json(calibration_file([weights]), asdict(made))
    try:
        assert run(*words)[0] == 0
        assert "fitted with threshold 0.5, not 0.4" in run(*words, "--threshold=0.4")[2]
    finally:
        calibration_file([weights]).unlink()
    found = segmenter.result(adc, zadc)
    mask, probability = (np.asarray(nibabel.load(tmp_path / f"a{n}.nii.gz").dataobj) for n in ("", "_probability"))
    np.testing.assert_array_equal(mask, found.mask)
    np.testing.assert_allclose(probability, np.interp(found.probability, [0, 0.5, 1], [0, 0.1, 1]), atol=1e-6)
    with (tmp_path / "a_lesions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    real = [1 / (1 + np.exp(-0.5) / float(row["volume_ml"])) for row in rows]
    assert [float(row["real_probability"]) for row in rows] == pytest.approx(real)


def test_studies_of_monai_label(run: Run, options: list[str], cohort: Path, tmp_path: Path) -> None:
    """The file of both maps is segmented as the two files are."""
    adc, zadc = (max((cohort / name).iterdir()) for name in ("1ADC_ss", "2Z_ADC"))
    words = [adc, zadc, "-o", tmp_path / "a.nii.gz", "--studies", tmp_path / "studies"]
    assert run("segment", *words, *options)[0] == 0
    (study,) = (tmp_path / "studies").iterdir()
    assert study.name == f"{adc.name.removesuffix('-ADC_ss.mha')}.nii.gz"
    assert nibabel.load(study).shape[3] == 2
    assert run("segment", study, "-o", tmp_path / "b.nii.gz", *options)[0] == 0
    one, other = (nibabel.load(tmp_path / f"{name}.nii.gz") for name in "ab")
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-5)


def test_nothing_of_the_options_runs_without_them(
    run: Run, options: list[str], cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain `segment` costs what it did before regions, calibration and the table of lesions."""

    def called(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(RegionAtlas, "__init__", called)
    monkeypatch.setattr("scripts.evaluation.calibration.Calibration.read", called)
    monkeypatch.setattr("scripts.evaluation.lesions.lesions_of", called)
    monkeypatch.setattr("scripts.report.page.write_case_page", called)
    adc, zadc = (max((cohort / name).iterdir()) for name in ("1ADC_ss", "2Z_ADC"))
    assert run("segment", adc, zadc, "-o", tmp_path / "a.nii.gz", *options)[0] == 0
    with pytest.raises(AssertionError):
        run("segment", adc, zadc, "-o", tmp_path / "a.nii.gz", "--lesions", *options)


def test_regions(run: Run, options: list[str], cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures, table and diagram follow the labels of the atlas; tests/scanner measures how well these lie."""
    write_phantom_atlas(tmp_path / "atlas", num_healthy=4, step_mm=6.0)
    halves: dict[str, np.ndarray] = {}

    def on(_: RegionAtlas, adc: Any) -> tuple[np.ndarray | None, str]:
        labels = (adc.array > 0).astype(np.uint8)
        labels[: len(labels) // 2] *= 4
        halves["labels"] = labels
        return labels, "a remark"

    monkeypatch.setattr(RegionAtlas, "on", on)
    adc, zadc = (max((cohort / name).iterdir()) for name in ("1ADC_ss", "2Z_ADC"))
    words = ["segment", "--json", adc, zadc, "-o", tmp_path / "a.nii.gz", "--regions", tmp_path / "atlas", *options]
    status, out, err = run(*words, "--report", tmp_path / "a.html")
    assert (status, err) == (0, "")
    (case,) = json.loads(out)["cases"]
    mask = np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj) > 0
    for number, name in ((1, "left_deep_grey_matter"), (4, "left_parietal_gyri")):
        region = halves["labels"] == number
        assert case[f"region_{name}_share"] == pytest.approx(mask[region].mean(), abs=1e-4)
    assert case["notes"][-1] == "a remark"
    page = (tmp_path / "a.html").read_text()
    assert page.count('aria-label="Regions, slice') == 4
    assert f"{100 * mask[halves['labels'] == 4].mean():.1f} %" in page
    monkeypatch.setattr(RegionAtlas, "on", lambda *_: (None, "no regions: bad"))
    case = json.loads(run(*words, "--report", tmp_path / "b.html")[1])["cases"][0]
    assert not any(name.startswith("region_") for name in case)
    assert "Regions, slice" not in (tmp_path / "b.html").read_text()


def test_a_folder_and_what_is_wrong_with_it(run: Run, options: list[str], cohort: Path, tmp_path: Path) -> None:
    adcs = sorted((cohort / "1ADC_ss").iterdir())
    volume = SimpleITK.Cast(SimpleITK.ReadImage(str(adcs[1])), SimpleITK.sitkFloat32)
    SimpleITK.WriteImage(volume * 1e-6, adcs[1])
    status, text, err = run("segment", cohort, "-o", tmp_path / "out", *options)
    cases = [path.name.removesuffix("-ADC_ss.mha") for path in adcs]
    assert status == 1
    assert "is not an ADC map in 1e-6 mm²/s" in err
    assert err.splitlines()[-1] == "error: 1 of 3 cases could not be segmented."
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == [f"{cases[n]}_lesion.nii.gz" for n in (0, 2)]
    lines = text.splitlines()
    assert lines[0].startswith(f"{cases[0]}: ")
    assert lines[1].startswith(("  plausible", "  look: "))
    assert lines[2].startswith("  no ZADC map: segmented by ADC alone")
    assert lines[-1] == CAUTION
    voxels = np.asarray(nibabel.load(tmp_path / "out" / written[1]).dataobj).sum()
    ml = voxels * float(np.prod(SimpleITK.ReadImage(str(adcs[2])).GetSpacing())) / 1000
    assert f"{cases[2]}: {ml:.2f} ml in " in text
    assert run("segment", cohort, "-o", tmp_path / "quiet", "--quiet", *options)[1] == ""


CONTAINER = """
import resource, socket, sys

resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))


def refused(*_):
    raise OSError("no network here")


socket.socket.connect = socket.getaddrinfo = refused
import hie_bundle

hie_bundle.scripts_module("cli").main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
def test_the_challenges_container(run: Run, options: list[str], cohort: Path, tmp_path: Path) -> None:
    """Its paths, without a network, in 4 GB; the mask is that of ``segment``."""
    adc, zadc = (max((cohort / part).iterdir()) for part in ("1ADC_ss", "2Z_ADC"))
    folders = {"skull-stripped-adc-brain-mri": adc, "z-score-adc": zadc}
    for number, (folder, path) in enumerate(folders.items()):
        there = tmp_path / "input" / "images" / folder
        there.mkdir(parents=True)
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(there / f"{number}f3a.mha"))
    words = ["challenge", "--input", tmp_path / "input", "--output", tmp_path / "output", *options]
    result = subprocess.run(
        [sys.executable, "-c", CONTAINER, *map(str, words)], env={**os.environ, "OMP_NUM_THREADS": "2"}, text=True,
        capture_output=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    mask = SimpleITK.ReadImage(str(tmp_path / "output" / "images" / "hie-lesion-segmentation" / "overlay.mha"))
    run("segment", adc, zadc, "-o", tmp_path / "mask.mha", *options)
    expected = SimpleITK.ReadImage(str(tmp_path / "mask.mha"))
    assert mask.GetPixelID() == SimpleITK.sitkUInt8
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(mask), SimpleITK.GetArrayFromImage(expected))
    for of in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, of)(), getattr(SimpleITK.ReadImage(str(adc)), of)(), atol=1e-5)

    shutil.copy(there / "1f3a.mha", there / "other.mha")
    status, _, err = run(*words)
    assert status == 1
    assert "z-score-adc has 2 maps; it must have exactly one." in err


def test_masks_as_a_bids_derivative(run: Run, options: list[str], cohort: Path, tmp_path: Path) -> None:
    cases = sorted(path.name.removesuffix("-ADC_ss.mha") for path in (cohort / "1ADC_ss").iterdir())
    for part, before, after in (("1ADC_ss", "", "-ADC_ss"), ("2Z_ADC", "Zmap_", "-ADC_smooth2mm_clipped10")):
        for case, name in zip(cases[1:], ("sub-01_ses-acute", "sub-02"), strict=True):
            there = cohort / part / f"{before}{case}{after}.mha"
            there.rename(there.with_name(f"{before}{name}{after}.mha"))
    out = tmp_path / "derivatives" / "hie_bundle"
    status, text, err = run("segment", cohort, "-o", out, "--bids", "--probabilities", "--json", *options)
    assert (status, err) == (0, "")
    other = "sub-" + "".join(filter(str.isalnum, cases[0]))
    stems = {f"{other}/dwi/{other}", "sub-01/ses-acute/dwi/sub-01_ses-acute", "sub-02/dwi/sub-02"}
    endings = ("desc-lesion_mask.nii.gz", "desc-lesion_mask.json", "desc-lesion_probseg.nii.gz")
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert written == {f"{stem}_{end}" for stem in stems for end in endings} | {"dataset_description.json"}
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    told = {Path(case["mask"]): case for case in json.loads(text)["cases"]}
    for mask, case in told.items():
        beside = json.loads(Path(str(mask).replace(".nii.gz", ".json")).read_text())
        assert beside["Type"] == "Lesion"
        assert beside["lesion_ml"] == case["lesion_ml"]
        assert beside["Sources"][0] == Path(case["adc"]).name
        image = nibabel.load(mask)
        volume = np.asarray(image.dataobj).sum() * np.prod(image.header.get_zooms()) / 1000
        assert volume == pytest.approx(case["lesion_ml"], rel=1e-3)
    for words, why in (
        (["-o", tmp_path / "x.nii.gz"], "needs an output folder"),
        (["-o", out, "--shard", "1/2"], "cannot be combined with --shard"),
        (["-o", out, "--extension", ".mha"], "BIDS does not allow .mha"),
    ):  # fmt: skip
        status, _, err = run("segment", cohort, "--bids", *words, *options)
        assert status == 1
        assert why in err


def test_folders_are_matched_by_name_or_case(tmp_path: Path) -> None:
    for name in ("adc/a.nii.gz", "adc/b.mha", "adc/C-ADC_ss.nii", "z/a.nii.gz", "z/b.nii",
                 "z/Zmap_C-ADC_smooth2mm_clipped10.nii", "z/other.nii"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    jobs = {job.case: job.zadc and job.zadc.name for job in find_jobs(tmp_path / "adc", tmp_path / "z")}
    assert jobs == {"a": "a.nii.gz", "b": "b.nii", "C": "Zmap_C-ADC_smooth2mm_clipped10.nii"}
    (tmp_path / "none").mkdir()
    for adc, zadc, message in [
        ("adc", "none", "No file in"),
        ("none", None, "holds no ADC map"),
        ("adc/a.nii.gz", "z", "are a file and a folder"),
        ("x", None, "does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            find_jobs(tmp_path / adc, tmp_path / zadc if zadc else None)


@pytest.mark.parametrize("names", [("M", "m"), ("\u00e4", "a\u0308")])
def test_masks_that_are_one_file_on_some_disks(names: tuple[str, str], run: Run, tmp_path: Path) -> None:
    """As capitals, and as forms of a letter: refused before a map is read."""
    for name in names:
        (tmp_path / f"{name}-ADC_ss.nii.gz").touch()
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this disk does not tell them apart")
    status, _, err = run("segment", tmp_path, "-o", tmp_path / "masks")
    assert status == 1
    assert "are the same file on file systems that ignore case or Unicode form" in err
    assert not (tmp_path / "masks").exists()


def test_mistakes(run: Run, options: list[str], cohort: Path, tmp_path: Path) -> None:
    adc, zadc = (max((cohort / name).iterdir()) for name in ("1ADC_ss", "2Z_ADC"))
    for words, status, message in [
        ((), 2, ""),
        (("sgment",), 2, "No such command 'sgment'"),
        (("segment", adc, zadc), 2, "the output is missing"),
        (("segment",), 2, "adc"),
        (("segment", adc, zadc, "-o", adc), 1, "is an input map"),
        (("segment", adc, zadc, "-o", ""), 2, "the output is missing"),
        (("segment", adc, zadc, "-o", tmp_path / "o", "--ckpt_path", "my.pt"), 1, "weights are named by --weights"),
        (("segment", adc, zadc, "-o", tmp_path / "o", "--workflow_type", "x"), 1, "takes no --workflow_type"),
        (("segment", adc, zadc, "-o", tmp_path / "o", "--initialize", "x"), 1, "only a config file may change"),
        (("train", "--init_id", "x", "--thresold", "0.4"), 1, "only a config file may change"),
        (("train", "--=x"), 1, "only a config file may change"),
        (("segment", cohort, "-o", cohort, "--probabilities"), 1, "holds maps or labels"),
        (("segment", cohort, "-o", cohort / "3LABEL"), 1, "A mask there would replace a label"),
        (("segment", adc.parent, zadc.parent, "-o", zadc.parent), 1, "read a probability map as a case"),
        (("segment", cohort, "-o", tmp_path / "o", "--studies", cohort), 1, "Choose another -o (or --studies)"),
        (("segment", cohort, "-o", tmp_path / "x.nii.gz"), 1, "is a file, but there are several cases"),
        (("segment", adc, zadc, "-o", tmp_path / "o", "--thresold", "0.4", *options), 1, "did you mean --threshold?"),
        (("segment", adc, zadc, "-o", tmp_path / "o", "--weights", tmp_path / "no.pt"), 1, "There is no checkpoint"),
        (("train", "--recipe", "best"), 1, "There is no recipe 'best'; choose one of paper, strong"),
        (("train", "--recipe", "5"), 1, "There is no recipe '5'"),
        (("train", "--config_file", "5"), 1, "There is no recipe '5'"),
        (("train", "--tracking", "wandbb"), 1, "--tracking wandbb: mlflow or wandb"),
        (("train", "--train#datasett#cache_rate", "0.5"), 1, "did you mean --train#dataset#cache_rate?"),
        (("train", "--run_id", "trainin"), 1, "did you mean training?"),
        (("train", "--recipe", "strong,strong_cpu,fine_tune", "--dataset_dir", tmp_path), 1, "holds no case"),
        (("check", "--recipe", "strong"), 1, "`hie-bundle check` does not accept --recipe"),
        (("completion", "tcsh"), 1, "choose one of: bash, zsh, fish"),
    ]:
        found, _, err = run(*words)
        assert (found, message in err) == (status, True), (words, err)
        assert "Traceback" not in err


def referred(config: dict[str, Any], run_id: str) -> set[str]:
    """The keys at the top of a config that a run refers to, by MONAI's resolver."""
    names = [run_id]
    for name in names:  # it grows
        found = ReferenceResolver.find_refs_in_config(config=config[name], id=name)
        names += [key for one in found if (key := one.split("::")[0]) in config and key not in names]
    return set(names)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_help_lists_every_value_with_its_default_and_comment(name: str, run: Run) -> None:
    status, page, _ = run(name, "--help")
    assert status == 0
    folders = WORKFLOWS[name].folders
    for stem in WORKFLOWS[name].configs:
        text = (CONFIGS / f"{stem}.yaml").read_text()
        config = yaml.safe_load(text)
        used = config.keys() if stem not in ("data", "scanner") else referred(config, WORKFLOWS[name].run_id)
        for key, value in config.items():
            section = not re.search(rf"^{re.escape(key)}: +[^#\s]", text, re.MULTILINE)
            if section or key in ("run", "workflow", "bundle_root", WORKFLOWS[name].run_id):
                continue
            assert (f"  --{key} " in page) == (key in used), key
            if key not in used:
                continue
            last = stem == WORKFLOWS[name].configs[-1]
            if last and type(value) in (int, float) and key not in folders:
                line = next(line for line in page.splitlines() if line.startswith(f"  --{key} "))
                assert yaml.safe_load(line.split()[1]) == value
    assert all(f"  --{key} {where}" in page for key, where in folders.items())
    if name == "train":
        assert "  --epochs 100\n" in page
        assert "epochs without a better validation Dice" in " ".join(page.split())


def test_completion_offers_commands_and_values(run: Run, tmp_path: Path) -> None:
    """As a shell asks for them: with the script that is printed, and the program by its name."""
    script, program = tmp_path / "completion.bash", tmp_path / "hie-bundle"
    script.write_text(run("completion", "bash")[1])
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m hie_bundle "$@"\n')
    program.chmod(0o755)

    def offered(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in words)
        asked = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _hie_bundle_completion hie-bundle"
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(["bash", "-c", f"{asked}; echo ${{COMPREPLY[@]}}"], env=environment, text=True,
                              capture_output=True, check=True)  # fmt: skip
        return set(done.stdout.split())

    assert offered("hie-bundle", "s") == {"segment", "study", "scan"}
    assert offered("hie-bundle", "train", "--epo") == {"--epochs"}
    assert "--tolerance_mm" in offered("hie-bundle", "evaluate", "--")
    assert offered("hie-bundle", "segment", "--ov") == {"--overlay"}
    for shell in ("zsh", "fish"):
        assert "hie-bundle" in run("completion", shell)[1]


def test_a_reader_that_leaves_early() -> None:
    """`hie-bundle train --help | head -1` ended with BrokenPipeError."""
    program = f"{sys.executable} -m hie_bundle train --help | head -1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(3):
        done = subprocess.run(["bash", "-c", program], env=environment, capture_output=True, text=True, check=True)
        assert (len(done.stdout.splitlines()), done.stderr) == (1, "")


def test_options_without_a_value_and_in_any_spelling() -> None:
    command = typer.main.get_command(cli._app()).commands["scan"]  # type: ignore[attr-defined]
    words = [
        "scan",
        "a b",
        "-o",
        "out",
        "--deformable",
        "--series=[1]",
        "--output-dir",
        "x",
        "--limits#a",
        "-1",
        "--my",
    ]
    known = ["scan", "a b", "--output_dir=out", "--deformable=True", "--series=[1]", "--output_dir=x"]
    assert separated(words, command) == (known, {"limits#a": "-1", "my": "True"})
    assert parsed({"dataset_dir": "1e3", "epochs": "1e3"}) == {"dataset_dir": "1e3", "epochs": 1000.0}
    assert parsed({"ckpt_path": "['a.pt','b.pt']", "series": "[1]"}) == {"ckpt_path": ["a.pt", "b.pt"], "series": [1]}


@pytest.mark.slow  # a minute
def test_workflows_are_those_of_monai_bundle(tmp_path: Path) -> None:
    """From an empty folder: a cohort, looked at, trained on and evaluated, with the folders where the user is."""
    environment = {**os.environ, "PYTHONPATH": f"{NO_NETWORK}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}

    def hie_bundle(*words: str, status: int = 0) -> str:
        result = subprocess.run([sys.executable, "-m", "hie_bundle", *words], cwd=tmp_path, env=environment,
                                capture_output=True, text=True, check=False)  # fmt: skip
        assert result.returncode == status, result.stderr
        return result.stdout + result.stderr

    sizes = ["--matrix_sizes", "[36]", "--slice_range", "[10,12]", "--fine_mm", "4", "--atlas_step_mm", "4",
             "--num_healthy", "3", "--num_workers", "1"]  # fmt: skip
    hie_bundle("phantom", "--num_train", "2", "--num_val", "1", "--num_test", "1", *sizes)
    assert "4 cases" in hie_bundle("check")
    tiny = ["--spatial_size", "[24,24,16]", "--features", "[2,4,6,8]", "--num_workers", "0"]
    assert "did you mean --epochs?" in hie_bundle("train", "--epoch", "1", status=1)
    hie_bundle("train", "--epochs", "1", "--batch_size", "2", *tiny)
    hie_bundle("evaluate", "--split", "test", *tiny)
    for file in ("data/check.json", "models/model.pt", "eval/report.html", "eval/metrics.csv"):
        assert (tmp_path / file).is_file(), file


def test_doctor(run: Run) -> None:
    status, text, _ = run("doctor")
    assert status == 0
    assert "All required packages are installed." in text
    assert "  monai 1.6" in text


@pytest.mark.slow
def test_the_wheel_works_where_there_is_no_checkout(tmp_path: Path, tiny_cohort: Path, weights: Path) -> None:
    """Built from what git knows, installed into a new environment that borrows this one's packages."""
    if not (ROOT / ".git").exists():
        pytest.skip("wheels are made from a git clone")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(clone)], check=True)
    made = subprocess.run(
        ["make", f"PYTHON={sys.executable}", "wheel"], cwd=clone, capture_output=True, text=True, check=False,
        env={**os.environ, "PIP_NO_BUILD_ISOLATION": "0"},  # pip's way to say: with the installed setuptools
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    (wheel,) = (clone / "dist").glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    (borrowed,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (borrowed / "borrowed.pth").write_text(str(Path(nibabel.__file__).parents[1]))
    pip = [str(tmp_path / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    shutil.rmtree(clone)
    adc, zadc = (max((tiny_cohort / "BONBID2023_Test" / name).iterdir()) for name in ("1ADC_ss", "2Z_ADC"))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    program = tmp_path / "venv" / "bin" / "hie-bundle"
    words: list[Any] = [program, "segment", adc, zadc, "-o", "out/mask.nii.gz", "--report", "out/page.html"]
    words += [f"--weights={weights}", f"--recipe={ADC_ALONE}"]
    words += [f"--{name}={value}" for name, value in TINY.items()]
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    expected = Segmenter(weights, recipe=[ADC_ALONE], **TINY).result(adc, zadc).mask
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "out" / "mask.nii.gz").dataobj), expected)
    assert (tmp_path / "out" / "page.html").is_file()


@pytest.mark.parametrize("slices", [1, 3])
def test_a_pictures_title_is_not_cut_off(slices: int, tmp_path: Path) -> None:
    """That of a mask in one slice was, on both sides."""
    adc, mask = np.zeros((24, 24, 6), np.float32), np.zeros((24, 24, 6), bool)
    adc[4:20, 4:20], mask[8:10, 8:10, 1 : 1 + slices] = 1200, True
    title = "sub-MGHNICU002_ses-01: 0.02 ml in 1 lesion, 0.00 % of the brain (459 ml)"
    (tmp_path / "case.png").write_bytes(CaseSlices({"ADC": adc}, {"pred": mask}, np.eye(4)).spread_picture(title))
    picture = np.asarray(Image.open(tmp_path / "case.png").convert("L"))
    assert picture.max() == 255
    assert picture[:, [0, -1]].max() == 0
    assert picture[[0, -1]].max() == 0
