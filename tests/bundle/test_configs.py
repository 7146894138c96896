"""The configs as a whole: what tools rely on, and the commands that users type, each in a process of its own."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from conftest import BUNDLE, ROOT, TINY, as_checked
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.transforms import Invertd, LoadImaged, SaveImaged
from monai.transforms.traits import RandomizableTrait

from scripts.evaluation import metrics
from scripts.runtime.recipe import recipe_of
from scripts.transforms.loading import LoadMapsd
from scripts.transforms.masks import SaveMaskd

CONFIGS = BUNDLE / "configs"
TRAIN, EVALUATE, INFER = (str(CONFIGS / f"{name}.yaml") for name in ("train", "evaluate", "inference"))


def _parser(*files: str, **overrides: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(list(files))
    parser.update(overrides)
    return parser


# --- what tools rely on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "kind"), [(TRAIN, "train"), (INFER, "infer")])
def test_no_property_is_missing_even_without_data(
    config: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))  # and not the bundle's folder: the config finds that itself
    workflow = ConfigWorkflow(config, workflow_type=kind, dataset_dir=str(tmp_path), output_dir=str(tmp_path / "out"))
    workflow.initialize()
    assert workflow.check_properties() == []
    assert Path(workflow.bundle_root) == BUNDLE


PROMISED = {
    TRAIN: """bundle_root dataset_dir output_dir ckpt_dir device seed amp epochs batch_size num_workers val_interval
        spatial_size loss_name learning_rate weight_decay lr_gamma l1_weight clip_norm patience features dropout
        network_def network loss optimizer
        train#preprocessing train#dataset train#dataloader train#inferer train#postprocessing train#handlers
        train#key_metric train#trainer
        validate#preprocessing validate#dataset validate#dataloader validate#inferer validate#postprocessing
        validate#handlers validate#key_metric validate#evaluator""",
    INFER: "bundle_root device network_def preprocessing postprocessing inferer dataset dataloader handlers evaluator",
}


@pytest.mark.parametrize("config", PROMISED)
def test_keys_that_the_project_promises(config: str) -> None:
    parser = _parser(config)
    assert [name for name in PROMISED[config].split() if name not in parser] == []


def test_values_are_the_papers() -> None:
    parser = _parser(TRAIN)
    expected = {
        "epochs": 100, "batch_size": 4, "patience": 10, "learning_rate": 1e-3, "weight_decay": 1e-3, "lr_gamma": 0.9,
        "l1_weight": 1e-4, "clip_norm": 1.0, "spatial_size": [192, 192, 32], "val_interval": 1,
        "loss_name": "tversky_hausdorff", "augmentation_probability": 0.5,
    }  # fmt: skip
    assert {name: parser[name] for name in expected} == expected
    transforms = parser.get_parsed_content("augment#paper").transform.transforms
    assert [type(t).__name__ for t in transforms] == [
        "RandomNoise", "FastAnisotropy", "FastBlur", "RandomGamma", "FastElasticDeformation",
    ]  # fmt: skip
    noise, anisotropy, blur, gamma, elastic = transforms
    assert elastic.num_control_points == (7, 7, 7)
    assert elastic.max_displacement == (7.5, 7.5, 7.5)
    assert [t.probability for t in transforms] == [0.5] * 5
    assert noise.mean_range == (0.0, 0.0)
    assert noise.std_range == (0, 0.01)
    assert anisotropy.downsampling_range == (1.2, 2.0)
    assert blur.std_ranges == (0.0, 0.5) * 3
    assert gamma.log_gamma_range == (-0.1, 0.1)


