"""Errors that a user can fix, and their output on the command line."""

from __future__ import annotations

import atexit
import difflib
import errno
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from .text import printable, show_any_text

Option = TypeVar("Option")

# errors of the operating system: no permission, a full or faulty disk, a missing file
REFUSALS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE,
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE,
    errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY, errno.ENXIO, errno.ENODEV,
    errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN,
}  # fmt: skip
# MONAI's messages: a component rejected its arguments; a config has an error
_COMPONENT = re.compile(r"(?:Failed to instantiate component '|applying transform <)([\w.]+)")
_CONFIG = re.compile(
    r"the referring item `@.+` is not defined in the config content\."
    r"|Cannot locate class or function path: .+"
    r"|run ID '.+' doesn't exist in the config file\."
)


class UserError(ValueError):
    """A file, folder or value from outside the code is wrong; the message names it and a remedy."""


class DatasetError(UserError):
    """The dataset does not allow the requested operation."""


def choose(options: Mapping[str, Option], name: str, what: str) -> Option:
    """Return the option ``name``; ``what`` is the config key, for the message.

    Raises:
        UserError: the name is unknown; the message lists the known ones.
    """
    if name not in options:
        raise UserError(f"{what} '{name}' is unknown; choose one of: {', '.join(options)}.")
    return options[name]


def did_you_mean(name: str, known: Mapping[str, Any]) -> str:
    """End of a message on an unknown name, with the closest known name as the mapping writes it."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {known[near[0]]}?" if near else "."


def show_plainly() -> None:
    """Print the message of an uncaught :class:`UserError` instead of a traceback.

    MONAI wraps each exception of a config in two or three others. After the traceback of any other exception, the first
    cause is repeated.
    """
    show_any_text()
    previous = sys.excepthook
    if getattr(previous, "__module__", None) == __name__:
        return

    if threading.current_thread() is threading.main_thread():  # Ctrl-C during the last steps: no traceback
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if message := user_error(error) or out_of_memory(error):
            print(f"\nerror: {printable(message)}", file=sys.stderr)
        elif _is_interrupted(error):
            print("\nStopped.", file=sys.stderr)
        else:
            previous(kind, error, trace)
            if (first := first_cause(error)) is not error:
                print(f"\ncaused by {type(first).__name__}: {first}", file=sys.stderr)

    sys.excepthook = hook
    unraisable = sys.unraisablehook

    def lost(found: Any) -> None:
        """Send Ctrl-C again if it arrived in a finaliser or weak reference callback: Python ignores it there."""
        if isinstance(found.exc_value, KeyboardInterrupt):
            threading.Timer(0.05, signal.raise_signal, (signal.SIGINT,)).start()
        else:
            unraisable(found)

    sys.unraisablehook = lost


def _is_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is among the causes: during an import, pydoc and MONAI wrap it."""
    return error is not None and (
        isinstance(error, KeyboardInterrupt) or _is_interrupted(error.__cause__ or error.__context__)
    )


def user_error(error: BaseException) -> UserError | None:
    """The :class:`UserError` in an exception and its causes; None if there is none.

    Converts errors of the operating system, unknown names in a config, and rejected arguments of library components.
    """
    chain = causes(error)
    for cause in chain:
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, OSError) and cause.errno in REFUSALS:
            where = _full_disk() if cause.filename is None else f"{os.fsdecode(cause.filename)}: "
            return UserError(f"{where}{cause.strerror}. Files written before are unchanged.")
    if mistake := next(filter(None, map(_CONFIG.fullmatch, map(str, chain))), None):
        return UserError(mistake[0].replace("::", "#"))
    component = _COMPONENT.match(str(chain[-2])) if len(chain) > 1 else None
    if component and isinstance(chain[-1], TypeError) and "unexpected keyword argument" in str(chain[-1]):
        return UserError(f"{component[1]} has no such option: {chain[-1]}.")
    if component and isinstance(chain[-1], TypeError | ValueError) and _is_installed(component[1]):
        return UserError(f"{component[1]} rejects its values in the config: {chain[-1]}")
    return None


def _full_disk() -> str:
    """Name the full disk if the system does not: working, temporary or shared-memory folder."""
    places = (str(Path.cwd()), tempfile.gettempdir(), "/dev/shm")
    full = [place for place in places if Path(place).is_dir() and shutil.disk_usage(place).free < 1 << 20]
    return f"The disk of {' and '.join(full)} is full: " if full else ""


def _is_installed(name: str) -> bool:
    """Whether a class belongs to an installed library; an error in a user's module needs its traceback."""
    package = name.partition(".")[0]
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    return package != "scripts" and not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def out_of_memory(error: BaseException) -> str | None:
    """Options that lower the memory use, after an accelerator's out-of-memory error; None for other exceptions."""
    torch = sys.modules.get("torch")  # an import only for this would take seconds
    shortage = next((cause for cause in causes(error) if torch and isinstance(cause, torch.OutOfMemoryError)), None)
    return shortage and (
        f"{str(shortage).splitlines()[0].rstrip('.')}.\nThe device has too little memory. In training, lower "
        "--batch_size (or --patch_size for recipes with patches) or set --amp True, which halves the memory. In "
        "evaluation and inference, set --flips []. Always: lower --spatial_size, or stop other programs on the device."
    )


def first_cause(error: BaseException) -> BaseException:
    """The last exception in the chain of causes; the exception itself if it has none."""
    return causes(error)[-1]


def causes(error: BaseException) -> list[BaseException]:
    """An exception and the chain of its causes."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def one_line(error: BaseException) -> str:
    """An exception as one line of text."""
    return " ".join("".join(traceback.format_exception_only(type(error), error)).split())
