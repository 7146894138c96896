"""A typing error in an option is named; a mixin's own values are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import BUNDLE
from monai.bundle import ConfigWorkflow

from scripts.errors import user_error

CONFIGS = BUNDLE / "configs"


def _initialize(*files: str | Path, **options: Any) -> None:
    paths = [str(file if isinstance(file, Path) else CONFIGS / f"{file}.yaml") for file in files]
    ConfigWorkflow(paths, workflow_type=None, logging_file=False, **options).initialize()


@pytest.mark.parametrize(
    ("files", "wrong", "meant"),
    [
        (["train"], {"epoch": 3}, "--epoch: no config has such a value; did you mean --epochs?"),
        (["train", "evaluate"], {"treshold": 0.3}, "did you mean --threshold?"),
        (["inference"], {"flip": [0]}, "did you mean --flips?"),
        (["data"], {"num_trian": 4}, "did you mean --num_train?"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(files: list[str], wrong: dict[str, Any], meant: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        _initialize(*files, **wrong)
    assert meant in str(user_error(caught.value))


def test_values_of_other_workflows_and_of_mixins_are_taken(tmp_path: Path) -> None:
    mixin = CONFIGS / "demo.yaml"
    for files in (
        ["train"],
        ["train", "evaluate"],
        ["train", "study"],
        ["train", "study", "study_weights"],
        ["inference"],
    ):
        _initialize(*files, mixin, dataset_dir=str(tmp_path))
    own = tmp_path / "own.yaml"
    own.write_text('my_factor: 0.5\nmy_section: {value: 1}\nlearning_rate: "$@my_factor * 0.001"\n')
    _initialize("train", own, dataset_dir=str(tmp_path))
    own.write_text("my_facotr: 0.5\n")
    with pytest.raises(RuntimeError):
        _initialize("train", own, dataset_dir=str(tmp_path))