def test_form_that_monai_label_reads() -> None:
    """Section by section what its bundle app takes by name, and what breaks it."""
    train, inference = _parser(TRAIN), _parser(INFER)
    for name in ("train#dataset", "train#trainer", "validate#dataset", "network_def"):
        assert isinstance(train[name], dict)
    assert isinstance(train["train#handlers"], list)
    assert all(isinstance(handler, dict) for handler in train["train#handlers"])
    assert train["train#trainer#train_handlers"] == "@train#handlers"
    assert "data" in train["train#dataset"]
    assert "max_epochs" in train["train#trainer"]
    assert "network" in train
    steps = inference.get_parsed_content("preprocessing").transforms
    names = [type(step).__name__ for step in steps]
    assert names[:2] == ["LoadMapsd", "EnsureChannelFirstd"]
    assert steps[0].keys == ("image",)  # its place is taken by a loader that fails on a missing key
    assert issubclass(LoadMapsd, LoadImaged)  # by which it is known there
    assert steps[1].adjuster.input_channel_dim is None
    assert not {"Spacingd", "SelectItemsd"} & set(names)
    last = [type(step).__name__ for step in inference.get_parsed_content("postprocessing").transforms]
    assert last == [
        "Activationsd",
        "Invertd",
        "AddZEvidenced",
        "ThresholdLesionsd",
        "LimitToBraind",
        "RemoveSmallLesionsd",
        "CastToTyped",
        "SaveMaskd",
    ]
    assert issubclass(SaveMaskd, SaveImaged)  # which is taken out there
    assert "@device.type" not in Path(TRAIN).read_text() + Path(INFER).read_text()
    channels = json.loads((CONFIGS / "metadata.json").read_text())["network_data_format"]["outputs"]["pred"][
        "channel_def"
    ]
    assert channels == {"0": "background", "1": "lesion"}


def test_device_may_be_a_string(tmp_path: Path) -> None:
    parser = _parser(TRAIN, device="cpu", dataset_dir=str(tmp_path), output_dir=str(tmp_path), ckpt_dir=str(tmp_path))
    assert parser.get_parsed_content("train#trainer").amp is False


def test_the_recipe_is_the_same_in_training_and_inference() -> None:
    """MONAI Label and the Model Zoo read each file alone, so it stands in both."""
    blocks = [re.findall(r"^# --- the recipe:.*^# --- end of the recipe", Path(file).read_text(), re.M | re.S)
              for file in (TRAIN, INFER)]  # fmt: skip
    assert len(blocks[0]) == 1
    assert blocks[0] == blocks[1]
    ours, theirs = (recipe_of(_parser(file)) for file in (TRAIN, INFER))
    assert ours == theirs
    assert ours["spatial_size"] == [192, 192, 32]


@pytest.mark.parametrize(
    ("mixins", "runs"),
    [
        ([], "training"),
        (["demo"], "training"),
        (["multi_gpu_train"], "training"),
        (["evaluate"], "evaluating"),
        (["evaluate", "demo"], "evaluating"),
        (["evaluate", "multi_gpu_evaluate"], "evaluating"),
        (["study"], "loss_study"),
        (["study", "demo"], "loss_study"),
        (["study", "study_weights"], "loss_study"),
        (["study", "study_losses_extended"], "loss_study"),
        (["study", "study_networks"], "loss_study"),
        (["strong", "strong_cpu", "study", "study_recipes"], "loss_study"),
        *(
            (["network_" + name], "training")
            for name in ("segresnet", "dynunet", "swinunetr", "mednext", "attentionunet")
        ),
        (["strong"], "training"),
        (["strong", "strong_cpu"], "training"),
        (["strong", "strong_cpu", "pretrain"], "pretraining"),
        (["strong", "strong_cpu", "fine_tune"], "training"),
        (["strong", "strong_cpu", "soft_labels"], "training"),
        (["evaluate", "strong", "strong_cpu"], "evaluating"),
        (["study", "strong", "strong_cpu"], "loss_study"),
    ],
)
def test_plain_run_does_what_the_files_name_says(mixins: list[str], runs: str) -> None:
    assert _parser(TRAIN, *(str(CONFIGS / f"{name}.yaml") for name in mixins))["run"] == f"$@{runs}"


def test_every_mixin_on_train_yaml_is_in_that_table() -> None:
    (marks,) = [m for m in test_plain_run_does_what_the_files_name_says.pytestmark if m.name == "parametrize"]  # type: ignore[attr-defined]
    tried = {name for mixins, _ in marks.args[1] for name in mixins}
    apart = {  # no mixins on train.yaml
        "train", "inference", "inference_openvino", "segment", "data", "scanner", "tracking_mlflow", "tracking_wandb",
    }  # fmt: skip
    assert {path.stem for path in CONFIGS.glob("*.yaml")} - apart == tried


