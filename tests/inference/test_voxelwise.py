"""The voxelwise network: what it finds, that it is the same again, and how it is averaged with the other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLE
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from scipy import special
from test_baselines import SPACING, _maps, items  # noqa: F401 -- a fixture
from test_recipes import OPTIONS, SETTINGS

from scripts.data.checks import Limits
from scripts.data.training_voxels import draw_training_voxels
from scripts.evaluation import metrics
from scripts.inference.segmenter import Segmenter
from scripts.inference.voxelwise import AddVoxelwised, VoxelNetwork, VoxelwiseFit
from scripts.io.volumes import Volume
from scripts.io.weights import read_part, save_weights, write_bare
from scripts.runtime.errors import UserError
from scripts.transforms.voxel_features import features

AFFINE = np.diag([*SPACING, 1])


def _fitted(items: list[dict[str, Any]], **options: Any) -> VoxelNetwork | None:  # noqa: F811
    fit = VoxelwiseFit(items, **{"epochs": 4, "batch_size": 256, **options})
    fit()
    return fit.network


def test_it_finds_what_a_threshold_does_not(items: list[dict[str, Any]]) -> None:  # noqa: F811
    network = _fitted(items)
    assert network is not None
    adc, zadc, truth = _maps(99)
    probability = network.probability(adc, zadc, Volume(adc, AFFINE))
    assert probability.dtype == np.float32
    assert (probability[adc == 0] == 0).all()
    assert metrics.dice(probability > 0.5, truth) > metrics.dice((zadc < -2) & (adc > 0), truth) + 0.3
    with pytest.raises(ValueError, match="no brain"):
        network.probability(np.zeros_like(adc), zadc, Volume(adc, AFFINE))


def test_stacked_files_without_a_name_do(items: list[dict[str, Any]], tmp_path: Path) -> None:  # noqa: F811
    """As MONAI Label lists them."""
    stacked = []
    for number, item in enumerate(items):
        maps = [nib.load(file) for file in item["image"]]
        both = nib.Nifti1Image(np.stack([one.get_fdata() for one in maps], axis=-1), maps[0].affine)
        nib.save(both, tmp_path / f"{number}.nii.gz")
        stacked.append({"image": str(tmp_path / f"{number}.nii.gz"), "label": item["label"]})
    one, other = _fitted(stacked, epochs=1), _fitted(items, epochs=1)
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one.mean, other.mean)
    del stacked[0]["label"]
    assert _fitted(stacked, epochs=1) is not None


@pytest.mark.parametrize("wrong", [{"voxels": 0}, {"epochs": -1}, {"batch_size": 1.5}])
def test_numbers_of_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        VoxelwiseFit([], **wrong)


def test_it_is_the_same_again_and_moves_nothing_else_that_is_random(items: list[dict[str, Any]]) -> None:  # noqa: F811
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = _fitted(items, epochs=1), _fitted(items, epochs=1), _fitted(items, epochs=1, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert first is not None
    assert second is not None
    assert other is not None
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)


@pytest.mark.parametrize("cores", [1, 3])
def test_cases_that_are_described_side_by_side_are_drawn_from_in_turn(
    cores: int,
    items: list[dict[str, Any]],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one after the other, whichever is ready first; a case that cannot be learnt from takes no number, and of
    a prepared one the files that it was made from are read."""
    monkeypatch.setattr("scripts.runtime.cores.available_cores", lambda: cores)
    del items[2]["label"]
    acquired = {f"native_{part}": items[4][part] for part in ("image", "label")}
    items[4] = {"case": "P4-1", "image": "prepared.nii.gz", "label": "prepared_label.nii.gz", **acquired}
    rng, expected = np.random.default_rng(3), []
    for number in (0, 1, 3, 4, 5):
        adc, zadc, truth = _maps(number)
        drawn = rng.permutation(np.count_nonzero(adc))[:50]
        expected.append((zadc[adc > 0].astype(np.float32)[drawn], truth[adc > 0][drawn]))

    def describe(adc: np.ndarray, zadc: np.ndarray, _: Volume) -> np.ndarray:
        time.sleep(0.05 * (zadc[adc > 0][0] > 0))  # some take longer
        return zadc[adc > 0].astype(np.float32)[:, None]

    why: list[str] = []
    found = list(draw_training_voxels(items, Limits(), describe, 50, 3, skip=lambda error: why.append(str(error))))
    for (given, truth), (value, lesion) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(given[:, 0], value)
        np.testing.assert_array_equal(truth, lesion)
    assert why == ["training case P2-1 has no label"]
    with pytest.raises(ValueError, match="no label"):
        list(draw_training_voxels(items, Limits(), describe, 50, 3))


