"""What docs/extending.md shows works as it stands there, on a copy of the bundle."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BUNDLE
from monai.bundle import ConfigWorkflow
from monai.transforms import Compose, EnsureChannelFirstd

from scripts.data.layout import find_cases
from scripts.runtime.errors import UserError
from scripts.study.variants import read_variants, rehearse, variant_configs
from scripts.transforms import AppendMapd, LoadMapsd

PAGE = (BUNDLE / "docs" / "extending.md").read_text()
BLOCKS = {name: text for _, name, text in re.findall(r"```(yaml|python)\n# (\S+)\n(.*?)```", PAGE, re.S)}
EXTENDED = ["loss", "my_loss", "network", "channel", "acquired", "patches"]

PROGRAM = """
import json, sys
from pathlib import Path
from monai.bundle import ConfigWorkflow

bundle, cohort, out, names = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:]
tiny = dict(spatial_size=[24, 24, 16], features=[2, 4, 6, 8], num_workers=0, device="cpu", dataset_dir=cohort)

def run(kind, *files, **options):
    configs = [str(bundle / "configs" / f"{file}.yaml") for file in files]
    workflow = ConfigWorkflow(configs, workflow_type=kind, logging_file=False, **{**tiny, **options})
    workflow.initialize()
    workflow.run()
    return workflow

for name in names:
    folders = dict(ckpt_dir=str(out / name), output_dir=str(out / name))
    training = run("train", "train", name, epochs=1, batch_size=2, **folders)
    run("train", "train", "evaluate", name, split="val", **folders)
    masks = dict(ckpt_path=str(out / name / "model.pt"), output_dir=str(out / name / "masks"))
    run("infer", "inference", *([name] if "loss" not in name else []), split="val", **masks)
    get = training.parser.get_parsed_content
    print(name, json.dumps([type(get("loss")).__name__, type(get("network")).__name__, get("in_channels")]))
