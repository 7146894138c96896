"""Two real processes on the CPU, started by torchrun: the same step, the same metrics, one writer, one end for all."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distributed_checks
import pytest
import torch
from conftest import BUNDLE, TINY
from monai.bundle import ConfigWorkflow
from processes import NO_NETWORK

from scripts.runtime.distributed import batch_share, gather_interleaved, shard, start
from scripts.runtime.errors import UserError

CONFIGS = BUNDLE / "configs"
Started = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def torchrun(tmp_path: Path) -> Started:
    """Start two processes as a user does, with ``tmp_path`` on their import path."""

    def start(*arguments: str, path: tuple[Path, ...] = ()) -> subprocess.Popen[str]:
        # TCP over the loopback device whatever the machine's name resolves to
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, (NO_NETWORK, tmp_path, *path)))
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    return start


def _bundle(run_id: str, configs: list[Path], **options: Any) -> list[str]:
    arguments = ["-m", "monai.bundle", "run", run_id, "--config_file", str([str(c) for c in configs])]
    for name, value in options.items():
        arguments += [f"--{name.replace('__', '#')}", str(value)]
    return arguments


def _mixins(*names: str) -> list[Path]:
    return [CONFIGS / f"{name}.yaml" for name in names]


def _finished(process: subprocess.Popen[str], status: int = 0, timeout: float = 120) -> str:
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == status, output
    return output


# --- without processes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "world_size"), [(5, 2), (7, 3), (4, 4), (9, 1)])
def test_shards_hold_every_item_once(count: int, world_size: int) -> None:
    shards = [shard(range(count), rank, world_size) for rank in range(world_size)]
    assert sorted(item for part in shards for item in part) == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_too_few_items_are_copied_to_all_or_refused() -> None:
    assert [shard(["a"], rank, 3) for rank in range(3)] == [["a"]] * 3
    with pytest.raises(UserError, match="1 cases for 3 processes"):
        shard(["a"], 0, 3, copies=False)
    assert shard([], 0, 3, copies=False) == []  # a config is also read where there is no data


def test_a_batch_is_divided_evenly_or_refused() -> None:
    assert batch_share(12, 4) == 3
    with pytest.raises(UserError, match=r"4, cannot be divided evenly among 3 processes; set"):
        batch_share(4, 3)


def test_one_process_gathers_what_it_has() -> None:
    assert gather_interleaved([1, 2]) == [1, 2]


@pytest.mark.parametrize("place", [(0, 2), (1, 3)])
def test_a_process_is_not_told_another_place_than_torchruns(
    place: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--rank 0 would make every process the first."""
    for name, value in {"LOCAL_RANK": 1, "RANK": 1, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match="--rank and --world_size are set by torchrun"):
        start("cpu", place=place)


