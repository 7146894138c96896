"""Weights from simulated newborns with one part of the simulator or the recipe changed, on cases of other hands.

    python tests/benchmarks/pretraining.py --dataset_dir DIR [--only "base;no depth"] [--output DIR]

Each variant trains for 800 steps on pretrain.yaml's cohort, or on its own where it changes the simulator, and is
measured on the test cases of DIR with the network alone and with the soft thresholds on ZADC. Prints the mean Dice on
the native grid by lesion size, the difference to a reference with its 95 % interval over cases and, for the network
alone, the mean Dice at the threshold that is best for these cases. Results that exist are not made again.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from peers import CONFIGS, bundle, dice_by_size, train

sys.path.insert(0, str(CONFIGS.parent))
import yaml

from scripts.evaluation.statistics import describe
from scripts.phantom import anatomy, case, normative, write_cohort

FILES = [CONFIGS / name for name in ("train.yaml", "evaluate.yaml", "strong.yaml", "strong_cpu.yaml")]
PRETRAIN = yaml.safe_load((CONFIGS / "pretrain.yaml").read_text(encoding="utf-8"))
OPTIONS = {"steps": 800, "validations": 4, "zadc_dropout": PRETRAIN["zadc_dropout"], "num_workers": 0}
SHIPPED = CONFIGS.parent / "models" / "simulated" / "model.pt"
ALONE = {"z_evidence_weight": 0, "lesion_peak": 0}
MODES = {", network alone": ALONE, "": {}}
SIZES = ("all", "empty", "<1 %", ">=1 %")


class RandomShapes(anatomy.KnownStructures):
    """In half of the cases sixty shapes, of higher and lower ADC, one over the other: labels without anatomy."""

    def __init__(self, rng: np.random.Generator, mean_number: float) -> None:
        self.many = rng.random() < 0.5
        super().__init__(rng, 60 if self.many else mean_number)
        if self.many:
            self.radii_mm = np.maximum(self.radii_mm, 5)
            self.levels = rng.uniform(0.65, 1.35, self.number)

    def __call__(self, points_mm: anatomy.FloatArray, csf: anatomy.FloatArray) -> anatomy.FloatArray:
        if not self.many:
            return super().__call__(points_mm, csf)
        factor = np.ones(points_mm.shape[1], dtype=np.float32)
        rough = self.roughness(points_mm)[0]
        for centre, radii, turn, level, border_mm in zip(
            self.centres_mm, self.radii_mm, self.turns, self.levels, self.border_mm, strict=True
        ):
            distance = anatomy.ellipsoid(turn @ (points_mm - centre[:, None]), (0, 0, 0), tuple(radii))
            distance += np.float32(0.2 * radii.mean()) * rough
            factor += anatomy.ramp(distance, float(border_mm)) * (np.float32(level) - factor)
        return 1 + (factor - 1) * (1 - csf)


NUCLEI = ("caudate", "putamen", "pallidum", "thalamus", "ventrolateral", "capsule", "anterior_capsule")


@dataclass(frozen=True)
class Variant:
    """What differs from the base."""

    recipe: Mapping[str, Any] = field(default_factory=dict)  # a mixin
    settings: Mapping[str, float] = field(default_factory=dict)  # of the simulator
    simulator: AbstractContextManager[Any] | None = None  # a change of it
    weights: Sequence[str | Path] = ()  # nothing is trained: variants or files whose probabilities are averaged
    reference: str = "base"  # what it is compared with


def without(*channels: int, probability: float = 1) -> dict[str, Any]:
    """A transform that sets channels to 0."""
    kept = [float(channel not in channels) for channel in range(6)]
    func = f"$lambda image: image * torch.tensor({kept})[:, None, None, None]"
    return {"_target_": "RandLambdad", "keys": "image", "func": func, "prob": probability}


VARIANTS = {
    "base": Variant(),
    "no known structures": Variant(settings={"known_structures": 0}),
    "random shapes in half of the cases": Variant(simulator=mock.patch.object(case, "KnownStructures", RandomShapes)),
    "ADC dropped in a quarter of the patches": Variant({"augment#dropped": without(0, 3, probability=0.25)}),
    "seed 1": Variant({"seed": 1}),
    "mean of seeds 0 and 1": Variant(weights=["base", "seed 1"]),
    "ADC dropped in a quarter of the patches, seed 1": Variant(
        {"augment#dropped": without(0, 3, probability=0.25), "seed": 1}, reference="seed 1"
    ),
    "no depth": Variant({"transforms#values#without": without(5)}),
    "no raw ADC": Variant({"transforms#values#without": without(0)}),
    "weight decay 0.01": Variant({"weight_decay": 0.01}),
    "dropout 0.1": Variant({"network_def#dropout": 0.1}),
    "registration 2.5 mm": Variant(settings={"registration_mm": 2.5}),
    "registration 0.7 mm": Variant(settings={"registration_mm": 0.7}),
    "deep nuclei and vermis without contrast": Variant(
        simulator=mock.patch.dict(
            anatomy.ADC, {**dict.fromkeys(NUCLEI, 1090), "vermis": anatomy.ADC["cerebellum"]}
        )
    ),
    "1600 steps": Variant({"steps": 1600, "validations": 20}),
    "shipped weights": Variant(weights=[SHIPPED], reference="1600 steps"),
    "mean of 1600 steps and shipped": Variant(weights=["1600 steps", SHIPPED], reference="1600 steps"),
}  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--only", default=";".join(VARIANTS), help="variants, separated by semicolons")
    parser.add_argument("--output", type=Path, default=Path("runs/pretraining"))
    arguments = parser.parse_args()
    out = arguments.output.resolve()
    for name in arguments.only.split(";"):
        folder, variant = folder_of(out, name), VARIANTS[name]
        folder.mkdir(parents=True, exist_ok=True)
        mixin = folder / "variant.json"
        mixin.write_text(json.dumps({**OPTIONS, **variant.recipe}), encoding="utf-8")
        if not variant.weights:
            train(folder, [*FILES, mixin], dataset_dir=cohort(out, folder, variant))
        weights = [one if isinstance(one, Path) else folder_of(out, one) / "model.pt" for one in variant.weights]
        for mode, options in MODES.items():
            if not results(out, name, mode).is_file():
                bundle(
                    "evaluating", [*FILES, mixin], dataset_dir=arguments.dataset_dir.resolve(), split="test",
                    ckpt_path=[str(file) for file in weights] or folder / "model.pt",
                    output_dir=results(out, name, mode).parent, **options,
                )  # fmt: skip
        write_table(out)
        print((out / "pretraining.csv").read_text(encoding="utf-8"), flush=True)


def folder_of(out: Path, name: str) -> Path:
    """A variant's folder."""
    return out / name.replace(" ", "_").replace(",", "")


