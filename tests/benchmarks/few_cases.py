"""Few labelled cases: the shipped weights, the same fine-tuned, and training from scratch, on two halves of a cohort.

    python tests/benchmarks/few_cases.py --dataset_dir DIR [--counts 20,8] [--seeds 0] [--output DIR]

The cases, in the order of their ids, go to two halves in turn. Of one half the first cases train (every fifth of them
chooses the epoch); the other half measures; then the halves change sides. Prints the mean Dice on the native grid of
both halves together, by lesion size, beside the thresholds on ZADC and the regression fitted on the same training
cases, and differences with 95 % intervals over cases. Results that exist are not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from statistics import fmean

from peers import CONFIGS, bundle, dice_by_size, train

sys.path.insert(0, str(CONFIGS.parent))
STRONG = ["strong.yaml", "strong_cpu.yaml"]
PAIRS = [("fine_tuned", "scratch"), ("fine_tuned", "shipped"), ("scratch", "shipped")]
SHIPPED = CONFIGS.parent / "models" / "simulated" / "model.pt"


def main() -> None:
    """See the module."""
    from scripts.data import datalist

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--counts", default="20,8", help="training cases, separated by commas")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--output", type=Path, default=Path("runs/few_cases"))
    arguments = parser.parse_args()
    out = arguments.output.resolve()
    items = datalist(arguments.dataset_dir.resolve(), None)
    dice: dict[tuple[int, str], dict[str, list[float]]] = {}
    for seed in arguments.seeds.split(","):
        for count in map(int, arguments.counts.split(",")):
            for half in (0, 1):
                ours, others = items[half::2][:count], items[1 - half :: 2]
                folder = out / f"{count}_cases" / f"seed_{seed}" / f"half_{half}"
                folder.mkdir(parents=True, exist_ok=True)
                cases = folder / "cases.json"
                training = [item for number, item in enumerate(ours) if number % 5 != 2]
                lists = {"training": training, "validation": ours[2::5], "test": others}
                cases.write_text(json.dumps(lists, indent=1), encoding="utf-8")
                measured = {"shipped": evaluated(folder, "shipped", SHIPPED, cases)}
                for name, mixins in {"fine_tuned": ["fine_tune.yaml"], "scratch": []}.items():
                    files = [CONFIGS / file for file in ("train.yaml", *STRONG, *mixins)]
                    train(folder / name, files, datalist=cases, seed=seed)
                    measured[name] = evaluated(folder, name, folder / name / "model.pt", cases)
                columns = {name: (table, "native_dice") for name, table in measured.items()}
                for name in ("threshold", "smoothed", "regression"):
                    columns[name] = (measured["shipped"], f"{name}_dice")
                for name, (table, column) in columns.items():
                    for size, by_case in dice_by_size(table, column).items():
                        dice.setdefault((count, name), {}).setdefault(size, []).extend(by_case.values())
                write_table(dice, out / "few_cases.csv")
    print((out / "few_cases.csv").read_text(encoding="utf-8"))


def evaluated(folder: Path, name: str, weights: Path, cases: Path) -> Path:
    """Table of the metrics of each test case."""
    file = folder / f"{name}_test" / "metrics.csv"
    if not file.is_file():
        configs = [CONFIGS / name for name in ("train.yaml", "evaluate.yaml", *STRONG)]
        bundle(
            "evaluating", configs, datalist=cases, split="test", num_workers=0, ckpt_path=weights,
            output_dir=file.parent,
        )  # fmt: skip
    return file


def write_table(dice: dict[tuple[int, str], dict[str, list[float]]], file: Path) -> None:
    """Mean Dice: a row for each number of training cases and method, lesion sizes as columns."""
    sizes = sorted({size for row in dice.values() for size in row})
    with file.open("w", encoding="utf-8", newline="") as text:
        table = csv.writer(text)
        table.writerow(["training_cases", "method", *sizes])
        for (count, name), row in sorted(dice.items()):
            table.writerow([count, name, *(f"{fmean(row[size]):.3f}" if size in row else "" for size in sizes)])
        for count in sorted({count for count, _ in dice}):
            for one, other in PAIRS:
                pairs = {size: (dice[count, one].get(size, []), dice[count, other].get(size, [])) for size in sizes}
                table.writerow([count, f"{one} - {other}", *(difference(*pairs[size]) for size in sizes)])


def difference(values: list[float], others: list[float]) -> str:
    """Mean difference of the same cases with its interval."""
    from scripts.evaluation.statistics import describe

    found = describe([a - b for a, b in zip(values, others, strict=True)])
    if found["mean"] is None:
        return ""
    return f"{found['mean']:.3f}" if found["low"] is None else "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**found)


if __name__ == "__main__":
    main()