def test_a_training_beside_evaluate_yaml_stays_the_training() -> None:
    """Validation neither reloads weights nor sees the cases that --split names."""
    alone, beside = _parser(TRAIN), _parser(TRAIN, EVALUATE, split="test")
    for name in ("training", "train", "validate", "initialize", "network"):
        assert beside[name] == alone[name]


def test_what_every_file_must_say_itself_is_the_same_in_all() -> None:
    rest = (str(CONFIGS / f"{name}.yaml") for name in ("data", "scanner"))
    train, inference, data, scanner = (_parser(file) for file in (TRAIN, INFER, *rest))
    for name in ("bundle_root", "limits"):
        assert train[name] == inference[name] == data[name]
    assert train["bundle_root"] == scanner["bundle_root"]
    assert train["network"] == inference["network"]


def test_only_deterministic_transforms_are_cached() -> None:
    parser = _parser(TRAIN)
    for stage in parser.get_parsed_content("transforms").values():
        assert not any(isinstance(t, RandomizableTrait) for t in stage.values())
    assert all(isinstance(t, RandomizableTrait) for t in parser.get_parsed_content("augment").values())


def test_one_set_of_limits_reaches_what_checks_and_what_loads() -> None:
    for file in (TRAIN, INFER):
        parser = _parser(file, **{"limits#zadc_limit": 7.0})
        assert parser.get_parsed_content("transforms")["load"]["maps"].limits.zadc_limit == 7.0
        assert parser.get_parsed_content("limits").zadc_limit == 7.0


def test_lists_are_never_referred_to_by_position_nor_blocks_copied() -> None:
    for file in CONFIGS.glob("*.yaml"):
        text = re.sub(r"#.*", "", "\n".join(line for line in file.read_text().splitlines() if not line.startswith("#")))
        assert not re.search(r"[@%][\w:]*::\d", file.read_text()), file
        assert not re.search(r"[@%]\w+(?:#\w+)*#\d", file.read_text()), file
        assert "%" not in text, file


# --- geometry -----------------------------------------------------------------------------------------------------

DIRECTIONS = {
    "identity": np.eye(3),
    "flipped": np.diag([-1.0, 1.0, -1.0]),
    "permuted": np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]),
    "oblique": np.array([[0.9363, -0.2751, 0.2184], [0.2896, 0.9564, -0.0370], [-0.1987, 0.0978, 0.9752]]),
}


def _write_case(folder: Path, direction: np.ndarray, shape: tuple[int, int, int], extension: str) -> tuple[dict, Any]:
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    label = ((grid - np.array([0.2, -0.1, 0.1])[:, None, None, None]) ** 2).sum(0) < 0.25
    rng = np.random.default_rng(0)
    values = {"adc": 1000 + 100 * rng.random(shape), "zadc": rng.normal(size=shape), "label": label.astype(np.uint8)}
    paths = {}
    for name, array in values.items():
        array = array if name == "label" else array.astype(np.float32)
        image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
        image.SetSpacing((1.3, 1.1, 3.7))
        image.SetOrigin((12.5, -80.0, 33.0))
        u, _, v = np.linalg.svd(direction)
        image.SetDirection((u @ v).flatten().tolist())
        paths[name] = str(folder / f"{name}{extension}")
        SimpleITK.WriteImage(image, paths[name])
    as_checked(paths["adc"], paths["zadc"])
    return {"image": [paths["adc"], paths["zadc"]], "label": paths["label"]}, label


