"""The workflows of ``monai.bundle run`` by one word each, and what can be set in them, as the configs say it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fire.decorators import SetParseFn
from fire.parser import DefaultParseValue

from ..runtime.errors import UserError
from ..runtime.mixins import CONFIGS, RECIPES, mixins

__all__ = ["EXTRA", "WORKFLOWS", "Value", "Workflow", "help_page", "runner", "values_of"]

HERE = {"dataset_dir": "data", "output_dir": "eval", "ckpt_dir": "models"}


@dataclass(frozen=True)
class Workflow:
    """One command.

    Attributes:
        run_id: what is run.
        configs: in this order.
        folders: looked for where the user is, not in the installed bundle.
        words: the value that words without a name are; none if empty.
    """

    run_id: str
    configs: tuple[str, ...]
    folders: dict[str, str]
    words: str = ""


WORKFLOWS = {
    "train": Workflow("training", ("train",), HERE),
    "evaluate": Workflow("evaluating", ("train", "evaluate"), HERE),
    "study": Workflow("loss_study", ("train", "study"), {"dataset_dir": "data", "output_dir": "study"}),
    "phantom": Workflow("phantom", ("data",), {"dataset_dir": "data"}),
    "download": Workflow("download", ("data",), {"dataset_dir": "data"}),
    "check": Workflow("check", ("data",), {"dataset_dir": "data"}),
    "scan": Workflow("scan", ("scanner",), {}, words="images"),
    "adc": Workflow("adc", ("scanner",), {}, words="images"),
    "brain": Workflow("brain", ("scanner",), {}, words="images"),
    "zscore": Workflow("zscore", ("scanner",), {}),
    "atlas": Workflow("atlas", ("scanner",), {}, words="images"),
    "dicom_seg": Workflow("dicom_seg", ("scanner",), {}),
}
EXTRA = {
    "recipe": f"{', '.join(RECIPES)} (paper if not given): the network, what it sees, how it is trained",
    "config_file": "configs of your own that go over the others, with commas between them",
    "tracking": "mlflow or wandb, which must be installed, or a file of settings (train and evaluate)",
}


@dataclass(frozen=True)
class Value:
    """One value at the top of a config.

    Attributes:
        name: its key.
        default: as the file has it; empty where a section of further keys follows.
        comment: what stands behind it.
        section: the heading above it.
    """

    name: str
    default: str
    comment: str
    section: str


def values_of(file: Path) -> list[Value]:
    """The values at the top level of a config, in its order, with what it says of them."""
    values, section = [], ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"# -{3,} (.+?) -{3,}", line):
            section = heading[1]
        elif entry := re.fullmatch(r"([^\s#:][^\s:]*):(.*)", line):
            # a comment begins behind a blank; in "@a#b" there is none
            default, _, comment = entry[2].partition(" #")
            values.append(Value(entry[1], default.strip(), comment.strip(), section))
    return values


def runner(name: str) -> Callable[..., None]:
    """The command as a function that takes options."""
    workflow = WORKFLOWS[name]

    @SetParseFn(str)
    def run(*words: Any, recipe: Any = "paper", config_file: Any = (), **options: Any) -> None:
        options = {name: _value(name, text) for name, text in options.items()}
        if words and not workflow.words:
            raise UserError(f"`hie-bundle {name}` does not know what '{words[0]}' is; values have names: --NAME VALUE.")
        if words:
            options[workflow.words] = list(words)
        if recipe != "paper" and "train" not in workflow.configs:
            raise UserError(f"`hie-bundle {name}` takes no --recipe.")
        over = [*mixins(recipe if isinstance(recipe, str) else _names(recipe)), *mixins(_names(config_file))]
        files = [*(CONFIGS / f"{stem}.yaml" for stem in workflow.configs), *over]
        if "tracking" in options:  # by word as by file; MONAI itself knows one word, for less than is tracked here
            settings = CONFIGS / f"tracking_{options['tracking']}.yaml"
            options["tracking"] = str(settings if settings.is_file() else options["tracking"])
            if not Path(options["tracking"]).is_file():
                raise UserError(f"--tracking {options['tracking']}: {EXTRA['tracking']}.")
        from monai.bundle import run_workflow

        from ..runtime.workflow import Workflow as ConfigWorkflow

        defaults = {
            "run_id": workflow.run_id,
            "meta_file": str(CONFIGS / "metadata.json"),
            "logging_file": str(CONFIGS / "logging.conf"),
            **workflow.folders,
        }
        given = {"config_file": [str(file) for file in files], **defaults, **options}
        run_workflow(ConfigWorkflow, **given)  # type: ignore[arg-type]

    return run


def _value(name: str, text: str) -> Any:
    """An option's value: numbers, lists, true and false are parsed; a path or another text is the text itself."""
    from ..runtime.options import OPTIONS

    return text if name in OPTIONS and OPTIONS[name].is_text and text != "None" else DefaultParseValue(text)


def _names(value: Any) -> list[str]:
    """Names with commas between them, however the command line was read: fire makes a tuple of ``a,b``."""
    if isinstance(value, str):
        return value.split(",")
    return [str(one) for one in (value if isinstance(value, list | tuple) else [value])]


def help_page(name: str) -> str:
    """Every value that the command's configs have at their top, with default and comment."""
    workflow = WORKFLOWS[name]
    files = [CONFIGS / f"{stem}.yaml" for stem in workflow.configs]
    known = {value.name: value for file in files for value in values_of(file)}  # the last file's counts
    own = EXTRA if "train" in workflow.configs else {"config_file": EXTRA["config_file"]}
    lines = [
        f"hie-bundle {name} {f'{workflow.words.upper()} … ' if workflow.words else ''}[--NAME VALUE …]",
        "",
        f"As `python -m monai.bundle run {workflow.run_id}` with {', '.join(file.name for file in files)} in",
        f"{CONFIGS}, but folders are looked for where you are.",
        "",
        *(f"  --{option}\n      {text}" for option, text in own.items()),
    ]
    section = None
    for value in known.values():
        if not value.default or value.name in ("run", "workflow", "bundle_root", workflow.run_id):
            continue
        if value.section != section:
            section = value.section
            lines += ["", section[:1].upper() + section[1:]]
        default = workflow.folders.get(value.name, value.default)
        lines += [f"  --{value.name} {default}", *([f"      {value.comment}"] if value.comment else [])]
    lines += ["", "What stands in the configs' sections can be set, too: --train#dataset#cache_rate 0.5"]
    return "\n".join(lines)
