"""A recipe is one statement: a mixin that goes last changes training, validation, evaluation and inference alike."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from conftest import BUNDLE, TINY
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.io.weights import read_record, write_bare
from scripts.runtime.errors import UserError, user_error
from scripts.runtime.recipe import recipe_of, refuse_other_recipe, same_recipe

CONFIGS = BUNDLE / "configs"
RECIPES = Path(__file__).parents[1] / "recipes"
SETTINGS: dict[str, Any] = {name: yaml.safe_load(value) for name, value in TINY.items()} | {"device": "cpu"}
# what the network must see in training at these settings
INPUTS = {
    "paper": (2, 2, 24, 24, 16),
    "insert_transform": (2, 2, 24, 24, 16),
    "derived_channel": (2, 3, 24, 24, 16),
    "patches": (4, 2, 16, 16, 8),
    "other_network": (2, 2, 24, 24, 16),
    "network_segresnet": (2, 2, 24, 24, 16),
    "network_dynunet": (2, 2, 24, 24, 16),
    "network_swinunetr": (2, 2, 64, 32, 32),
    "network_mednext": (2, 2, 24, 24, 16),
    "network_attentionunet": (2, 2, 24, 24, 16),
    "strong": (2, 6, 16, 24, 8),
    "strong strong_cpu": (2, 6, 16, 24, 8),
}
SLOW = {"network_swinunetr", "network_mednext", "network_attentionunet"}
# voxels for volumes of 40 x 40 x 12 at 4 mm
STRONG = {"spacing_mm": [5, 5, 6], "patch_size": [16, 24, 8], "crop_size": [20, 24, 10], "val_interval": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "network_swinunetr": {"spatial_size": [64, 32, 32], "feature_size": 12},
    "strong": {**STRONG, "flips": []},
    "strong strong_cpu": {**STRONG, "flips": [], "features": [2, 4, 6, 8]},
}


def _workflow(kind: str, *names: str, **options: Any) -> ConfigWorkflow:
    files = [str(RECIPES / f"{n}.yaml" if (RECIPES / f"{n}.yaml").exists() else CONFIGS / f"{n}.yaml") for n in names]
    workflow = ConfigWorkflow(files, workflow_type=kind, meta_file=str(CONFIGS / "metadata.json"), logging_file=False,
                              **{**SETTINGS, **options})  # fmt: skip
    workflow.initialize()
    return workflow


class Seen:
    """What a network is given, and what an engine makes of it, case by case."""

    def __init__(self, network: torch.nn.Module, engine: Engine) -> None:
        self.inputs: list[list[torch.Tensor]] = []
        self.outputs: list[Any] = []
        # not before: the estimate of its memory runs a copy of the network
        engine.add_event_handler(Events.STARTED, lambda: network.register_forward_pre_hook(self.note))
        engine.add_event_handler(Events.ITERATION_STARTED, lambda: self.inputs.append([]))
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self.outputs.append(e.state.output[0]))

    def note(self, _: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.inputs[-1].append(inputs[0].detach().clone())


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in INPUTS]
)
def test_every_workflow_sees_a_case_alike(recipe: str, tiny_cohort: Path, tmp_path: Path) -> None:
    mixin = [] if recipe == "paper" else recipe.split()
    folders = {"dataset_dir": str(tiny_cohort), "ckpt_dir": str(tmp_path / "models"), **OPTIONS.get(recipe, {})}
    training = _workflow("train", "train", *mixin, **folders, output_dir=str(tmp_path / "training"), epochs=1,
                         threshold=0.015)  # fmt: skip
    network, trainer, validator = (
        training.parser.get_parsed_content(name) for name in ("network", "train#trainer", "validate#evaluator")
    )
    batches = Seen(network, trainer)
    training.run()
    assert tuple(batches.inputs[0][0].shape) == INPUTS[recipe]
    batches.inputs.append([])  # its hook stays
    validation = Seen(network, validator)
    validator.run()

    path = str(tmp_path / "models" / "model.pt")
    evaluation = _workflow("train", "train", "evaluate", *mixin, **folders, split="val", threshold=0.015,
                           output_dir=str(tmp_path / "evaluation"))  # fmt: skip
    inference = _workflow("infer", "inference", *mixin, dataset_dir=str(tiny_cohort), split="val", threshold=0.015,
                          ckpt_path=path, output_dir=str(tmp_path / "masks"), **OPTIONS.get(recipe, {}))  # fmt: skip
    evaluated, inferred = (
        Seen(workflow.parser.get_parsed_content("network"), workflow.parser.get_parsed_content(engine))
        for workflow, engine in ((evaluation, "evaluate#evaluator"), (inference, "evaluator"))
    )
    evaluation.run()
    inference.run()
    assert len(validation.inputs) == len(evaluated.inputs) == len(inferred.inputs) == 2
    for ours, theirs, others in zip(validation.inputs, evaluated.inputs, inferred.inputs, strict=True):
        assert len(ours) == len(theirs) == len(others) > 0
        for three in zip(ours, theirs, others, strict=True):
            assert torch.equal(three[0], three[1])
            assert torch.equal(three[0], three[2])
    for ours, theirs in zip(validation.outputs, evaluated.outputs, strict=True):
        assert torch.equal(ours["pred"], theirs["pred"])
        assert set(ours["label"].unique().tolist()) <= {0.0, 1.0}  # of shares of a voxel MONAI's Dice counts 1 alone
    files = sorted((tmp_path / "masks").glob("*_lesion*"))
    assert len(files) == 2
    folders = {"evaluated": tmp_path / "evaluation" / "masks", "inferred": tmp_path / "masks"}
    masks = {n: [np.asarray(nibabel.load(f / file.name).dataobj) for file in files] for n, f in folders.items()}
    assert any(mask.any() for mask in masks["inferred"])
    for one, other in zip(masks["evaluated"], masks["inferred"], strict=True):
        np.testing.assert_array_equal(one, other)


# --- weights know their recipe ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    training = _workflow("train", "train", dataset_dir=str(tiny_cohort), ckpt_dir=str(folder), epochs=1, seed=5,
                         output_dir=str(folder / "out"), loss_name="dice")  # fmt: skip
    training.run()
    return folder


def test_weights_say_what_they_were_trained_with(trained: Path) -> None:
    content = torch.load(trained / "model.pt", weights_only=True)
    assert content.keys() == {"model", "recipe", "training"}
    record = read_record(trained / "model.pt")
    assert record["recipe"]["spatial_size"] == [24, 24, 16]
    assert record["recipe"]["features"] == [2, 4, 6, 8]
    assert {name: record["training"][name] for name in ("loss", "seed", "epoch")} == {
        "loss": "dice", "seed": 5, "epoch": 1,
    }  # fmt: skip
    assert 0 <= record["training"]["val_mean_dice"] <= 1


@pytest.mark.parametrize("form", ["with the recipe", "bare, with a file beside"])
def test_another_recipe_is_named_instead_of_giving_a_mask(
    form: str, trained: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    path = trained / "model.pt"
    if form != "with the recipe":
        path = tmp_path / "model.pt"
        write_bare(trained / "model.pt", path)
        assert "model" not in torch.load(path, weights_only=True)
    changed: list[tuple[list[str], dict[str, Any], str]] = [
        ([], {"spatial_size": [32, 32, 16]}, r"spatial_size: \[24, 24, 16\] in the training, \[32, 32, 16\] here"),
        (
            ["insert_transform"],
            {},
            r"transforms#values#scale#_target_: absent in the training, \"ScaleInt",
        ),
    ]
    for mixin, options, message in changed:
        for kind, files in (("infer", ["inference"]), ("train", ["train", "evaluate"])):
            workflow = _workflow(kind, *files, *mixin, dataset_dir=str(tiny_cohort), split="val", ckpt_path=str(path),
                                 output_dir=str(tmp_path / "out"), **options)  # fmt: skip
            with pytest.raises(RuntimeError) as caught:
                workflow.run()
            assert re.search(message, str(user_error(caught.value)))
            assert not list((tmp_path).glob("out/**/*_lesion*"))
    workflow = _workflow("infer", "inference", dataset_dir=str(tiny_cohort), split="val", ckpt_path=str(path),
                         output_dir=str(tmp_path / "meant"), spatial_size=[32, 32, 16], other_recipe=True)  # fmt: skip
    workflow.run()
    assert len(list((tmp_path / "meant").glob("*_lesion*"))) == 2


def test_training_starts_from_given_weights(trained: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    path = str(trained / "model.pt")
    start = torch.load(path, weights_only=True)["model"]

    def tune(**options: Any) -> dict[str, torch.Tensor]:
        workflow = _workflow("train", "train", dataset_dir=str(tiny_cohort), ckpt_dir=str(tmp_path), epochs=1,
                             output_dir=str(tmp_path), loss_name="dice", overwrite=True, **options)  # fmt: skip
        workflow.run()
        return torch.load(tmp_path / "model.pt", weights_only=True)["model"]

    still = {"learning_rate": 1e-30, "weight_decay": 0.0}
    layers = [name for name, value in start.items() if value.is_floating_point() and "running" not in name]
    tuned = tune(init_weights=path, **still)
    assert all(torch.equal(tuned[name], start[name]) for name in layers)
    assert read_record(tmp_path / "model.pt")["training"]["init_weights"] == path
    fresh = tune(**still)
    assert not all(torch.equal(fresh[name], start[name]) for name in layers)
    with pytest.raises(RuntimeError) as caught:
        tune(init_weights=path, spatial_size=[32, 32, 16])
    assert "spatial_size: [24, 24, 16] in the training, [32, 32, 16] here" in str(user_error(caught.value))
    if not (BUNDLE / "models" / "simulated" / "model.pt").is_file():
        with pytest.raises(RuntimeError) as caught:
            tune(init_weights="simulated")
        assert "This copy of the bundle has no weights" in str(user_error(caught.value))


def test_a_training_takes_as_many_steps_whatever_the_number_of_cases(tiny_cohort: Path) -> None:
    files = ["train", "strong", "strong_cpu", "fine_tune"]
    for batch_size in (1, 2, 3):
        workflow = _workflow("train", *files, dataset_dir=str(tiny_cohort), batch_size=batch_size)
        wanted, each, epochs = (workflow.parser.get_parsed_content(n) for n in ("steps", "steps_per_epoch", "epochs"))
        assert wanted <= epochs * each < wanted + each
        sampler = workflow.parser.get_parsed_content("sampler")
        drawn = Counter(sampler)
        assert drawn.total() == each * batch_size
        assert max(drawn.values()) - min(drawn.values()) <= 1
        assert len(drawn) == len(workflow.parser.get_parsed_content("train#dataset"))
        assert len(workflow.parser.get_parsed_content("train#dataloader")) == each


def test_resuming_another_recipe_is_refused(trained: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    said = {
        True: "was started with other settings:\n  spatial_size: [24, 24, 16] in the run, [32, 32, 16] here",
        "force": "was trained with another recipe:\n  spatial_size: [24, 24, 16]",
    }
    for resume, message in said.items():
        workflow = _workflow("train", "train", dataset_dir=str(tiny_cohort), ckpt_dir=str(trained), epochs=2,
                             resume=resume, output_dir=str(trained / "out"), spatial_size=[32, 32, 16],
                             loss_name="dice", seed=5)  # fmt: skip
        with pytest.raises(RuntimeError) as caught:
            workflow.run()
        assert message in str(user_error(caught.value))


def test_a_file_beside_other_weights_is_refused(trained: Path, tmp_path: Path) -> None:
    write_bare(trained / "model.pt", tmp_path / "model.pt")
    torch.save({"w": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="describes other weights"):
        read_record(tmp_path / "model.pt")


def _recipe(**content: Any) -> dict[str, Any]:
    return dict(recipe_of(ConfigParser({"in_channels": 2, "transforms": {}, **content})))


def test_two_ways_to_write_the_same_are_the_same() -> None:
    def network(**arguments: Any) -> dict[str, Any]:
        return {"_target_": "UNet", "in_channels": "@in_channels", **arguments}

    one = _recipe(width=8, network_def=network(channels="@width", dropout=0.1), input_size=[8, 8])
    other = _recipe(size=[8, 8], network_def=network(channels=8, dropout=0.3), input_size="@size")
    refuse_other_recipe(one, other, "m.pt", "")
    wider = _recipe(width=16, network_def=network(channels="@width"), input_size=[8, 8])
    with pytest.raises(
        UserError, match=r"m\.pt was trained with another recipe:\n  .*width: 8 in the training, 16 here"
    ):
        refuse_other_recipe(one, wider, "m.pt", "")
    refuse_other_recipe(None, wider, "m.pt", "")


def test_the_background_of_0_10_is_todays() -> None:
    """Weights of 0.10 have a lambda where a transform has a name now."""

    def recipe(background: dict[str, str]) -> dict[str, Any]:
        return {"transforms": {"values": {"background": background}}}

    before = {
        "_target_": "Lambdad",
        "keys": "image",
        "func": "$lambda image: torch.nan_to_num(image) * (image[:1] > 0)",
    }
    today = recipe({"_target_": "scripts.transforms.ZeroBackgroundd", "keys": "image"})
    assert same_recipe(recipe(before), today)
    assert not same_recipe(recipe(before | {"func": "$lambda image: image * (image[:1] > 0)"}), today)
