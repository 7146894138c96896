"""The workflows of ``monai.bundle run`` as subcommands, with the options of their configs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer
from fire.parser import DefaultParseValue
from typer.core import TyperCommand

from ..runtime.errors import UserError
from ..runtime.mixins import CONFIGS, RECIPES, mixins

DATA = {"dataset_dir": "data"}
HERE = {**DATA, "output_dir": "eval", "ckpt_dir": "models"}


@dataclass(frozen=True)
class Workflow:
    """One command."""

    summary: str  # one line for the help
    run_id: str  # of the config
    configs: tuple[str, ...]  # in this order
    folders: dict[str, str]  # default folders, relative to the working directory instead of the installed bundle
    words: str = ""  # option set by positional arguments; empty if none are allowed


WORKFLOWS = {
    "train": Workflow("Train the network on labelled cases.", "training", ("train",), HERE),
    "evaluate": Workflow(
        "Measure trained weights on labelled cases; write the report.", "evaluating", ("train", "evaluate"), HERE
    ),
    "study": Workflow(
        "Train and compare losses or variants under equal conditions.",
        "loss_study",
        ("train", "study"),
        {**DATA, "output_dir": "study"},
    ),
    "phantom": Workflow("Simulate cases.", "phantom", ("data",), DATA),
    "download": Workflow("Download BONBID-HIE.", "download", ("data",), DATA),
    "check": Workflow("Check the cases of a folder before training.", "check", ("data",), DATA),
    "outcome": Workflow("Compare lesion volumes with the children's outcomes.", "outcome", ("data",), {}),
    "scan": Workflow("Segment a folder of DICOM; write DICOM SEG.", "scan", ("scanner",), {}, words="images"),
    "adc": Workflow("Compute an ADC map from diffusion images.", "adc", ("scanner",), {}, words="images"),
    "brain": Workflow("Make a brain mask from the image with b = 0.", "brain", ("scanner",), {}, words="images"),
    "zscore": Workflow("Make a Z map from an ADC map and an atlas.", "zscore", ("scanner",), {}),
    "atlas": Workflow("Make an atlas from ADC maps of healthy newborns.", "atlas", ("scanner",), {}, words="images"),
    "dicom_seg": Workflow("Write a mask as DICOM segmentation on its series.", "dicom_seg", ("scanner",), {}),
}
EXTRA = {
    "recipe": f"{', '.join(RECIPES)} (default paper): network, preprocessing and training",
    "config_file": "your own configs, comma-separated, applied last",
    "tracking": "mlflow or wandb (must be installed), or a settings file (train and evaluate)",
}


@dataclass(frozen=True)
class Value:
    """One top-level value of a config, as in the file; an empty default marks a section."""

    name: str
    default: str
    comment: str
    section: str


def values_of(file: Path) -> list[Value]:
    """The values at the top level of a config, in its order."""
    values, section = [], ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"# -{3,} (.+?) -{3,}", line):
            section = heading[1]
        elif entry := re.fullmatch(r"([^\s#:][^\s:]*):(.*)", line):
            # a comment begins after a space; "@a#b" has no comment
            default, _, comment = entry[2].partition(" #")
            values.append(Value(entry[1], default.strip(), comment.strip(), section))
    return values


def used_by(run_id: str, file: Path) -> set[str]:
    """The top-level keys of a config that a workflow refers to, directly or indirectly."""
    blocks = dict(re.findall(r"^(\w+):(.*?)(?=^\w|\Z)", file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    used = [run_id]
    for name in used:  # grows in the loop
        used += [key for key in re.findall(r"@(\w+)", blocks.get(name, "")) if key not in used]
    return set(used)


def options_of(name: str) -> list[Value]:
    """The options of a command: its own, and the top-level values of its configs; the last config wins.

    ``data.yaml`` and ``scanner.yaml`` have several workflows; only values used by this workflow are included.
    """
    workflow = WORKFLOWS[name]
    own = list(EXTRA) if "train" in workflow.configs else ["config_file"]
    found = {option: Value(option, "", EXTRA[option], "") for option in own}
    for stem in workflow.configs:
        file = CONFIGS / f"{stem}.yaml"
        values = [value for value in values_of(file) if value.default]
        if "train" not in workflow.configs:
            used = used_by(workflow.run_id, file)
            values = [value for value in values if value.name in used]
        for value in values:
            if value.name not in ("run", "bundle_root", workflow.run_id, *own):
                found[value.name] = replace(value, default=workflow.folders.get(value.name, value.default))
    return list(found.values())


class _Command(TyperCommand):
    """A command whose help groups the options under the headings of their config."""

    sections: Mapping[str, str]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        rows: dict[str, list[Any]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                rows.setdefault(self.sections.get(str(parameter.name), "Options"), []).append(record)
        for section, of_it in rows.items():
            with formatter.section(section[:1].upper() + section[1:]):
                formatter.write_dl(of_it)


def add_workflow(app: typer.Typer, name: str) -> None:
    """Add the command of a workflow to the app."""
    workflow = WORKFLOWS[name]
    values = options_of(name)

    def run(context: typer.Context, **_: Any) -> None:
        given = {option: text for option, text in context.params.items() if text is not None}
        run_workflow(name, context.args, parsed({**given, **context.obj}))

    def option(value: Value) -> inspect.Parameter:
        shown = typer.Option(None, f"--{value.name}", help=value.comment, metavar=value.default or "TEXT")
        return inspect.Parameter(value.name, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=str | None)

    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    run.__signature__ = inspect.Signature([context, *map(option, values)])  # type: ignore[attr-defined]
    files = ", ".join(f"{stem}.yaml" for stem in workflow.configs)
    app.command(
        name,
        cls=type("Command", (_Command,), {"sections": {value.name: value.section or "Options" for value in values}}),
        help=workflow.summary,
        epilog=f"As `python -m monai.bundle run {workflow.run_id}` with {files} in {CONFIGS}, "
        "with folders relative to the working directory. Values in the configs' sections are also options: "
        "--train#dataset#cache_rate 0.5",
        options_metavar=f"{f'{workflow.words.upper()} … ' if workflow.words else ''}[--NAME VALUE …]",
        context_settings={"allow_extra_args": True},
    )(run)


def run_workflow(name: str, words: Sequence[str], options: Mapping[str, Any]) -> None:
    """Run a workflow like ``monai.bundle run``, with positional arguments ``words`` and options by name.

    Raises:
        UserError: a file, an argument or an option is invalid.
    """
    workflow = WORKFLOWS[name]
    given = dict(options)
    if words and not workflow.words:
        raise UserError(f"`hie-bundle {name}` does not accept '{words[0]}'; write options as --NAME VALUE.")
    if words:
        given[workflow.words] = list(words)
    recipe = given.pop("recipe", "paper")
    if recipe != "paper" and "train" not in workflow.configs:
        raise UserError(f"`hie-bundle {name}` does not accept --recipe.")
    own = str(given.pop("config_file", "")).split(",")
    files = [*(CONFIGS / f"{stem}.yaml" for stem in workflow.configs), *mixins(recipe), *mixins([f for f in own if f])]
    if tracking := given.get("tracking"):  # replaces MONAI's own "mlflow", which tracks less
        settings = CONFIGS / f"tracking_{tracking}.yaml"
        given["tracking"] = str(settings if settings.is_file() else tracking)
        if not Path(given["tracking"]).is_file():
            raise UserError(f"--tracking {tracking}: {EXTRA['tracking']}.")
    from ..runtime.workflow import Workflow as ConfigWorkflow

    defaults: dict[str, Any] = {
        "run_id": workflow.run_id,
        "workflow_type": None,
        "meta_file": str(CONFIGS / "metadata.json"),
        "logging_file": str(CONFIGS / "logging.conf"),
        **workflow.folders,
    }
    running = ConfigWorkflow([str(file) for file in files], **{**defaults, **given})
    running.initialize()
    running.run()
    running.finalize()


def separated(words: Sequence[str], command: Any) -> tuple[list[str], dict[str, str]]:
    """Separate a command line from undeclared options, which are values of a config.

    A workflow's option without a value is true (``--overwrite``). ``-`` in a name becomes ``_``.
    """
    options = [one for one in getattr(command, "params", []) if hasattr(one, "is_flag")]
    switches = {name: bool(one.is_flag) for one in options for name in one.opts}
    if command:
        switches["--help"] = True
    short = {"-o": "--output_file" if {"adc", "brain", "zscore", "dicom_seg"} & {*words[:1]} else "--output_dir"}
    rest, known, others = [short.get(w, w) if "-o" not in switches else w for w in words], [], {}
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = f"--{name[2:].replace('-', '_')}" if word.startswith("--") else word
        if not switches or not word.startswith("--") or (switches.get(name) and not equals):
            known.append(word)
            continue
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "True"
        if name in switches:
            known.append(f"{name}={value}")
        else:
            others[name[2:]] = value
    return known, others


def parsed(texts: Mapping[str, str]) -> dict[str, Any]:
    """Convert options: texts and paths are unchanged; numbers, lists, true and false are parsed as in Python."""
    from ..runtime.options import OPTIONS

    def is_text(name: str, text: str) -> bool:
        if name in ("recipe", "config_file", "tracking", "run_id"):
            return True
        return name in OPTIONS and OPTIONS[name].is_text and text != "None" and text[:1] + text[-1:] != "[]"

    return {name: text if is_text(name, text) else DefaultParseValue(text) for name, text in texts.items()}
