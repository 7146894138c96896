"""The folder of a run: nobody else's while it lives, not overwritten, described from beginning to end."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from bonbid_cases import write_case
from conftest import BUNDLE, ROOT, TINY
from monai.bundle import ConfigWorkflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from scripts.data.layout import find_cases
from scripts.data.run_folder import RunFolder
from scripts.io.curves import keep_curves_until
from scripts.runtime.errors import UserError, user_error

CONFIGS = BUNDLE / "configs"
SETTINGS: dict[str, Any] = {name: eval(value) for name, value in TINY.items()} | {"device": "cpu", "epochs": 1}


def _workflow(*names: str, **options: Any) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        [str(CONFIGS / f"{name}.yaml") for name in names], workflow_type=None, logging_file=False,
        **{**SETTINGS, **options},
    )  # fmt: skip
    workflow.initialize()
    return workflow


def _folder(tmp_path: Path, *, workflow: ConfigWorkflow | None = None, **options: Any) -> RunFolder:
    return RunFolder(
        tmp_path / "models", "training", workflow=workflow, curves=tmp_path / "tb", dataset_dir=tmp_path, **options
    )


def _record(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "models" / "run.json").read_text())["training"]


def _state(tmp_path: Path, **more: Any) -> Path:
    path = tmp_path / "models" / "resume_state.pt"
    path.parent.mkdir(exist_ok=True)
    names = ("objects", "scaler", "epoch", "iteration", "best_metric", "best_metric_epoch")
    torch.save({**dict.fromkeys(names), **more}, path)
    return path


def _run(folder: RunFolder, **data: Any) -> None:
    folder.claim()
    folder.recorded(lambda: None, **data)


def test_a_finished_run_is_neither_overwritten_nor_mixed(tmp_path: Path) -> None:
    _run(_folder(tmp_path))
    (tmp_path / "models" / "model.pt").write_bytes(b"weights")
    with pytest.raises(
        UserError, match=r"models holds a finished training \(ended .*--overwrite True; nothing was start"
    ):
        _folder(tmp_path).claim()
    with pytest.raises(UserError, match="finished training"):
        _folder(tmp_path, resume=True).claim()  # its state is gone
    _state(tmp_path)
    again = _folder(tmp_path, overwrite=True)
    again.claim()
    assert (tmp_path / "models" / "resume_state.pt").exists()  # until the data are found to be usable
    again.recorded(lambda: None)
    assert not (tmp_path / "models" / "resume_state.pt").exists()
    assert (tmp_path / "models" / "model.pt").read_bytes() == b"weights"  # it may be what the training starts from


def test_a_run_is_a_record_or_a_state_but_not_weights_alone(tmp_path: Path) -> None:
    """MONAI Label and the Model Zoo train over weights that were given."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").write_bytes(b"weights")
    _folder(tmp_path).claim()
    _state(tmp_path)
    with pytest.raises(UserError, match="an unfinished training; --resume True continues it"):
        _folder(tmp_path).claim()
    _folder(tmp_path, resume=True).claim()


def test_who_hands_in_the_cases_trains_again_in_the_same_folder(tmp_path: Path) -> None:
    """As MONAI Label does."""
    _run(_folder(tmp_path))
    workflow = _workflow("train", dataset_dir=str(tmp_path), **{"train#dataset#data": []})
    _folder(tmp_path, workflow=workflow).claim()


def test_curves_of_another_training_are_not_mixed(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "tb")) as writer:
        writer.add_scalar("loss", 1.0, 1)
    with pytest.raises(UserError, match="the curves of another training"):
        _folder(tmp_path).claim()
    _run(_folder(tmp_path, overwrite=True))
    assert list((tmp_path / "tb").iterdir()) == []


def _predict(tmp_path: Path, purpose: str, *files: str) -> dict[str, Any]:
    folder = RunFolder(tmp_path / "out", purpose)

    def write() -> None:
        for file in files:
            (tmp_path / "out" / file).parent.mkdir(exist_ok=True)
            (tmp_path / "out" / file).write_text("same")

    folder.claim()
    folder.recorded(write)
    return json.loads((tmp_path / "out" / "run.json").read_text())


