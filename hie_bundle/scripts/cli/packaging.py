"""A bundle whose own configs are another recipe's: mixins written into the files that they go over, comments kept."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml
from monai.bundle import ConfigParser

from ..inference.segmenter import trained_with
from ..io.files import write_atomically, write_json
from ..io.weights import check_recipe, weights_files, write_bare
from ..runtime.mixins import CONFIGS
from ..runtime.recipe import recipe_of

__all__ = ["flatten", "write_recipe"]

END_OF_RECIPE = "# --- end of the recipe"


def write_recipe(bundle: str | Path, weights: str | Path | Sequence[str | Path] = "simulated") -> None:
    """Turn a copy of the bundle into that of given weights.

    ``train.yaml`` and ``inference.yaml`` become the weights' recipe, as MONAI Label and the Model Zoo read them: each
    alone. The weights become ``models/model.pt`` (of an ensemble also ``model_1.pt`` …), bare, each with its ``.json``
    beside; ``metadata.json`` says what the network takes. Training goes on from these weights, as gently as
    ``fine_tune.yaml`` does. The recipe's mixins, what goes over them, and ``models/simulated`` go.

    Args:
        bundle: the copy's folder; changed.
        weights: see :func:`scripts.io.weights.weights_files`.

    Raises:
        UserError: when there are no weights, or their recipe is none of the bundle's.
    """
    bundle = Path(bundle)
    configs, models = bundle / "configs", bundle / "models"
    files = weights_files(weights)
    mixins = trained_with(files[0])
    over = [CONFIGS / "fine_tune.yaml", CONFIGS / "pretrain.yaml"] if mixins else []  # they go over the recipe
    train = flatten(configs / "train.yaml", [*mixins, *over[:1]])
    if mixins:
        own = "\"$@bundle_root + '/models/model.pt'\"  # what a training starts from; null: from random ones"
        train = _with_value(train, "init_weights", own)
    inference = flatten(configs / "inference.yaml", mixins)
    if len(files) > 1:
        names = [_name(number) for number in range(len(files))]
        listed = f"\"$[@bundle_root + '/models/' + name for name in {names}]\"  # their mean"
        inference = _with_value(inference, "ckpt_path", listed)
    write_atomically(configs / "train.yaml", train)
    write_atomically(configs / "inference.yaml", inference)
    parser = ConfigParser()
    parser.read_config(str(configs / "inference.yaml"))
    models.mkdir(exist_ok=True)
    for number, file in enumerate(files):
        check_recipe(file, recipe_of(parser))
        write_bare(file, models / _name(number))
    card = files[0].parent / "README.md"
    if card.is_file():
        shutil.copy(card, models / "README.md")
    _describe(configs / "metadata.json", parser)
    shutil.rmtree(models / "simulated", ignore_errors=True)
    for mixin in (*mixins, *over):
        (configs / mixin.name).unlink()


def flatten(base: Path, mixins: Sequence[Path]) -> str:
    """A config with mixins written into it: what they replace is replaced in its place, what is new stands at the end
    of the recipe.

    Raises:
        ValueError: when the result does not say the same as the files together; a mixin that extends a list
            (``+name``) cannot be written into another.
    """
    lines = base.read_text(encoding="utf-8").splitlines()
    names = ", ".join(path.name for path in (base, *mixins))
    for mixin in mixins:
        for key, block in _blocks(mixin.read_text(encoding="utf-8").splitlines()):
            lines = _put(lines, key.split("#"), block)
    text = "\n".join([f"# Written by `make package` from {names}.", "#", *lines, ""])
    together = ConfigParser()
    together.read_config([str(path) for path in (base, *mixins)])
    if {key: value for key, value in together.get().items() if key != "_meta_"} != yaml.safe_load(text):
        raise ValueError(f"{names} cannot be written into one file.")
    return text


def _name(number: int) -> str:
    """MONAI Label takes the shortest name."""
    return f"model_{number}.pt" if number else "model.pt"


def _with_value(text: str, key: str, value: str) -> str:
    """A config with another value, and comment, of a key that is one line at its top."""
    return re.sub(rf"^{key}:.*$", lambda _: f"{key}: {value}", text, count=1, flags=re.MULTILINE)


def _blocks(lines: Sequence[str], indent: int = 0) -> list[tuple[str, list[str]]]:
    """The keys at an indentation, each with its lines; comments and blank lines between them are left out."""
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if entry := re.match(rf" {{{indent}}}([A-Za-z_+][\w#+]*):", line):
            found.append((entry[1], [line]))
        elif found and line.strip() and not line.startswith("#"):
            found[-1][1].append(line)
    return found


def _put(lines: list[str], path: Sequence[str], block: Sequence[str], indent: int = 0) -> list[str]:
    """Lines with the block in the place of the key, or at the end of what the key belongs to."""
    start, end = _find(lines, path[0], indent)
    if len(path) > 1 and start is not None:
        inner = _put(lines[start + 1 : end], path[1:], block, indent + 2)
        return [*lines[: start + 1], *inner, *lines[end:]]
    shifted = [f"{' ' * indent}{line}" for line in block]
    shifted[0] = f"{' ' * indent}{path[-1]}{block[0][block[0].index(':') :]}"
    if start is not None:
        _, mark, comment = lines[start].partition(" #")
        if len(shifted) == 1 and mark and " #" not in shifted[0]:  # the value is another, its meaning is not
            shifted[0] = f"{shifted[0]:<44} #{comment}"
        return [*lines[:start], *shifted, *lines[end:]]
    places = [number for number, line in enumerate(lines) if indent == 0 and line.startswith(END_OF_RECIPE)]
    at = places[0] if places else len(lines)
    return [*lines[:at], *shifted, *lines[at:]]


def _find(lines: Sequence[str], key: str, indent: int) -> tuple[int | None, int]:
    """Where a key's lines begin, and the first line that is no longer its own."""
    start = next((n for n, line in enumerate(lines) if re.match(rf" {{{indent}}}{re.escape(key)}:", line)), None)
    if start is None:
        return None, len(lines)
    for number in range(start + 1, len(lines)):
        line = lines[number]
        if not line.strip() or line.startswith("#") or re.match(rf" {{0,{indent}}}[A-Za-z_+][\w#+]*:", line):
            return start, number
    return start, len(lines)


def _describe(file: Path, parser: ConfigParser) -> None:
    """What the network takes, and nothing that was measured with another."""
    metadata = json.loads(file.read_text(encoding="utf-8"))
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    channels, size = parser.get_parsed_content("in_channels"), list(parser.get_parsed_content("input_size"))
    known = list(image["channel_def"].values())
    image |= {"num_channels": channels, "spatial_shape": size, "is_patch_data": True}
    image["channel_def"] = {str(n): known[n] if n < len(known) else "derived" for n in range(channels)}
    pred |= {"spatial_shape": size, "is_patch_data": True}
    metadata["eval_metrics"] = {}
    metadata["description"] = (
        "A network that outlines hypoxic-ischaemic (HIE) lesions in the ADC and Z-score ADC maps of a newborn's brain; "
        "models/README.md says what it was trained on and what was measured."
    )
    write_json(file, metadata, indent=2)
