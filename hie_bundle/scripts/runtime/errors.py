"""Errors that a user can mend, and how the command line shows them."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from .text import printable

__all__ = [
    "DatasetError", "UserError", "causes", "choose", "first_cause", "one_line", "out_of_memory", "show_plainly",
    "user_error",
]  # fmt: skip

Option = TypeVar("Option")

# refusals of the system, whatever was being done: no right to write, a full or broken disk, a file that is gone
REFUSALS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE,
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
# in MONAI's words: a component that refused its arguments; and errors of a config, of the bundle's or a user's
_COMPONENT = re.compile(r"(?:Failed to instantiate component '|applying transform <)([\w.]+)")
_CONFIG = re.compile(
    r"the referring item `@.+` is not defined in the config content\."
    r"|Cannot locate class or function path: .+"
    r"|run ID '.+' doesn't exist in the config file\."
)


class UserError(ValueError):
    """A file, folder or value outside the code is wrong; the message says what, and what to do."""


class DatasetError(UserError):
    """The dataset cannot be used as asked."""


def choose(options: Mapping[str, Option], name: str, what: str) -> Option:
    """The option called ``name``; ``what`` is the key that chooses.

    Raises:
        UserError: when there is none of that name, with the names that exist.
    """
    if name not in options:
        raise UserError(f"{what} '{name}' is unknown; choose one of: {', '.join(options)}.")
    return options[name]


def show_plainly() -> None:
    """End the program after an uncaught :class:`UserError` with its message instead of a traceback.

    MONAI wraps each exception of a config in two or three others. Of any other exception the first cause is repeated
    at the end.
    """
    previous = sys.excepthook
    if getattr(previous, "__module__", None) == __name__:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if message := user_error(error) or out_of_memory(error):
            print(f"\nerror: {printable(message)}", file=sys.stderr)
        elif kind is KeyboardInterrupt:
            print("\nStopped.", file=sys.stderr)
        else:
            previous(kind, error, trace)
            if (first := first_cause(error)) is not error:
                print(f"\ncaused by {type(first).__name__}: {first}", file=sys.stderr)

    sys.excepthook = hook


def user_error(error: BaseException) -> UserError | None:
    """The :class:`UserError` among an exception and its causes; or None.

    It is made here where the system refused something, the config names what does not exist, or a library's component
    does not take its arguments.
    """
    chain = causes(error)
    for cause in chain:
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, OSError) and cause.errno in REFUSALS:
            where = "" if cause.filename is None else f"{os.fsdecode(cause.filename)}: "
            return UserError(f"{where}{cause.strerror}. What was written whole before is as it was.")
    if mistake := next(filter(None, map(_CONFIG.fullmatch, map(str, chain))), None):
        return UserError(mistake[0].replace("::", "#"))
    component = _COMPONENT.match(str(chain[-2])) if len(chain) > 1 else None
    if component and isinstance(chain[-1], TypeError) and "unexpected keyword argument" in str(chain[-1]):
        return UserError(f"{component[1]} has no such option: {chain[-1]}.")
    if component and isinstance(chain[-1], TypeError | ValueError) and _is_installed(component[1]):
        return UserError(f"{component[1]} does not take the values that it has in the config: {chain[-1]}")
    return None


def _is_installed(name: str) -> bool:
    """Whether a class is a library's; a fault in a user's own module needs its traceback."""
    package = name.partition(".")[0]
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    return package != "scripts" and not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def out_of_memory(error: BaseException) -> str | None:
    """What to lower, where an accelerator had no more memory; None of any other exception."""
    torch = sys.modules.get("torch")  # an import for this alone would take seconds
    shortage = next((cause for cause in causes(error) if torch and isinstance(cause, torch.OutOfMemoryError)), None)
    return shortage and (
        f"{str(shortage).splitlines()[0].rstrip('.')}.\nThe device has too little memory. In training lower "
        "--batch_size, or --patch_size where the recipe takes patches; in evaluation and inference --flips []; in all "
        "of them --spatial_size; --amp True takes half in training; or end what else uses the device."
    )


def first_cause(error: BaseException) -> BaseException:
    """The last exception in the chain of causes; the exception itself if it has none."""
    return causes(error)[-1]


def causes(error: BaseException) -> list[BaseException]:
    """An exception, what caused it, and so on."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def one_line(error: BaseException) -> str:
    """An exception as one line of text."""
    return " ".join("".join(traceback.format_exception_only(type(error), error)).split())
