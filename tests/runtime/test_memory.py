"""Memory stays what it was: over many training steps and many predictions."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from test_every_option import CONFIGS, TINY, run

from scripts.data.layout import find_cases
from scripts.inference.segmenter import Segmenter

MODEL = {key: TINY[key] for key in ("spatial_size", "features", "device")}
pytestmark = pytest.mark.slow

WARM_UP = 50  # until libraries have what they keep
MOST_GROWTH = 0.02


def _resident() -> float:
    """MB that this process has to itself; shared libraries come and go with other processes."""
    gc.collect()
    return psutil.Process().memory_full_info().uss / 1e6


def _flat(seen: list[float], what: str) -> None:
    """Between the first and the last fifth after the warm-up; single values go up and down with the allocator."""
    part = max(1, len(seen) // 5)
    first, last = float(np.median(seen[:part])), float(np.median(seen[-part:]))
    print(f"\n{what}: {first:.1f} MB after the warm-up, {last:.1f} MB at the end: {last / first - 1:+.2%}")
    assert last < first * (1 + MOST_GROWTH)


def _every_tenth(seen: list[float]) -> Callable[[Engine], None]:
    def look(engine: Engine) -> None:
        if engine.state.iteration > WARM_UP and engine.state.iteration % 10 == 0:
            seen.append(_resident())

    return look


def test_three_hundred_steps(tiny_cohort: Path, tmp_path: Path) -> None:
    """Validation, curves, and saving after each epoch included."""
    places = {"dataset_dir": str(tiny_cohort), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "eval")}
    options: dict[str, Any] = {**TINY, **places, "batch_size": 1, "epochs": 60, "patience": 60, "val_interval": 5}
    workflow = ConfigWorkflow(
        str(CONFIGS / "train.yaml"), workflow_type=None, run_id="training", logging_file=False, **options
    )
    workflow.initialize()
    trainer: Any = workflow.parser.get_parsed_content("train#trainer")
    seen: list[float] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, _every_tenth(seen))
    workflow.run()
    assert trainer.state.iteration == 300
    _flat(seen, "300 training steps")


def test_two_hundred_predictions(tiny_cohort: Path, tmp_path: Path) -> None:
    """By one segmenter, which a server keeps for days."""
    places = {"dataset_dir": str(tiny_cohort), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "eval")}
    run("training", ("train",), {**TINY, **places})
    segmenter = Segmenter(tmp_path / "model.pt", "paper", **MODEL)
    cases = [case for case in find_cases(tiny_cohort) if case.split == "test"]
    seen = []
    for number in range(200):
        case = cases[number % len(cases)]
        segmenter(str(case.adc), str(case.zadc), output=tmp_path / "mask.nii.gz")
        if number >= WARM_UP and number % 10 == 0:
            seen.append(_resident())
    _flat(seen, "200 predictions")
