"""Training on resident cases, with the CPU as the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BUNDLE
from monai.bundle import ConfigWorkflow
from monai.data import CacheDataset, MetaTensor
from monai.metrics import DiceMetric
from torch.utils.data import DataLoader

from scripts.runtime import machine
from scripts.runtime.errors import user_error
from scripts.training import resident
from scripts.training.resident import BatchDice, Placement, ResidentCases

CONFIGS = BUNDLE / "configs"
TINY: dict[str, Any] = {
    "features": [2, 4, 6, 8], "batch_size": 2, "num_workers": 0, "device": "cpu", "progress": False,
}  # fmt: skip
STRONG: dict[str, Any] = {
    "spacing_mm": [4.0, 4.0, 4.0], "input_size": [24, 24, 16], "patch_size": [16, 16, 8], "steps": 4,
    "steps_per_epoch": 2, "validations": 1,
}  # fmt: skip


def _items(count: int = 5) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    items = []
    for number in range(count):
        size = (8 + number, 7, 6)
        label = torch.zeros(1, *size)
        if number:
            label[0, 2:4, 3, number] = 1
        affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0]))
        image = MetaTensor(torch.randn(2, *size, generator=generator), affine=affine)
        items.append({"image": image, "label": MetaTensor(label, affine=affine), "case": f"case_{number}"})
    return items


def test_batches_are_the_cases_padded_at_their_ends() -> None:
    items = _items()
    cases = ResidentCases(CacheDataset(items, progress=False))
    loader = DataLoader(cases, batch_size=2, shuffle=True, collate_fn=cases.batch)
    torch.manual_seed(0)
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    assert sorted(name for batch in batches for name in batch["case"]) == [f"case_{n}" for n in range(5)]
    for batch in batches:
        for place, name in enumerate(batch["case"]):
            item = items[int(name[-1])]
            x, y, z = batch["size"][place].tolist()
            assert torch.equal(batch["image"][place, :, :x, :y, :z], item["image"].as_tensor())
            assert not batch["image"][place, :, x:].any()
            assert batch["spacing_mm"][place].tolist() == [1.0, 2.0, 3.0]
            lesion, background = batch["voxels"][place]
            label = item["label"].as_tensor().flatten()
            assert torch.equal(lesion, label.nonzero()[:, 0].int())
            assert torch.equal(background, (label == 0).nonzero()[:, 0].int())


def test_dice_of_batches_is_monais() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = BatchDice(0.4), DiceMetric(ignore_empty=False)
    for number in range(3):
        logits = torch.randn(2, 1, 5, 5, 5, generator=generator)
        label = (torch.randn(2, 1, 5, 5, 5, generator=generator) > 0.5).float()
        if number == 0:
            label[0], logits[0] = 0, -9.0  # both empty
        if number == 1:
            label[1] = 0
        ours.update((logits, label))
        theirs((logits.sigmoid() > 0.4).float(), label)
    assert ours.compute() == pytest.approx(float(theirs.aggregate()))


def _placement(data_on: str, device: str = "cpu", **options: Any) -> Placement:
    from monai.engines.utils import PrepareBatchDefault

    given = {
        "augment": {}, "prepare_batch": PrepareBatchDefault(), "activate": {}, "cases": 10, "all_cached": True,
        "volume_size": (96, 96, 64), "in_channels": 2, **options,
    }  # fmt: skip
    return Placement(data_on, device, **given)


def test_auto_is_the_device_on_cuda_where_the_cases_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _placement("auto").on_device
    needed = machine.cache_memory(10, (96, 96, 64), 2)
    for free, expected in ((4 * needed, True), (2 * needed, False)):
        monkeypatch.setattr(resident, "available_memory", lambda _, free=free: free)
        assert _placement("auto", "cuda:0").on_device == expected
        assert not _placement("auto", "cuda:0", all_cached=False).on_device
        assert not _placement("auto", "cuda:0", augment={"own": print}).on_device
        assert not _placement("host", "cuda:0").on_device


@pytest.mark.parametrize(
    ("options", "why"), [({"all_cached": False}, "cache_rate"), ({"augment": {"own": print}}, "no batched form")]
)
def test_the_device_is_refused_where_it_cannot_be(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        _placement("device", **options)


@pytest.mark.parametrize("files", [["train"], ["train", "strong"]], ids=["paper", "strong"])
def test_a_training_on_resident_cases_is_repeatable(files: list[str], tiny_cohort: Path, tmp_path: Path) -> None:
    weights = []
    more = STRONG if "strong" in files else {"spatial_size": [24, 24, 16], "epochs": 2}
    for number in range(2):
        folder = str(tmp_path / str(number))
        workflow = ConfigWorkflow(
            [str(CONFIGS / f"{name}.yaml") for name in files], workflow_type="train", logging_file=False,
            dataset_dir=str(tiny_cohort), data_on="device", ckpt_dir=folder, output_dir=folder, **TINY, **more,
        )  # fmt: skip
        workflow.initialize()
        workflow.run()
        trainer = workflow.parser.get_parsed_content("train#trainer")
        assert isinstance(trainer.data_loader.dataset, ResidentCases)
        assert 0 <= trainer.state.metrics["train_mean_dice"] <= 1
        weights.append(torch.load(tmp_path / str(number) / "model.pt", weights_only=True)["model"])
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())
    assert all(bool(torch.isfinite(value).all()) for value in weights[0].values())


def test_a_recipe_that_has_no_batched_form_says_so(tiny_cohort: Path, tmp_path: Path) -> None:
    workflow = ConfigWorkflow(
        str(CONFIGS / "train.yaml"), workflow_type="train", logging_file=False, dataset_dir=str(tiny_cohort),
        data_on="device", output_dir=str(tmp_path), ckpt_dir=str(tmp_path), spatial_size=[24, 24, 16],
        **{"augment#flip": {"_target_": "RandFlipd", "keys": ["image", "label"]}}, **TINY,
    )  # fmt: skip
    workflow.initialize()
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    assert "no batched form" in str(user_error(caught.value))
