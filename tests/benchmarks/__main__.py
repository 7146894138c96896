"""Benchmarks against the stock libraries: ``make bench``, or

    python tests/benchmarks [--size paper|tiny] [--only parts,growth,forward,epoch,step,segmentation,cuda,pace]
                            [--repeats 5]
                            [--dataset_dir DIR] [--ckpt_path FILE] [--output FILE]

Prints a line per comparison and writes everything as JSON; results already in the file stay, if not measured anew.
Results are checked to be the same before they are timed. With weights (--ckpt_path, of the default network) the masks
of the ways to run the network are compared, too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "hie_bundle")]

import forward  # noqa: E402
import parts  # noqa: E402
import timing  # noqa: E402
import torch  # noqa: E402
import workflows  # noqa: E402

SIZES: dict[str, dict[str, Any]] = {
    "paper": {
        "batch_size": 4,
        "shape": (192, 192, 32),
        "draws": 16,
        "cases": 8,
        "metrics_shape": (256, 256, 64),
        "growth": [(96, 96, 16), (128, 128, 32), (192, 192, 32)],
        "growth_batches": [2, 4, 8],
        "config": {},
    },
    "tiny": {
        "batch_size": 2,
        "shape": (24, 24, 16),
        "draws": 3,
        "cases": 2,
        "metrics_shape": (24, 24, 16),
        "growth": [(16, 16, 8), (24, 24, 16)],
        "growth_batches": [2],
        "config": {"spatial_size": [24, 24, 16], "features": [2, 4, 6, 8]},
    },
}
# cuda: where there is a GPU; pace: the trainings of cuda with their data resident on the CPU, for tests
SECTIONS = ("parts", "checkpoint", "growth", "forward", "epoch", "step", "segmentation", "cuda", "pace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="paper")
    parser.add_argument("--only", default=",".join(SECTIONS[:-1]), help="sections, separated by commas")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each; medians are taken")
    parser.add_argument("--dataset_dir", type=Path, help="cases to train on and segment; simulated ones by default")
    parser.add_argument("--ckpt_path", type=Path, help="weights with which masks are compared and cases segmented")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/bench.json"))
    arguments = parser.parse_args()
    sections = arguments.only.split(",")
    if unknown := set(sections) - set(SECTIONS):
        parser.error(f"unknown sections {sorted(unknown)}; there are {', '.join(SECTIONS)}")

    report: dict[str, Any] = {"machine": timing.machine(), "size": arguments.size, "results": {}}
    if arguments.output.is_file():
        earlier = json.loads(arguments.output.read_text())
        if {**earlier["machine"], "load_average": None} == {**report["machine"], "load_average": None} and (
            earlier["size"] == arguments.size
        ):
            report["results"] = earlier["results"]
    print(", ".join(f"{key}: {value}" for key, value in report["machine"].items()))
    print(f"{'':62}{'stock':>9}{'ours':>9}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name, result in measure(sections, SIZES[arguments.size], arguments, Path(folder)):
            report["results"][name] = result
            write(arguments.output, report)
            stock = f"{result['stock_s']:8.3f}s{{}}{result['ratio']:7.1f}×" if "ratio" in result else " " * 9 + "{}"
            print(f"{name:62}" + stock.format(f"{result['ours_s']:8.3f}s"), flush=True)
    print(f"written to {arguments.output}")


def measure(
    sections: list[str], size: dict[str, Any], arguments: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    repeats = arguments.repeats
    if "parts" in sections:
        yield from parts.parts(size["batch_size"], size["shape"], size["metrics_shape"], repeats, size["draws"])
    if "checkpoint" in sections:
        yield "state and weights of strong.yaml, written", parts.checkpoint(repeats)
    if "growth" in sections:
        yield from parts.growth(size["growth"], size["growth_batches"], repeats)
    features = size["config"].get("features", [32, 64, 128, 256])
    if "forward" in sections:
        yield from forward.forward(size["shape"], features, repeats, arguments.ckpt_path, "cpu")
    if "cuda" in sections and torch.cuda.is_available():
        yield (
            "Hausdorff loss and gradient, cuda",
            parts.hausdorff_loss(size["batch_size"], size["shape"], repeats, "cuda"),
        )
        yield from forward.forward(size["shape"], features, repeats, arguments.ckpt_path, "cuda")
        yield from workflows.pace(folder, 48, False, "cuda")
    if "pace" in sections:
        yield from workflows.pace(folder, size["cases"], arguments.size == "tiny", "cpu")
    if {"epoch", "step", "segmentation"} & set(sections):
        tiny = arguments.size == "tiny"
        dataset_dir = arguments.dataset_dir or workflows.cohort(folder / "data", size["cases"], tiny)
        for section, work in (("epoch", workflows.epoch), ("step", workflows.step)):
            if section in sections:
                yield from work(dataset_dir, folder, size["batch_size"], repeats, **size["config"])
        if "segmentation" in sections:
            yield from workflows.segmentation(dataset_dir, folder, repeats, arguments.ckpt_path, **size["config"])


def write(output: Path, report: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
