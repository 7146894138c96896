"""MONAI's workflow with one-line errors for wrong files and options."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import ensure_tuple

from .errors import UserError, did_you_mean
from .literals import literal


def running_workflow() -> ConfigWorkflow | None:
    """The running workflow; None if a tool parses a config without one.

    MONAI passes neither the workflow nor its parser to the components of a config.
    """
    for frame, _ in traceback.walk_stack(None):
        if isinstance(workflow := frame.f_locals.get("self"), ConfigWorkflow):
            return workflow
    return None


_FILES_ALONE = ("", "imports", "initialize", "finalize", "init_id", "final_id")  # they contain the checks of options
_OWN = inspect.signature(ConfigWorkflow).parameters  # MONAI's own: files and ids, which are not evaluated


class Workflow(ConfigWorkflow):
    """``monai.bundle.ConfigWorkflow`` with a :class:`UserError` for a wrong file or option.

    ``python -m monai.bundle run`` uses MONAI's class, and ends with a traceback in these cases. Values of options are
    data: no text in them is evaluated.

    Raises:
        UserError: a file is missing or not a config, or an option is in a section or list item that the config lacks;
            lists each with the closest name.
    """

    def __init__(self, config_file: str | Sequence[str], **options: Any) -> None:
        for name in options:
            if re.split("#|::", name)[0] in _FILES_ALONE:
                raise UserError(f"--{name}: only a config file may change this part of the config.")
        options = {name: value if name in _OWN else literal(value, name) for name, value in options.items()}
        try:
            super().__init__(config_file, **options)
        except (OSError, KeyError, IndexError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
            if mistake := _wrong_file(ensure_tuple(config_file)) or _wrong_options(ensure_tuple(config_file), options):
                raise UserError(mistake) from error
            raise
        if not isinstance(imports := self.parser.get("imports", []), list | str):
            raise UserError(f"imports in the config must be a list of expressions ($import …), not {imports!r}.")


def _wrong_file(files: Sequence[str]) -> str | None:
    for path in map(Path, files):
        if not path.is_file():
            there = {one.name: one for one in path.parent.glob("*.yaml")}
            return f"There is no config file {path}" + did_you_mean(path.name, there)
        try:
            content = ConfigParser.load_config_file(path)
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            return f"{path} is not a config file: {' '.join(str(error).split())}"
        if not isinstance(content, dict):
            return f"{path} is not a config file: it has no named values."
        if wrong := [name for name in content if not name or not isinstance(name, str)]:
            return f"{path} is not a config file: {wrong[0]!r} is not a name."
    return None


def _wrong_options(files: Sequence[str], options: Iterable[str]) -> str | None:
    config = ConfigParser.load_config_files(files)
    lines = [f"  --{name}: {why}" for name in options if (why := _missing(config, re.split("#|::", name)))]
    return "\n".join(["There are options that no config uses; nothing was started.", *lines]) if lines else None


def _missing(config: Any, levels: Sequence[str]) -> str:
    """Describe the first missing level of an option's id; empty if the config has all levels."""
    for count, level in enumerate(levels):
        above = "#".join(levels[:count])
        if isinstance(config, list):
            if not (level.isdecimal() and int(level) < len(config)):
                return f"{above} is a list with indices 0 to {len(config) - 1}."
            config = config[int(level)]
        elif not isinstance(config, Mapping):
            return f"{above} is neither a section nor a list."
        elif level in config:
            config = config[level]
        elif count + 1 < len(levels):
            known = {str(key): "--" + "#".join([*levels[:count], str(key), *levels[count + 1 :]]) for key in config}
            return "no config has such a value" + did_you_mean(level, known)
    return ""
