"""Every value at the top of train.yaml, changed: in training, evaluation, inference, several processes and a study.

And wrong ones, at random: each run ends well or with one line that says what is wrong (`make test-slow`).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from conftest import BUNDLE
from monai.bundle import ConfigWorkflow
from processes import NO_NETWORK

from scripts.data.layout import find_cases
from scripts.io.volumes import read_volume
from scripts.runtime.errors import first_cause, user_error

CONFIGS = BUNDLE / "configs"
TINY: dict[str, Any] = {
    "spatial_size": [24, 24, 16], "features": [2, 4, 6, 8], "num_workers": 0, "batch_size": 2, "epochs": 1,
    "device": "cpu", "loss_name": "dice",
}  # fmt: skip
# another value of each key, that works everywhere; FOLDER is a test's own
CHANGED: dict[str, Any] = {
    "amp": False, "anonymise_ids": "FOLDER/key", "augmentation_probability": 1.0,
    "batch_size": 6, "bundle_root": str(BUNDLE), "cache_rate": 0.5, "ckpt_dir": "FOLDER/weights", "clip_norm": 0.5,
    "cudnn_benchmark": False, "data_on": "host", "datalist": "FOLDER/list.json",
    "dataset_dir": "FOLDER/data", "device": "cpu",
    "dropout": [0, 0, 0, 0.5], "epochs": 2, "features": [2, 4, 4, 6], "fold": 0, "num_folds": 2, "in_channels": 2,
    "init_weights": "FOLDER/start.pt", "inner_folds": 2, "input_size": [24, 24, 16], "l1_weight": 0.01,
    "label_mode": "trilinear", "learning_rate": 0.01, "limit_to_brain": True, "loading_timeout_s": 90,
    "loss": "$@losses['tversky']", "loss_name": "tversky", "lr_gamma": 0.5,
    "network": "$@network_def.to(@device)", "num_workers": 1, "on_nonfinite": "stop", "output_dir": "FOLDER/elsewhere",
    "overwrite": True, "patch_size": [24, 24, 16], "patience": 1, "patient_pattern": "(.+)-VISIT", "prior": None,
    "progress": False, "rank": 0, "resume": True, "sampler": "$torch.utils.data.SequentialSampler(@train#dataset)",
    "seed": 5, "smallest_lesion_mm3": 30, "spatial_size": [16, 32, 8], "test_site": None, "threshold": 0.3,
    "training_precision": "bfloat16", "val_interval": 2, "verbose": True, "z_evidence_level": 0.4,
    "z_evidence_weight": 0.5, "lesion_peak": 0.6, "weight_decay": 0.01,
}  # fmt: skip
NOT_OPTIONS = {"imports", "run", "loaded"}  # how the config is read and run
TOGETHER = [("fold", "num_folds"), ("epochs", "val_interval")]
ONE_VALUE = {"device", "in_channels", "rank", "bundle_root", "test_site"}  # no other works everywhere
# not with the others: other places, and sizes other than the test's weights' and than each other
APART = {
    "ckpt_dir", "output_dir", "dataset_dir", "datalist", "bundle_root", "network", "init_weights", "input_size",
    "patch_size", "features", "spatial_size",
}  # fmt: skip
OTHER_FOR_A_STUDY = {"fold", "ckpt_dir", "resume", "overwrite", "inner_folds"}  # the study's own to decide


def _options(*, of: str) -> dict[str, Any]:
    config = yaml.safe_load((CONFIGS / f"{of}.yaml").read_text())
    sections = {key for key, value in config.items() if isinstance(value, dict)}
    lists = {key for key, of_it in config.items() if isinstance(of_it, list) and isinstance([*of_it, 0][0], dict | str)}
    return {k: v for k, v in config.items() if k not in sections | lists | NOT_OPTIONS | {"initialize", "finalize"}}


def _in(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    return {k: v.replace("FOLDER", str(folder)) if isinstance(v, str) else v for k, v in options.items()}


def _changes() -> dict[str, dict[str, Any]]:
    """By name; keys that need each other are changed together."""
    keys = sorted(_options(of="train"))
    groups = [next((group for group in TOGETHER if key in group), (key,)) for key in keys]
    return {"+".join(group): {key: CHANGED[key] for key in group} for group in groups}


def run(id: str, names: tuple[str, ...], options: dict[str, Any]) -> None:
    workflow = ConfigWorkflow(
        [str(CONFIGS / f"{name}.yaml") for name in names], workflow_type=None, run_id=id, logging_file=False, **options
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


@pytest.fixture(scope="module")
def start(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that say nothing of their recipe."""
    import torch

    folder = tmp_path_factory.mktemp("start")
    run("training", ("train",), {**TINY, **_places(folder, tiny_cohort)})
    weights = torch.load(folder / "models" / "model.pt", weights_only=True)
    torch.save({"model": weights["model"]}, folder / "start.pt")
    return folder / "start.pt"


