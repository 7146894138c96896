"""The study: what is compared, that nothing else differs, what happens when it is stopped, and its tables."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from conftest import BUNDLE, ROOT, TINY
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow
from processes import NO_NETWORK
from scipy import stats

from scripts import data
from scripts.runtime.errors import UserError
from scripts.study.command import _fitting, loss_study, rehearsed_configs
from scripts.study.jobs import Cluster, Job, Processes, exclusive, run_jobs
from scripts.study.results import collect
from scripts.study.runs import Run, find_cases, read_seeds
from scripts.study.study_page import cases_csv, markdown, study_csv, write_study
from scripts.study.study_page import tests_csv as paired_tests_csv
from scripts.study.variants import Variant, read_variants, rehearse, select, variant_configs

CONFIGS = BUNDLE / "configs"
TRAIN, STUDY, EVALUATE, WEIGHTS = (
    str(CONFIGS / f"{name}.yaml") for name in ("train", "study", "evaluate", "study_weights")
)
SETTINGS = {name: yaml.safe_load(value) for name, value in TINY.items()} | {"epochs": 2, "threshold": 0.02}
LOSSES = ("dice", "tversky_hausdorff")


def _config(*files: str, **overrides: Any) -> dict[str, Any]:
    parser = ConfigParser()
    parser.read_config(list(files))
    parser.update(overrides)
    return {key: value for key, value in parser.get().items() if key != "_meta_"}


def _shipped(*files: str) -> list[Variant]:
    return read_variants(_config(*files)["variants"])


# --- what is compared ---------------------------------------------------------------------------------------------


def test_the_six_losses_and_the_papers_table() -> None:
    printed = {  # Table 1 of the paper
        "dice": (0.3800, 15.0650, 0.3850, 32),
        "dice_focal": (0.4900, 1.7925, 0.5275, 49),
        "tversky": (0.3525, 15.3650, 0.3375, 38),
        "hausdorff": (0.3300, math.inf, 0.2800, 29),
        "dice_focal_hausdorff": (0.4925, 1.4225, 0.5300, 72),
        "tversky_hausdorff": (0.5000, 1.6250, 0.5325, 59),
    }
    variants = _shipped(TRAIN, STUDY)
    assert {v.name: tuple(v.published[k] for k in ("dice", "msd", "nsd", "epochs")) for v in variants} == printed
    assert [v.overrides for v in variants] == [{"loss_name": name} for name in printed]


def test_the_weights_are_the_papers_grid_and_reach_the_loss() -> None:
    config = _config(TRAIN, STUDY, WEIGHTS)
    variants = read_variants(config["variants"])
    found = set()
    for variant in variants:
        parser, _ = variant_configs(config, variant, EVALUATE)
        rehearse(parser, variant)
        loss = parser.get_parsed_content("loss")
        found.add((loss.region_weight, loss.boundary_weight))
    assert found == {(a / 10, b / 10) for a in range(5, 10) for b in range(1, 6)}
    assert len(variants) == 25


def test_the_extended_study_makes_each_loss_once() -> None:
    extended = str(CONFIGS / "study_losses_extended.yaml")
    config = _config(TRAIN, STUDY, extended)
    made = []
    for variant in read_variants(config["variants"]):
        parser, _ = variant_configs(config, variant, EVALUATE)
        rehearse(parser, variant)
        made.append((variant.name, type(parser.get_parsed_content("loss")).__name__))
    assert made == [
        ("tversky_hausdorff", "CompoundLoss"), ("dice_ce", "RankDiceCELoss"), ("generalized_dice", "TwoClassLoss"),
        ("unified_focal", "TwoClassLoss"), ("generalized_dice_boundary", "CompoundLoss"),
        ("component_dice", "ComponentDiceLoss"),
    ]  # fmt: skip


def test_each_recipe_of_the_ablation_gives_its_network_what_it_takes(tiny_cohort: Path) -> None:
    names = ("strong", "strong_cpu", "study", "study_recipes")
    config = _config(TRAIN, *(str(CONFIGS / f"{name}.yaml") for name in names), dataset_dir=str(tiny_cohort),
                     workflow=None, bundle_root=str(BUNDLE), features=[2, 4, 6, 8], inner_folds=None)  # fmt: skip
    seen = {}
    for variant in read_variants(config["variants"]):
        training, evaluation = variant_configs(config, variant, EVALUATE)
        rehearse(training, variant)
        assert training["transforms"] == evaluation["transforms"]
        training.get_parsed_content("imports")
        case = training.get_parsed_content("cases")(split="val")[0]
        image = training.get_parsed_content("validate#preprocessing")(case)["image"]
        assert image.shape[0] == training.get_parsed_content("in_channels")
        network = training.get_parsed_content("network_def").eval()  # which gives the full scale alone
        assert network(image[None].as_tensor()).shape[2:] == image.shape[1:]
        seen[variant.name] = image.shape[0]
    assert [name for name, channels in seen.items() if channels < 6] == ["no_mirror", "no_score", "no_depth"]


def test_variants_with_mixins_are_other_networks_in_training_and_evaluation() -> None:
    networks = str(CONFIGS / "study_networks.yaml")
    config = _config(TRAIN, STUDY, networks, features=[2, 4, 6, 8])
    made = {}
    for variant in read_variants(config["variants"]):
        training, evaluation = variant_configs(config, variant, EVALUATE)
        assert training["network_def"] == evaluation["network_def"]
        training["feature_size"] = 12
        rehearse(training, variant)
        made[variant.name] = type(training.get_parsed_content("network_def")).__name__
    assert made == {
        "hie_unet": "HIEUNet", "segresnet": "SegResNet", "dynunet": "DynUNet", "swinunetr": "SwinUNETR",
        "mednext": "MedNeXt", "attentionunet": "AttentionUnet",
    }  # fmt: skip


def test_a_variants_own_values_go_over_its_mixins_and_these_over_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("epochs: 7\nprior: 0.1\n+loaded: [extra]\n")
    config = _config(TRAIN, STUDY, epochs=3)
    entry = {"name": "mine", "mixins": [str(tmp_path / "mine.yaml")], "overrides": {"prior": 0.2}}
    (variant,) = read_variants([entry])
    for parser in variant_configs(config, variant, EVALUATE):
        assert (parser["epochs"], parser["prior"], parser["loaded"]) == (7, 0.2, ["image", "label", "extra"])
    assert config["loaded"] == ["image", "label"]
    (absent,) = read_variants([{"name": "mine", "mixins": ["absent.yaml"]}])
    with pytest.raises(UserError, match=r"no mixin absent\.yaml"):
        variant_configs(config, absent, EVALUATE)
    (tmp_path / "mine.yaml").write_text("+train#dataset#data: []\n")
    with pytest.raises(UserError, match="must be the same for all variants"):
        variant_configs(config, variant, EVALUATE)


@pytest.mark.parametrize("compare", ["tversky,dice", "tversky, dice", ("tversky", "dice"), ["dice", "tversky"]])
def test_variants_are_chosen_by_name(compare: Any) -> None:
    variants = _shipped(TRAIN, STUDY)
    assert [v.name for v in select(variants, compare)] == ["dice", "tversky"]
    assert select(variants, "all") == variants


@pytest.mark.parametrize("value", ["0,1,2", (0, 1, 2), [0, 1, 2], "0, 1, 2", ("0", "1", "2")])
def test_seeds_in_every_form_of_the_command_line(value: Any) -> None:
    assert read_seeds(value) == [0, 1, 2]
    assert read_seeds(7) == [7]


@pytest.mark.parametrize("value", ["0,a", -1, "0,0", 1.5, True, (), None, ""])
def test_other_seeds_are_refused(value: Any) -> None:
    with pytest.raises(UserError, match="--seeds"):
        read_seeds(value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "must be a list"),
        ([], "must be a list"),
        ([{"overrides": {}}], "variants#0#name: Field required"),
        ([{"name": "../up"}], "variants#0#name: String should match pattern"),
        ([{"name": "a"}, {"name": "A"}], "names occur twice: a"),
        ([{"name": "a"}, {"name": "b", "label": "A"}], "labels occur twice: a"),
        ([{"name": "a", "override": {}}], "variants#0#override: Unexpected keyword argument"),
        ([{"name": "a", "overrides": {"fold": 1}}], "sets fold"),
        ([{"name": "a", "overrides": {"train#dataset#data#seed": 1}}], "train#dataset#data must be the same"),
        ([{"name": "a", "published": {"jaccard": 1}}], "jaccard"),
    ],
)
def test_a_list_that_is_none(content: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        read_variants(content)


def test_mistakes_in_a_variant_are_named_before_anything_runs() -> None:
    def configs(**overrides: Any) -> None:
        rehearsed_configs(_config(TRAIN, STUDY, **SETTINGS), [Variant("odd", "odd", overrides, {})], EVALUATE)

    with pytest.raises(UserError, match=r"variant odd: learning_rat: .* did you mean learning_rate\?"):
        configs(learning_rat=0.1)
    with pytest.raises(UserError, match=r"variant odd: its loss cannot be created: loss_name 'dcie' is unknown"):
        configs(loss_name="dcie")
    with pytest.raises(UserError, match=r"variant odd: its network_def cannot be created"):
        configs(**{"network_def#depth": 3})
    configs(
        **{"losses#dice#batch": True, "network_def": {"_target_": "SegResNet", "in_channels": 2, "out_channels": 1}}
    )


def test_a_value_reaches_every_workflow_and_evaluation_alone_takes_its_own() -> None:
    step = {"_target_": "ScaleIntensityd", "keys": "image", "factor": 0.5}
    variant = Variant("v", "v", {"transforms#values": [step], "flips": [0], "inner_folds": None}, {})
    training, evaluation = variant_configs(_config(TRAIN, STUDY, **SETTINGS), variant, EVALUATE)
    assert "flips" not in training
    assert evaluation["flips"] == [0]
    assert evaluation["threshold"] == SETTINGS["threshold"]  # the study's, not the default
    for parser, name in ((training, "train"), (training, "validate"), (evaluation, "evaluate")):
        transforms = parser.get_parsed_content(f"{name}#preprocessing").transforms
        assert "ScaleIntensityd" in [type(transform).__name__ for transform in transforms]


# --- the same conditions ------------------------------------------------------------------------------------------


def test_variants_start_from_the_same_weights_and_see_the_same_batches(tiny_cohort: Path, tmp_path: Path) -> None:
    variants = select(_shipped(TRAIN, STUDY), "dice,tversky_hausdorff,hausdorff")
    configs = rehearsed_configs(_config(TRAIN, STUDY, **SETTINGS), variants, EVALUATE)
    seen: dict[tuple[str, int], list[str]] = {}
    for variant, seed in [*((variant, 0) for variant in variants), (variants[0], 1)]:
        run = Run(variant, seed, None, tmp_path / f"{variant.name}{seed}")
        common = {"bundle_root": str(BUNDLE), "dataset_dir": str(tiny_cohort), "datalist": None, "num_folds": None}
        common["inner_folds"] = None  # the command settles it
        run.write_configs(configs[variant.name], common)
        workflow = ConfigWorkflow(str(run.folder / "train.yaml"), workflow_type="train", logging_file=False)
        workflow.initialize()
        trainer, network = (workflow.parser.get_parsed_content(name) for name in ("train#trainer", "network"))
        hashes = seen[variant.name, seed] = [_hash(*network.state_dict().values())]
        trainer.add_event_handler(
            Events.ITERATION_STARTED,
            lambda e, h=hashes: h.append(_hash(*(d[k] for d in [e.state.batch] for k in d if k in ("image", "label")))),
        )
        workflow.run()
    reference = seen["dice", 0]
    assert len(reference) == 1 + 2 * 3  # weights; 5 cases in batches of 2, two epochs
    assert len(set(reference)) == len(reference)
    assert seen["tversky_hausdorff", 0] == seen["hausdorff", 0] == reference
    assert not set(seen["dice", 1]) & set(reference)


def _hash(*tensors: torch.Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(np.ascontiguousarray(torch.as_tensor(tensor).detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


# --- processes ----------------------------------------------------------------------------------------------------


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def _jobs(folder: Path, *codes: str, done: list[str] | None = None) -> list[Job]:
    done = [] if done is None else done
    return [
        Job(f"job {i}", f"job {i}", folder / f"{i}.txt", [("one", _python(code)), ("two", _python("print('second')"))],
            lambda i=i: done.append(f"job {i}"))
        for i, code in enumerate(codes)
    ]  # fmt: skip


def test_jobs_run_in_turn_each_with_its_log_and_device(tmp_path: Path) -> None:
    done: list[str] = []
    jobs = _jobs(tmp_path, "print('first 0')", "print('first 1')", "print('first 2')", done=done)
    jobs[2].commands = [("device", [*_python("import sys; print(sys.argv[1])"), "{device}"])]
    with exclusive(tmp_path) as lock:
        assert run_jobs(jobs, Processes(2, ["cpu", "meta"], dict(os.environ), lock)) == {}
    assert sorted(done) == ["job 0", "job 1", "job 2"]
    log = (tmp_path / "0.txt").read_text()
    assert log.index("first 0") < log.index("second")
    assert (tmp_path / "2.txt").read_text().split()[-1] in ("cpu", "meta")


def test_a_failure_ends_its_group_and_no_other(tmp_path: Path) -> None:
    done: list[str] = []
    codes = ["import time; time.sleep(1)", "print('reading'); raise SystemExit('no such loss')", "pass", "pass"]
    jobs = _jobs(tmp_path, *codes, done=done)
    jobs[2].group = jobs[1].group
    with exclusive(tmp_path) as lock:
        failures = run_jobs(jobs, Processes(1, ["cpu"], dict(os.environ), lock))
    assert done == ["job 0", "job 3"]
    assert not (tmp_path / "2.txt").exists()
    (message,) = failures.values()
    assert message.startswith("job 1 failed with exit status 1.")
    assert str(tmp_path / "1.txt") in message
    assert "  reading" in message
    assert "  no such loss" in message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_children_too(number: signal.Signals, tmp_path: Path) -> None:
    code = f'''
import os, sys; from pathlib import Path
sys.path.insert(0, {str(BUNDLE)!r})
from scripts.study.jobs import Cluster, Job, Processes, exclusive, run_jobs
folder = Path({str(tmp_path)!r})
code = """if True:
    import os, signal, sys, time
    def end(*_):
        time.sleep(1)  # as a training that ends at its next step
        open("FOLDER/noted", "w").write("interrupted")
        sys.exit(143)
    signal.signal(signal.SIGTERM, end)
    open("FOLDER/pid", "w").write(str(os.getpid()))
    time.sleep(60)