@pytest.mark.parametrize("extension", [".mha", ".nii.gz"])
@pytest.mark.parametrize("shape", [(61, 47, 19), (40, 64, 33)])
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_resampling_and_inversion_bring_a_mask_back(
    direction: np.ndarray, shape: tuple[int, int, int], extension: str, tmp_path: Path
) -> None:
    item, label = _write_case(tmp_path, direction, shape, extension)
    preprocessing = _parser(TRAIN, spatial_size=[64, 64, 32]).get_parsed_content("validate#preprocessing")
    data = preprocessing(item)
    assert data["image"].shape == (2, 64, 64, 32)
    assert data["label"].shape == (1, 64, 64, 32)
    assert set(np.unique(data["label"])) == {0.0, 1.0}
    assert [float(m) for m in data["image"].mean((1, 2, 3))] == pytest.approx([0, 0], abs=1e-4)
    assert [float(s) for s in data["image"].std((1, 2, 3))] == pytest.approx([1, 1], abs=1e-3)
    # the resampled grid spans the same box in space
    sizes = np.array(data["image"].shape[1:]) * data["image"].pixdim.numpy()
    assert np.sort(sizes) == pytest.approx(np.sort(np.array(shape) * (1.3, 1.1, 3.7)), rel=1e-4)
    data["pred"] = data["label"].clone()
    back = Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)(data)
    mask = back["pred"][0].numpy() > 0.5
    assert mask.shape == shape
    assert 2 * (mask & label).sum() / (mask.sum() + label.sum()) > 0.95

    options = {"output_dir": str(tmp_path / "out"), "output_ext": extension}
    save = _parser(INFER, **options).get_parsed_content("save")["mask"]
    save({"pred": (back["pred"] > 0.5).to(torch.uint8)})
    (file,) = (tmp_path / "out").iterdir()
    saved, truth = SimpleITK.ReadImage(str(file)), SimpleITK.ReadImage(item["label"])
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(saved).transpose(2, 1, 0), mask)
    for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(saved, get)() == pytest.approx(getattr(truth, get)(), abs=1e-4)


def test_a_stacked_file_gives_the_same_image_as_two_files(tmp_path: Path) -> None:
    item, _ = _write_case(tmp_path, DIRECTIONS["flipped"], (31, 29, 17), ".nii.gz")
    first = nibabel.load(item["image"][0])
    stacked = np.stack([np.asarray(nibabel.load(path).dataobj) for path in item["image"]], axis=-1)
    nibabel.save(nibabel.Nifti1Image(stacked, first.affine), tmp_path / "case.nii.gz")
    as_checked(tmp_path / "case.nii.gz")
    preprocessing = _parser(INFER, spatial_size=[32, 32, 16]).get_parsed_content("preprocessing")
    two, one = (preprocessing({"image": image})["image"] for image in (item["image"], str(tmp_path / "case.nii.gz")))
    torch.testing.assert_close(one.as_tensor(), two.as_tensor())
    torch.testing.assert_close(one.affine, two.affine)


