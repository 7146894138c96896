"""The command ``hie-bundle``: segmentation, and the bundle's workflows under names that a newcomer would guess."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

import fire

from ..runtime.errors import user_error
from .completion import completion
from .workflows import WORKFLOWS, help_page, runner

__all__ = ["main"]

SHORT = {
    "segment": {"-o": "--output", "-q": "--quiet"},
    "scan": {"-o": "--output_dir"},
    "adc": {"-o": "--output_file"},
    "brain": {"-o": "--output_file"},
    "zscore": {"-o": "--output_file"},
    "atlas": {"-o": "--output_dir"},
    "dicom_seg": {"-o": "--output_file"},
}
SEGMENTING = ("segment", "challenge")
SWITCHES = ("probabilities", "json", "quiet", "openvino", "bids")  # of these: they take no value
USAGE = """hie-bundle COMMAND …

  segment ADC [ZADC] -o OUT   lesion masks from files or folders
  scan DICOM_DIR -o OUT       the same from a folder of DICOM, mask back as DICOM segmentation
  train, evaluate, study      the network on labelled cases: its training, its results, its losses compared
  adc IMAGES … -o OUT         an ADC map from diffusion images, or a folder of DICOM
  brain B0 -o OUT             a brain mask from the image with b = 0
  zscore                      a Z map of an ADC map against an atlas of healthy newborns
  atlas ADC_DIR -o OUT        such an atlas from healthy newborns' ADC maps
  dicom_seg                   a lesion mask as DICOM segmentation on its series
  challenge                   the case in /input, mask to /output, as the challenge's containers do
  phantom, download, check    cases: simulate them, fetch BONBID-HIE, look at what a folder holds
  doctor                      whether this installation has what it needs
  completion bash|zsh|fish    completion of commands and options for a shell

hie-bundle COMMAND --help lists its options."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Exit status: 0 when all was done; 1 when something outside the program is wrong, which the last lines of stderr say;
    2 for a command line that cannot be understood.

    Args:
        arguments: of the command line; that of the process if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words[0] if words else ""
    asked = any(word in ("--help", "-h") for word in words)
    if asked and name in WORKFLOWS:
        print(help_page(name))
        return
    if not words or (asked and name not in SEGMENTING):
        print(USAGE)
        sys.exit(0 if asked else 2)
    command = _command(name)
    if command is None:
        print(f"error: there is no command {name!r}.\n\n{USAGE}", file=sys.stderr)
        sys.exit(2)
    if asked:
        print(import_module(f".{name}", __name__).HELP)
        return
    try:
        fire.Fire(command, command=_plain(words), name=f"hie-bundle {name}")
    except Exception as error:
        mistake = user_error(error)
        if mistake is None:
            raise
        print(f"\nerror: {mistake}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nerror: interrupted", file=sys.stderr)
        sys.exit(130)


def _command(name: str) -> Callable[..., None] | None:
    """What stands behind a name; imported now, since most need not wait for PyTorch."""
    if name in WORKFLOWS:
        return runner(name)
    if name in (*SEGMENTING, "doctor"):
        found: Callable[..., None] = getattr(import_module(f".{name}", __name__), name)
        return found
    return completion if name == "completion" else None


def _plain(words: Sequence[str]) -> list[str]:
    """The words behind the command as fire takes them: ``-o`` in full; switches with a value, or they take the next."""
    full = SHORT.get(words[0], {})
    rest = [full.get(word, word) for word in words[1:]]
    if words[0] not in SEGMENTING:
        return rest
    return [f"{word}=True" if word.startswith("--") and word[2:] in SWITCHES else word for word in rest]
