"""Regions of an atlas on simulated cases: where they are known, how large the injured share is, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import highdicom
import numpy as np
import pytest
from scanner_cases import Study
from test_scanner_adc import affine_of, head, signal

from scripts.io.images import write
from scripts.io.volumes import LPS_TO_RAS, Volume, read_volume
from scripts.phantom import Settings, simulate_case, write_phantom_atlas
from scripts.phantom.atlas_files import REGIONS, region_at
from scripts.runtime.errors import UserError
from scripts.scanner.dicom_seg import write_dicom_seg
from scripts.scanner.regions import RegionAtlas, shares

SEED = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("atlas") / "regions"
    write_phantom_atlas(path, SEED, num_healthy=4, step_mm=3.0)
    return path


def test_regions_on_a_case_are_those_of_its_anatomy(folder: Path) -> None:
    """The simulator knows which region each voxel is of."""
    settings = Settings(matrix_sizes=(96,), slice_range=(30, 34), fine_mm=3.0, num_healthy=4, atlas_step_mm=4.0)
    case = simulate_case(5, 17, settings, counterfactual=True)  # another population than the atlas'
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = case.direction.reshape(3, 3) * case.spacing_mm, case.origin_mm
    adc = Volume(case.adc.astype(float), LPS_TO_RAS @ affine)
    atlas = RegionAtlas(folder)
    found, rows, note = atlas.injured(adc, case.label)
    assert found is not None, note
    assert case.canonical_mm is not None
    assert ((found > 0) == case.brain).all()
    known = case.brain & np.isfinite(case.canonical_mm).all(0)
    truth = np.zeros_like(found)
    truth[known] = region_at(case.canonical_mm[:, known])
    dice = [2 * ((found == n) & (truth == n)).sum() / ((found == n).sum() + (truth == n).sum()) for n in REGIONS]
    assert np.median(dice) > 0.85
    assert min(dice) > 0.6
    expected = {row["region"]: row for row in shares(truth, REGIONS, case.label, 1.0)}
    for row in rows:
        assert row["share"] == pytest.approx(expected[row["region"]]["share"], abs=0.05)
    assert sum(row["injured_ml"] for row in rows) * 1000 == pytest.approx(case.label.sum() * np.prod(case.spacing_mm))
    assert "region_left_cerebellum_share" in atlas.figures(rows)


def test_sides_and_names() -> None:
    known = {
        (-15, -3, 4): "left deep grey matter", (15, -3, 4): "right deep grey matter",
        (-20, 45, 20): "left frontal gyri", (-4, 20, 26): "left frontal gyri",
        (-20, 18, 18): "left frontal deep white matter",
        (30, -40, 30): "right parietal gyri", (22, -25, 18): "right parietal deep white matter",
        (40, -10, -10): "right temporal gyri", (28, 2, -16): "right temporal deep white matter",
        (-8, -54, 4): "left occipital lobe", (0, -10, -30): "brainstem", (12, -38, -28): "right cerebellum",
    }  # fmt: skip
    points = np.array(list(known), np.float32).T
    assert dict(zip(known, (REGIONS[n] for n in region_at(points)), strict=True)) == known


def test_nothing_where_the_atlas_does_not_fit(folder: Path) -> None:
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij"))
    ball = (grid**2).sum(0) < 0.8
    noise = np.random.default_rng(0).uniform(600, 1800, ball.shape)
    labels, rows, note = RegionAtlas(folder).injured(Volume(np.where(ball, noise, 0), np.diag([2, 2, 2, 1.0])), ball)
    assert labels is None
    assert rows == []
    assert note.startswith("no regions: ")


def test_an_atlas_without_names_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "regions.json").write_text(json.dumps({"1": "left deep grey matter"}))
    with pytest.raises(UserError, match=r"does not name the regions \[2, 3"):
        RegionAtlas(tmp_path / "copy")
    (tmp_path / "copy" / "regions.json").unlink()
    with pytest.raises(UserError, match="does not name regions by number"):
        RegionAtlas(tmp_path / "copy")


@pytest.mark.parametrize("form", ["classic", "enhanced"])
def test_regions_as_segments_and_report(form: str, tmp_path: Path) -> None:
    """highdicom reads back where the lesion is, how large it is there, and codes of places and sides."""
    adc, s0, _ = head()
    study, affine = Study(tmp_path / "in"), affine_of("oblique")
    if form == "classic":
        study.series(7, adc, affine, ("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))
    else:
        study.enhanced(7, [signal(adc, s0, b) for b in (0, 1000)], affine, (0, 1000))
    atlas = tmp_path / "atlas"
    atlas.mkdir()
    regions = np.where(adc > 0, 1, 0)
    regions[15:] *= 2
    regions[:, :, 5] *= 3 * (regions[:, :, 5] > 0)
    for name, values in (("mean", adc), ("std", np.where(adc > 0, 100.0, 0)), ("regions", regions)):
        write(atlas / f"{name}.nii.gz", values.astype(np.float32), affine)
    names = {1: "left deep grey matter", 2: "right frontal gyri", 3: "left own name", 6: "brainstem"}
    (atlas / "regions.json").write_text(json.dumps(names))
    mask = np.zeros(adc.shape, np.uint8)
    mask[8:20, 10:20, 2:4] = 1
    write(tmp_path / "mask.nii.gz", mask, affine)
    write(tmp_path / "adc.nii.gz", adc.astype(np.float32), affine)
    given = (tmp_path / "mask.nii.gz", tmp_path / "in", tmp_path / "mask.dcm")
    with pytest.raises(UserError, match="--adc_file"):
        write_dicom_seg(*given, regions=atlas, report_file=tmp_path / "report.dcm")
    write_dicom_seg(*given, regions=atlas, adc_file=tmp_path / "adc.nii.gz", report_file=tmp_path / "report.dcm")

    found = highdicom.seg.segread(tmp_path / "mask.dcm")
    labels, rows, _ = RegionAtlas(atlas).injured(read_volume(tmp_path / "adc.nii.gz"), mask)
    assert labels is not None
    shown = {row["region"]: row for row in rows}
    assert found.get_segment_description(1).SegmentLabel == "HIE lesion"
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    for number, row in enumerate(rows, start=2):
        segment = found.get_segment_description(number)
        assert segment.SegmentLabel == f"HIE lesion, {row['region']}"
        volume = found.get_volume(segment_numbers=[number], combine_segments=True)
        assert (volume.array > 0).sum() * voxel_ml == pytest.approx(row["injured_ml"])
    grey = found.get_segment_description(2)
    codes = [place.CodeValue for place in grey.AnatomicRegionSequence]
    assert codes == ["31428008", "42695009", "85637007"]  # corpus striatum, thalamus, internal capsule
    assert grey.AnatomicRegionSequence[0].AnatomicRegionModifierSequence[0].CodeMeaning == "Left"

    report = highdicom.sr.srread(tmp_path / "report.dcm")
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == list(shown)
    for group in groups:
        row = shown[group.tracking_identifier]
        values = {measurement.name.meaning: measurement.value for measurement in group.get_measurements()}
        assert values["Volume"] == pytest.approx(row["injured_ml"], rel=1e-5)
        assert values["Injured share of region"] == pytest.approx(100 * row["share"], rel=1e-5)
        assert values["Volume of region"] == pytest.approx(row["volume_ml"], rel=1e-5)
        assert group.referenced_segment.referenced_sop_instance_uid == found.SOPInstanceUID
    (site,) = groups[1].finding_sites
    assert (site.value.meaning, site.laterality.meaning) == ("Frontal lobe", "Right")