# --- the commands -------------------------------------------------------------------------------------------------

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def trained(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of two epochs on the tiny cohort, trained from the repository root."""
    folder = tmp_path_factory.mktemp("trained")
    workflow = ConfigWorkflow(
        TRAIN,
        workflow_type="train",
        run_id="training",
        dataset_dir=str(tiny_cohort),
        output_dir=str(folder / "eval"),
        ckpt_dir=str(folder / "models"),
        epochs=2,
        **{name: eval(value) for name, value in TINY.items()},
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return folder


@pytest.mark.parametrize("where", ["root", "bundle", "elsewhere"])
def test_training_command_from_anywhere(
    where: str, tiny_cohort: Path, tmp_path: Path, monai_bundle: Run, trained: Path
) -> None:
    # a package of the same name where the user happens to be must not get in the way
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "__init__.py").touch()
    cwd, config = {
        "root": (ROOT, "hie_bundle/configs/train.yaml"),
        "bundle": (BUNDLE, "configs/train.yaml"),
        "elsewhere": (tmp_path, TRAIN),
    }[where]
    result = monai_bundle(
        "run", "training", cwd=cwd, config_file=config, dataset_dir=tiny_cohort, output_dir=tmp_path / "eval",
        ckpt_dir=tmp_path / "models", epochs=2, **TINY,
    )  # fmt: skip
    # an epoch is a line, on the screen and in the run's log
    for text in (result.stdout, (tmp_path / "eval" / "training.log").read_text()):
        line = r"epoch %d/2: loss \d\.\d+, train_mean_dice \d\.\d+, val_mean_dice \d\.\d+, .*, lr 0\.0\d+, \d+\.\d s"
        assert [len(re.findall(line % epoch, text)) for epoch in (1, 2)] == [1, 1]
        assert "Iter" not in text
    # the same seed gives the same weights, in this process as in another
    ours = torch.load(tmp_path / "models" / "model.pt", weights_only=True)["model"]
    theirs = torch.load(trained / "models" / "model.pt", weights_only=True)["model"]
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert list((tmp_path / "eval" / "tensorboard").iterdir())


def test_the_seed_alone_decides_the_weights(tiny_cohort: Path, tmp_path: Path, trained: Path) -> None:
    weights = []
    for seed in (0, 1):
        workflow = ConfigWorkflow(
            TRAIN, workflow_type="train", run_id="training", dataset_dir=str(tiny_cohort), seed=seed, epochs=2,
            output_dir=str(tmp_path / f"{seed}"), ckpt_dir=str(tmp_path / f"{seed}"),
            **{name: eval(value) for name, value in TINY.items()},
        )  # fmt: skip
        workflow.initialize()
        workflow.run()
        weights.append(torch.load(tmp_path / f"{seed}" / "model.pt", weights_only=True)["model"])
    reference = torch.load(trained / "models" / "model.pt", weights_only=True)["model"]
    assert all(torch.equal(weights[0][name], value) for name, value in reference.items())
    assert not all(torch.equal(weights[1][name], value) for name, value in reference.items())


def test_a_resumed_training_ends_like_an_uninterrupted_one(tiny_cohort: Path, tmp_path: Path, trained: Path) -> None:
    for epochs, resume in ((1, False), (2, True)):
        workflow = ConfigWorkflow(
            TRAIN, workflow_type="train", run_id="training", dataset_dir=str(tiny_cohort), epochs=epochs, resume=resume,
            output_dir=str(tmp_path), ckpt_dir=str(tmp_path),
            **{name: eval(value) for name, value in TINY.items()},
        )  # fmt: skip
        workflow.initialize()
        workflow.run()
        assert workflow.trainer.state.iteration == 3 * epochs
    resumed = torch.load(tmp_path / "model.pt", weights_only=True)["model"]
    reference = torch.load(trained / "models" / "model.pt", weights_only=True)["model"]
    assert all(torch.equal(resumed[name], value) for name, value in reference.items())


def test_loss_is_the_same_quantity_in_the_log_and_in_tensorboard() -> None:
    """Without the L1 term in both, which stands beside it by its own name."""
    parser = _parser(TRAIN)
    shown = [handler for handler in parser["train#handlers"] if "output_transform" in handler]
    assert {"StatsHandler", "scripts.io.curves.CurvesHandler"} <= {handler["_target_"] for handler in shown}
    assert {handler["output_transform"] for handler in shown} == {"@train#curves"}
    step = {"loss": 1.5, "l1_penalty": 0.6, "grad_norm": 2.0}
    curves = parser.get_parsed_content("train#curves")([step])
    assert (curves["loss"], curves["l1_penalty"]) == (pytest.approx(0.9), 0.6)


def test_curves_that_tensorboard_shows(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "eval" / "tensorboard"))
    tags: dict[str, list] = {}
    for file in sorted((trained / "eval" / "tensorboard").iterdir()):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            tags.setdefault(tag, []).extend(events.Scalars(tag))
    assert {"loss", "l1_penalty", "learning_rate", "grad_norm", "train_mean_dice", "val_mean_dice"} <= set(tags)
    rates = [e.value for e in tags["learning_rate"]]
    assert rates == pytest.approx([1e-3] * 3 + [0.9e-3] * 3)  # 5 cases in batches of 2, two epochs
    assert all(e.value > 0 for e in tags["l1_penalty"])


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluating_command(split: str, tiny_cohort: Path, trained: Path, tmp_path: Path, monai_bundle: Run) -> None:
    monai_bundle(
        "run", "evaluating", config_file=f"['{TRAIN}','{EVALUATE}']", dataset_dir=tiny_cohort, split=split,
        output_dir=tmp_path, ckpt_dir=trained / "models", **TINY,
    )  # fmt: skip
    with (tmp_path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == {"val": 2, "test": 3}[split]
    folder = tiny_cohort / f"BONBID2023_{split.capitalize()}"
    for row in rows:
        zadc = SimpleITK.GetArrayFromImage(
            SimpleITK.ReadImage(str(folder / "2Z_ADC" / f"Zmap_{row['case']}-ADC_smooth2mm_clipped10.mha"))
        )
        label = SimpleITK.ReadImage(str(folder / "3LABEL" / f"{row['case']}_lesion.mha"))
        truth = SimpleITK.GetArrayFromImage(label) > 0
        baseline = zadc < -2
        total = baseline.sum() + truth.sum()
        expected = 1.0 if total == 0 else 2 * (baseline & truth).sum() / total
        assert float(row["baseline_dice"]) == pytest.approx(expected)
        assert float(row["lesion_ml"]) == pytest.approx(truth.sum() * np.prod(label.GetSpacing()) / 1000)
    table = (tmp_path / "comparison.txt").read_text().splitlines()
    assert any(line.split()[:2] == ["all", str(len(rows))] for line in table)
    assert len(list((tmp_path / "overlays").glob("*.png"))) == len(rows)
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert summary["metrics"]["baseline_dice"]["mean"] == pytest.approx(
        np.mean([float(row["baseline_dice"]) for row in rows])
    )


@pytest.mark.parametrize("extension", [".nii.gz", ".mha"])
def test_inference_command_writes_masks_on_the_maps_grid(
    extension: str, tiny_cohort: Path, trained: Path, tmp_path: Path, monai_bundle: Run
) -> None:
    data = tmp_path / "data"
    for kind in ("1ADC_ss", "2Z_ADC"):  # cases without labels
        shutil.copytree(tiny_cohort / "BONBID2023_Test" / kind, data / kind)
    monai_bundle(
        "run", cwd=tmp_path, config_file=INFER, dataset_dir=data, output_dir=tmp_path / "out", output_ext=extension,
        ckpt_path=trained / "models" / "model.pt", spatial_size=TINY["spatial_size"], features=TINY["features"],
    )  # fmt: skip
    maps = sorted((data / "1ADC_ss").iterdir())
    masks = sorted((tmp_path / "out").glob("*_lesion*"))
    assert [m.name for m in masks] == [p.name.replace("-ADC_ss.mha", f"_lesion{extension}") for p in maps]
    for path, mask_path in zip(maps, masks, strict=True):
        adc, mask = SimpleITK.ReadImage(str(path)), SimpleITK.ReadImage(str(mask_path))
        assert mask.GetPixelID() == SimpleITK.sitkUInt8
        assert mask.GetSize() == adc.GetSize()
        for get in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(mask, get)() == pytest.approx(getattr(adc, get)(), abs=1e-4)
        assert set(np.unique(SimpleITK.GetArrayFromImage(mask))) <= {0, 1}


def test_masks_equal_the_evaluated_ones(tiny_cohort: Path, trained: Path, tmp_path: Path, monai_bundle: Run) -> None:
    """Inference, by PyTorch and by OpenVINO, and evaluation are several configs: they must segment alike."""
    first = trained / "models" / "model.pt"
    weights = torch.load(first, weights_only=True)["model"]
    torch.save({"model": weights | {"output.bias": weights["output.bias"] + 0.3}}, tmp_path / "second.pt")
    ensemble = {"ckpt_path": f"['{first}','{tmp_path / 'second.pt'}']", "flips": "[0]", "threshold": 0.02}
    ensemble["smallest_lesion_mm3"] = 300
    for name, options in {
        "torch": {"config_file": INFER},
        "openvino": {"config_file": f"['{INFER}','{CONFIGS / 'inference_openvino.yaml'}']", "precision": "float32"},
    }.items():
        monai_bundle(
            "run", dataset_dir=tiny_cohort, split="test", output_dir=tmp_path / name, **options, **ensemble,
            spatial_size=TINY["spatial_size"], features=TINY["features"],
        )  # fmt: skip
    monai_bundle(
        "run", "evaluating", config_file=f"['{TRAIN}','{EVALUATE}']", dataset_dir=tiny_cohort, split="test",
        output_dir=tmp_path / "eval", **ensemble, **TINY,
    )  # fmt: skip
    with (tmp_path / "eval" / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3
    for row in rows:
        masks = {
            name: np.asarray(nibabel.load(tmp_path / name / f"{row['case']}_lesion.nii.gz").dataobj)
            for name in ("torch", "openvino", "eval/masks")
        }
        assert masks["torch"].any()
        np.testing.assert_array_equal(masks["torch"], masks["eval/masks"])
        assert metrics.dice(masks["torch"] > 0, masks["openvino"] > 0) >= 0.999
        assert {"member_1_dice", "member_2_dice"} <= row.keys()


# --- bad input ----------------------------------------------------------------------------------------------------


def test_empty_dataset_dir_says_how_to_get_data(tmp_path: Path, monai_bundle: Run) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, options in (
        (["run", "training"], {"config_file": TRAIN}),
        (["run", "evaluating"], {"config_file": f"['{TRAIN}','{EVALUATE}']"}),
        (["run"], {"config_file": INFER}),
    ):
        result = monai_bundle(
            *arguments, check=False, dataset_dir=tmp_path / "empty", output_dir=tmp_path / "out", **options
        )
        assert result.returncode == 1
        assert "run phantom" in result.stderr
        assert "run download" in result.stderr
        assert "Traceback" not in result.stderr


def test_unusable_cases_are_all_named_before_training(tiny_cohort: Path, tmp_path: Path, monai_bundle: Run) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_cohort, data)
    train = data / "BONBID2023_Train"
    adcs, labels = sorted((train / "1ADC_ss").iterdir()), sorted((train / "3LABEL").iterdir())
    labels[0].unlink()
    content = adcs[1].read_bytes()
    adcs[1].write_bytes(content[: len(content) // 2])
    image = SimpleITK.ReadImage(str(labels[2]))
    SimpleITK.WriteImage(image * 3, str(labels[2]))
    before = tmp_path / "models" / "model.pt"
    before.parent.mkdir()
    before.write_bytes(b"weights of an earlier run")
    result = monai_bundle(
        "run", "training", check=False, config_file=TRAIN, dataset_dir=data, output_dir=tmp_path / "eval",
        ckpt_dir=tmp_path / "models", epochs=1, **TINY,
    )  # fmt: skip
    assert result.returncode == 1
    message = result.stderr[result.stderr.rindex("error:") :]
    for path in (adcs[1], labels[2]):
        assert str(path) in message
    assert labels[0].name.split("_lesion")[0] in message
    assert "Epoch" not in result.stdout
    assert before.read_bytes() == b"weights of an earlier run"


def test_missing_checkpoint_and_unknown_loss_stop_with_one_message(
    tiny_cohort: Path, tmp_path: Path, monai_bundle: Run
) -> None:
    result = monai_bundle(
        "run", check=False, config_file=INFER, dataset_dir=tiny_cohort, output_dir=tmp_path / "out",
        ckpt_path=tmp_path / "absent.pt",
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: There is no checkpoint at {tmp_path / 'absent.pt'}")
    assert not (tmp_path / "out").exists()
    result = monai_bundle(
        "run", "training", check=False, config_file=TRAIN, dataset_dir=tiny_cohort, output_dir=tmp_path / "eval",
        ckpt_dir=tmp_path / "models", loss_name="dcie",
    )  # fmt: skip
    assert result.returncode == 1
    assert "choose one of: dice, dice_focal, tversky" in result.stderr.splitlines()[-1]


def test_configs_are_ascii() -> None:
    """MONAI opens them with the encoding of the locale, which may be ASCII or a code page."""
    for path in [*CONFIGS.glob("*.yaml"), *CONFIGS.glob("*.json")]:
        assert path.read_bytes().isascii(), path.name
