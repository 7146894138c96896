"""Loading processes that die, hang or meet a bad file: the run ends soon, and says with which case."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from monai.data import Dataset
from test_every_option import TINY
from test_provenance import _record

from scripts.data.loaders import CaseLoader, end_processes, loading_error
from scripts.runtime.errors import UserError, user_error


def _bad(how: str) -> None:
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "hang":
        time.sleep(100)
    elif how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "user":
        raise RuntimeError("applying a transform") from UserError("c5: its maps\nare swapped")
    elif how == "gone":
        Path("/absent/c5.nii").read_bytes()
    else:
        raise KeyError(how)


def _loader(how: str, workers: int = 2, timeout_s: float = 2.0) -> CaseLoader:
    def read(item: dict[str, Any]) -> torch.Tensor:
        if item["case"] == "c5":
            _bad(how)
        if item["case"] == "c3" and how == "die":
            time.sleep(1)  # the other process is at it when this one dies
        return torch.zeros(1)

    items = [{"case": f"c{number}", "image": "x"} for number in range(8)]
    return CaseLoader(Dataset(items, read), workers, timeout_s=timeout_s, batch_size=2)


LATE = r"^A process that loads cases did not return a batch within 2 s\. It was reading: c5\..*loading_timeout_s"


@pytest.mark.parametrize(
    ("how", "workers", "said"),
    [
        ("die", 2, r"^A process that loads cases died.*It was reading: c5\."),
        ("hang", 2, LATE),
        ("hang", 0, LATE),
        ("stop", 2, LATE),
        ("user", 2, r"^c5: its maps\nare swapped$"),
        ("gone", 2, r"^/absent/c5.nii: No such file"),
    ],
)  # fmt: skip
def test_the_case_is_named_in_bounded_time(how: str, workers: int, said: str) -> None:
    loader, begun = _loader(how, workers), time.monotonic()
    with pytest.raises((RuntimeError, UserError)) as caught:
        list(loader)
    mistake = loading_error(caught.value)
    assert mistake is not None
    end_processes()
    assert time.monotonic() - begun < 10
    assert re.search(said, str(mistake))


def test_each_of_two_deaths_in_one_program_is_noticed_at_once() -> None:
    """What ends the processes of the first run leaves PyTorch's watch on those of the second."""
    for _ in range(2):
        loader, begun = _loader("die", timeout_s=40.0), time.monotonic()
        with pytest.raises((RuntimeError, UserError)) as caught:
            list(loader)
        assert time.monotonic() - begun < 30
        assert re.search("died.*It was reading: c5", str(loading_error(caught.value)))
        end_processes()
        assert [process for process in multiprocessing.active_children() if process.daemon] == []


def test_a_process_that_dies_while_a_tensor_is_taken_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sockets are closed a little before it counts as ended, so that PyTorch, who asks, thinks that it lives."""
    from multiprocessing.resource_sharer import DupFd  # type: ignore[attr-defined]

    loader = _loader("hang")

    def reset(_: Any) -> int:
        while not (loader.reading[:, 1] == 5).any():
            time.sleep(0.01)
        dying = int(loader.reading[loader.reading[:, 1] == 5][0, 0])
        threading.Timer(0.3, os.kill, (dying, signal.SIGKILL)).start()
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr(DupFd, "detach", reset)
    with pytest.raises((RuntimeError, UserError)) as caught:
        list(loader)
    assert re.search(r"died.*It was reading: c5\.", str(loading_error(caught.value)))
    end_processes()
    time.sleep(1)  # nor is their end raised here


def test_a_process_that_is_stopped_while_a_tensor_is_taken_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch asks the process for the memory that the tensor is in, and waits for the answer without a limit."""
    from multiprocessing.resource_sharer import DupFd  # type: ignore[attr-defined]

    loader = _loader("good")
    batches, begun = iter(loader), time.monotonic()
    detach = DupFd.detach

    def stopped(answer: Any) -> int:
        for child in multiprocessing.active_children():  # not the server that other tests fork from
            process = psutil.Process(child.pid)
            process.suspend()
            while process.status() != psutil.STATUS_STOPPED:
                time.sleep(0.01)
        return detach(answer)

    monkeypatch.setattr(DupFd, "detach", stopped)
    with pytest.raises(UserError, match="did not return a batch within 2 s"):
        next(batches)
    loading = multiprocessing.active_children()
    end_processes()
    for process in loading:
        process.join(5)
        assert not process.is_alive()
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("unable to allocate shared memory(shm) for file </torch_27_4_6>: No space left on device (28)", "/dev/shm"),
        ("unable to write to file </torch_4>: No space left on device (28)", "--num_workers 0"),
        ("received 0 items of ancdata", "ulimit -n"),
        ("Too many open files. Communication with the workers is no longer possible.", "ulimit -n"),
    ],
)
def test_what_the_machine_lacks_is_named(text: str, said: str) -> None:
    """``--num_workers 2`` in a container with a small /dev/shm, or with 24 descriptors."""
    assert said in str(loading_error(RuntimeError(f"Caught RuntimeError in DataLoader worker process 0.\n{text}")))


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'a fault'") as caught:
        list(_loader("a fault"))
    assert loading_error(caught.value) is None
    assert loading_error(RuntimeError("shape mismatch")) is None


def test_batches_are_those_of_monai() -> None:
    """Order, augmentation and shuffling by the same random numbers."""
    from monai.data import DataLoader as StockDataLoader
    from monai.transforms import RandGaussianNoise

    for workers in (0, 2):
        found = []
        for kind, more in ((StockDataLoader, {}), (CaseLoader, {"timeout_s": 60.0})):
            torch.manual_seed(3)
            data = Dataset(list(torch.arange(6.0)[:, None]), RandGaussianNoise(prob=1.0))
            found.append(torch.cat(list(kind(data, num_workers=workers, batch_size=2, shuffle=True, **more))))
        assert torch.equal(*found)
        assert found[0].unique().numel() == 6


MIXIN = """
+imports:
- $import time
+augment:
  hang: {_target_: Lambdad, keys: label, func: "$lambda label: time.sleep(600)"}
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_ends_with_the_case_that_hangs(workers: int, tiny_cohort: Path, tmp_path: Path) -> None:
    """Also in its record; the loading process does not live on."""
    from monai.bundle import ConfigWorkflow
    from test_every_option import CONFIGS

    (tmp_path / "hangs.yaml").write_text(MIXIN)
    places = {
        "dataset_dir": str(tiny_cohort),
        "ckpt_dir": str(tmp_path / "models"),
        "output_dir": str(tmp_path / "out"),
    }
    workflow = ConfigWorkflow(
        [str(CONFIGS / "train.yaml"), str(tmp_path / "hangs.yaml")], workflow_type=None, run_id="training",
        logging_file=False, **{**TINY, **places, "num_workers": workers, "loading_timeout_s": 3},
    )  # fmt: skip
    workflow.initialize()
    begun = time.monotonic()
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    assert time.monotonic() - begun < 300  # of the 600 for which it would sleep
    message = str(user_error(caught.value))
    assert "did not return a batch within 3 s" in message
    assert "It was reading: MGHNICU_00" in message
    assert _record(tmp_path)["status"] == "failed"
    assert "It was reading: MGHNICU_00" in _record(tmp_path)["error"]