"""
child = [sys.executable, "-c", code.replace("FOLDER", str(folder))]
with exclusive(folder) as lock:
    job = Job("job", "job", folder / "log.txt", [("one", child)], lambda: None)
    run_jobs([job], Processes(1, ["cpu"], dict(os.environ), lock))
'''
    process = subprocess.Popen(_python(code), stderr=subprocess.PIPE, text=True)
    _wait(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text(), process)
    child = int((tmp_path / "pid").read_text())
    with exclusive_fails(tmp_path):
        pass
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert (tmp_path / "noted").read_text() == "interrupted"
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def exclusive_fails(folder: Path) -> Any:
    """A context that checks that the folder is taken."""
    with (
        pytest.raises(UserError, match="Another study, or a training that it started, is running in"),
        exclusive(folder),
    ):
        pass
    return exclusive(folder / "elsewhere")


# --- tables -------------------------------------------------------------------------------------------------------

MEASURES = (
    "resampled_dice", "resampled_paper_msd_mm", "resampled_paper_nsd", "native_dice", "native_masd_mm", "native_nsd",
)  # fmt: skip


def _write_run(
    folder: Path, variant: Variant, seed: int, values: np.ndarray, lesion_ml: float = 2.0, **more: float
) -> Run:
    """A finished run with given values, cases × measures; `more` columns are the same in all cases."""
    run = Run(variant, seed, None, folder / variant.name / f"seed_{seed}")
    run.folder.mkdir(parents=True)
    with (run.folder / "metrics.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "size_class", "lesion_fraction", "lesion_ml", *MEASURES, *more])
        for i, row in enumerate(values):
            fraction = (0.005, 0.03)[i % 2]
            writer.writerow([f"case_{i}", ("<1 %", "1–5 %")[i % 2], fraction, lesion_ml, *row, *more.values()])
    (run.folder / "done.json").write_text(json.dumps({"epochs": 10 + seed, "best_epoch": 4}))
    return run


@pytest.fixture
def made(tmp_path: Path) -> tuple[list[Variant], list[Run], np.ndarray]:
    """Three variants, two seeds, nine cases; some values infinite or undefined."""
    rng = np.random.default_rng(5)
    values = rng.random((3, 2, 9, 6))  # variants, seeds, cases, measures
    values[1] += 0.2
    values[2, 0, 3, 1] = np.inf
    values[2, :, 4, 4] = np.nan
    values[0, 1, 5, 4] = np.nan
    variants = [
        Variant("a", "A <b>&", {"loss_name": "dice"}, {"dice": 0.38, "msd": math.inf, "nsd": 0.385, "epochs": 32}),
        Variant("b", "B|b", {"loss_name": "<script>alert(1)</script>"}, {"dice": 0.49, "msd": 1.7925}),
        Variant("c", "C", {}, {}),
    ]
    runs = [_write_run(tmp_path, v, s, values[i, s]) for i, v in enumerate(variants) for s in (0, 1)]
    return variants, runs, values


def test_tables_equal_scipy_and_numpy(made: tuple[list[Variant], list[Run], np.ndarray]) -> None:
    variants, runs, values = made
    results = collect(variants, runs)
    by_case = _mean_of_seeds(values)
    lines = list(csv.DictReader(study_csv(results).splitlines()))
    assert [(line["variant"], line["size_class"]) for line in lines[:3]] == [
        ("a", "all"),
        ("a", "<1 %"),
        ("a", "1–5 %"),
    ]
    for i, variant in enumerate(variants):
        for line in (line for line in lines if line["variant"] == variant.name):
            chosen = {"all": slice(None), "<1 %": slice(0, None, 2), "1–5 %": slice(1, None, 2)}[line["size_class"]]
            for j, measure in enumerate(MEASURES):
                column = by_case[i, chosen, j]
                finite = column[np.isfinite(column)]
                assert float(line[measure]) == pytest.approx(finite.mean())
                assert int(line[f"{measure}_defined"]) == len(finite)
                assert (line[f"{measure}_mean_as_printed"] == "Inf") == np.isinf(column).any()
                if len(finite) < 4:  # too few for an interval
                    assert line[f"{measure}_low"] == line[f"{measure}_high"] == ""
                else:
                    assert float(line[f"{measure}_low"]) <= finite.mean() <= float(line[f"{measure}_high"])
    assert [line["published_dice"] for line in lines if line["size_class"] == "all"] == ["0.38", "0.49", ""]
    assert {line["epochs"] for line in lines} == {"10.5"}
    tests = list(csv.DictReader(paired_tests_csv(results).splitlines()))
    assert len(tests) == 3 * len(MEASURES)
    for row in tests:
        j = MEASURES.index(row["measure"])
        a, b = (by_case["abc".index(row[side]), :, j] for side in "ab")
        both = np.isfinite(a) & np.isfinite(b)
        assert float(row["p"]) == pytest.approx(stats.wilcoxon(a[both] - b[both], zero_method="pratt").pvalue)
        assert int(row["cases"]) == both.sum()
    # and the cases are enough to compute all that again
    cases = list(csv.DictReader(cases_csv(results).splitlines()))
    recomputed = np.array([[float(row[m]) for m in MEASURES] for row in cases]).reshape(3, 9, 6)
    np.testing.assert_allclose(recomputed, by_case)


def test_intervals_hold_for_other_seeds_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    variant = Variant("a", "A", {}, {})
    cases = rng.uniform(0.4, 0.6, (9, 6))
    intervals = []
    for name, shift in (("alike", 0.0), ("apart", 0.1)):
        runs = [_write_run(tmp_path / name, variant, s, cases + (s - 1) * shift) for s in (0, 1, 2)]
        intervals.append(collect([variant], runs).summary["a"]["all"]["native_dice"])
    alike, apart = intervals
    assert apart["mean"] == pytest.approx(alike["mean"])
    assert apart["high"] - apart["low"] > 2 * (alike["high"] - alike["low"])


def _mean_of_seeds(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        count = (~np.isnan(values)).sum(axis=1)
        return np.where(count > 0, np.nansum(values, axis=1) / np.maximum(count, 1), np.nan)


def test_best_is_bold_infinite_is_not_best_and_the_papers_figures_stand_beside(
    made: tuple[list[Variant], list[Run], np.ndarray],
) -> None:
    variants, runs, _ = made
    results = collect(variants, runs)
    assert results.best("native_dice") == {"b"}
    assert "c" not in results.best("resampled_paper_msd_mm")
    lines = markdown(results).splitlines()
    first = next(line for line in lines if line.startswith("| A <b>&"))
    header = next(line for line in lines if line.startswith("| Variant"))
    assert "MSD (mm) ↓ (paper: unit not stated, probably voxels) |" in header
    assert "NSD ↑ (paper: tolerance not stated) |" in header
    assert "paper: 0.3800" in first
    assert "paper: Inf" in first
    assert first.rstrip(") |").endswith("paper: 32")
    assert any(line.startswith("| B\\|b | **") for line in lines)
    assert "as printed: Inf (1 of 9 infinite)" in next(line for line in lines if line.startswith("| C |"))


def test_the_first_line_says_which_variants_beat_what_needs_no_network(tmp_path: Path) -> None:
    variants = [Variant(name, name.upper(), {}, {}) for name in "ab"]
    rng = np.random.default_rng(0)
    values = np.stack([rng.uniform(0.5, 0.6, (9, 6)), rng.uniform(0.2, 0.5, (9, 6))])

    def study(folder: str, **baselines: float) -> tuple[str, str]:
        runs = [_write_run(tmp_path / folder, v, 0, of, **baselines) for v, of in zip(variants, values, strict=True)]
        results = collect(variants, runs)
        items = {row["case"]: _item(tmp_path, row["case"]) for row in results.cases["a"]}
        info = {"dataset_dir": "data", "datalist": None, "num_folds": None, "split": "test", "seeds": [0]}
        write_study(results, items, tmp_path / folder, {**info, "version": "1"})
        return markdown(results), (tmp_path / folder / "study.html").read_text()

    text, page = study("low", baseline_dice=0.1, regression_dice=0.45)
    said = "1 of 2 variants beat the voxelwise regression, the best method without a deep network, beyond chance: A."
    assert text.startswith(said)
    assert page.index(said) < page.index('class="tiles"')
    gain = f"{values[0, :, 3].mean() - 0.45:+.3f}"
    for written in (text, page):
        assert gain in written
    assert study("high", baseline_dice=0.1, regression_dice=0.7)[0].startswith("No variant beats the voxelwise")
    assert "without a deep network" not in study("none")[0]


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(
    made: tuple[list[Variant], list[Run], np.ndarray], tmp_path: Path
) -> None:
    variants, runs, _ = made
    cases = [row["case"] for row in next(iter(collect(variants, runs).cases.values()))]
    items = {case: _item(tmp_path, f"item_{i}") for i, case in enumerate(cases)}
    for run in runs:
        (run.folder / "masks").mkdir()
        for case, item in items.items():
            nibabel.save(nibabel.load(item["label"]), run.folder / "masks" / f"{case}_lesion.nii.gz")
    info = {"dataset_dir": "elsewhere/<i>data", "datalist": None, "num_folds": None, "split": "val", "seeds": [0, 1]}
    write_study(collect(variants, runs), items, tmp_path, {**info, "version": "1"})
    page = (tmp_path / "study.html").read_text()
    assert "The evaluated cases also chose the weights" in page
    write_study(collect(variants, runs), items, tmp_path, {**info, "version": "1", "inner_folds": 5})
    assert (
        "The weights were chosen on 1/5 of the training cases: what was evaluated is held out."
        in (tmp_path / "study.html").read_text()
    )
    assert "A &lt;b&gt;&amp;" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;i&gt;data" in page
    assert not re.search(
        r"<script|<i>|<b>&|src=\"(?!data:)|href=\"(?!#|data:|[abc]/seed_\d/report\.html)|https?://", page
    )
    for figure in ("0.3800", "0.4900", "1.7925", "Inf", "0.3850", "32"):
        assert f"<small>paper: {figure}</small>" in page
    assert "<small>paper: unit not stated, probably voxels</small>" in page
    assert "<small>paper: tolerance not stated</small>" in page
    assert "Compare the Dice, and the columns in voxels" in page
    for heading in ("Table 1", "Ranking", "Paired tests", "Figure 2", "95 % CI"):
        assert heading in page
    assert page.count('<image href="data:image/png;base64,') == 2 * 4  # truth and three variants of two cases
    assert (tmp_path / "figure_2.png").read_bytes()[:4] == b"\x89PNG"


def _item(folder: Path, case: str) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    affine = np.array([[0, -2.0, 0, 5], [-1.5, 0, 0, 7], [0, 0, 4, 9], [0, 0, 0, 1]])
    adc = 1000 + 100 * rng.random((20, 16, 8)).astype(np.float32)
    label = np.zeros(adc.shape, np.uint8)
    label[4:8, 5:9, 3] = 1
    paths = {name: str(folder / f"{case}_{name}.nii.gz") for name in ("adc", "label")}
    nibabel.save(nibabel.Nifti1Image(adc, affine), paths["adc"])
    nibabel.save(nibabel.Nifti1Image(label, affine), paths["label"])
    return {"case": case, "image": [paths["adc"], paths["adc"]], "label": paths["label"]}


def test_an_inner_split_where_there_are_cases_enough(tiny_cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(split: str, inner_folds: Any, **options: Any) -> tuple[dict[Any, Any], int | None]:
        cases = partial(data.datalist, tiny_cohort)
        return find_cases(tiny_cohort, split, [0], options.get("num_folds"), cases, None, inner_folds)

    assert found("val", "auto", num_folds=2)[1] is None  # three or four cases train
    monkeypatch.setattr("scripts.study.runs.ENOUGH_CASES", 3)
    assert found("test", "auto")[1] is None  # `val` chooses, and is not evaluated
    assert found("val", None, num_folds=2)[1] is None
    for options in ({"num_folds": 2}, {}):
        cohorts, inner = found("val", "auto", **options)
        assert inner == 5
        for cohort in cohorts.values():
            sides = {name: {item["case"] for item in items} for name, items in cohort.items.items()}
            assert all(sides.values())
            assert len(sides["train"] | sides["val"] | sides["evaluated"]) == sum(map(len, sides.values()))
    with pytest.raises(UserError, match="--inner_folds must be an integer of at least 2"):
        found("val", "some")


# --- the command --------------------------------------------------------------------------------------------------

TABLES = ("study.csv", "study_cases.csv", "study_tests.csv", "study.md")


def _start(cohort: Path, output_dir: Path, **options: Any) -> subprocess.Popen[str]:
    """The study as a user starts it, alone in its process group."""
    settings = {**SETTINGS, "compare": ",".join(LOSSES), "dataset_dir": cohort, "output_dir": output_dir, **options}
    command = [sys.executable, "-m", "monai.bundle", "run", "loss_study", "--config_file", f"['{TRAIN}','{STUDY}']"]
    command += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"PYTHONPATH": str(NO_NETWORK), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def _finish(process: subprocess.Popen[str], status: int = 0) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output
    return output


def _wait(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, "ended before it could be stopped"
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("free_gb", "at_once"), [(1.0, 1), (2.5, 2), (5.0, 4), (80.0, 4)])
def test_auto_runs_as_many_trainings_as_fit_on_a_gpu(
    free_gb: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device of that much memory; a training of the tiny network takes little more than a CUDA context."""
    variants = select(_shipped(TRAIN, STUDY), "dice,tversky")
    configs = rehearsed_configs(_config(TRAIN, STUDY, **SETTINGS), variants, EVALUATE)
    monkeypatch.setattr("scripts.study.command.available_memory", lambda _: free_gb * 1e9)
    monkeypatch.setattr("scripts.study.command.available_cores", lambda: 16)
    assert _fitting(configs, ["cuda:0"]) == at_once
    assert _fitting(configs, ["cpu"]) == 1
    monkeypatch.setattr("scripts.study.command.available_cores", lambda: 2)
    assert _fitting(configs, ["cuda:0"]) == 1