def test_fitting_takes_one_thread_and_gives_the_others_back(items: list[dict[str, Any]]) -> None:  # noqa: F811
    """Two that waited for each other on busy cores took seventy times as long."""
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    hook = torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    try:
        _fitted(items, epochs=1)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 3
    finally:
        hook.remove()
        torch.set_num_threads(before)


@pytest.mark.parametrize("missing", ["label", "zadc", "lesion"])
def test_without_what_it_learns_from_there_is_none(
    missing: str,
    items: list[dict[str, Any]],  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    for item in items:
        if missing == "label":
            del item["label"]
        elif missing == "zadc":
            item["image"] = item["image"][:1]
        else:
            nib.save(nib.Nifti1Image(np.zeros(nib.load(item["label"]).shape, np.uint8), AFFINE), item["label"])
    assert _fitted(items) is None
    assert "No voxelwise network" in caplog.text


def test_probabilities_are_averaged_where_the_weights_have_one(
    items: list[dict[str, Any]],  # noqa: F811
    tmp_path: Path,
) -> None:
    volume = torch.nn.Conv3d(1, 1, 1)
    both, alone = tmp_path / "both.pt", tmp_path / "alone.pt"
    network = _fitted(items, epochs=1)
    assert network is not None
    save_weights(volume, both, voxelwise=network)
    save_weights(volume, alone)
    adc, zadc, _ = _maps(7)
    maps = MetaTensor(torch.as_tensor(np.stack([adc, zadc])), affine=torch.as_tensor(AFFINE))
    pred = MetaTensor(torch.rand(1, *adc.shape, generator=torch.Generator().manual_seed(0)), affine=maps.affine)
    data = {"pred": pred, "native_image": maps}
    with torch.no_grad():
        given = features(maps[0].numpy(), maps[1].numpy(), Volume(adc, AFFINE))
        expected = 0.75 * pred[0].numpy().copy()
        expected[adc > 0] += 0.25 * torch.sigmoid(network(torch.as_tensor(given))).numpy()
    found = AddVoxelwised("pred", both, weight=0.25)(data)["pred"]
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)
    assert torch.equal(found.affine, pred.affine)
    twice = AddVoxelwised("pred", [both, both, alone], weight=0.25)(data)["pred"]
    np.testing.assert_allclose(twice.numpy(), found.numpy(), atol=1e-6)
    lower = AddVoxelwised("pred", both, weight=0.25, level=0.3)(data)["pred"]
    assert lower.shape == pred.shape
    assert torch.equal(lower > 0.5, found > 0.3)
    np.testing.assert_allclose(special.logit(lower[0]), special.logit(expected) - special.logit(0.3), atol=1e-3)
    ends = AddVoxelwised("pred", both, weight=0.25, level=0.3)({**data, "pred": torch.zeros_like(pred)})["pred"]
    assert (ends[0, adc == 0] == 0).all()
    unknown = MetaTensor(torch.stack([maps[0], torch.full_like(maps[1], torch.nan)]), affine=maps.affine)
    for checkpoints, weight, given in ((alone, 0.5, data), (both, 0, data), (both, 0.5, {"pred": pred}),
                                       (both, 0.5, {"pred": pred, "native_image": unknown})):  # fmt: skip
        assert torch.equal(AddVoxelwised("pred", checkpoints, weight)(given)["pred"], pred)