@pytest.mark.parametrize("purpose", ["evaluation", "inference"])
def test_what_is_quick_may_be_repeated_and_says_what_it_left(
    purpose: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = _predict(tmp_path, purpose, "metrics.csv", "masks/a_lesion.nii.gz", "overlays/a.png")
    assert first[purpose]["files"] == ["masks/a_lesion.nii.gz", "metrics.csv", "overlays/a.png"]
    assert first[purpose]["left_over"] == []
    again = _predict(tmp_path, purpose, *first[purpose]["files"])
    assert [again[purpose][name] for name in ("files", "left_over")] == [first[purpose]["files"], []]
    assert not caplog.messages
    for _ in range(2):  # what was left stays named
        caplog.clear()
        record = _predict(tmp_path, purpose, "metrics.csv", "masks/b_lesion.nii.gz")[purpose]
        assert record["files"] == ["masks/b_lesion.nii.gz", "metrics.csv"]
        assert record["left_over"] == ["masks/a_lesion.nii.gz", "overlays/a.png"]
        (message,) = caplog.messages
        assert message == (
            f"2 files in {tmp_path / 'out'} are from an earlier run, not from this {purpose}: "
            "masks/a_lesion.nii.gz, overlays/a.png"
        )


def test_a_folder_may_serve_several_purposes(tmp_path: Path) -> None:
    """``--ckpt_dir`` and ``--output_dir`` may be one."""
    training = RunFolder(tmp_path / "out", "training")
    _run(training)
    record = _predict(tmp_path, "evaluation", "metrics.csv")
    assert record.keys() == {"training", "evaluation"}
    assert record["training"]["status"] == "finished"
    with pytest.raises(UserError, match="holds a finished training"):
        RunFolder(tmp_path / "out", "training").claim()


LIVES = """
import sys, time; sys.path.insert(0, sys.argv[1])
from scripts.data.run_folder import RunFolder
folder = RunFolder(sys.argv[2] + "/models", "training")
folder.claim()
folder.recorded(lambda: (print("lives", flush=True), time.sleep(60)))
"""


def test_a_living_run_keeps_others_out_and_a_dead_one_does_not(tmp_path: Path) -> None:
    leftover = tmp_path / "models" / ".0123abcd.model.pt"
    process = subprocess.Popen([sys.executable, "-c", LIVES, str(BUNDLE), str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"lives\n"
        leftover.write_bytes(b"half a file")
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(UserError, match="Another run uses"):
                _folder(tmp_path, **options).claim()
        assert _record(tmp_path)["status"] == "running"
        assert leftover.exists()
    finally:
        process.kill()
        process.wait()
    _run(_folder(tmp_path))
    assert not leftover.exists()
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["run.json"]


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/models cannot be written to \(.*\); nothing was started"):
        RunFolder(tmp_path / "file" / "models", "training").claim()
    with pytest.raises(UserError, match=r"/proc/nowhere.* cannot be written to"):
        RunFolder("/proc/nowhere", "inference").claim()


@pytest.mark.parametrize(
    ("error", "status"),
    [(UserError("no such loss"), "failed"), (RuntimeError("deep"), "failed"), (KeyboardInterrupt(), "interrupted")],
)
def test_how_a_run_ended_is_known(error: BaseException, status: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    folder.claim()

    def fail() -> None:
        assert _record(tmp_path)["status"] == "running"
        raise error

    with pytest.raises(type(error)):
        folder.recorded(fail)
    record = _record(tmp_path)
    assert record["status"] == status
    assert record["error"] == f"{type(error).__name__}: {error}"
    assert record["started"] <= record["ended"]
    _run(_folder(tmp_path))  # nothing is lost by starting anew
    assert _record(tmp_path)["status"] == "finished"


def test_what_a_run_was_stands_in_its_record(tmp_path: Path) -> None:
    for number in (1, 2):
        write_case(tmp_path / "data", f"MGHNICU_00{number}-VISIT_01", seed=number)
    workflow = _workflow("train", dataset_dir=str(tmp_path / "data"), loss_name="dice", seed=3)
    folder = RunFolder(tmp_path / "models", "training", dataset_dir=tmp_path / "data", workflow=workflow)
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"weights")
    items = [case.item() for case in find_cases(tmp_path / "data")]
    folder.claim()
    folder.recorded(lambda: None, weights=weights, train=items)
    record = _record(tmp_path)
    assert record["command"] == sys.orig_argv
    assert {"monai", "torch", "numpy"} <= record["versions"].keys()
    assert record["hardware"]["device"] == "cpu"
    config = record["config"]
    assert (config["loss_name"], config["seed"], config["features"]) == ("dice", 3, SETTINGS["features"])
    assert config["dataset_dir"] == str(tmp_path / "data")
    assert config["bundle_root"] == str(BUNDLE)  # computed
    assert config["progress"] in (True, False)
    assert record["weights"] == [{"path": str(weights), "sha256": hashlib.sha256(b"weights").hexdigest()}]
    assert [entry["case"] for entry in record["data"]["train"]] == ["MGHNICU_001-VISIT_01", "MGHNICU_002-VISIT_01"]
    for entry in record["data"]["train"]:
        assert len(entry["files"]) == 3
        for name, digest in entry["files"].items():
            assert hashlib.sha256((tmp_path / "data" / name).read_bytes()).hexdigest() == digest
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert record["bundle"]["revision"] == head.stdout.strip()


def test_going_on_with_other_settings_or_cases_is_named_and_refused(tmp_path: Path) -> None:
    write_case(tmp_path / "data")
    items = [case.item() for case in find_cases(tmp_path / "data")]

    def go(resume: bool | str = True, **options: Any) -> None:
        workflow = _workflow("train", dataset_dir=str(tmp_path / "data"), **options)
        folder = _folder(tmp_path, workflow=workflow, resume=resume)
        folder.claim()
        folder.recorded(lambda: None, train=items)

    go()
    _state(tmp_path)
    go()
    go(epochs=7, patience=3, num_workers=1, output_dir="elsewhere")  # these do not matter
    assert len(_record(tmp_path)["earlier"]) == 2
    other = {"loss_name": "dice", "seed": 1, "learning_rate": 0.01, "batch_size": 4, "train#dataloader#drop_last": True}
    with pytest.raises(UserError) as caught:
        go(**other)
    message = str(caught.value)
    for name, value in other.items():
        assert f"  {name}: " in message
        assert f"{json.dumps(value)} here" in message
    assert "--resume force" in message
    write_case(tmp_path / "data", lesion_voxels=13)
    with pytest.raises(UserError, match=r"train: MGHNICU_001-VISIT_01 is changed"):
        go()
    items.append({**items[0], "case": "new"})
    with pytest.raises(UserError, match=r"train: new is new"):
        go()
    go("force", **other)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"text"])
def test_a_broken_state_is_one_clear_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "resume_state.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"resume_state\.pt is not .*cannot resume from it") as caught:
        _folder(tmp_path, resume=True).claim()
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    torch.save({"model": {}}, tmp_path / "models" / "resume_state.pt")
    with pytest.raises(UserError, match="is not the state of a training: it has no best_metric"):
        _folder(tmp_path, resume=True).claim()


def _points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.iterdir()):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return found


