"""Whole trainings and segmentations of simulated cases, each in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import summary

from scripts import phantom
from scripts.networks import HIEUNet

CHILD = Path(__file__).with_name("child.py")


def child(**job: Any) -> dict[str, Any]:
    process = subprocess.run([sys.executable, str(CHILD), json.dumps(job)], capture_output=True, text=True, check=False)
    if process.returncode != 0:
        raise RuntimeError(f"{job['job']} failed:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def in_turn(stock: dict[str, Any], ours: dict[str, Any], value: str, repeats: int) -> dict[str, Any]:
    """Run both jobs ``repeats`` times in turn and compare one value of theirs, and their memory."""
    runs: dict[str, list[dict[str, Any]]] = {"stock": [], "ours": []}
    for _ in range(repeats):
        for name, job in (("stock", stock), ("ours", ours)):
            runs[name].append(child(**job))
    result = summary({name: [run[value] for run in several] for name, several in runs.items()})
    for name, several in runs.items():
        for key in {"phases_s", "peak_memory_mb", "peak_gpu_memory_mb"} & several[0].keys():
            if key == "phases_s":
                phases = several[0][key]
                result[f"{name}_{key}"] = {p: statistics.median(run[key][p] for run in several) for p in phases}
            else:
                result[f"{name}_{key}"] = statistics.median(run[key] for run in several)
    if "losses" in runs["ours"][0]:
        # Not closer, since TorchIO's anisotropy smears an axis too many where rounding costs its coarse grid a slice.
        # The first step's, with equal weights: later ones carry that difference on through the optimiser.
        np.testing.assert_allclose(runs["ours"][0]["losses"][0], runs["stock"][0]["losses"][0], rtol=1e-2)
    return result


def cohort(folder: Path, cases: int, tiny: bool, num_val: int = 1) -> Path:
    """A phantom cohort; its voxel grids are those of real cases unless it is tiny."""
    options: dict[str, Any] = {"matrix_sizes": [36, 44], "slice_range": [10, 14], "fine_mm": 4.0, "atlas_step_mm": 4.0}
    phantom.write_cohort(
        folder,
        num_train=cases,
        num_val=num_val,
        num_test=min(cases, 6),
        seed=0,
        num_healthy=4,
        progress=False,
        **(options if tiny else {}),
    )
    return folder


def _recipes(dataset_dir: Path, folder: Path, batch_size: int, network: str, **config: Any) -> list[dict[str, Any]]:
    job = {
        "job": "train",
        "network": network,
        "dataset_dir": str(dataset_dir),
        "output_dir": str(folder / "eval"),
        "ckpt_dir": str(folder / "models"),
        "batch_size": batch_size,
        "num_workers": 0,
        "progress": False,
        **config,
    }
    return [{"recipe": recipe, **job} for recipe in ("stock", "ours")]


def epoch(dataset_dir: Path, folder: Path, batch_size: int, repeats: int, **config: Any) -> Iterator[tuple[str, Any]]:
    """Everything but the network, the stock recipe against ours: same cases, seed and order."""
    recipes = _recipes(dataset_dir, folder, batch_size, "pointwise", epochs=2, **config)
    name = "epoch without the network (data, loss, metrics, validation)"
    yield name, in_turn(*recipes, value="epoch_s", repeats=repeats)


def step(dataset_dir: Path, folder: Path, batch_size: int, repeats: int, **config: Any) -> Iterator[tuple[str, Any]]:
    """A training step with the network, the stock recipe against ours."""
    recipes = _recipes(dataset_dir, folder, batch_size, "unet", epochs=1, **config)
    yield "training step with the network", in_turn(*recipes, value="step_s", repeats=repeats)


STRONG = {"batch_size": 8, "steps_per_epoch": 200}


def pace(folder: Path, cases: int, tiny: bool, device: str) -> Iterator[tuple[str, Any]]:
    """Trainings and a segmentation with their data on the device: epoch, steps a second, busy share, floor."""
    dataset_dir = cohort(folder / "pace", cases, tiny, num_val=max(1, cases // 6))
    job = {"job": "pace", "dataset_dir": str(dataset_dir), "device": device, "data_on": "device", "num_workers": 0}
    job |= {"output_dir": str(folder / "pace_eval"), "ckpt_dir": str(folder / "pace_models"), "progress": False}
    small: dict[str, Any] = {"spatial_size": [24, 24, 16], "features": [2, 4, 6, 8]} if tiny else {}
    strong: dict[str, Any] = (
        {"batch_size": 2, "steps_per_epoch": 2, "patch_size": [16, 16, 8], "features": [2, 4, 6, 8]} if tiny else STRONG
    )
    for name, configs, options in (
        ("train.yaml, an epoch with validation", ["train.yaml"], {"epochs": 4, **small}),
        ("strong.yaml, an epoch", ["train.yaml", "strong.yaml"], {"epochs": 4, "validations": 1, **strong}),
    ):
        one = child(**job, configs=configs, **options)
        rate = {"steps_per_s": one["steps"] / one["epoch_s"], "floor_steps_per_s": 1 / one["floor_step_s"]}
        yield name, {"ours_s": one["epoch_s"], "all_s": {"ours": [one["epoch_s"]]}, "repeats": 1, **rate, **one}
    if not tiny:
        weights = Path(__file__).parents[2] / "hie_bundle" / "models" / "simulated" / "model.pt"
        job = {"dataset_dir": str(dataset_dir), "ckpt_path": str(weights), "split": "test", "device": device}
        one = child(job="segment", configs=["inference.yaml", "strong.yaml"], output_dir=str(folder / "masks"), **job)
        yield (
            "one case, .mha to saved mask: strong.yaml",
            {"ours_s": one["case_s"], "all_s": {"ours": [one["case_s"]]}, "repeats": 1},
        )


def segmentation(
    dataset_dir: Path, folder: Path, repeats: int, ckpt_path: Path | None, **config: Any
) -> Iterator[tuple[str, Any]]:
    """Seconds per case from ``.mha`` to the saved mask, with weights as good as any for this purpose."""
    weights = ckpt_path or folder / "model.pt"
    if not ckpt_path:
        torch.manual_seed(0)
        features = {"features": config["features"]} if "features" in config else {}
        torch.save({"model": HIEUNet(in_channels=2, out_channels=1, **features).state_dict()}, weights)
    job = {
        "job": "segment",
        "dataset_dir": str(dataset_dir),
        "output_dir": str(folder / "masks"),
        "ckpt_path": str(weights),
        "split": "test",
        **config,
    }
    runs: dict[str, list[dict[str, Any]]] = {"PyTorch": [], "OpenVINO": []}
    for _ in range(repeats):
        runs["PyTorch"].append(child(configs=["inference.yaml"], **job))
        runs["OpenVINO"].append(child(configs=["inference.yaml", "inference_openvino.yaml"], **job))
    for name, several in runs.items():
        times = [one["case_s"] for one in several]
        yield (
            f"one case, .mha to saved mask: {name}",
            {
                "ours_s": statistics.median(times),
                "repeats": repeats,
                "all_s": {"ours": times},
                "ours_peak_memory_mb": statistics.median(one["peak_memory_mb"] for one in several),
            },
        )