def results(out: Path, name: str, mode: str) -> Path:
    """The table of an evaluation."""
    return folder_of(out, name) / ("alone" if mode else "thresholds") / "metrics.csv"


def cohort(out: Path, folder: Path, variant: Variant) -> Path:
    """Simulate a variant's cases, in this process: other processes would not have the change."""
    own = variant.settings or variant.simulator
    target = folder / "cohort" if own else out / "cohort"
    counts = {name: PRETRAIN[name] for name in ("num_train", "num_val", "fine_mm")}
    normative.build_atlas.cache_clear()
    with variant.simulator or nullcontext():
        write_cohort(target, **counts, num_test=0, seed=PRETRAIN["cohort_seed"], num_workers=1, **variant.settings)
    return target


def write_table(out: Path) -> None:
    """Write the results that exist: a row for each variant, mode and lesion size."""
    version = json.loads((CONFIGS / "metadata.json").read_text(encoding="utf-8"))["version"]
    columns = "cohort cases method lesion_size mean_dice reference difference low high threshold version command"
    with (out / "pretraining.csv").open("w", encoding="utf-8", newline="") as text:
        table = csv.DictWriter(text, columns.split())
        table.writeheader()
        for name, mode in itertools.product(VARIANTS, MODES):
            reference = VARIANTS[name].reference
            needed = [one for one in VARIANTS[name].weights if isinstance(one, str)]
            only = ";".join(dict.fromkeys([reference, *needed, name]))
            if not all(results(out, one, mode).is_file() for one in (name, reference)):
                continue
            ours, others = (dice_by_size(results(out, one, mode)) for one in (name, reference))
            for size in SIZES:
                row = {"cohort": "transfer", "cases": len(ours[size]), "method": name + mode, "lesion_size": size}
                row |= {"mean_dice": f"{np.mean(list(ours[size].values())):.3f}", "version": version}
                row["command"] = f'python tests/benchmarks/pretraining.py --dataset_dir DIR --only "{only}"'
                if name != reference:
                    found = describe([value - others[size][key] for key, value in ours[size].items()])
                    found = {"difference": found["mean"], "low": found["low"], "high": found["high"]}
                    row |= {"reference": reference + mode}
                    row |= {key: f"{value:.3f}" for key, value in found.items() if value is not None}
                table.writerow(row)
            if mode:
                file = results(out, name, mode).with_name("thresholds.json")
                best = json.loads(file.read_text(encoding="utf-8"))
                row |= {"cases": best["cases"], "method": f"{name}{mode}, best threshold", "lesion_size": "all"}
                row |= {"mean_dice": f"{best['mean_dice']:.3f}", "threshold": best["threshold"]}
                table.writerow({key: row[key] for key in row if key not in ("reference", "difference", "low", "high")})


if __name__ == "__main__":
    main()