@pytest.fixture
def folder(tiny_cohort: Path, start: Path, tmp_path: Path) -> Path:
    """What the values above speak of."""
    shutil.copytree(tiny_cohort, tmp_path / "data")
    shutil.copy(start, tmp_path / "start.pt")
    lists = {"training": ("train",), "validation": ("val",), "test": ("test",)}
    items = {key: [case.item() for case in find_cases(tiny_cohort) if case.split in of] for key, of in lists.items()}
    (tmp_path / "list.json").write_text(json.dumps(items))
    return tmp_path


def _places(folder: Path, data: Path) -> dict[str, Any]:
    return {"dataset_dir": str(data), "output_dir": str(folder / "eval"), "ckpt_dir": str(folder / "models")}


def _predicting(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    known = _options(of="inference").keys()
    weights = str(Path(options["ckpt_dir"]) / "model.pt")
    chosen = {name: value for name, value in options.items() if name in known}
    return {**chosen, "output_dir": str(folder / "masks"), "ckpt_path": weights, "split": "test"}


def test_every_key_has_another_value() -> None:
    assert CHANGED.keys() == _options(of="train").keys() | {"num_workers"}  # a section: chosen by the device
    for name, value in _options(of="train").items():
        if name not in ONE_VALUE:
            assert CHANGED[name] != value


def test_all_of_them_at_once_in_training_evaluation_and_inference(folder: Path, tiny_cohort: Path) -> None:
    """Each by itself in the slow test; that they are taken at all, here."""
    changed = {key: value for key, value in CHANGED.items() if key not in APART}
    options = {**TINY, **_places(folder, tiny_cohort), **_in(folder, changed)}
    _everywhere(options, folder)


def _everywhere(options: dict[str, Any], folder: Path) -> None:
    run("training", ("train",), options)
    for places in (options["ckpt_dir"], options["output_dir"]):
        assert Path(places).is_dir()
    run("evaluating", ("train", "evaluate"), options)
    assert (Path(options["output_dir"]) / "report.html").is_file()
    run("run", ("inference",), _predicting(options, folder))
    assert len(list((folder / "masks").glob("*_lesion.nii.gz"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", [*_changes(), "num_workers"])
def test_each_in_training_evaluation_and_inference(name: str, folder: Path, tiny_cohort: Path) -> None:
    changed = _changes().get(name) or {name: CHANGED[name]}
    _everywhere({**TINY, **_places(folder, tiny_cohort), **_in(folder, changed)}, folder)


MANY = """
import itertools, json, os, sys, time, traceback; sys.path[:0] = sys.argv[1:3]
from torch import distributed
from test_every_option import run
# torchrun's store still has the addresses of the group before: each gets one of its own
join, number = distributed.init_process_group, itertools.count()
distributed.init_process_group = lambda backend, timeout: join(
    backend, init_method=f"file://{sys.argv[3]}-{next(number)}", timeout=timeout,
    rank=int(os.environ["RANK"]), world_size=2)
failed = {}
for name, options in json.loads(open(sys.argv[3]).read()).items():
    print(name, time.strftime("%X"), flush=True)
    try:
        run("training", ("train", "multi_gpu_train"), options)
        run("evaluating", ("train", "evaluate", "multi_gpu_evaluate"), options)
    except Exception:
        failed[name] = traceback.format_exc()[-3000:]
        break  # the processes are no longer in step
if failed:
    print("FAILED", failed, file=sys.stderr)
    os._exit(1)
"""


@pytest.mark.slow
def test_each_in_several_processes(folder: Path, tiny_cohort: Path) -> None:
    of_each = {}
    for name, changed in {**_changes(), "num_workers": {"num_workers": CHANGED["num_workers"]}}.items():
        if name != "rank":  # each process has its own
            own = folder / name
            of_each[name] = {**TINY, **_places(own, tiny_cohort), **_in(folder, changed)}
    (folder / "many.py").write_text(MANY)
    (folder / "options.json").write_text(json.dumps(of_each))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = f"{NO_NETWORK}{os.pathsep}{BUNDLE}"
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(folder / "many.py"),
         str(BUNDLE), str(Path(__file__).parents[1]), str(folder / "options.json")],
        env=environment, capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-200:] + result.stderr[-6000:]
    for options in of_each.values():
        assert (Path(options["output_dir"]) / "metrics.csv").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all others", *sorted(APART - OTHER_FOR_A_STUDY)])
def test_each_in_a_study(name: str, folder: Path, tiny_cohort: Path) -> None:
    """A study starts processes: what goes together is one."""
    together = {key: value for key, value in CHANGED.items() if key not in APART | OTHER_FOR_A_STUDY}
    changed = {name: CHANGED[name]} if name in CHANGED else together
    places = _places(folder, tiny_cohort)
    del places["ckpt_dir"]
    options = {**TINY, **places, **_in(folder, changed), "compare": "dice", "threads": 2}
    run("run", ("train", "study"), options)
    assert (Path(options["output_dir"]) / "study.html").is_file()


WRONG: list[Any] = [
    -1, 0, 1.5, 1e30, 3, float("nan"), float("inf"), True, False, None, "", "x", "nan", "None", "1", "../..", "é\n",
    "/nowhere/at/all", [], [1], [0, 0, 0], [1, 2, 3], [-1, 2, "x"], [[1]], {}, {"a": 1}, "$1/0", "$(", "@nothing",
    "%nothing", "$None", "$[]", "a" * 5000,
]  # fmt: skip
MAY_FAIL_AS_CODE = ("$", "@", "%")  # what a user writes as an expression fails as one


@pytest.mark.slow
def test_wrong_values_are_one_line_or_do_no_harm(
    folder: Path, tiny_cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 draws of one or two keys and values, in the workflow that is drawn too."""
    monkeypatch.chdir(folder)
    cases = find_cases(tiny_cohort)
    draw = random.Random(0)
    run("training", ("train",), {**TINY, **_places(folder, tiny_cohort)})
    keys = sorted({*_options(of="train"), "num_workers"} - {"bundle_root", "network"})
    bad, outcomes = [], {"ran": 0, "refused": 0, "failed as code": 0}
    for number in range(500):
        wrong = {draw.choice(keys): draw.choice(WRONG) for _ in range(draw.choice([1, 1, 2]))}
        workflow = draw.choice(["training", "evaluating", "inference"])
        out = folder / "runs" / str(number)
        options = {**TINY, **_places(out, tiny_cohort)}
        if workflow != "training":
            options["ckpt_dir"] = str(folder / "models")
        options |= wrong
        begun = time.monotonic()
        try:
            if workflow == "training":
                run("training", ("train",), options)
            elif workflow == "evaluating":
                run("evaluating", ("train", "evaluate"), options)
            else:
                weights = {"ckpt_path": str(folder / "models" / "model.pt"), "split": "test"}
                known = _options(of="inference").keys()
                run("run", ("inference",), {**{k: v for k, v in options.items() if k in known}, **weights})
            outcomes["ran"] += 1
        except Exception as error:
            if user_error(error) is not None:
                outcomes["refused"] += 1
            elif any(isinstance(value, str) and value[:1] in MAY_FAIL_AS_CODE for value in wrong.values()):
                outcomes["failed as code"] += 1
            else:
                bad.append((workflow, wrong, repr(first_cause(error))[:300]))
        assert time.monotonic() - begun < 60, (workflow, wrong)
        for mask in out.rglob("*_lesion.nii.gz"):
            image = nibabel.load(mask)
            of = [case for case in cases if mask.name == f"{case.case}_lesion.nii.gz"] or cases  # any, under other ids
            grids = [read_volume(str(case.adc)) for case in of]
            assert any(image.shape == g.array.shape and np.allclose(image.affine, g.affine, atol=1e-3) for g in grids)
        shutil.rmtree(out, ignore_errors=True)
    print(outcomes)
    assert bad == [], "\n".join(map(str, bad))