def test_weights_that_are_replaced_are_read_again(
    items: list[dict[str, Any]],  # noqa: F811
    tmp_path: Path,
) -> None:
    """As a training in MONAI Label does, whose server keeps the transform."""
    maps = MetaTensor(torch.as_tensor(np.stack(_maps(7)[:2])), affine=torch.as_tensor(AFFINE))
    data = {"pred": torch.zeros_like(maps[:1]), "native_image": maps}
    weights = tmp_path / "model.pt"
    save_weights(torch.nn.Conv3d(1, 1, 1), weights)
    add = AddVoxelwised("pred", weights)
    assert not add(data)["pred"].any()
    save_weights(torch.nn.Conv3d(1, 1, 1), weights, voxelwise=_fitted(items, epochs=1))
    assert add(data)["pred"].any()


def test_a_bare_state_dict_leaves_it_out_and_says_so(
    items: list[dict[str, Any]],  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save_weights(torch.nn.Conv3d(1, 1, 1), tmp_path / "model.pt", {}, {}, _fitted(items, epochs=1))
    write_bare(tmp_path / "model.pt", tmp_path / "bare.pt")
    assert set(torch.load(tmp_path / "bare.pt", weights_only=True)) == {"weight", "bias"}
    assert "no place for the voxelwise network" in caplog.text


def test_one_that_is_not_finite_is_refused(items: list[dict[str, Any]], tmp_path: Path) -> None:  # noqa: F811
    network = _fitted(items, epochs=1)
    assert network is not None
    network.mean[0] = torch.nan
    torch.save({"model": {}, "voxelwise": network.state_dict()}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="voxelwise is not finite"):
        read_part(tmp_path / "model.pt", "voxelwise")
    with pytest.raises(UserError, match="not finite"):
        save_weights(torch.nn.Conv3d(1, 1, 1), tmp_path / "other.pt", voxelwise=network)


def test_the_strong_recipe_fits_it_and_uses_it_everywhere(tiny_cohort: Path, tmp_path: Path) -> None:
    """Training leaves it in the weights; evaluation and inference give the same masks, other ones than without it."""

    def run(kind: str, *names: str, **options: Any) -> None:
        workflow = ConfigWorkflow(
            [str(BUNDLE / "configs" / f"{name}.yaml") for name in (*names, "strong", "strong_cpu")], workflow_type=kind,
            meta_file=str(BUNDLE / "configs" / "metadata.json"), logging_file=False, dataset_dir=str(tiny_cohort),
            **{**SETTINGS, **OPTIONS["strong strong_cpu"], **options},
        )  # fmt: skip
        workflow.initialize()
        workflow.run()

    path = str(tmp_path / "model.pt")
    run("train", "train", ckpt_dir=str(tmp_path), output_dir=str(tmp_path / "training"), epochs=1, overwrite=True)
    assert read_part(Path(path), "voxelwise") is not None
    both = {"ckpt_path": path, "split": "val"}
    run("train", "train", "evaluate", **both, output_dir=str(tmp_path / "evaluated"))
    run("infer", "inference", **both, output_dir=str(tmp_path / "inferred"))
    run("infer", "inference", **both, output_dir=str(tmp_path / "without"), voxelwise_weight=0)
    folders = [tmp_path / "evaluated" / "masks", tmp_path / "inferred", tmp_path / "without"]
    masks = [[np.asarray(nib.load(file).dataobj) for file in sorted(folder.glob("*_lesion*"))] for folder in folders]
    assert len(masks[0]) == len(masks[1]) == len(masks[2]) == 2
    assert all(np.array_equal(one, other) for one, other in zip(masks[0], masks[1], strict=True))
    assert any(not np.array_equal(one, other) for one, other in zip(masks[1], masks[2], strict=True))
    options = {**OPTIONS["strong strong_cpu"], "device": "cpu"}
    segmenter = Segmenter(path, recipe="strong_cpu", **{k: v for k, v in options.items() if k != "val_interval"})
    cases = [sorted(tiny_cohort.glob(f"BONBID2023_Val/{part}/*")) for part in ("1ADC_ss", "2Z_ADC")]
    for adc, zadc, expected in zip(*cases, masks[1], strict=True):
        np.testing.assert_array_equal(segmenter.result(adc, zadc).mask, expected)
