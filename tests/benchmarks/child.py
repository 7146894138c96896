"""One training or segmentation in a process of its own, timed from inside: ``child.py JSON`` prints JSON.

A process of its own, since the peak of its memory cannot be set back.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

BUNDLE = Path(__file__).resolve().parents[2] / "hie_bundle"

STOCK_TRAINING = {
    "augment#paper#transform#anisotropy#_target_": "torchio.RandomAnisotropy",
    "augment#paper#transform#blur#_target_": "torchio.RandomBlur",
    "augment#paper#transform#elastic#_target_": "torchio.RandomElasticDeformation",
    "log_hausdorff": {"_target_": "monai.losses.LogHausdorffDTLoss", "sigmoid": True, "include_background": True},
}
POINTWISE_NETWORK = {"_target_": "torch.nn.Conv3d", "in_channels": 2, "out_channels": 1, "kernel_size": 1}


class PhaseTimer:
    """Adds up the seconds of an engine's phases: data, forward, loss, backward, update with metrics, validation."""

    def __init__(self, engine: Any) -> None:
        from ignite.engine import Events
        from monai.engines import IterationEvents

        self.losses: list[float] = []
        self.epochs: list[dict[str, float]] = []
        self.steps: list[float] = []
        for event, phase in (
            (Events.GET_BATCH_STARTED, "update"),  # what handlers of a step's end take
            (Events.GET_BATCH_COMPLETED, "data"),
            (IterationEvents.FORWARD_COMPLETED, "forward"),
            (IterationEvents.LOSS_COMPLETED, "loss"),
            (IterationEvents.BACKWARD_COMPLETED, "backward"),
            (Events.ITERATION_COMPLETED, "update"),
            (Events.EPOCH_COMPLETED, "validation"),
        ):
            engine.add_event_handler(event, self.mark, phase)
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self.start_step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.end_step)

    def now(self) -> float:
        from timing import synchronise

        synchronise()
        return time.perf_counter()

    def start_epoch(self) -> None:
        self.epochs.append(defaultdict(float))
        self.last = self.now()

    def mark(self, phase: str) -> None:
        now = self.now()
        self.epochs[-1][phase] += now - self.last
        self.last = now

    def start_step(self) -> None:
        self.step_start = self.now()

    def end_step(self, engine: Any) -> None:
        self.steps.append(self.now() - self.step_start)
        if isinstance(engine.state.output, list) and "loss" in engine.state.output[0]:
            self.losses.append(float(engine.state.output[0]["loss"]))


def started(workflow_type: str, configs: list[str], overrides: dict[str, Any]) -> Any:
    """An initialised workflow of the bundle's configs."""
    from monai.bundle import ConfigWorkflow

    files = [str(BUNDLE / "configs" / name) for name in configs]
    workflow = ConfigWorkflow(files, workflow_type=workflow_type, logging_file=False, **overrides)
    workflow.initialize()
    return workflow


def run(workflow_type: str, configs: list[str], engine_id: str, overrides: dict[str, Any]) -> PhaseTimer:
    workflow = started(workflow_type, configs, overrides)
    timer = PhaseTimer(workflow.parser.get_parsed_content(engine_id))
    workflow.run()
    workflow.finalize()
    return timer


def train(recipe: str, network: str, **overrides: Any) -> dict[str, Any]:
    """Times of the last epoch; the epochs before it warm up."""
    if recipe == "stock":
        overrides |= STOCK_TRAINING
    if network == "pointwise":
        overrides["network_def"] = POINTWISE_NETWORK
    timer = run("train", ["train.yaml"], "train#trainer", overrides | {"overwrite": True})
    epoch = timer.epochs[-1]
    return {"epoch_s": sum(epoch.values()), "step_s": timer.steps[-1], "phases_s": epoch, "losses": timer.losses}


def pace(configs: list[str], **overrides: Any) -> dict[str, Any]:
    """A training timed without stopping the device: start, epochs after the first, and the floor of a step.

    The floor is forward, loss, backward and optimiser on the last batch, which is on the device already.
    """
    import torch
    from ignite.engine import Events
    from timing import synchronise

    begin = time.perf_counter()
    workflow = started("train", configs, overrides | {"overwrite": True})
    trainer = workflow.parser.get_parsed_content("train#trainer")
    first: list[float] = []
    starts: list[float] = []
    ends: list[float] = []
    use = GpuUse()

    def mark(_: Any, times: list[float], once: bool = False) -> None:
        if not (once and times):
            synchronise()
            times.append(time.perf_counter())

    trainer.add_event_handler(Events.ITERATION_COMPLETED, mark, first, once=True)
    trainer.add_event_handler(Events.EPOCH_STARTED, mark, starts)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, mark, ends)  # after the validation, which was added before
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), use.start)
    workflow.run()
    busy = use.stop()
    length, size = trainer.state.epoch_length, len(trainer.state.batch["case"])
    inputs, targets = trainer.prepare_batch(trainer.state.batch, trainer.state.device, False)[:2]
    network, optimiser = trainer.network.train(), trainer.optimizer
    device = torch.device(trainer.state.device).type

    def one() -> None:
        with torch.autocast(device, enabled=trainer.amp):
            loss = trainer.loss_function(trainer.inferer(inputs, network), targets).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    for _ in range(3):
        one()
    synchronise()
    begin_floor = time.perf_counter()
    for _ in range(length):
        one()
    synchronise()
    floor = (time.perf_counter() - begin_floor) / length
    workflow.finalize()
    return {
        "start_s": first[0] - begin,
        "epoch_s": statistics.median(end - start for start, end in list(zip(starts, ends, strict=True))[1:]),
        "steps": length,
        "batch_size": size,
        "floor_step_s": floor,
        "busy_percent": busy,
        "data_on_device": workflow.parser.get_parsed_content("placement").on_device,
    }


class GpuUse:
    """Percent of the time in which the GPU was busy, twice a second, by nvidia-smi; None without one."""

    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        if tool := shutil.which("nvidia-smi"):
            query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=500", "--id=0"]
            self.process = subprocess.Popen([tool, *query], stdout=subprocess.PIPE, text=True)

    def stop(self) -> float | None:
        if self.process is None:
            return None
        self.process.terminate()
        return statistics.fmean(float(line) for line in self.process.communicate()[0].split() if line.isdigit())


def segment(configs: list[str], **overrides: Any) -> dict[str, Any]:
    """Median time of a case, from reading its maps to its mask on disk; the first case warms up."""
    timer = run("infer", configs, "evaluator", overrides)
    return {"case_s": statistics.median(timer.steps[1:] or timer.steps)}


def peak_memory_mb() -> float:
    """Largest resident size of this process; getrusage's would start with that of the process that started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    sys.path.insert(0, str(BUNDLE))
    stdout, sys.stdout = sys.stdout, sys.stderr  # the last line of standard output is the result
    result = {"train": train, "segment": segment, "pace": pace}[job.pop("job")](**job)
    result["peak_memory_mb"] = peak_memory_mb()
    import torch

    if torch.cuda.is_available():
        result["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps(result), file=stdout)
