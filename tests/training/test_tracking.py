"""Tracking by MLflow (SQLite) and Weights & Biases (offline); `make test-tracking` installs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml
from conftest import BUNDLE, TINY
from monai.bundle import ConfigWorkflow

from scripts.cli.workflows import run_workflow
from scripts.runtime.errors import UserError
from scripts.runtime.options import refuse_unknown
from scripts.training.tracking import parameters

CONFIGS = BUNDLE / "configs"
SETTINGS: dict[str, Any] = {name: yaml.safe_load(value) for name, value in TINY.items()} | {"device": "cpu"}


def _workflow(tracking: str, folder: Path, dataset_dir: Path, *files: str, **options: Any) -> ConfigWorkflow:
    names = [str(CONFIGS / f"{name}.yaml") for name in ("train", *files)]
    return ConfigWorkflow(
        names, workflow_type="train", logging_file=False, dataset_dir=str(dataset_dir), output_dir=str(folder / "out"),
        ckpt_dir=str(folder / "models"), epochs=2, tracking=tracking, **SETTINGS, **options,
    )  # fmt: skip


@pytest.mark.parametrize("tracking", ["mlflow", *(str(CONFIGS / f"tracking_{n}.yaml") for n in ("mlflow", "wandb"))])
def test_settings_reach_every_engine_and_are_no_unknown_options(tracking: str, tmp_path: Path) -> None:
    workflow = _workflow(tracking, tmp_path, tmp_path, "evaluate")
    refuse_unknown(workflow)
    target = "WandBHandler" if "wandb" in tracking else "MLFlowHandler"
    engines = ["train", "validate"] + ["evaluate"] * tracking.endswith(".yaml")
    for engine in engines:
        assert workflow.parser[f"{engine}#handlers"][-1]["_target_"].endswith(target)
    if tracking.endswith(".yaml"):
        found = parameters(workflow)
        assert {"epochs": 2, "loss_name": "tversky_hausdorff", "features": [2, 4, 6, 8]}.items() <= found.items()
        assert "dataset_dir" in found
        assert not [value for value in found.values() if isinstance(value, str) and value.startswith(("$", "@"))]


@pytest.mark.parametrize("word", ["mlflow", "wandb", "mine.yaml"])
def test_the_command_takes_tracking_by_word(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("{}")
    asked: dict[str, Any] = {}
    workflow = MagicMock(side_effect=lambda _, **options: asked.update(options) or MagicMock())
    monkeypatch.setattr("scripts.runtime.workflow.Workflow", workflow)
    run_workflow("train", [], {"tracking": word})
    assert asked["tracking"] == ("mine.yaml" if word == "mine.yaml" else str(CONFIGS / f"tracking_{word}.yaml"))


def test_settings_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match="--tracking mlfow: mlflow or wandb"):
        run_workflow("train", [], {"tracking": "mlfow"})


def _train_and_evaluate(tracking: str, tmp_path: Path, tiny_cohort: Path) -> None:
    for files, options in (((), {}), (("evaluate",), {"split": "val"})):
        workflow = _workflow(tracking, tmp_path, tiny_cohort, *files, **options)
        workflow.initialize()
        workflow.run()
        workflow.finalize()


def test_mlflow_has_parameters_metrics_report_and_weights(tiny_cohort: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    _train_and_evaluate(str(CONFIGS / "tracking_mlflow.yaml"), tmp_path, tiny_cohort)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/out/mlruns.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "hie_bundle"]
    evaluation, training = client.search_runs([experiment.experiment_id])  # the latest first
    assert training.info.status == evaluation.info.status == "FINISHED"
    assert training.data.params["loss_name"] == "tversky_hausdorff"
    history = client.get_metric_history(training.info.run_id, "val_mean_dice")
    assert [metric.step for metric in history] == [1, 2]
    assert len(client.get_metric_history(training.info.run_id, "learning_rate")) == 6
    assert "model.pt" in {file.path for file in client.list_artifacts(training.info.run_id)}
    names = {file.path for file in client.list_artifacts(evaluation.info.run_id)}
    assert {"report.html", "metrics.csv", "metrics.json"} <= names


def test_wandb_offline_has_metrics_and_weights(
    tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    _train_and_evaluate(str(CONFIGS / "tracking_wandb.yaml"), tmp_path, tiny_cohort)
    runs = sorted((tmp_path / "out" / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    content = [b"".join(file.read_bytes() for file in run.glob("*.wandb")) for run in runs]
    for word in (b"val_mean_dice", b"step/grad_norm", b"tversky_hausdorff"):
        assert word in content[0]
    assert (runs[0] / "files" / "model.pt").exists()
    assert (runs[1] / "files" / "report.html").exists()
