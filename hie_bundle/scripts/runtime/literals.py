"""Escape user values in a MONAI config, so that no text among them runs as code.

MONAI's ConfigParser evaluates every text that begins with ``$``, replaces ``@name`` and ``%file``, and turns ``#`` into
``::``. A config file may use this; a user's value may not. :func:`literal` writes such a text as a Python string
literal with these characters escaped. Every parser, also in another process, resolves it to the original text.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping
from typing import Any

from .errors import UserError

_SPECIAL = re.compile(r"[$@%#]|::")
_LITERAL = re.compile(r"\$'(?:[\w ./,-]|\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8})*'")  # \x, \u: before 0.13


def literal(value: Any, name: str = "") -> Any:
    """Escape a value so that MONAI's parser resolves it to ``value``.

    Args:
        value: a text, number, path, list or mapping; tuples become lists.
        name: name of the option, for the message.

    Raises:
        UserError: the value describes an object (``_target_``), which only config files may do.
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
    """Invert :func:`literal`; expressions of config files remain unchanged."""
    if isinstance(value, str) and _LITERAL.fullmatch(value):
        return ast.literal_eval(value[1:])
    if isinstance(value, list):
        return [plain(one) for one in value]
    return {key: plain(one) for key, one in value.items()} if isinstance(value, dict) else value
