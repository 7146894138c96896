"""Values from a command line, from Python or from file names as data in a MONAI config, where they could be code.

MONAI's ConfigParser evaluates every text that begins with ``$``, replaces ``@name`` and ``%file``, and turns ``#`` into
``::``. A config file may do that; a user's value may not. :func:`literal` writes such a text as a Python string literal
in which these characters are escaped, so that every parser, also that of another process, gives back the text itself.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping
from typing import Any

from .errors import UserError

_SPECIAL = re.compile(r"[$@%#]|::")
_LITERAL = re.compile(r"\$'(?:[\w ./,-]|\\U[0-9a-f]{8})*'")


def literal(value: Any, name: str = "") -> Any:
    """A value that MONAI's parser resolves to ``value``, whatever characters its texts have.

    Args:
        value: a text, number, path, list or mapping; tuples become lists.
        name: of the option, for the message.

    Raises:
        UserError: when it describes an object (``_target_``), which only config files may do.
    """
    if re.search(r"(#|::|^)_\w+_$", name):
        raise UserError(f"--{name}: an object (_target_) must be in a config file: --config_file FILE.")
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and _SPECIAL.search(value):
        return "$'" + re.sub(r"[^\w ./,-]", lambda char: f"\\U{ord(char[0]):08x}", value) + "'"
    if isinstance(value, list | tuple):
        return [literal(one, name) for one in value]
    if isinstance(value, Mapping):
        return {key: literal(one, f"{name}#{key}".lstrip("#")) for key, one in value.items()}
    return value


def plain(value: Any) -> Any:
    """The inverse of :func:`literal`; expressions of config files stay as they are."""
    if isinstance(value, str) and _LITERAL.fullmatch(value):
        return ast.literal_eval(value[1:])
    if isinstance(value, list):
        return [plain(one) for one in value]
    return {key: plain(one) for key, one in value.items()} if isinstance(value, dict) else value
