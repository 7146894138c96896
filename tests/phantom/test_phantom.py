import inspect
import json
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from matplotlib import image as mpl_image
from scipy import ndimage
from test_injuries import KINDS

from scripts import phantom
from scripts.phantom.acquisition import Scanner, draw_grid, fit_adc, refine, signals
from scripts.phantom.anatomy import Tissue
from scripts.phantom.case import GOLDEN
from scripts.phantom.disease import draw_disease, outline
from scripts.phantom.settings import Settings
from scripts.report.cohort_figures import cohort_stats, contact_sheet, print_stats
from scripts.runtime.errors import UserError
from scripts.scanner.inputs import z_map

TINY = {"matrix_sizes": (48,), "slice_range": (12, 12), "fine_mm": 4.0, "atlas_step_mm": 3.0}
SMALL = {"matrix_sizes": (72,), "slice_range": (20, 24), "fine_mm": 2.5, "atlas_step_mm": 2.5}


def read(path: Path) -> np.ndarray:
    """Array of an image file, indexed (x, y, z)."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "cohort"
    phantom.write_cohort(root, 5, 2, 3, seed=3, num_workers=0, progress=False, **TINY)
    return root


def test_layout_is_that_of_bonbid(cohort: Path) -> None:
    names = set()
    for split, numbers in (("Train", range(1, 6)), ("Val", range(6, 8)), ("Test", range(8, 11))):
        for number in numbers:
            case = f"MGHNICU_{number:03d}-VISIT_01"
            names |= {
                f"BONBID2023_{split}/1ADC_ss/{case}-ADC_ss.mha",
                f"BONBID2023_{split}/2Z_ADC/Zmap_{case}-ADC_smooth2mm_clipped10.mha",
                f"BONBID2023_{split}/3LABEL/{case}_lesion.mha",
            }
    found = {str(path.relative_to(cohort)) for path in cohort.rglob("*") if path.is_file()}
    assert found == names | {"phantom.json"}
    header = next(cohort.rglob("*_ss.mha")).read_bytes()[:2000]
    assert b"CompressedData = True" in header


def test_maps_and_label_share_a_rigid_grid_and_a_background(cohort: Path) -> None:
    for adc_path in cohort.rglob("*-ADC_ss.mha"):
        case, split = adc_path.name.removesuffix("-ADC_ss.mha"), adc_path.parents[1]
        paths = [
            adc_path,
            split / "2Z_ADC" / f"Zmap_{case}-ADC_smooth2mm_clipped10.mha",
            split / "3LABEL" / f"{case}_lesion.mha",
        ]
        images = [sitk.ReadImage(str(path)) for path in paths]
        for image in images[1:]:
            assert image.GetSize() == images[0].GetSize()
            assert image.GetSpacing() == images[0].GetSpacing()
            assert image.GetOrigin() == images[0].GetOrigin()
            assert image.GetDirection() == images[0].GetDirection()
        direction = np.reshape(images[0].GetDirection(), (3, 3))
        np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-6)
        adc, zadc, label = (read(path) for path in paths)
        brain = adc > 0
        assert set(np.unique(label)) <= {0, 1}
        assert np.abs(zadc).max() <= 10
        assert not zadc[~brain].any()
        assert not label[~brain].any()
        assert ndimage.label(ndimage.binary_dilation(brain))[1] == 1
        # The field of view holds the whole head.
        assert not brain[[0, -1]].any()
        assert not brain[:, [0, -1]].any()
        volume_ml = brain.sum() * np.prod(images[0].GetSpacing()) / 1000
        assert 280 < volume_ml < 650
        extent_mm = np.ptp(np.argwhere(brain), axis=0) * images[0].GetSpacing()
        assert 95 < extent_mm.max() < 145


def test_a_case_does_not_depend_on_cohort_size_order_or_processes(cohort: Path, tmp_path: Path) -> None:
    phantom.write_cohort(tmp_path / "other", 1, 2, 0, seed=3, num_workers=2, progress=False, **TINY)
    written = sorted((tmp_path / "other").rglob("*.mha"))
    assert len(written) == 9
    for path in written:
        (twin,) = cohort.rglob(path.name)
        assert path.read_bytes() == twin.read_bytes()
    case = phantom.simulate_case(3, 1, Settings(**TINY))
    np.testing.assert_array_equal(case.adc, read(next(cohort.rglob("MGHNICU_002-*ss.mha"))))
    np.testing.assert_array_equal(case.zadc, read(next(cohort.rglob("Zmap_MGHNICU_002-*.mha"))))
    np.testing.assert_array_equal(case.label, read(next(cohort.rglob("MGHNICU_002-*lesion.mha"))))


def test_cases_and_seeds_differ() -> None:
    cases = [phantom.simulate_case(seed, number, Settings(**TINY)) for seed, number in ((3, 0), (3, 1), (4, 0))]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not np.allclose(cases[i].origin_mm, cases[j].origin_mm)
        assert not np.array_equal(cases[i].adc, cases[j].adc)


def test_rerun_completes_what_is_missing_and_touches_nothing_else(cohort: Path) -> None:
    lost = next(cohort.rglob("MGHNICU_004-*lesion.mha"))
    content = lost.read_bytes()
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in cohort.rglob("*.mha") if "MGHNICU_004" not in path.name}
    phantom.write_cohort(cohort, 5, 2, 3, seed=3, num_workers=0, progress=False, **TINY)
    assert lost.read_bytes() == content
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert not list(cohort.rglob(".*"))


@pytest.mark.parametrize(("kinds", "stops"), [({}, False), ({"laminar": 1.0}, True)])
def test_the_plain_cohort_of_0_10_is_todays(tmp_path: Path, kinds: dict[str, float], stops: bool) -> None:
    phantom.write_cohort(tmp_path, 1, 0, 0, seed=3, num_workers=0, progress=False, **TINY)
    manifest = json.loads((tmp_path / "phantom.json").read_text())
    manifest["options"] |= {"kinds": kinds, "z_clip": 10.0}
    (tmp_path / "phantom.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="other settings") if stops else nullcontext():
        phantom.write_cohort(tmp_path, 1, 0, 0, seed=3, num_workers=0, progress=False, **TINY)


@pytest.mark.parametrize("change", [{"seed": 4}, {"num_val": 1}, {"fine_mm": 3.0}])
def test_another_cohort_is_not_mixed_in(cohort: Path, change: dict[str, float]) -> None:
    before = sorted(cohort.rglob("*"))
    arguments = {"num_train": 5, "num_val": 2, "num_test": 3, "seed": 3, "num_workers": 0, **TINY, **change}
    with pytest.raises(UserError, match="other settings"):
        phantom.write_cohort(cohort, progress=False, **arguments)
    assert sorted(cohort.rglob("*")) == before


@pytest.mark.parametrize("nested", ["", "BONBID2023"])
def test_real_data_is_not_overwritten(tmp_path: Path, nested: str) -> None:
    (tmp_path / nested / "BONBID2023_Train" / "1ADC_ss").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="not a phantom"):
        phantom.write_cohort(tmp_path, 1, 0, 0, num_workers=0, progress=False, **TINY)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_train": -1},
        {"num_train": 0, "num_val": 0, "num_test": 0},
        {"matrix_sizes": ()},
        {"slice_range": (20, 10)},
        {"spacing_range_mm": (0.0, 1.0)},
        {"slice_range": (20,)},
        {"slice_range": 20},
        {"num_healthy": 1},
        {"fine_mm": 0},
    ],
)
def test_impossible_cohorts_are_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(UserError, match=r"simulate|matrix_sizes|range|num_healthy|fine_mm"):
        phantom.write_cohort(tmp_path / "none", **wrong)
    assert not (tmp_path / "none").exists()


def test_defaults_of_config_and_cohort_agree() -> None:
    config = yaml.safe_load((Path(__file__).parents[2] / "hie_bundle/configs/data.yaml").read_text())
    defaults = {**inspect.signature(phantom.write_cohort).parameters, **inspect.signature(Settings).parameters}
    for name in (defaults.keys() & config.keys()) - {"output_dir"}:
        expected = defaults[name].default
        assert config[name] == (list(expected) if isinstance(expected, tuple) else expected), name


def test_a_seed_gives_what_it_always_gave() -> None:
    """Figures of format 4; another CPU rounds a few voxels."""
    expected = [
        (6849054, 4602.7, 174),
        (8145712, 5701.5, 4),
        (8715432, 5516.9, 27),
        (8999565, 6065.1, 132),
        (10312131, 12135.5, 46),
    ]
    for number, (adc, zadc, label) in enumerate(expected):
        case = phantom.simulate_case(3, number, Settings(**TINY))
        assert int(case.adc.sum(dtype=int)) == pytest.approx(adc, rel=1e-6)
        assert float(np.abs(case.zadc.astype(float)).sum()) == pytest.approx(zadc, rel=1e-4)
        assert int(case.label.sum()) == pytest.approx(label, abs=1)


@pytest.mark.parametrize("number", range(12))
def test_label_is_where_adc_was_lowered(number: int) -> None:
    case = phantom.simulate_case(1, number, Settings(**SMALL), counterfactual=True)
    label, injured = case.label > 0, (case.extent > 0.5) & case.brain
    assert case.healthy_adc is not None
    assert label.any() == (case.kind != "none") == bool(case.extent.any())
    # The scan blurs in plane, so nothing changes further than that from the injury.
    reach = ndimage.binary_dilation(case.extent > 0, iterations=3)
    np.testing.assert_array_equal(case.adc[~reach], case.healthy_adc[~reach])
    if label.any():
        fall = case.healthy_adc[label].astype(float) - case.adc[label]
        assert fall.mean() > 0.1 * case.healthy_adc[label].mean()
        assert case.zadc[label].mean() < case.zadc[case.brain & ~label].mean() - 1
    if injured.sum() > 200:
        dice = 2 * (label & injured).sum() / (label.sum() + injured.sum())
        assert 0.75 < dice < 1


def test_severities_are_mixed_in_proportion_from_any_start() -> None:
    for start in (0.0, 0.3, 0.71):
        ranks = (start + np.arange(100) * GOLDEN) % 1
        drawn = [draw_disease(np.random.default_rng(number), rank) for number, rank in enumerate(ranks)]
        fractions = np.array([disease.fraction for disease in drawn])
        assert 5 <= (fractions == 0).sum() <= 10
        assert 50 <= (fractions < 0.01).sum() <= 60
        assert 5 <= (fractions > 0.2).sum() <= 10
        assert {disease.kind for disease in drawn} == {"none", *KINDS}


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 3.0), (1.8, 1.8, 2.0)])
def test_annotator_keeps_to_the_injury_and_to_its_slices(spacing_mm: tuple[float, float, float]) -> None:
    position = np.indices((48, 48, 16)).astype(float)
    centre = np.array([24.0, 22.0, 8.0])[:, None, None, None]
    radius_mm = np.sqrt((((position - centre) * np.reshape(spacing_mm, (3, 1, 1, 1))) ** 2).sum(0))
    extent = np.clip(10.5 - radius_mm, 0, 1).astype(np.float32)
    drawn = outline(extent, np.array(spacing_mm), np.random.default_rng(0))
    truth = radius_mm < 10
    assert 0.88 < 2 * (drawn & truth).sum() / (drawn.sum() + truth.sum()) < 1
    assert not drawn[:, :, ~(extent > 0).any((0, 1))].any()
    assert not outline(np.zeros_like(extent), np.array(spacing_mm), np.random.default_rng(0)).any()


def test_grids_are_varied_and_in_range() -> None:
    rng = np.random.default_rng(0)
    grids = [draw_grid(rng, Settings())[0] for _ in range(400)]
    spacing = np.array([grid.spacing_mm for grid in grids])
    sizes = np.array([grid.size for grid in grids])
    handedness = np.array([np.linalg.det(grid.direction) for grid in grids])
    off_axis = np.array([np.abs(np.abs(grid.direction) - np.eye(3)).max() > 0.02 for grid in grids])
    assert set(sizes[:, 0]) == {128, 160, 192, 256}
    assert sizes[:, 2].min() >= 16
    assert sizes[:, 2].max() <= 64
    assert spacing[:, :2].min() >= 0.9
    assert spacing[:, :2].max() <= 2.0
    assert spacing[:, 2].min() >= 2.0
    assert spacing[:, 2].max() <= 6.5  # 16 slices must still cover a head
    np.testing.assert_allclose(np.abs(handedness), 1)
    assert 0.05 < (handedness < 0).mean() < 0.5
    assert 0.3 < off_axis.mean() < 0.9
    # The real training split: 176 x 176 x 37 voxels in the mean.
    np.testing.assert_allclose(sizes.mean(0), (176, 176, 37), rtol=0.08)


def test_subvoxels_lie_where_itk_says() -> None:
    rng = np.random.default_rng(8)
    grid, pose = draw_grid(rng, Settings(matrix_sizes=(40,), slice_range=(14, 14)))
    fine = refine(grid, pose, 2.0)
    image = sitk.Image(grid.size, sitk.sitkUInt8)
    image.SetSpacing(grid.spacing_mm.tolist())
    image.SetOrigin(grid.origin_mm.tolist())
    image.SetDirection(grid.direction.ravel().tolist())
    for number in rng.integers(0, len(fine.index), 20):
        sub = np.array(np.unravel_index(fine.index[number], fine.fine_shape))
        index = (sub + 0.5) / fine.factors - 0.5 + fine.start
        lps = np.array(image.TransformContinuousIndexToPhysicalPoint(index.tolist()))
        np.testing.assert_allclose(fine.points_mm[:, number], pose.canonical(lps[:, None])[:, 0], atol=1e-3)
    # A linear function averages to its value at the voxel's centre.
    everywhere = refine(grid, pose, 2.0)
    linear = np.arange(np.prod(everywhere.fine_shape), dtype=np.float32).reshape(everywhere.fine_shape)
    block = linear[tuple(slice(0, f) for f in everywhere.factors)]
    assert everywhere.average(linear)[0, 0, 0] == pytest.approx(block.mean())


def scanner(noise: float) -> Scanner:
    return Scanner(1000.0, noise, 3, 0.0, 0.0, 0.0, np.zeros(0, int))


def test_adc_is_recovered_and_noise_floors_fluid() -> None:
    adc = np.linspace(300, 2900, 40000, dtype=np.float32)
    shares = np.zeros_like(adc)
    tissue = Tissue(adc=adc, csf=shares, white=shares, cerebrum_depth_mm=shares + 5, brain_depth_mm=shares + 5)
    plain, weighted = signals(scanner(0), tissue, adc)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(fit_adc(scanner(0), plain, weighted, rng), adc, atol=0.5)
    noisy = fit_adc(scanner(1 / 20), plain, weighted, rng)
    error = noisy - adc
    assert np.abs(error[:8000].mean()) < 15  # low ADC, plenty of signal
    assert error[-8000:].mean() < -40  # the Rician floor hides fast diffusion
    # Two tissues in one voxel: signals add up, not ADC.
    mixed = fit_adc(scanner(0), (plain[:1] + plain[-1:]) / 2, (weighted[:1] + weighted[-1:]) / 2, rng)
    assert mixed[0] == pytest.approx(-1000 * np.log((np.exp(-0.3) + np.exp(-2.9)) / 2), abs=1)
    assert mixed[0] < 1600 - 200


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.2, 1.2, 4.0), (0.9, 1.4, 2.0)])
def test_z_map_against_hand_computation(spacing_mm: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(2)
    shape = (13, 11, 7)
    brain = rng.random(shape) < 0.8
    adc = np.where(brain, rng.normal(1300, 300, shape), 0).round().astype(np.int16)
    mean, std = rng.normal(1300, 100, shape).astype(np.float32), rng.uniform(5, 120, shape).astype(np.float32)
    zadc = z_map(adc, brain, mean, std, np.array(spacing_mm), smoothing_mm=2.0, clip=4.0, least_std=20.0)
    sigma_mm = 2.0 / 2.3548200450309493
    grid = np.stack(np.indices(shape), -1) * np.array(spacing_mm)
    checked = 0
    for x, y, z in np.argwhere(brain):
        # Far enough from the array's border for its reflection there not to matter.
        if not (4 <= x < 9 and 4 <= y < 7 and z == 3):
            continue
        offset = grid - grid[x, y, z]
        weight = np.exp(-0.5 * (offset**2).sum(-1) / sigma_mm**2)
        reach = np.abs(offset) <= np.floor(3 * sigma_mm / np.array(spacing_mm) + 0.5) * np.array(spacing_mm) + 1e-9
        weight *= reach.all(-1) & brain
        score = (adc - mean) / np.maximum(std, 20)
        expected = np.clip((weight * score).sum() / weight.sum(), -4, 4)
        assert zadc[x, y, z] == pytest.approx(expected, abs=2e-3)
        checked += 1
    assert checked > 5
    assert not zadc[~brain].any()
    assert np.abs(zadc).max() <= 4


def test_atlas_is_the_mean_and_spread_of_the_healthy() -> None:
    atlas = phantom.build_atlas(5, num_healthy=6, step_mm=4.0)
    assert np.isfinite(atlas.mean).all()
    assert (atlas.std > 0).all()
    # Voxels are where they are said to be: thalamus darker than frontal white matter, ventricle brightest.
    points = np.array([[10.0, -11, 5], [20, 32, 18], [17, -24, 10]], dtype=np.float32).T
    thalamus, white, ventricle = atlas(points)[0]
    assert thalamus < white < ventricle
    more = phantom.build_atlas(5, num_healthy=7, step_mm=4.0)
    one = 7 * more.mean.astype(float) - 6 * atlas.mean  # the seventh newborn, where all seven have brain
    squares = 5 * atlas.std.astype(float) ** 2 + 6 / 7 * (one - atlas.mean) ** 2
    index = tuple(n // 2 for n in atlas.mean.shape)
    near = tuple(slice(i - 3, i + 4) for i in index)
    np.testing.assert_allclose(more.std[near], np.sqrt(squares / 6)[near], rtol=2e-3)


def write_by_hand(folder: Path, case: str, adc: np.ndarray, zadc: np.ndarray, label: np.ndarray) -> None:
    for name, values in (
        (f"1ADC_ss/{case}-ADC_ss.mha", adc.astype(np.int16)),
        (f"2Z_ADC/Zmap_{case}-ADC_smooth2mm_clipped10.mha", zadc.astype(np.float32)),
        (f"3LABEL/{case}_lesion.mha", label.astype(np.uint8)),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image = sitk.GetImageFromArray(values.transpose(2, 1, 0))
        image.SetSpacing((2.0, 2.0, 5.0))
        sitk.WriteImage(image, str(folder / name))


def test_statistics_against_hand_computation(tmp_path: Path) -> None:
    shape = (10, 8, 5)
    adc = np.zeros(shape)
    adc[1:9, 1:7] = 1000  # 240 voxels of brain
    adc[1:9, 1:4] = 2000
    lesion, zadc = np.zeros(shape), np.zeros(shape)
    lesion[2:4, 2:4, 2] = 1  # 4 of 240 voxels
    zadc[3:5, 2:4, 2] = -3  # 4 voxels, 2 of them in the lesion
    write_by_hand(tmp_path / "BONBID2023_Train", "A", adc, zadc, lesion)
    write_by_hand(tmp_path / "BONBID2023_Val", "B", adc, zadc, np.zeros(shape))
    write_by_hand(tmp_path / "BONBID2023_Test", "C", adc, np.zeros(shape), np.zeros(shape))
    write_by_hand(tmp_path / "BONBID2023_Test", "D", adc, zadc, adc > 1500)
    stats = cohort_stats(tmp_path)
    assert stats["num_cases"] == 4
    assert stats["share_empty"] == 0.5
    assert stats["share_under_1_percent"] == 0.5
    assert stats["share_over_20_percent"] == 0.25
    assert stats["adc_mean"] == stats["adc_mean_of_cases"] == 1500
    assert stats["adc_std"] == stats["adc_std_of_cases"] == 500
    assert stats["zadc_mean"] == pytest.approx(-3 * 12 / 960)
    assert stats["zadc_std"] == pytest.approx(np.sqrt(9 * 12 / 960 - (3 * 12 / 960) ** 2))
    whole = 2 * 4 / (120 + 4)
    assert stats["baseline_dice"] == pytest.approx((0.5 + 0 + 1 + whole) / 4)
    assert stats["baseline_dice_lesioned"] == pytest.approx((0.5 + whole) / 2)
    assert stats["baseline_dice 1–5 %"] == 0.5
    assert np.isnan(stats["baseline_dice 5–20 %"])
    assert stats["brain_volume_ml"] == pytest.approx(240 * 20 / 1000)
    assert stats["mean_size_x"] == 10
    assert stats["lesion_adc"] == 2000


def test_statistics_are_printed(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = cohort_stats(cohort)
    print_stats(stats)
    printed = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed.keys() == stats.keys()
    assert float(printed["adc_mean"]) == pytest.approx(stats["adc_mean"], abs=1e-3)


def test_statistics_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no case"):
        cohort_stats(tmp_path)


def test_contact_sheet_is_radiological_whatever_the_storage(tmp_path: Path) -> None:
    # The patient's left half is bright: it must be on the right of the picture, also when stored from left to right.
    lps = np.zeros((40, 40, 4))
    lps[8:32, 6:34, :] = 300
    lps[20:32, 6:34, :] = 2500  # x grows to the left
    for flipped in (False, True):
        folder = tmp_path / f"{flipped}" / "BONBID2023_Train"
        adc = lps[::-1] if flipped else lps
        write_by_hand(folder, "A", adc, np.zeros_like(adc), np.zeros_like(adc))
        if flipped:
            for path in folder.rglob("*.mha"):
                image = sitk.ReadImage(str(path))
                image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
                sitk.WriteImage(image, str(path))
        contact_sheet(folder.parent, folder.parent / "sheet.png")
        pixels = mpl_image.imread(folder.parent / "sheet.png")[..., 0]
        pixels = pixels[int(0.15 * len(pixels)) : int(0.7 * len(pixels)), : pixels.shape[1] // 2]  # the ADC panel
        half = pixels.shape[1] // 2
        assert pixels[:, half:].mean() > 3 * pixels[:, :half].mean()


def test_contact_sheet_shows_several_cases(cohort: Path, tmp_path: Path) -> None:
    contact_sheet(cohort, tmp_path / "sheet.png", num_cases=7)
    pixels = mpl_image.imread(tmp_path / "sheet.png")[..., :3]
    assert pixels[:8, :8].max() == 0  # black background
    rows = np.array_split(pixels.max(-1), 3)
    assert all((row > 0.3).mean() > 0.02 for row in rows)


def check_targets(stats: dict[str, float], *, slack: float) -> None:
    """The figures of the real cohort; ``slack`` widens each range by a share of its width."""
    ranges = {
        "share_under_1_percent": (0.5, 0.6),
        "share_over_20_percent": (0.05, 0.1),
        "share_empty": (0.05, 0.1),
        "adc_mean": (1290, 1410),
        "adc_std": (370, 490),
        "zadc_mean": (-1, 1),
        "zadc_std": (2, 3),
        "baseline_dice": (0.3, 0.5),
    }
    off = {}
    for name, (low, high) in ranges.items():
        margin = slack * (high - low)
        if not low - margin <= stats[name] <= high + margin:
            off[name] = stats[name]
    assert not off


def test_targets_on_a_quick_cohort(tmp_path: Path) -> None:
    # Coarser voxels blur fluid and lesions, so the ranges are widened.
    phantom.write_cohort(tmp_path, 30, 0, 0, seed=0, num_workers=0, progress=False, **SMALL)
    check_targets(cohort_stats(tmp_path), slack=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_targets_on_100_native_cases(tmp_path: Path, seed: int) -> None:
    phantom.write_cohort(tmp_path, 100, 0, 0, seed=seed, num_workers=min(2, os.cpu_count() or 1), progress=False)
    check_targets(cohort_stats(tmp_path), slack=0)