@pytest.fixture(scope="module")
def studied(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two losses that nobody stopped, both at a time."""
    folder = tmp_path_factory.mktemp("study")
    _finish(_start(tiny_cohort, folder, parallel=2))
    return folder


def _again(cohort: Path, folder: Path, compare: Any = LOSSES, changed: Any = None, **options: Any) -> None:
    workflow = ConfigWorkflow([TRAIN, STUDY], logging_file=False, **{**SETTINGS, **(changed or {})})
    workflow.parser.parse()
    cases = partial(data.datalist, cohort)
    loss_study(
        str(BUNDLE), str(cohort), str(folder), cases, compare,
        evaluation_config=EVALUATE, workflow=workflow, **options,
    )  # fmt: skip


def test_the_command_leaves_tables_page_figure_and_every_runs_report(studied: Path, tiny_cohort: Path) -> None:
    for name in (*TABLES, "study.html", "figure_2.png"):
        assert (studied / name).stat().st_size > 0, name
    lines = list(csv.DictReader((studied / "study.csv").open()))
    for loss in LOSSES:
        run = studied / loss / "seed_0"
        assert (run / "report.html").is_file()
        rows = list(csv.DictReader((run / "metrics.csv").open()))
        line = next(line for line in lines if line["variant"] == loss and line["size_class"] == "all")
        assert int(line["cases"]) == len(rows) == 2
        for measure in ("native_dice", "native_nsd", "resampled_dice", "resampled_paper_nsd"):
            assert float(line[measure]) == pytest.approx(np.mean([float(row[measure]) for row in rows]))
        assert line["epochs"] == "2.0"
        assert any(float(row["predicted_ml"]) > 0 for row in rows)
    # the folder's config repeats the training by itself
    parser = ConfigParser.load_config_file(studied / "tversky_hausdorff" / "seed_0" / "train.yaml")
    assert (parser["loss_name"], parser["seed"], parser["epochs"]) == ("tversky_hausdorff", 0, 2)


def test_a_failed_variant_is_named_on_the_page_of_the_others(
    studied: Path, tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    subprocess.run(["cp", "-r", studied, folder], check=True)
    for loss in LOSSES:
        (folder / loss / "seed_0" / "conditions.json").unlink()  # of the folder that was copied
    (folder / "tversky_hausdorff" / "seed_0" / "done.json").unlink()
    monkeypatch.setattr("scripts.study.command._job", lambda run, *_: Job(
        str(run), run.variant.name, run.folder / "log.txt", [("training", _python("raise SystemExit('disk full')"))],
        lambda: None))  # fmt: skip
    with pytest.raises(UserError, match=r"(?s)tversky_hausdorff, seed 0 failed .*disk full.*resumes where"):
        _again(tiny_cohort, folder)
    lines = list(csv.DictReader((folder / "study.csv").open()))
    assert {line["variant"] for line in lines} == {"dice"}
    assert (folder / "study.md").read_text().startswith("Failed, not in the tables: Tversky-HausdorffDT.")
    page = (folder / "study.html").read_text()
    assert "Tversky-HausdorffDT failed and is not in the tables." in page
    assert "disk full" in page


def test_what_is_done_is_not_run_again(studied: Path, tiny_cohort: Path) -> None:
    def state() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for loss in LOSSES for p in (studied / loss).rglob("*") if p.is_file()}

    before, tables = state(), [(studied / name).read_text() for name in TABLES]
    _again(tiny_cohort, studied)
    assert state() == before
    assert [(studied / name).read_text() for name in TABLES] == tables


def test_other_conditions_are_not_mixed_with_those_of_a_folder(
    studied: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    for changed, message in (
        ({"epochs": 3}, r"dice/seed_0 holds a run under other conditions:\n  epochs was 2, is 3\n"),
        ({"threshold": 0.5}, r"threshold was 0.02, is 0.5"),
    ):
        with pytest.raises(UserError, match=message):
            _again(tiny_cohort, studied, changed=changed)
    other_cases = r"other conditions:\n  evaluated cases was \"2, SHA-256 \w+\", is \"3, SHA-256"
    with pytest.raises(UserError, match=other_cases):
        _again(tiny_cohort, studied, split="test")
    label = next((tiny_cohort / "BONBID2023_Train" / "3LABEL").iterdir())
    other = tmp_path / "cohort"
    subprocess.run(["cp", "-r", tiny_cohort, other], check=True)
    copy = other / label.relative_to(tiny_cohort)
    copy.write_bytes((tiny_cohort / "BONBID2023_Train" / "3LABEL" / label.name).read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"train cases was|cannot be used"):
        _again(other, studied)


def test_bad_input_is_one_message_before_anything_starts(tiny_cohort: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for options, message in (
        ({"compare": "dice,twersky"}, r"no variant 'twersky'; did you mean tversky\? Choose from: dice, dice_focal"),
        ({"seeds": "0,x"}, "--seeds takes distinct non-negative integers"),
        ({"num_folds": 40}, r"The 7 cases of .* are too few patients for 40 folds"),
        ({"fold": 1}, "remove --fold"),
        ({"devices": "gpu7"}, "--devices: 'gpu7' cannot be used"),
        ({"split": "dev"}, "There is no split 'dev'"),
    ):
        with pytest.raises(UserError, match=message):
            _again(tiny_cohort, folder, **options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no case"):
        _again(tmp_path / "empty", folder)
    assert not folder.exists()


def test_a_typing_error_on_the_command_line_ends_with_its_message(tiny_cohort: Path, tmp_path: Path) -> None:
    output = _finish(_start(tiny_cohort, tmp_path / "out", compare="dcie"), status=1)
    assert "error: --compare: there is no variant 'dcie'; did you mean dice?" in output.splitlines()[-1]
    output = _finish(_start(tiny_cohort, tmp_path / "out", epohcs=3), status=1)
    assert "--epohcs: no config has such a value; did you mean --epochs?" in output.splitlines()[-1]


def _kill_at(condition: Callable[[Path], bool], cohort: Path, folder: Path) -> None:
    process = _start(cohort, folder)
    _wait(lambda: condition(folder), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow  # a minute and a half
def test_a_killed_study_goes_on_to_the_same_tables(studied: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    _kill_at(lambda folder: (folder / "dice/seed_0/models/resume_state.pt").is_file(), tiny_cohort, tmp_path)
    assert not (tmp_path / "study.csv").exists()
    _finish(_start(tiny_cohort, tmp_path))
    for name in TABLES:
        assert (tmp_path / name).read_text() == (studied / name).read_text(), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        "dice/seed_0/conditions.json",
        "dice/seed_0/tensorboard",
        "dice/seed_0/models/model.pt",
        "dice/seed_0/masks",
        "dice/seed_0/metrics.csv",
        "dice/seed_0/done.json",
        "tversky_hausdorff/seed_0/overlays",
        "study_cases.csv",
    ],
)
def test_killed_at_any_moment(moment: str, studied: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    _kill_at(lambda folder: (folder / moment).exists(), tiny_cohort, tmp_path)
    _finish(_start(tiny_cohort, tmp_path))
    for name in TABLES:
        assert (tmp_path / name).read_text() == (studied / name).read_text(), name


@pytest.mark.slow
def test_folds_and_seeds_hold_out_every_case_once(tiny_cohort: Path, tmp_path: Path) -> None:
    _finish(_start(tiny_cohort, tmp_path, compare="dice", num_folds=2, seeds="0,1", parallel=2, epochs=1))
    assert len(list(tmp_path.glob("dice/seed_[01]/fold_[01]/done.json"))) == 4
    for seed in (0, 1):
        cases = [
            r["case"]
            for f in (0, 1)
            for r in csv.DictReader((tmp_path / f"dice/seed_{seed}/fold_{f}/metrics.csv").open())
        ]
        assert len(cases) == len(set(cases)) == 7
    line = next(csv.DictReader((tmp_path / "study.csv").open()))
    assert (line["cases"], line["runs"]) == ("7", "4")


# --- jobs of a cluster, by submitit's local mode ------------------------------------------------------------------


def _shell_job(folder: Path, name: str, *lines: str, done: list[str]) -> Job:
    commands = [(f"step {i}", [sys.executable, "-S", "-c", line]) for i, line in enumerate(lines)]
    return Job(name, name, folder / name / "log.txt", commands, lambda: done.append(name))


def test_submitted_jobs_run_in_turn_and_failures_are_named(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    done: list[str] = []
    jobs = [
        _shell_job(tmp_path, "good", "print('it\\'s one')", "import os; print(os.environ['MARK'])", done=done),
        _shell_job(tmp_path, "bad", "raise SystemExit('no data here')", "print('never')", done=done),
        _shell_job(tmp_path, "last", "print(3)", done=done),
    ]
    environment = {**os.environ, "MARK": "seen"}
    failures = run_jobs(jobs, Cluster("local", {"timeout_min": 1}, 2, tmp_path / "jobs", environment))
    assert list(failures) == ["bad"]
    assert re.match(r"(?s)bad failed\. .*no data here", failures["bad"])
    assert sorted(done) == ["good", "last"]
    lines = (tmp_path / "good" / "log.txt").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("---")] == ["it's one", "seen"]
    assert "never" not in [*(tmp_path / "bad" / "log.txt").read_text().splitlines()]


def test_unknown_executors_and_options_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match="executor 'pbs' is unknown; choose one of: slurm, local"):
        Cluster("pbs", {}, 1, tmp_path, {})
    with pytest.raises(UserError, match="--executor local"):
        Cluster("local", {"minutes": 1}, 1, tmp_path, {})
