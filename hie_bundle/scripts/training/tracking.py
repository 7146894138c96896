"""Tracking of experiments by other programs: what tracking_mlflow.yaml and tracking_wandb.yaml name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow

from ..runtime.errors import UserError
from ..runtime.literals import plain
from ..runtime.workflow import running_workflow

__all__ = ["WandBHandler", "parameters"]


def parameters(workflow: ConfigWorkflow | None = None) -> dict[str, Any]:
    """The plain values at the top of a run's config, by name: numbers, texts, lists of them; no expressions.

    Args:
        workflow: the running one by default; without one there are none.
    """
    workflow = workflow or running_workflow()
    if workflow is None:
        return {}

    def is_plain(value: Any) -> bool:
        if isinstance(value, list):
            return all(is_plain(one) for one in value)
        return isinstance(value, int | float) or (
            isinstance(value, str) and (not value.startswith(("$", "@")) or plain(value) != value)
        )

    return {name: plain(value) for name, value in workflow.parser.get().items() if is_plain(value)}


class WandBHandler:
    """Log an engine to Weights & Biases: parameters, metrics of each epoch, curves of each step, files at the end.

    The handlers of trainer and validator share one run, which ends with the first engine whose handler closes it.
    Without a network: ``WANDB_MODE=offline`` in the environment, later ``wandb sync``.

    Args:
        project: of the run.
        name: of the run.
        folder: where wandb keeps its files.
        config: parameters of the run.
        steps: from an iteration's output to figures by name; None logs no steps.
        files: uploaded when the engine has completed, those that there are.
        close: whether the run ends with the engine.

    Raises:
        UserError: when the engine starts, if wandb is not installed.
    """

    def __init__(
        self,
        project: str,
        name: str,
        folder: str,
        config: Mapping[str, Any] | None = None,
        steps: Callable[[Any], Mapping[str, Any]] | None = None,
        files: Sequence[str] = (),
        close: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.options: dict[str, Any] = {"project": project, "name": name, "dir": folder, "config": dict(config or {})}
        self.steps = steps
        self.files = files
        self.close = close

    def attach(self, engine: Engine) -> None:
        """Act at the engine's start, after each step and epoch, and at its end."""
        engine.add_event_handler(Events.STARTED, self.started)
        if self.steps is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def started(self, _: Engine) -> None:
        """Begin the run, unless another engine's handler has."""
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise UserError("Tracking with Weights & Biases needs its package: pip install wandb") from error
        self.wandb = wandb
        if wandb.run is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            wandb.init(**self.options)
            wandb.define_metric("step/*", step_metric="iteration")
            wandb.define_metric("*", step_metric="epoch")

    def step(self, engine: Engine) -> None:
        """Log a step."""
        assert self.steps is not None
        figures = {f"step/{name}": float(value) for name, value in self.steps(engine.state.output).items()}
        self.wandb.log({**figures, "iteration": engine.state.iteration})

    def __call__(self, engine: Engine) -> None:
        if engine.state.metrics:
            self.wandb.log({**engine.state.metrics, "epoch": engine.state.epoch})

    def completed(self, _: Engine) -> None:
        """Upload the files."""
        for file in map(Path, self.files):
            if file.is_file():
                self.wandb.save(str(file), base_path=str(file.parent), policy="now")
        if self.close:
            self.wandb.finish()
