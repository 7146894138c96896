"""A typing error in an option is named; a mixin's own values are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import BUNDLE
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.runtime.errors import UserError, user_error
from scripts.runtime.options import OPTIONS
from scripts.runtime.workflow import Workflow

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


STRONG = ["train", "strong", "strong_cpu"]


@pytest.mark.parametrize(
    ("files", "wrong", "said"),
    [
        # a section, a component or a list of parts that is none any more
        (["train"], {"transforms": []}, "--transforms []: a part of the config; a section, or an expression ($…)"),
        (["train"], {"train": []}, "--train []: a part of the config; a section"),
        (["train"], {"network_def": []}, "--network_def []: a part of the config; a section"),
        (["train"], {"train#handlers": {}}, "--train#handlers {}: a part of the config; a list of parts"),
        (["train"], {"train#handlers#0": 5}, "--train#handlers#0 5: a part of the config; a section"),
        (["train"], {"losses#dice": 5}, "--losses#dice 5: a part of the config; a section"),
        (["train"], {"transforms#load": []}, "--transforms#load []: a part of the config; a list of parts"),
        (["inference"], {"decide": []}, "--decide []: a part of the config; a list of parts"),  # masks of zeros, exit 0
        # in the place of an option
        (["train"], {"train#dataloader#batch_size": 0}, "--train#dataloader#batch_size 0: a whole number from 1 on"),
        (["train"], {"train#dataset#cache_rate": 5}, "--train#dataset#cache_rate 5: a number from 0 to 1"),
        (["train"], {"optimizer#lr": -1}, "--optimizer#lr -1: a number above 0 to 10"),
        (["train"], {"decide#threshold#threshold": 7}, "--decide#threshold#threshold 7: a number from 0 to 1"),
        (["train"], {"train#handlers#2#max_norm": "x"}, "--train#handlers#2#max_norm x: a number above 0"),
        (["train"], {"transforms#grid#size#spatial_size": [2]}, "--transforms#grid#size#spatial_size [2]: a list of 3"),
        (STRONG, {"augment#crop#pos": "x"}, "--augment#crop#pos x: a number from 0 to 1"),
        # in the place of a number, of a flag
        (["train"], {"losses#tversky#alpha": "x"}, "--losses#tversky#alpha x: a number"),
        (["train"], {"losses#dice#sigmoid": 5}, "--losses#dice#sigmoid 5: true or false"),
        (STRONG, {"mirror_sigma_mm": "x"}, "--mirror_sigma_mm x: a number from 0 on"),
        (["train"], {"loaded": []}, "--loaded []: a text, or a list of texts"),
        # null and nothing, where a part needs a value
        (["train"], {"num_workers": None}, "--num_workers None: a whole number from 0 to 256"),
        (
            ["inference"],
            {"spatial_size": None},
            "--spatial_size None: a list of 3 numbers, each",
        ),
        (["train"], {"loss": {}}, "--loss {}: a component, or an expression ($…)"),
    ],
)
def test_what_stands_in_a_section_is_judged_too(files: list[str], wrong: dict[str, Any], said: str) -> None:
    """Each ended in a traceback of MONAI, PyTorch or TorchIO, or did something else than what was asked for."""
    with pytest.raises(RuntimeError) as caught:
        _initialize(*files, **wrong)
    assert said in str(user_error(caught.value))


def test_nested_values_become_what_they_mean(tmp_path: Path) -> None:
    """``"false"`` is a text that counts as true there, too."""
    given = {"train#dataset#progress": "false", "losses#dice#sigmoid": "true", "train#dataloader#batch_size": 2.0}
    workflow = Workflow(
        str(CONFIGS / "train.yaml"), workflow_type=None, logging_file=False, dataset_dir=str(tmp_path), **given
    )
    workflow.initialize()
    assert [workflow.parser[name] for name in given] == [False, True, 2]
    assert workflow.parser.get_parsed_content("train#dataset").progress is False


def test_a_text_that_monai_could_evaluate_is_judged_in_a_section_too() -> None:
    """:func:`scripts.runtime.literals.literal` makes an expression of it, and expressions are not judged."""
    given = {"train#dataloader#batch_size": "a#b"}
    workflow = Workflow(str(CONFIGS / "train.yaml"), workflow_type=None, logging_file=False, **given)
    with pytest.raises(RuntimeError) as caught:
        workflow.initialize()
    assert "--train#dataloader#batch_size a#b: a whole number from 1 on" in str(user_error(caught.value))


def test_a_users_own_components_judge_themselves(tmp_path: Path) -> None:
    """What is allowed in the place of an option binds those with the bundle's arguments alone."""
    own = tmp_path / "own.yaml"
    own.write_text(
        "network_def: {_target_: DynUNet, spatial_dims: 3, in_channels: 2, out_channels: 1, dropout: 0.2}\n"
        "transforms#values: ['@my_values']\nmy_values: {_target_: NormalizeIntensityd, keys: image, divisor: 3.0}\n"
        "train#dataset#data: [{image: a.nii.gz, case: a}]\n"
        "augment: [{_target_: RandCropByPosNegLabeld, keys: image, label_key: label, spatial_size: 9, pos: 2}]\n"
    )
    _initialize(*STRONG, own, dataset_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("files", "content"),
    [
        # in the place of a section of another class, or of another variant of a study
        (["train"], "network_def: {_target_: dict, network: large}"),
        (["train"], "loss: {_target_: dict, loss: dice}"),
        (
            ["train", "study"],
            "variants: [{name: a}, {name: b}, {name: c}, "
            "{name: d, overrides: {transforms#values: [{_target_: NormalizeIntensityd, keys: image}]}}]",
        ),
        (["train"], "activate: []"),  # the network gives probabilities
        (["train"], "transforms#grid: []"),  # and sees the files' grid
        (["train", "evaluate"], "evaluate#to_native#invert#nearest_interp: [false, true]"),  # one for each key
        # of a library's class more than the option whose place it is in takes
        (
            ["train"],
            "augment#crop: {_target_: RandCropByPosNegLabeld, keys: [image, label], label_key: label, "
            "spatial_size: [64, 64, -1], pos: 2, neg: 1, allow_smaller: true}",
        ),
        (STRONG, "augment#crop#pos: 2\naugment#crop#neg: 1"),
        (
            ["train"],
            "transforms#values#low: {_target_: AsDiscreted, keys: below, threshold: -2.0, allow_missing_keys: true}",
        ),
    ],
)
def test_what_a_user_may_write(files: list[str], content: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(content)
    _initialize(*files, own, dataset_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("files", "wrong", "said"),
    [
        (STRONG, {"transforms#values": "$[@valeus]"}, "`@valeus` is not defined"),
        (
            ["train"],
            {"optimizer#_target_": "torch.optim.Adamm"},
            "Cannot locate class or function path: 'torch.optim.Ad",
        ),
        (
            ["train"],
            {"augment#paper#transform#noise#std": [1, 2, 3]},
            "torchio.RandomNoise rejects its values",
        ),
        (["train"], {"transforms#grid#size#mode": 5}, "Resized rejects its values in the config: "),
        (["train"], {"limits#brain_ml_range": 5}, "limits#brain_ml_range must be two numbers, minimum and maximum"),
        (["train"], {"limits#adc_limit": "x"}, "limits#adc_limit must be a number, not 'x'"),
        (["train"], {"limits#adc_range": [4000, 200]}, "limits#adc_range must be two numbers, minimum and maximum"),
    ],
)
def test_what_only_a_component_can_judge(
    files: list[str], wrong: dict[str, Any], said: str, tiny_cohort: Path, tmp_path: Path
) -> None:
    places = {"dataset_dir": str(tiny_cohort), "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path)}
    workflow = ConfigWorkflow(
        [str(CONFIGS / f"{name}.yaml") for name in files],
        workflow_type=None, run_id="training", logging_file=False, num_workers=0, device="cpu", **places, **wrong,
    )  # fmt: skip
    with pytest.raises((RuntimeError, ValueError, ModuleNotFoundError)) as caught:  # noqa: PT012 -- before, or then
        workflow.initialize()
        workflow.run()
    assert said in str(user_error(caught.value))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"train#datasett#cache_rate": 1}, "--train#datasett#cache_rate: no config has such a value; did you mean "
                                           "--train#dataset#cache_rate?"),
        ({"trian::dataset": 1, "x#part": "y"}, "did you mean --train#dataset?\n  --x#part: no config has such"),
        ({"validate#handlers#99": 5}, "validate#handlers is a list with indices 0 to 1"),
        ({"validate#handlers#x": 5}, "validate#handlers is a list with indices 0 to 1"),
        ({"threshold#x": 5}, "--threshold#x: threshold is neither a section nor a list"),
    ],
)  # fmt: skip
def test_an_option_in_no_section(wrong: dict[str, Any], said: str) -> None:
    """MONAI sets options before it reads the bundle's code: its class, and a KeyError, without this one."""
    with pytest.raises(UserError, match="nothing was started") as caught:
        Workflow(str(CONFIGS / "train.yaml"), workflow_type=None, logging_file=False, **wrong)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("trian.yaml", None, "There is no config file .*trian.yaml; did you mean .*train.yaml"),
        ("a.yaml", "", "a.yaml is not a config file: it has no named values"),
        ("a.yaml", "- 1", "a.yaml is not a config file: it has no named values"),
        ("a.yaml", "a: [", "a.yaml is not a config file: while parsing a flow"),
        ("a.yaml", "1: 2", "a.yaml is not a config file: 1 is not a name"),
        ("a.yaml", "'': 2", "a.yaml is not a config file: '' is not a name"),
        ("a.yaml", "? [a]\n: 2", "a.yaml is not a config file: .*unhashable"),
        ("a.yaml", "imports: 5", "imports in the config must be a list of expressions"),
        ("a.txt", "a: 1", "a.txt is not a config file: unknown file input"),
    ],
)
def test_no_config_file(name: str, content: str | None, said: str, tmp_path: Path) -> None:
    file = CONFIGS / name if content is None else tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        Workflow([str(CONFIGS / "train.yaml"), str(file)], workflow_type=None, logging_file=False)
    assert "\n" not in str(caught.value)


def test_what_is_to_run_has_a_name() -> None:
    workflow = Workflow(str(CONFIGS / "train.yaml"), workflow_type=None, run_id="trainin", logging_file=False)
    with pytest.raises(RuntimeError) as caught:
        workflow.initialize()
    assert "trainin: no config has this workflow; did you mean training?" in str(user_error(caught.value))
    workflow = Workflow(str(CONFIGS / "data.yaml"), workflow_type=None, logging_file=False)
    workflow.initialize()
    with pytest.raises(ValueError, match="run") as nothing:
        workflow.run()
    assert "run ID 'run' doesn't exist" in str(user_error(nothing.value))


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
        'my_share: 0.1\nlimits: {_target_: scripts.data.checks.Limits, outside_fraction: "@my_share"}\n'
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
