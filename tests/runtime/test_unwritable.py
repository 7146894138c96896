"""Folders that cannot be written to, and full disks: one line says so, before anything was computed where it can be."""

from __future__ import annotations

import logging
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_every_option import TINY, run

from scripts.cli import main
from scripts.data.layout import find_cases
from scripts.runtime.errors import UserError, user_error

MODEL = {key: TINY[key] for key in ("spatial_size", "features", "device")}
PHANTOM = {"num_train": 1, "num_val": 0, "num_test": 0, "num_workers": 1, "fine_mm": 4.0, "atlas_step_mm": 4.0,
           "num_healthy": 4, "matrix_sizes": [36, 44], "slice_range": [10, 14]}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    places = {"dataset_dir": str(tiny_cohort), "ckpt_dir": str(folder), "output_dir": str(folder / "eval")}
    run("training", ("train",), {**TINY, **places})
    return folder / "model.pt"


def _workflows(data: Path, weights: Path, out: Path) -> dict[str, Callable[[], Any]]:
    """What writes, each to ``out``."""
    of = {"dataset_dir": str(data)}
    training = {**TINY, **of, "num_workers": 0, "ckpt_dir": str(out), "output_dir": str(out)}
    cpu = [f"--{name}={value}" for name, value in MODEL.items()]
    segmenting = ["segment", str(data / "BONBID2023_Val"), "-o", str(out), "--weights", str(weights), *cpu]
    inference = {**MODEL, **of, "output_dir": str(out), "ckpt_path": str(weights), "split": "val"}
    evaluation = {**TINY, **of, "ckpt_path": str(weights), "output_dir": str(out)}
    prepared = {**of, "output_dir": str(out), "num_workers": 1}
    return {
        "phantom": lambda: run("phantom", ("data",), {**PHANTOM, "output_dir": str(out)}),
        "check": lambda: run("check", ("data",), {**of, "report_file": str(out / "check.json")}),
        "folds": lambda: run("folds", ("data",), {**of, "output_file": str(out / "list.json")}),
        "native_stack": lambda: run("preprocessing", ("data",), {**prepared, "format": "native_stack"}),
        "nnunet": lambda: run("preprocessing", ("data",), {**prepared, "format": "nnunet"}),
        "resampled": lambda: run("preprocessing", ("data",), {**prepared, "spatial_size": TINY["spatial_size"]}),
        "training": lambda: run("training", ("train",), training),
        "evaluation": lambda: run("evaluating", ("train", "evaluate"), evaluation),
        "inference": lambda: run("run", ("inference",), inference),
        "study": lambda: run("run", ("train", "study"), {**TINY, **of, "output_dir": str(out), "compare": "dice"}),
        "segment": lambda: main([*segmenting, "--recipe=paper"]),
    }


NAMES = list(_workflows(Path(), Path(), Path()))


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_cannot_be_written_to(name: str, tiny_cohort: Path, trained: Path, tmp_path: Path) -> None:
    """A file stands where the folder would be; the tests may run as root, who may write everywhere else."""
    (tmp_path / "file").touch()
    begun = _attempt(_workflows(tiny_cohort, trained, tmp_path / "file" / "out")[name])
    assert "cannot be written" in begun or "Not a directory" in begun
    assert "file" in begun
    assert len(begun.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _attempt(workflow: Callable[[], Any]) -> str:
    with pytest.raises((Exception, SystemExit)) as caught:
        workflow()
    if isinstance(caught.value, SystemExit):  # of the command, which has said it
        assert caught.value.code == 1
        return "cannot be written file"
    mistake = user_error(caught.value)
    assert mistake is not None, caught.getrepr()
    return str(mistake)


@pytest.fixture
def disk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """From its call on no file may grow past so many bytes: writing fails as on a full disk, whoever writes.

    ``capsys``, since what pytest itself captures is a file otherwise; handlers that other tests have left write there.
    """
    for handler in [*logging.getLogger().handlers]:
        logging.getLogger().removeHandler(handler)
    for logger in logging.Logger.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            monkeypatch.setattr(logger, "handlers", [])
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


# files of a workflow are of several sizes: which one is the first that does not fit
@pytest.mark.parametrize(
    ("name", "size"),
    [*((name, 100) for name in NAMES if name != "study"), ("training", 14_000), ("training", 45_000),
     ("evaluation", 30_000), ("evaluation", 100_000)],
)  # fmt: skip
def test_a_full_disk(
    name: str,
    size: int,
    tiny_cohort: Path,
    trained: Path,
    tmp_path: Path,
    disk: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    workflow = _workflows(tiny_cohort, trained, tmp_path / "out")[name]
    disk(size)
    said = _attempt(workflow)
    assert len(said.splitlines()) == 1, said
    assert str(tmp_path) in said or name == "segment"  # the command has said it
    errors = capsys.readouterr().err
    assert "Traceback" not in errors, errors
    left = [path for path in tmp_path.rglob(".*") if path.is_file() and path.name != ".lock"]
    assert left == []  # no part of a file


def test_a_mask_that_cannot_be_written_is_one_line(
    tiny_cohort: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the midst of a prediction, where MONAI's handlers would log a traceback."""
    workflow = _workflows(tiny_cohort, trained, tmp_path / "out")["inference"]
    case = next(case for case in find_cases(tiny_cohort) if case.split == "val")
    (tmp_path / "out" / f"{case.case}_lesion.nii.gz" / "a folder").mkdir(parents=True)
    said = _attempt(workflow)
    assert f"{case.case}: the mask cannot be written to" in said
    assert len(said.splitlines()) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_what_the_system_refuses_is_a_users_to_mend(tmp_path: Path) -> None:
    for attempt in (lambda: (tmp_path / "absent").read_bytes(), lambda: tmp_path.write_bytes(b""),
                    lambda: (tmp_path / ("a" * 300)).touch()):  # fmt: skip
        with pytest.raises(OSError) as caught:  # noqa: PT011 -- whichever it is
            attempt()
        mistake = user_error(caught.value)
        assert isinstance(mistake, UserError)
        assert str(mistake).startswith(f"{tmp_path}")
    assert user_error(OSError("no number")) is None
    assert user_error(ConnectionResetError(104, "reset")) is None
