"""A typing error in an option is named; a mixin's own values are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import BUNDLE
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.errors import user_error
from scripts.options import OPTIONS

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
        (
            ["train"],
            {"train#datasett": 1},
            "--train#datasett: no config has such a value; did you mean --train#dataset?",
        ),
        (["train"], {"validate#handler": []}, "did you mean --validate#handlers?"),
        (["train"], {"network": 5}, "--network 5: a part of the config"),
        (["train"], {"sampler": "random"}, "--sampler random: a part of the config"),
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
    own.write_text(
        'losses#mine: "@log_hausdorff"\nvariants: {a: {loss_name: dice}}\ntrain#extra: {share: 0.5}\n'
        'train#idle: {_target_: dict}\nthreshold: "$@train#extra#share"\n'
        'my_share: 0.1\nlimits: {_target_: scripts.bonbid.Limits, outside_fraction: "@my_share"}\n'
    )
    _initialize("data", dataset_dir=str(tmp_path), report_file="check.json", output_file="list.json")
    _initialize("train", "study", own, dataset_dir=str(tmp_path), loss_name="mine")
    own.write_text("my_facotr: 0.5\n")
    with pytest.raises(RuntimeError):
        _initialize("train", own, dataset_dir=str(tmp_path))


WRONG = {
    "epochs": [1.5, 0, -1, "many", True, None, float("nan")],
    "patience": [0, 2.5],
    "batch_size": [0, "4"],
    "cache_rate": [2, -0.1, "half"],
    "threshold": [5, -1, float("nan"), "high"],
    "learning_rate": [0, -1, 1e30, float("inf"), "nan"],
    "clip_norm": ["nan", float("nan"), 0, -1],
    "resume": ["no", 1, "maybe"],
    "num_workers": [-1, 1.5],
    "fold": [-1, "first"],
    "num_folds": [1, 2.5],
    "spatial_size": [[64, 64], 64, [64, 64, 0], [64, 64, 1.5], "big"],
    "features": [[8, "x"], 8],
    "dropout": [[0.1, 2.0], [0, 0, 0, 1]],
    "device": ["cuad", "cuda:99", 3.5],
    "seed": [-1, 0.5, {}],
    "prior": [1, 0],
    "rank": [1, -1],
    "output_dir": [3, True, [1, 2, 3], "a" * 5000, "\0"],
    "training_precision": [[], 16],
    "label_mode": ["é\n", "bilinear", 1],
    "datalist": [0, False],
    "anonymise_ids": [True],
    "init_weights": [0],
    "ckpt_path": [[], [1], None, 3],
}


@pytest.mark.parametrize("name", WRONG)
def test_values_that_are_not_allowed(name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(ValueError):  # noqa: PT011 -- without a message: the caller says what is allowed
            OPTIONS[name].read(value)


def test_they_are_refused_by_name_with_what_is_allowed(tmp_path: Path) -> None:
    wrong = {name: values[0] for name, values in WRONG.items()}
    with pytest.raises(RuntimeError) as caught:
        _initialize("train", dataset_dir=str(tmp_path), **wrong)
    message = str(user_error(caught.value))
    for name, value in wrong.items():
        assert f"--{name} {value}: {OPTIONS[name]}" in message
    assert "--epochs 1.5: a whole number from 1 on" in message
    assert "nothing was started" in message


@pytest.mark.parametrize(
    ("given", "meant"),
    [({"resume": "false"}, False), ({"resume": "True"}, True), ({"epochs": 1e2}, 100), ({"features": (2, 4)}, [2, 4])],
)
def test_values_become_what_they_mean(given: dict[str, Any], meant: Any, tmp_path: Path) -> None:
    """``"false"`` is a text that counts as true."""
    (name,) = given
    workflow = ConfigWorkflow(
        str(CONFIGS / "train.yaml"), workflow_type=None, logging_file=False, dataset_dir=str(tmp_path), **given
    )
    workflow.initialize()
    value = workflow.parser.get_parsed_content(name)
    assert value == meant
    assert type(value) is type(meant)
    assert workflow.parser.get_parsed_content("cache_rate") == 1.0


def test_the_configs_own_values_are_allowed() -> None:
    for file in CONFIGS.glob("*.yaml"):
        config = ConfigParser.load_config_file(str(file))
        for name in OPTIONS.keys() & config.keys():
            if not (isinstance(config[name], dict) or str(config[name])[:1] in ("$", "@")):
                OPTIONS[name].read(config[name])
