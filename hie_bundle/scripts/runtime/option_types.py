"""What the value of an option may be: each kind reads one as it is meant, or refuses it, and says what is allowed."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["Device", "Flag", "Kind", "Number", "Numbers", "Text"]


@dataclass(frozen=True)
class Number:
    """A finite number.

    Attributes:
        least: the smallest that is allowed.
        most: the largest.
        whole: no fractions.
        above: ``least`` itself is not allowed.
        below: ``most`` itself is not allowed.
        null: None is allowed, too.
        also: words that are allowed, too.
    """

    least: float = -math.inf
    most: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False
    null: bool = False
    also: tuple[str, ...] = ()

    def read(self, value: Any) -> Any:
        """The value as it is used.

        Raises:
            ValueError: when it is not allowed.
        """
        if (value is None and self.null) or (isinstance(value, str) and value in self.also):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
            raise ValueError
        if self.whole and value != int(value):
            raise ValueError
        if not self.least <= value <= self.most:
            raise ValueError
        if (self.above and value == self.least) or (self.below and value == self.most):
            raise ValueError
        return int(value) if self.whole else value

    def __str__(self) -> str:
        text = "a whole number" if self.whole else "a number"
        if self.least == self.most:
            text = f"{self.least:g}"
        elif self.least > -math.inf and self.most < math.inf:
            text += f" {'above' if self.above else 'from'} {self.least:g}"
            text += f"{' and below' if self.below else ' to'} {self.most:g}"
        elif self.least > -math.inf:
            text += f" above {self.least:g}" if self.above else f" from {self.least:g} on"
        return text + "".join(f", or {word}" for word in (*self.also, *(["null"] if self.null else [])))


@dataclass(frozen=True)
class Numbers:
    """A list of numbers.

    Attributes:
        of: what each of them may be.
        count: how many; any number of them if None.
        each_once: none stands twice.
        null: None is allowed, too.
    """

    of: Number
    count: int | None = None
    each_once: bool = False
    null: bool = False

    def read(self, value: Any) -> Any:
        """See :meth:`Number.read`."""
        if value is None and self.null:
            return value
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError
        values = [self.of.read(one) for one in value]
        if self.count not in (None, len(values)) or (self.each_once and len(set(values)) < len(values)):
            raise ValueError
        return values

    def __str__(self) -> str:
        text = f"a list of {self.count or 'any'} numbers, each {self.of}"
        return text + (", none twice" if self.each_once else "") + (", or null" if self.null else "")


@dataclass(frozen=True)
class Flag:
    """True or false; the words, too, which a shell passes as texts, of which every one would count as true.

    Attributes:
        also: words that are allowed, too.
    """

    also: tuple[str, ...] = ()

    def read(self, value: Any) -> bool | str:
        """See :meth:`Number.read`."""
        if isinstance(value, bool) or value in self.also:
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise ValueError

    def __str__(self) -> str:
        return " or ".join(("true", "false", *self.also))


@dataclass(frozen=True)
class Text:
    """A text, such as a path.

    Attributes:
        path: it is one, and no longer than the file system takes.
        null: None is allowed, too.
        several: a list of them is allowed, too.
        of: those that are allowed; empty: any.
    """

    path: bool = False
    null: bool = False
    several: bool = False
    of: tuple[str, ...] = ()

    def read(self, value: Any) -> Any:
        """See :meth:`Number.read`."""
        if self.several and isinstance(value, list | tuple) and value:
            return [Text(self.path, of=self.of).read(one) for one in value]
        if value is None and self.null:
            return value
        if not isinstance(value, str | os.PathLike) or (self.of and value not in self.of):
            raise ValueError
        if self.path:
            try:
                Path(value).lstat()  # which also refuses what no path may contain
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    raise ValueError from error
        return value

    def __str__(self) -> str:
        text = "a path" if self.path else " or ".join(self.of) or "a text"
        return text + (", or a list of them" if self.several else "") + (", or null" if self.null else "")


class Device:
    """What PyTorch calls a device, and this machine has."""

    def read(self, value: Any) -> Any:
        """See :meth:`Number.read`."""
        try:
            device = torch.device(value)
        except (RuntimeError, TypeError) as error:
            raise ValueError from error
        if device.type not in ("cpu", "cuda", "mps"):
            raise ValueError
        if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
            raise ValueError
        return value

    def __str__(self) -> str:
        count = torch.cuda.device_count()
        return "cpu" + (f" or cuda:0 to cuda:{count - 1}" if count else "; this machine has no CUDA device")


Kind = Number | Numbers | Flag | Text | Device
