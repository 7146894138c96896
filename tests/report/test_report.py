"""Tables that can be recomputed, files that are whole, pictures and plots that show what they should."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread
from scipy import stats

from scripts import report
from scripts.data.folds import size_class
from scripts.evaluation.measures import column as known
from scripts.io import files
from scripts.report import plots

ROWS = [
    {"case": "a", "size_class": "empty", "lesion_fraction": 0.0, "lesion_ml": 0.0, "predicted_ml": 0.0,
     "native_dice": 1.0, "native_masd_mm": 0.0, "baseline_dice": 0.0},
    {"case": 'b,"<x>', "size_class": "< 1 %", "lesion_fraction": 0.004, "lesion_ml": 2.0, "predicted_ml": 0.0,
     "native_dice": 0.0, "native_masd_mm": math.nan, "baseline_dice": 0.2},
    {"case": "c", "size_class": "< 1 %", "lesion_fraction": 0.006, "lesion_ml": 3.0, "predicted_ml": 2.5,
     "native_dice": 0.5, "native_masd_mm": math.inf, "baseline_dice": 0.3},
]  # fmt: skip


def many_rows(count: int, seed: int = 0) -> list[dict]:
    """Rows as an evaluation gives them, with undefined and infinite values."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        fraction = float(rng.choice([0, 10 ** rng.uniform(-4, -0.3)], p=[0.15, 0.85]))
        lesion_ml, predicted_ml = (
            400 * fraction,
            400 * fraction * float(rng.choice([0, rng.uniform(0.3, 2)], p=[0.1, 0.9])),
        )
        overlap = float(rng.beta(2, 2)) if fraction and predicted_ml else float(fraction == predicted_ml)
        one_empty, both_empty = (lesion_ml > 0) != (predicted_ml > 0), lesion_ml == predicted_ml == 0
        msd = math.nan if both_empty else math.inf if one_empty else float(rng.exponential(4))
        rows.append(
            {
                "case": f"case-{number}", "size_class": size_class(fraction), "lesion_fraction": fraction,
                "brain_ml": 400.0, "lesion_ml": lesion_ml, "predicted_ml": predicted_ml,
                "volume_difference_ml": predicted_ml - lesion_ml, "native_dice": overlap,
                "native_masd_mm": 0.0 if both_empty else math.nan if one_empty else msd,
                "native_nsd": overlap, "native_paper_msd_mm": msd, "resampled_dice": overlap * 0.9,
                "baseline_dice": overlap * 0.8,
            }
        )  # fmt: skip
    return rows


# --- tables -------------------------------------------------------------------------------------------------------