# --- the step, the metrics, the handlers --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What distributed_checks.py saw on each rank; the folder is under the key ``folder``."""
    folder = tmp_path_factory.mktemp("checks")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": f"{NO_NETWORK}{os.pathsep}{BUNDLE}",
    }
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", distributed_checks.__file__]
    result = subprocess.run(
        [sys.executable, *command, str(folder)], env=environment, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return [{**torch.load(folder / f"{rank}.pt", weights_only=True), "folder": folder} for rank in range(2)]


def _whole_batch(name: str, l1: float = 1e-4, batch_statistics: bool = False) -> torch.Tensor:
    loss = distributed_checks.losses(over_ranks=False)[name]
    net = distributed_checks.network(batch_statistics)
    return distributed_checks.gradients(net, loss, *distributed_checks.batch(), l1)


def _rounding(name: str) -> float:
    """Generalised Dice weighs by 1 / volume²: its small gradients are differences of larger numbers, in float32."""
    return 1e-4 if name.startswith("generalized_dice") else 1e-5


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", distributed_checks.losses(over_ranks=False))
def test_two_processes_take_the_step_of_one(seen: list[dict[Any, Any]], name: str) -> None:
    expected = _whole_batch(name)
    for rank in range(2):
        assert _relative(seen[rank]["gradients", name, True], expected) < _rounding(name)


def test_only_what_is_no_mean_over_items_needs_the_other_rank(seen: list[dict[Any, Any]]) -> None:
    for name in distributed_checks.losses(over_ranks=False):
        difference = _relative(seen[0]["gradients", name, False], _whole_batch(name))
        if name in ("dice_focal_hausdorff", "tversky_hausdorff", "dice_ce"):
            assert 1e-3 < difference < 0.5
        else:
            assert difference < _rounding(name)


def test_batch_statistics_of_half_a_batch_give_another_step(seen: list[dict[Any, Any]]) -> None:
    """What synchronised batch normalisation is for; PyTorch has it on CUDA only."""
    assert _relative(seen[0]["gradients", "batch statistics"], _whole_batch("dice", 0.0, True)) > 1e-3


def test_metrics_of_uneven_shards_are_those_of_one_process(seen: list[dict[Any, Any]]) -> None:
    for key, count in (("dice", distributed_checks.CASES), ("dice of one case", 1)):
        validator = distributed_checks.evaluator(distributed_checks.network(), distributed_checks.cases()[:count])
        validator.run()
        assert validator.state.metrics["dice"] > 0.1
        for rank in range(2):
            assert seen[rank][key] == pytest.approx(validator.state.metrics["dice"], abs=1e-6)


def test_values_come_together_in_order(seen: list[dict[Any, Any]]) -> None:
    assert [rank["gathered"] for rank in seen] == [list(range(distributed_checks.CASES)), None]
    assert [rank["mean"] for rank in seen] == [0.5, 0.5]


def test_all_ranks_stop_at_the_same_epoch_and_the_first_alone_writes(seen: list[dict[Any, Any]]) -> None:
    assert [rank["stopped"] for rank in seen] == [2, 2]
    assert torch.equal(seen[0]["weights"], seen[1]["weights"])
    written = {
        path.name: sorted(f.name for f in path.iterdir()) for path in seen[0]["folder"].iterdir() if path.is_dir()
    }
    assert written == {name: ["model.pt", "state.pt"] for name in ("still-0", "whole-0", "parts-0")}


def test_a_rank_without_the_file_resumes_with_the_others(seen: list[dict[Any, Any]]) -> None:
    for rank in seen:
        assert rank["resumed epochs"] == 4
        assert torch.equal(rank["resumed weights"], seen[0]["weights"])


# --- the commands -------------------------------------------------------------------------------------------------


def test_training_and_evaluation_commands(tiny_cohort: Path, tmp_path: Path, torchrun: Started) -> None:
    # a device on the command line is a text, not an object; a network there is wrapped like the config's
    common = {**TINY, "dataset_dir": tiny_cohort, "ckpt_dir": tmp_path / "models", "prior": 0.4, "device": "cpu"}
    common["network"] = "$@network_def.to(@device)"
    output = _finished(
        torchrun(
            *_bundle(
                "training", _mixins("train", "multi_gpu_train"), **common, epochs=2, output_dir=tmp_path / "training"
            )
        )
    )
    assert output.count("epoch 2/2: loss") == 1
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["model.pt", "resume_state.pt", "run.json"]
    weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)["model"]
    assert not any(name.startswith("module.") for name in weights)

    # three cases on two processes
    common |= {"split": "test", "threshold": 0.3}
    configs = _mixins("train", "evaluate")
    two = torchrun(
        *_bundle("evaluating", [*configs, *_mixins("multi_gpu_evaluate")], **common, output_dir=tmp_path / "two")
    )
    _finished(two)
    options = {name: str(value) if isinstance(value, Path) else value for name, value in common.items()}
    options |= {name: eval(value) for name, value in TINY.items()}
    one = ConfigWorkflow(
        [str(c) for c in configs],
        workflow_type="train",
        run_id="evaluating",
        **options,
        output_dir=str(tmp_path / "one"),
    )
    one.initialize()
    one.run()
    one.finalize()
    rows = [list(csv.DictReader((tmp_path / name / "metrics.csv").open())) for name in ("one", "two")]
    assert len(rows[0]) == 3
    assert any(float(row["native_dice"]) > 0 for row in rows[0])
    for row in (*rows[0], *rows[1]):  # of probabilities, whose last digits follow the number of threads; masks do not
        row |= {name: f"{float(row[name]):.6g}" for name in ("native_brier", "native_ece")}
    assert rows[1] == rows[0]
    files = [
        sorted(str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*") if path.is_file())
        for name in ("one", "two")
    ]
    assert files[1] == files[0]


ENDS = """
import atexit, sys; sys.path.insert(0, sys.argv[1])
import torch
from scripts.runtime.distributed import start, stop
class Kept:
    def __del__(self):
        print("torn")
kept = Kept()
start("cpu")
atexit.register(print, "bye")
network = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(9, 9))
network(torch.ones(2, 9)).sum().backward()
print("done")
stop()
"""


def test_ranks_end_without_pythons_teardown(tmp_path: Path, torchrun: Started) -> None:
    """In which a late thread of Gloo aborts the process; what was registered for the end is done."""
    (tmp_path / "ends.py").write_text(ENDS)
    output = _finished(torchrun(str(tmp_path / "ends.py"), str(BUNDLE)))
    assert [output.count(word) for word in ("done", "bye", "torn")] == [2, 2, 0]


SABOTAGE = '''
import os, signal, time
from ignite.engine import Events
from scripts.runtime.errors import UserError

class Sabotage:
    """In the second step of rank 1 something happens."""
    def __init__(self, how):
        self.how = how
    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), self)
    def __call__(self, engine):
        if os.environ["RANK"] == "0":
            print("second step", flush=True)
        elif self.how == "raise":
            raise UserError("the disk of rank 1 is full")
        elif self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "wait":
            time.sleep(600)
'''


def _sabotaged(how: str, torchrun: Started, cohort: Path, folder: Path) -> subprocess.Popen[str]:
    (folder / "sabotage.py").write_text(SABOTAGE)
    (folder / "mixin.yaml").write_text(f"+train#handlers:\n- _target_: sabotage.Sabotage\n  how: {how}\n")
    return torchrun(
        *_bundle(
            "training", [*_mixins("train", "multi_gpu_train"), folder / "mixin.yaml"], **TINY, dataset_dir=cohort,
            ckpt_dir=folder / "models", output_dir=folder / "out", val_interval=1, epochs=50,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("how", "cause"), [("raise", "the disk of rank 1 is full"), ("die", "Signal 9 (SIGKILL) received by PID")]
)
def test_when_a_rank_fails_all_end_with_its_cause(
    how: str, cause: str, torchrun: Started, tiny_cohort: Path, tmp_path: Path
) -> None:
    output = _finished(_sabotaged(how, torchrun, tiny_cohort, tmp_path), status=1, timeout=60)
    assert "second step" in output
    # of two ranks that end within milliseconds either can be torchrun's "root cause"; its summary has both
    assert cause in output[output.rindex("Failures:") :]
    assert output.count("error: the disk of rank 1 is full") == (how == "raise")


def test_sigterm_ends_all_ranks(torchrun: Started, tiny_cohort: Path, tmp_path: Path) -> None:
    process = _sabotaged("wait", torchrun, tiny_cohort, tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if "second step" in line:
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    ranks = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert time.monotonic() - started < 60
    assert process.returncode != 0
    for pid in ranks:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow  # as the one above: a message of rank 1 is shown once, too
def test_a_mistake_that_all_ranks_make_is_shown_once(torchrun: Started, tiny_cohort: Path, tmp_path: Path) -> None:
    options = {**TINY, "dataset_dir": tiny_cohort, "ckpt_dir": tmp_path / "m", "output_dir": tmp_path / "o"}
    output = _finished(
        torchrun(*_bundle("training", _mixins("train", "multi_gpu_train"), **{**options, "batch_size": 3})), status=1
    )
    assert output.count("error: The total batch_size") == 1


def test_without_torchrun_the_config_says_how_to_start(
    tiny_cohort: Path, tmp_path: Path, monai_bundle: Callable[..., Any]
) -> None:
    result = monai_bundle(
        "run", "training", check=False, config_file=[str(c) for c in _mixins("train", "multi_gpu_train")],
        dataset_dir=tiny_cohort, ckpt_dir=tmp_path / "m", output_dir=tmp_path / "o",
    )  # fmt: skip
    assert result.returncode == 1
    assert "torchrun --standalone --nproc_per_node=N" in result.stderr