def test_curves_go_on_where_the_state_was_saved(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "tb")) as writer:
        for step in range(6):
            writer.add_scalar("loss", step, step)
        writer.add_scalar("dice", 0.5, 1)
        for step in range(6, 9):
            writer.add_scalar("loss", step, step)
        writer.add_scalar("dice", 0.6, 2)
    (file,) = (tmp_path / "tb").iterdir()
    file.write_bytes(file.read_bytes()[:-5])  # killed while it wrote
    keep_curves_until(tmp_path / "tb", 1, 5)
    assert _points(tmp_path / "tb") == {"loss": [(n, float(n)) for n in range(6)], "dice": [(1, 0.5)]}
    keep_curves_until(tmp_path / "absent", 1, 5)
    keep_curves_until(tmp_path / "tb", -1, -1)
    assert list((tmp_path / "tb").iterdir()) == []


def test_curves_keep_their_order_when_the_clock_is_set_back(tmp_path: Path) -> None:
    """40 of 60 points were left: what was logged before counted as later."""
    folder = tmp_path / "tb"
    for suffix, count in (("", 30), (".epochs", 10)):
        with SummaryWriter(str(folder), filename_suffix=suffix) as writer:
            for step in range(1, count + 1):
                clock = time.time() + (3600 if step < count // 2 else -3600)
                writer.add_scalar("loss" if count == 30 else "dice", step, step, walltime=clock)
    keep_curves_until(folder, 8, 24)
    points = _points(folder)
    assert [step for step, _ in points["loss"]] == list(range(1, 25))
    assert [step for step, _ in points["dice"]] == list(range(1, 9))


def test_a_folder_that_is_removed_during_a_run_is_an_error(tmp_path: Path) -> None:
    """It ended with exit status 0, masks and records gone."""
    folder = RunFolder(tmp_path / "out", "inference")
    folder.claim()
    with pytest.raises(UserError, match="out was removed or emptied during the run"):
        folder.recorded(lambda: shutil.rmtree(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    _run(RunFolder(tmp_path / "out", "inference"))


def test_a_key_among_the_results_is_refused(tmp_path: Path) -> None:
    """Results are passed on, and with the key the ids could be guessed."""
    workflow = _workflow("train", dataset_dir=str(tmp_path), anonymise_ids=str(tmp_path / "models" / "key"))
    with pytest.raises(UserError, match=r"is inside the results in .*models; move it"):
        _folder(tmp_path, workflow=workflow).claim()
    assert not (tmp_path / "models" / "key").exists()


# --- through the configs ------------------------------------------------------------------------------------------


def test_training_evaluation_and_inference_leave_their_record(tiny_cohort: Path, tmp_path: Path) -> None:
    models, out = tmp_path / "models", tmp_path / "out"
    folders = {"dataset_dir": str(tiny_cohort), "ckpt_dir": str(models)}
    _workflow("train", **folders, output_dir=str(out)).run()
    with pytest.raises(RuntimeError) as caught:
        _workflow("train", **folders, output_dir=str(out)).run()
    assert "holds a finished training" in str(user_error(caught.value))
    before = _points(out / "tensorboard")
    _workflow("train", **folders, output_dir=str(out), overwrite=True).run()
    assert _points(out / "tensorboard") == before  # the same run again, and not twice

    weights = hashlib.sha256((models / "model.pt").read_bytes()).hexdigest()
    evaluation = {**folders, "split": "val", "output_dir": str(tmp_path / "evaluation")}
    _workflow("train", "evaluate", **evaluation).run()
    inference = {"split": "val", "output_dir": str(tmp_path / "masks"), "ckpt_path": str(models / "model.pt")}
    _workflow("inference", dataset_dir=str(tiny_cohort), **inference).run()
    for purpose, folder, name in (("evaluation", "evaluation", "evaluated"), ("inference", "masks", "segmented")):
        record = json.loads((tmp_path / folder / "run.json").read_text())[purpose]
        assert record["status"] == "finished"
        assert [one["sha256"] for one in record["weights"]] == [weights]
        assert len(record["data"][name]) == 2
        for entry in record["data"][name]:
            mask = tmp_path / folder / entry["mask"]["file"]
            assert mask.name == f"{entry['case']}_lesion.nii.gz"
            assert hashlib.sha256(mask.read_bytes()).hexdigest() == entry["mask"]["sha256"]
            assert all(not Path(file).is_absolute() for file in entry["files"])
    _workflow("train", "evaluate", **evaluation).run()  # as often as one likes
    assert json.loads((tmp_path / "evaluation" / "run.json").read_text())["evaluation"]["left_over"] == []