"""


def test_every_block_is_known() -> None:
    assert set(BLOCKS) == {
        "loss.yaml", "my_losses.py", "my_loss.yaml", "my_study.yaml", "network.yaml", "channel.yaml", "acquired.yaml",
        "patches.yaml", "metrics.py", "layout.py",
    }  # fmt: skip


@pytest.fixture(scope="module")
def extended(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list]]:
    """A copy of the bundle with every block in its place, used in every workflow; and what each run was made of."""
    folder = tmp_path_factory.mktemp("extended")
    bundle = folder / "hie_bundle"
    shutil.copytree(BUNDLE, bundle, ignore=shutil.ignore_patterns("models", "eval", "__pycache__"))
    for name, text in BLOCKS.items():
        if name.endswith(".yaml"):
            (bundle / "configs" / name).write_text(text.replace("/home/me/losses", str(folder)))
    (folder / "my_losses.py").write_text(BLOCKS["my_losses.py"])
    cohort = folder / "cohort"
    shutil.copytree(tiny_cohort, cohort)
    for adc in cohort.rglob("*-ADC_ss.mha"):
        b1000 = adc.parents[1] / "4B1000_ss" / adc.name.replace("-ADC_ss", "-B1000_ss")
        b1000.parent.mkdir(exist_ok=True)
        shutil.copy(adc, b1000)
    with (bundle / "scripts" / "evaluation" / "metrics.py").open("a") as module:
        module.write("\n\n" + BLOCKS["metrics.py"])
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, bundle, cohort, folder, *EXTENDED],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = (line.split(" ", 1) for line in result.stdout.splitlines() if line.split(" [")[0] in EXTENDED)
    return folder, {name: json.loads(rest) for name, rest in lines}


def test_each_reaches_training_evaluation_and_inference(extended: tuple[Path, dict[str, list]]) -> None:
    folder, made = extended
    paper = ["CompoundLoss", "HIEUNet", 2]
    assert made == {
        "loss": ["DiceCELoss", *paper[1:]],
        "my_loss": ["LogCoshDice", *paper[1:]],
        "network": [paper[0], "SegResNet", 2],
        "channel": [*paper[:2], 3],
        "acquired": [*paper[:2], 3],
        "patches": paper,
    }
    for name in made:
        assert len(list((folder / name / "masks").glob("*_lesion.nii.gz"))) == 2


def test_an_acquired_channel_that_is_not_there_or_elsewhere_is_refused(tiny_cohort: Path, tmp_path: Path) -> None:
    (adc,) = list(tiny_cohort.rglob("*_008-*-ADC_ss.mha"))
    other = next(path for path in tiny_cohort.rglob("*-ADC_ss.mha") if path != adc)
    item = {"image": [str(adc), str(next(adc.parents[1].glob("2Z_ADC/*_008-*")))]}
    image = Compose([LoadMapsd("image"), EnsureChannelFirstd("image")])(item)
    assert AppendMapd("image", {"1ADC_ss": "1ADC_ss/../1ADC_ss"})(image)["image"].shape[0] == 3
    for replace, message in (
        ({"-ADC_ss": "-B1000_ss"}, "B1000_ss.mha is missing"),
        ({"4DWI": "1ADC_ss"}, "has no 4DWI to replace"),
        ({str(adc): str(other)}, "is not on the grid of"),
    ):
        with pytest.raises(UserError, match=message):
            AppendMapd("image", replace).change(image["image"])


def test_a_layout_of_other_names_is_found(tiny_cohort: Path, tmp_path: Path) -> None:
    bundle, own = tmp_path / "hie_bundle", tmp_path / "own"
    shutil.copytree(BUNDLE / "scripts", bundle / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    with (bundle / "scripts" / "data" / "layout.py").open("a") as module:
        module.write("\n\n" + BLOCKS["layout.py"])
    for case in find_cases(tiny_cohort):
        for part, file in (("adc", case.adc), ("zadc", case.zadc), ("mask", case.label)):
            target = own / str(case.split) / f"sub-{case.case[8:11]}_{part}.mha"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file), target)
    program = "import sys; sys.path.insert(0, sys.argv[1])\nfrom scripts.data import datalist\n"
    program += "print([item['case'] for item in datalist(sys.argv[2], 'test') if len(item['image']) == 2])"
    command = [sys.executable, "-c", program, str(bundle), str(own)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "['sub-008', 'sub-009', 'sub-010']", result.stderr


def test_a_study_compares_it_with_the_six(tmp_path: Path) -> None:
    for name in ("my_losses.py", "my_loss.yaml", "my_study.yaml"):
        (tmp_path / name).write_text(BLOCKS[name].replace("/home/me/losses", str(tmp_path)))
    bundled = [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", "study")]
    workflow = ConfigWorkflow(
        [*bundled, str(tmp_path / "my_loss.yaml"), str(tmp_path / "my_study.yaml")], workflow_type="train",
        logging_file=False, features=[2, 4, 6, 8], dataset_dir=str(tmp_path), output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    workflow.initialize()
    config = {key: value for key, value in workflow.parser.get().items() if key != "_meta_"}
    made = []
    for variant in read_variants(config["variants"]):
        training, _ = variant_configs(config, variant, str(BUNDLE / "configs" / "evaluate.yaml"))
        rehearse(training, variant)
        made.append(type(training.get_parsed_content("loss")).__name__)
    assert made[-1] == "LogCoshDice"
    assert len(made) == 7


def test_a_measure_is_in_every_table_and_on_the_page(extended: tuple[Path, dict[str, list]]) -> None:
    folder, made = extended
    for name in made:
        rows = list(csv.DictReader((folder / name / "metrics.csv").open()))
        assert {"native_jaccard", "resampled_jaccard"} <= rows[0].keys()
        for row in rows:
            dice = float(row["native_dice"])
            assert float(row["native_jaccard"]) == pytest.approx(dice / (2 - dice))
        assert "Jaccard" in (folder / name / "report.html").read_text()
