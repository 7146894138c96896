"""Values that nobody reads: a typing error in an option must not start a run with the default."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from .errors import UserError
from .recipe import references

__all__ = ["refuse_unknown"]


def refuse_unknown(workflow: ConfigWorkflow | None) -> None:
    """Stop where a value at the top of a config, or of the command line, is none that a config of the bundle has.

    A mixin may bring values of its own, as long as the config refers to them (``@name``), and sections.

    Args:
        workflow: that runs the config; None for tools that have none.

    Raises:
        UserError: naming every such value and the nearest one that there is.
    """
    if workflow is None:
        return
    config: Mapping[str, Any] = workflow.parser.get()
    known = {str(workflow.init_id), str(workflow.run_id), str(workflow.final_id)}
    for file in workflow.config_root_path.glob("*.yaml"):
        known |= {name.lstrip("+").split("#")[0] for name in ConfigParser.load_config_file(str(file))}
    named = {reference.split("#")[0] for reference in references(json.loads(json.dumps(config, default=str)))}
    lines = []
    for name, value in config.items():
        if name in known or name in named or name.startswith("_") or isinstance(value, Mapping):
            continue
        near = difflib.get_close_matches(name, sorted(known), 1)
        lines.append(f"  --{name}: no config has such a value" + (f"; did you mean --{near[0]}?" if near else "."))
    if lines:
        raise UserError("There are options that nothing would read; nothing was started.\n" + "\n".join(lines))