def test_summary_can_be_recomputed_from_the_table(tmp_path: Path) -> None:
    report.write_results(ROWS, tmp_path / "new", {"split": "test"})
    with (tmp_path / "new" / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == ["a", 'b,"<x>', "c"]
    summary = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert summary["info"] == {"split": "test"}
    assert summary["cases"] == 3
    assert summary["empty"] == {"truth": 1, "prediction": 2, "both": 1}
    assert summary["metrics"]["native_masd_mm"]["undefined"] == 1
    assert summary["metrics"]["native_masd_mm"]["infinite"] == 1
    assert summary["metrics"]["native_masd_mm"]["mean_as_printed"] == "Inf"
    assert list(summary["by_size_class"]) == ["empty", "< 1 %"]
    assert summary["by_size_class"]["< 1 %"]["metrics"]["native_dice"]["mean"] == pytest.approx(0.25)


def test_intervals_can_be_recomputed_from_the_table(tmp_path: Path) -> None:
    report.write_results(many_rows(40), tmp_path, {})
    with (tmp_path / "metrics.csv").open() as stream:
        table = list(csv.DictReader(stream))
    summary = json.loads((tmp_path / "metrics.json").read_text())
    groups = {None: table}
    for row in table:
        groups.setdefault(row["size_class"], []).append(row)
    assert set(groups) - {None} == set(summary["by_size_class"])
    checked = 0
    for name, members in groups.items():
        part = summary if name is None else summary["by_size_class"][name]
        assert part["cases"] == len(members)
        for column, figures in part["metrics"].items():
            values = np.array([float(row[column]) for row in members])
            finite = values[np.isfinite(values)]
            assert figures["defined"] == len(finite)
            assert figures["undefined"] == np.isnan(values).sum()
            assert figures["infinite"] == np.isinf(values).sum()
            assert (figures["mean_as_printed"] == "Inf") == bool(np.isinf(values).any())
            if not len(finite):
                assert figures["mean"] is None
                continue
            assert figures["mean"] == pytest.approx(finite.mean())
            assert figures["median"] == pytest.approx(np.median(finite))
            assert figures["std"] == pytest.approx(finite.std())
            if len(finite) < 9 or np.ptp(finite) == 0:  # with fewer the draws alone move the ends far
                continue
            # the same in other words, with other draws: the ends differ by the resampling alone
            draws = np.random.default_rng(1).choice(finite, (10_000, len(finite)))
            draws = draws[draws.std(axis=1) > 1e-9]
            ratios = (draws.mean(axis=1) - finite.mean()) / stats.sem(draws, axis=1)
            low, high = finite.mean() - np.quantile(ratios, [0.975, 0.025]) * stats.sem(finite)
            bounds = known(column).bounds
            expected = np.clip([low, high], *bounds)
            assert [figures["low"], figures["high"]] == pytest.approx(expected, abs=0.08 * (high - low))
            checked += 1
    assert checked > 15


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    rows = many_rows(12)
    report.write_results(rows, tmp_path, {})
    for ours, theirs in zip(report.read_rows(tmp_path / "metrics.csv"), rows, strict=True):
        assert ours.pop("case") == theirs["case"]
        assert ours.pop("size_class") == theirs["size_class"]
        assert ours == pytest.approx({name: theirs[name] for name in ours}, rel=1e-15, nan_ok=True)


@pytest.mark.parametrize("case", ["=HYPERLINK(1)", "@SUM(1+1)|cmd", "-1", "+1", "\t=1", "'=1", "it's", "A-1"])
def test_an_id_is_no_formula_and_comes_back(case: str, tmp_path: Path) -> None:
    report.write_results([ROWS[0] | {"case": case}], tmp_path, {})
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["case"][0] not in "=+-@\t\r"
    assert report.read_rows(tmp_path / "metrics.csv")[0]["case"] == case


def test_a_column_without_defined_values_has_no_mean() -> None:
    statistics = report.summarise([ROWS[1]])["metrics"]["native_masd_mm"]
    assert statistics["mean"] is None
    assert statistics["undefined"] == 1


def test_limits_of_agreement() -> None:
    rows = many_rows(30)
    differences = np.array([row["predicted_ml"] - row["lesion_ml"] for row in rows])
    # between them lies 95 % of a normal distribution with the sample's mean and standard deviation
    low, high = stats.norm(differences.mean(), differences.std(ddof=1)).interval(0.95)
    limits = report.volume_agreement(rows)
    assert limits["bias"] == pytest.approx(differences.mean())
    assert [limits["low"], limits["high"]] == pytest.approx([low, high], rel=1e-3)
    assert report.volume_agreement(rows[:1]) == {"bias": differences[0], "low": None, "high": None}


def test_comparison_table_shows_network_and_baseline() -> None:
    lines = report.comparison_table(ROWS).splitlines()
    assert lines[0].split()[3:8] == ["prediction", "the", "challenge’s", "threshold", "(mean"]
    assert lines[1].split() == ["empty", "1", "1.000", "0.000"]
    assert lines[-1].split() == ["all", "3", "0.500", "0.167"]  # too few for intervals
    (line,) = [line for line in report.comparison_table(many_rows(20)).splitlines() if line.startswith("all")]
    assert len(line.split()) == 8
    assert len({line.index("0.") for line in lines[2:]}) == 1  # one below the other


def test_no_results_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no results"):
        report.write_results([], tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    files.write_atomically(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


# --- pictures -----------------------------------------------------------------------------------------------------


def _slices(adc: np.ndarray, zadc: np.ndarray, truth: np.ndarray, pred: np.ndarray, spacing_mm: Sequence[float],
            *windows: Sequence[float]) -> report.CaseSlices:  # fmt: skip
    named = {"windows": dict(zip(("ADC", "ZADC"), windows, strict=True))} if windows else {}
    return report.CaseSlices(
        {"ADC": adc, "ZADC": zadc}, {"truth": truth, "pred": pred}, np.diag([*spacing_mm, 1]), **named
    )


def _picture(truth_at: tuple[int, int] | None, pred_at: tuple[int, int] | None) -> np.ndarray:
    adc = np.zeros((40, 60, 10))
    adc[5:35, 5:55, 1:9] = 1200
    masks = []
    for place in (truth_at, pred_at):
        mask = np.zeros(adc.shape, bool)
        if place:
            mask[place[0] - 3 : place[0] + 3, place[1] - 3 : place[1] + 3, 6] = True
        masks.append(mask)
    png = _slices(adc, np.where(adc > 0, -1.0, 0), *masks, (2.0, 2.0, 4.0)).overlay("case <1> $x")
    return imread(io.BytesIO(png))[..., :3]


def _centre(picture: np.ndarray, colour: str) -> tuple[float, float] | None:
    """Mean position (row, column) of a colour within the left image."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    rows, columns = np.nonzero((np.abs(picture - wanted) < 0.06).all(axis=2))
    inside = (columns < picture.shape[1] / 2) & (rows < picture.shape[0] * 0.85)  # not the legend below
    return (rows[inside].mean(), columns[inside].mean()) if inside.any() else None


def test_picture_has_both_outlines_the_right_way_up() -> None:
    # in RAS+ the first index grows towards the patient's right, which stands on the left, and the second to the front
    picture = _picture((30, 45), (12, 15))
    truth, pred = _centre(picture, report.TRUTH_COLOUR), _centre(picture, report.PRED_COLOUR)
    assert truth is not None
    assert pred is not None
    assert truth[1] < pred[1]
    assert truth[0] < pred[0]


def test_picture_without_a_lesion_has_no_outline() -> None:
    assert _centre(_picture(None, None), report.TRUTH_COLOUR) is None
    assert _centre(_picture(None, None), report.PRED_COLOUR) is None


def _volumes(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    brain = np.zeros((30, 40, 12), bool)
    brain[4:26, 6:35, 1:11] = True
    adc = np.where(brain, rng.uniform(1, 3000, brain.shape), 0)
    zadc = np.where(brain, rng.uniform(-8, 8, brain.shape), 0)
    return adc, zadc, np.zeros(brain.shape, bool), np.zeros(brain.shape, bool)


def test_the_slices_that_matter() -> None:
    adc, zadc, truth, pred = _volumes()
    truth[10:20, 10:20, 4] = True
    truth[10:15, 10:15, 7] = pred[10:20, 10:20, 4] = True
    pred[10:25, 25:30, 8] = True
    views = _slices(adc, zadc, truth, pred, (1.5, 1.2, 4.0)).views_of_errors()
    assert [(view.slice, view.reasons) for view in views] == [(5, ["most lesion"]), (9, ["worst error"])]
    assert [view.area_mm2["truth"] for view in views] == pytest.approx([180.0, 0.0])
    assert [view.area_mm2["added"] for view in views] == pytest.approx([0.0, 135.0])
    assert [view.area_mm2["missed"] for view in views] == [0.0, 0.0]
    pred[10:20, 10:20, 4] = False  # now the slice with most lesion is also the worst
    (view,) = _slices(adc, zadc, truth, pred, (1.5, 1.2, 4.0)).views_of_errors()
    assert (view.slice, view.reasons) == (5, ["most lesion", "worst error"])
    assert view.area_mm2["missed"] == pytest.approx(180.0)


def test_slices_of_cases_without_lesion() -> None:
    adc, zadc, truth, pred = _volumes()
    (view,) = _slices(adc, zadc, truth, pred, (1.0, 1.0, 1.0)).views_of_errors()
    assert (view.reasons, view.outlines["truth"], view.outlines["pred"]) == (["most brain"], "", "")
    pred[10, 10, 3] = True
    (view,) = _slices(adc, zadc, truth, pred, (1.0, 1.0, 1.0)).views_of_errors()
    assert (view.slice, view.reasons) == (4, ["most prediction", "worst error"])
    nothing = np.zeros((5, 6, 7))
    (view,) = _slices(nothing, nothing, nothing > 0, nothing > 0, (1.0, 1.0, 1.0)).views_of_errors()
    assert view.size_mm == (5.0, 6.0)


def _polygons(path: str) -> Iterator[np.ndarray]:
    for part in re.findall(r"M([^Z]+)Z", path):
        yield np.array([point.split() for point in part.split("L")], dtype=float)


def test_outlines_lie_where_the_masks_are() -> None:
    adc, zadc, truth, pred = _volumes()
    truth[6:10, 8:18, 5] = True  # the patient's left: the viewer's right; towards the back: below
    truth[20, 30, 5] = True
    pred[18:24, 20:30, 5] = True
    (view,) = _slices(adc, zadc, truth, pred, (2.0, 1.0, 3.0)).views_of_errors()
    assert view.size_mm == ((22 + 6) * 2.0, (29 + 6) * 1.0)  # the brain and three voxels around it
    block, single = sorted(_polygons(view.outlines["truth"]), key=len, reverse=True)
    right, bottom = (26 + 3) * 2.0, 35 + 3  # where the box ends, in voxel edges of the volume
    assert [block[:, 0].min(), block[:, 0].max()] == pytest.approx([right - 10 * 2, right - 6 * 2])
    assert [block[:, 1].min(), block[:, 1].max()] == pytest.approx([bottom - 18, bottom - 8])
    assert single.mean(axis=0) == pytest.approx([right - 20.5 * 2, bottom - 30.5])
    (outline,) = _polygons(view.outlines["pred"])
    x, y = outline.T
    area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    corners = 4 * 0.5 * (2.0 / 2) * (1.0 / 2)  # cut off at the middle of the edges
    assert area == pytest.approx(view.area_mm2["pred"] - corners)


def test_slices_show_the_window() -> None:
    adc, zadc, truth, pred = _volumes()
    truth[10, 10, 5] = True
    (view,) = _slices(adc, zadc, truth, pred, (1.0, 1.0, 1.0), (500, 2000), (-4, 4)).views_of_errors()
    box = np.s_[1:29, 3:38, 5]
    for png, volume, (low, high) in ((view.pictures["ADC"], adc, (500, 2000)), (view.pictures["ZADC"], zadc, (-4, 4))):
        shown = imread(io.BytesIO(base64.b64decode(png)))
        inside = adc[box].T[::-1, ::-1] > 0
        grey = ((volume[box].T[::-1, ::-1] - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(shown, np.where(inside, grey, 0), atol=1 / 255)


# --- plots --------------------------------------------------------------------------------------------------------


def _texts(plot: plots.Plot) -> list[str]:
    kind, content = plot.image.split(",", 1)
    assert kind == "data:image/svg+xml;base64"
    root = ElementTree.fromstring(base64.b64decode(content))
    return ["".join(node.itertext()).strip() for node in root.iter() if node.tag.endswith("}text")]


def test_infinite_and_undefined_values_are_counted_in_the_plot() -> None:
    rows = many_rows(40)
    texts = _texts(plots.metric_by_size(rows, "native_paper_msd_mm"))
    values = np.array([row["native_paper_msd_mm"] for row in rows])
    assert f"n = {len(rows)}" in texts
    assert f"{np.isnan(values).sum()} undef." in texts
    assert f"{np.isinf(values).sum()} × ∞" in texts
    assert {"empty", "<1 %", "1–5 %", "all"} <= set(texts)


def test_a_plot_of_nothing_defined_is_a_plot() -> None:
    plot = plots.metric_by_size([ROWS[1]], "native_masd_mm")
    assert "1 undef." in _texts(plot)


def test_volume_plots_have_a_place_for_zero() -> None:
    rows = many_rows(40)
    for plot in (plots.dice_by_volume(rows), plots.bland_altman(rows)):
        assert {"0", "0.1", "1", "10"} <= set(_texts(plot))
    limits = report.volume_agreement(rows)
    told = plots.bland_altman(rows).caption.replace("−", "-")
    figures = [float(text) for text in re.findall(r"[-+]\d+\.\d", told)]
    assert figures == pytest.approx([limits["bias"], limits["low"], limits["high"]], abs=0.05)
    for plot in (plots.dice_by_volume(ROWS[:1]), plots.bland_altman(ROWS[:1])):
        assert "0" in _texts(plot)  # one case, no volume at all


def test_plots_are_reproducible() -> None:
    assert plots.bland_altman(many_rows(9)) == plots.bland_altman(many_rows(9))


def test_gain_of_an_ensemble() -> None:
    rows = [
        {**row, "member_1_dice": row["native_dice"] - 0.03, "member_2_dice": row["native_dice"] - 0.01}
        for row in many_rows(20)
    ]
    plot = plots.ensemble_gain(rows)
    assert plot is not None
    assert {"model 1", "model 2", "ensemble"} <= set(_texts(plot))
    assert plot.caption.endswith("each alone and without flips: +0.020 Dice (95 % CI +0.020 to +0.020).")
    single = plots.ensemble_gain([{name: row[name] for name in row if name != "member_2_dice"} for row in rows])
    assert single is not None
    assert {"with flips", "without flips"} <= set(_texts(single))
    assert "the same model without flips: +0.030 Dice" in single.caption
    assert plots.ensemble_gain(many_rows(3)) is None


def test_curves_are_read_from_event_files(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    assert report.read_curves(tmp_path / "absent") == {}
    with SummaryWriter(tmp_path / "logs") as writer:
        for step in range(1, 41):
            writer.add_scalar("loss", 1 / step, step, walltime=step)
    with SummaryWriter(tmp_path / "logs", filename_suffix=".resumed") as writer:  # went back to step 31
        for step in range(31, 61):
            writer.add_scalar("loss", 2 / step, step, walltime=100 + step)
        for epoch, dice in enumerate((0.1, 0.5, 0.3), 1):
            writer.add_scalar("val_mean_dice", dice, epoch, walltime=epoch)
    curves = report.read_curves(tmp_path / "logs")
    steps, values = list(curves["loss"]), list(curves["loss"].values())
    assert steps == list(range(1, 61))
    assert values == pytest.approx([(1 if step < 31 else 2) / step for step in steps], rel=1e-6)
    loss, dice = plots.training_curves(curves)
    assert "mean of 2 batches" in _texts(loss)
    assert dice.caption == "Best validation Dice 0.500 after epoch 2."
    assert plots.training_curves({}) == []
