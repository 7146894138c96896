"""Write a bundle for one recipe: its mixins are merged into the base configs, comments included."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from ..inference.segmenter import trained_with
from ..io.files import write_atomically, write_json
from ..io.weights import check_recipe, weights_files, write_bare
from ..runtime.mixins import CONFIGS
from ..runtime.recipe import recipe_of


def write_recipe(bundle: str | Path, weights: str | Path | Sequence[str | Path] = "simulated") -> None:
    """Turn a copy of the bundle into the bundle of given weights, for MONAI Label and the Model Zoo.

    ``train.yaml`` and ``inference.yaml`` contain the weights' whole recipe. The weights become bare state dicts in
    ``models`` (``model.pt``; an ensemble adds ``model_1.pt`` …) with their records. ``metadata.json`` describes the
    network's input. Training starts from these weights with the settings of ``fine_tune.yaml``. The recipe's mixins
    (and with them ``fine_tune.yaml`` and ``pretrain.yaml``) and ``models/simulated`` are removed.

    Args:
        bundle: folder of the copy; changed.
        weights: see :func:`scripts.io.weights.weights_files`.

    Raises:
        UserError: the weights are missing, or the bundle lacks their recipe.
    """
    bundle = Path(bundle)
    configs, models = bundle / "configs", bundle / "models"
    files = weights_files(weights)
    mixins = trained_with(files[0])
    over = [CONFIGS / "fine_tune.yaml", CONFIGS / "pretrain.yaml"] if mixins else []  # override the recipe
    start = {"init_weights": "$@bundle_root + '/models/model.pt'"} if mixins else {}
    names = ["model.pt", *(f"model_{number}.pt" for number in range(1, len(files)))]  # MONAI Label loads the shortest
    ensemble = {"ckpt_path": f"$[@bundle_root + '/models/' + name for name in {names}]"} if len(files) > 1 else {}
    write_atomically(configs / "train.yaml", flatten(configs / "train.yaml", [*mixins, *over[:1]], start))
    write_atomically(configs / "inference.yaml", flatten(configs / "inference.yaml", mixins, ensemble))
    parser = ConfigParser()
    parser.read_config(str(configs / "inference.yaml"))
    models.mkdir(exist_ok=True)
    for name, file in zip(names, files, strict=True):
        check_recipe(file, recipe_of(parser))
        write_bare(file, models / name)
    card = files[0].parent / "README.md"
    if card.is_file():
        shutil.copy(card, models / "README.md")
    _describe(configs / "metadata.json", parser)
    shutil.rmtree(models / "simulated", ignore_errors=True)
    for mixin in (*mixins, *over):
        (configs / mixin.name).unlink()


def flatten(base: Path, mixins: Sequence[Path], values: Mapping[str, Any] | None = None) -> str:
    """Merge mixins into a config: values are replaced in place; a new key follows its predecessor in the mixin.

    Args:
        base: the config.
        mixins: overrides, in this order.
        values: further overrides of top-level keys.

    Raises:
        ValueError: the result differs from what MONAI merges; mixins that extend a list (``+name``) are not supported.
    """
    reader = YAML()
    reader.preserve_quotes, reader.width = True, 120  # type: ignore[assignment]
    reader.representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))
    merged = reader.load(base)
    for mixin in mixins:
        content, position = reader.load(mixin), len(merged)
        for key, value in content.items():
            *above, name = key.split("#")
            place = merged
            for level in above:
                place = place[level]
            if place is merged and name not in merged:
                merged.insert(position, name, value)
            else:
                place[name] = value
            _take_comment(content, key, place, name)
            position = list(merged).index(above[0] if above else name) + 1
    merged.update(values or {})
    text = io.StringIO()
    reader.dump(merged, text)
    names = ", ".join(path.name for path in (base, *mixins))
    together = ConfigParser.load_config_files([base, *mixins])
    if together | dict(values or {}) != yaml.safe_load(text.getvalue()):
        raise ValueError(f"{names} cannot be merged into one file.")
    return f"# Written by `make package` from {names}.\n#\n{text.getvalue()}"


def _take_comment(source: CommentedMap, key: str, target: CommentedMap, name: str) -> None:
    """Replace the comment at the end of a key's line; keep comments on the lines below."""
    new, old = (items.ca.items.get(one, [None] * 4)[2] for items, one in ((source, key), (target, name)))
    if new is not None:
        below = old.value.partition("\n")[2] if old is not None else ""
        new.value = new.value.partition("\n")[0] + "\n" + below
        target.ca.items[name] = source.ca.items[key]


def _describe(file: Path, parser: ConfigParser) -> None:
    """Describe the network's input; remove metrics of other weights."""
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
        "models/README.md states its training data and its measured performance."
    )
    write_json(file, metadata, indent=2)
