"""Experiment tracking, for ``tracking_mlflow.yaml`` and ``tracking_wandb.yaml``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow

from ..runtime.errors import UserError
from ..runtime.literals import plain
from ..runtime.workflow import running_workflow


def parameters(workflow: ConfigWorkflow | None = None) -> dict[str, Any]:
    """Top-level numbers, strings and lists of them in a workflow's config (the running one), without expressions."""
    workflow = workflow or running_workflow()

    def is_plain(value: Any) -> bool:
        if isinstance(value, list):
            return all(map(is_plain, value))
        expression = isinstance(value, str) and value.startswith(("$", "@")) and plain(value) == value
        return isinstance(value, int | float | str) and not expression

    config = workflow.parser.get() if workflow else {}
    return {name: plain(value) for name, value in config.items() if is_plain(value)}


@dataclass(eq=False)
class WandBHandler:
    """Log an engine to Weights & Biases: parameters, metrics of each epoch, values of each step, files at the end.

    The handlers of trainer and validator share one run. ``WANDB_MODE=offline`` needs no network.

    Raises:
        UserError: when the engine starts, if wandb is not installed.
    """

    project: str  # of the run
    name: str  # of the run
    folder: str  # for wandb's files
    config: Mapping[str, Any] = field(default_factory=dict)  # parameters of the run
    steps: Callable[[Any], Mapping[str, Any]] | None = None  # from an iteration's output to values by name
    files: Sequence[str] = ()  # uploaded at the engine's end, if they exist
    close: bool = False  # end the run with the engine

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.started)
        if self.steps is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.step, self.steps)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def started(self, _: Engine) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise UserError("Tracking with Weights & Biases needs its package: pip install wandb") from error
        self.wandb = wandb
        if wandb.run is None:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            wandb.init(project=self.project, name=self.name, dir=self.folder, config=dict(self.config))
            wandb.define_metric("step/*", step_metric="iteration")
            wandb.define_metric("*", step_metric="epoch")

    def step(self, engine: Engine, steps: Callable[[Any], Mapping[str, Any]]) -> None:
        figures = {f"step/{name}": float(value) for name, value in steps(engine.state.output).items()}
        self.wandb.log({**figures, "iteration": engine.state.iteration})

    def __call__(self, engine: Engine) -> None:
        if engine.state.metrics:
            self.wandb.log({**engine.state.metrics, "epoch": engine.state.epoch})

    def completed(self, _: Engine) -> None:
        for file in filter(Path.is_file, map(Path, self.files)):
            self.wandb.save(str(file), base_path=str(file.parent), policy="now")
        if self.close:
            self.wandb.finish()
