"""Write a page of nine cases of an evaluation: the three best, around the median, and the three worst by Dice.

    python docs/gallery.py EVALUATION_DIR OTHER_DIR [DOCS_DIR]

The folders of evaluations hold metrics.csv, lesions.csv and overlays/. The page, gallery.md with figures/gallery_*, has
each case's picture (ADC, ZADC, truth and mask), its figures and its table of lesions. Of the other evaluation, of cases
whose pictures may not be shown, it has the figures of nine cases, chosen likewise.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from PIL import Image

MOST_LESIONS = 6  # of a table
WIDTH = 900  # of a picture, pixels
INTRODUCTION = """# Gallery

**Nine of {count} simulated cases that were not used for any choice: best, around the median and worst by Dice.
The mean of all is {mean:.2f}.** Blue is the truth, orange the mask of the shipped weights.
Do not choose by figures on our own simulator.

<!-- needs: minutes -->
```
C=hie_bundle/configs
python -m monai.bundle run phantom --config_file $C/data.yaml --output_dir DIR --seed 901 \\
  --first_case 7000 --num_train 0 --num_val 24 --num_test 24
hie-bundle evaluate --dataset_dir DIR --recipe strong,strong_cpu --split test --output_dir OUT \\
  --ckpt_path hie_bundle/models/simulated/model.pt
hie-bundle evaluate --dataset_dir TRANSFER --recipe strong,strong_cpu --split test --output_dir OTHER \\
  --ckpt_path hie_bundle/models/simulated/model.pt
python docs/gallery.py OUT OTHER
```
"""
OTHER = """
## Cases of other hands

Nine of {count} cases of another simulator (`transfer` in [results](results/index.md)), without pictures, which may not
be shown here. The mean Dice of all is {mean:.2f}.

| Case | Dice | Lesion (ml) | Mask (ml) | Lesions found | Dice of smoothed Z < -2 |
| --- | --- | --- | --- | --- | --- |"""


def main(evaluation: str, other: str, docs: str = str(Path(__file__).parent)) -> None:
    """Write the page and its pictures."""
    source, target = Path(evaluation), Path(docs)
    (target / "figures").mkdir(parents=True, exist_ok=True)
    chosen, lesions, facts_of_all = _chosen(source)
    lines = INTRODUCTION.format(**facts_of_all).splitlines()
    for heading, members in chosen.items():
        lines += ["", f"## {heading}"]
        for row in members:
            case = row["case"]
            number = case.split("_")[1].split("-")[0]
            image = Image.open(source / "overlays" / f"{case}.png").convert("RGB")
            if image.width > WIDTH:
                image = image.resize((WIDTH, round(image.height * WIDTH / image.width)))
            image.save(target / "figures" / f"gallery_{number}.webp", quality=70)
            facts = f"Dice {float(row['native_dice']):.2f}, lesion {float(row['lesion_ml']):.2f} ml, mask "
            facts += f"{float(row['predicted_ml']):.2f} ml, Dice of smoothed Z < -2 {float(row['smoothed_dice']):.2f}"
            picture = f"![Slices of case {number}](figures/gallery_{number}.webp)"
            lines += ["", f"### Case {number}", "", f"{facts}.", "", picture, ""]
            here = sorted((one for one in lesions if one["case"] == case), key=lambda one: -float(one["volume_ml"]))
            lines += _table(here[:MOST_LESIONS]) if here else ["No lesion in truth and mask."]
            lines += ["", f"{len(here) - MOST_LESIONS} smaller ones are not shown."] if len(here) > MOST_LESIONS else []
    lines += figures_only(Path(other))
    (target / "gallery.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def figures_only(source: Path) -> list[str]:
    """The section of cases without pictures."""
    chosen, lesions, facts = _chosen(source)
    lines = OTHER.format(**facts).splitlines()
    for heading, members in chosen.items():
        for row in members:
            true = [one for one in lesions if one["case"] == row["case"] and one["mask"] == "truth"]
            found = f"{sum(one['matched'] == 'True' for one in true)} of {len(true)}" if true else "–"
            figures = " | ".join(f"{float(row[name]):.2f}" for name in ("native_dice", "lesion_ml", "predicted_ml"))
            lines.append(f"| {heading} | {figures} | {found} | {float(row['smoothed_dice']):.2f} |")
    return lines


def _chosen(source: Path) -> tuple[dict[str, list[dict[str, str]]], list[dict[str, str]], dict[str, float]]:
    """Cases by heading, the lesions of all, and facts for the text."""
    rows, lesions = (list(csv.DictReader((source / f"{n}.csv").open(encoding="utf-8"))) for n in ("metrics", "lesions"))
    rows.sort(key=lambda row: -float(row["native_dice"]))
    middle = max(3, len(rows) // 2 - 1)
    mean = sum(float(row["native_dice"]) for row in rows) / len(rows)
    chosen = {"Best": rows[:3], "Around the median": rows[middle : middle + 3], "Worst": rows[-3:]}
    return chosen, lesions, {"count": len(rows), "mean": mean}


def _table(lesions: list[dict[str, str]]) -> list[str]:
    lines = ["| Lesion | Volume (ml) | Centre (mm) | Mean ADC / Z | Match (Dice) |", "| --- | --- | --- | --- | --- |"]
    for one in lesions:
        centre = ", ".join(f"{float(one[f'{axis}_mm']):.0f}" for axis in "xyz")
        values = f"{float(one['mean_adc']):.0f} / {float(one['mean_z']):.1f}"
        match = f"{one['match']} ({float(one['dice']):.2f})" if one["match"] != "0" else "none"
        lines.append(
            f"| {one['mask']} {one['lesion']} | {float(one['volume_ml']):.2f} | {centre} | {values} | {match} |"
        )
    return lines


if __name__ == "__main__":
    main(*sys.argv[1:])
