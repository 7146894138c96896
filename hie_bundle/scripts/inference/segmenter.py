"""Segmentation from Python: ``inference.yaml`` and a recipe, loaded once for many cases."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from monai.data import decollate_batch, list_data_collate
from monai.engines import SupervisedEvaluator
from monai.transforms import CopyItemsd
from numpy.typing import ArrayLike, NDArray

from ..data.checks import Limits, read_case, require_no_problems
from ..data.layout import part_of
from ..geometry.components import components
from ..io.files import sha256_of
from ..io.images import metatensor_of, same_type_as, volume_of, write
from ..io.volumes import Volume
from ..io.weights import load_weights, read_record, weights_files
from ..runtime.errors import UserError
from ..runtime.mixins import CONFIGS, RECIPES
from ..runtime.mixins import mixins as recipe_files
from ..runtime.recipe import recipe_of, same_recipe
from ..runtime.workflow import Workflow
from ..transforms.pipeline import pipeline
from .plausibility import Plausibility, plausibility_of

CAUTION = "Research software, not a medical device: not for diagnosis or treatment. Look at every mask."
ALONE = (
    "no ZADC map: segmented by ADC alone. Masks are worse than with one, small lesions first; figures of the shipped "
    "weights: models/simulated/README.md"
)
# settings that change the masks of the same weights
DECIDING = (
    "flips", "z_evidence_weight", "z_evidence_level", "threshold", "lesion_peak", "smallest_lesion_mm3",
    "limit_to_brain",
)  # fmt: skip
# values of inference.yaml and arguments of MONAI's workflow that Segmenter sets or does not use
NOT_TAKEN = (
    "config_file", "meta_file", "logging_file", "workflow_type", "run_id", "properties_path", "tracking", "bundle_root",
    "ckpt_path", "dataset_dir", "datalist", "dataset", "output_dir", "output_ext", "run_folder", "run", "evaluator",
)  # fmt: skip
SHIPPED = "strong_cpu"  # recipe of the weights in models/simulated


@dataclass(frozen=True)
class Segmentation:
    """The result of one case, on the grid of its ADC map."""

    case: str
    mask: NDArray[np.uint8]  # shape (X, Y, Z) as the ADC map is stored; 1 is lesion
    probability: NDArray[np.float32]  # of lesion, in [0, 1], same shape
    affine: NDArray[np.float64]  # (4, 4) from voxel indices to millimetres, RAS+
    lesion_ml: float
    brain_ml: float  # volume with ADC above 0
    lesions: int  # connected components of the mask (26-neighbourhood)
    plausibility: Plausibility
    maps: Mapping[str, NDArray[Any]]  # the input, ADC and ZADC, as in the files
    notes: tuple[str, ...] = ()  # remarks on the input

    @property
    def lesion_fraction(self) -> float:
        """Lesion volume by brain volume."""
        return self.lesion_ml / self.brain_ml

    @property
    def figures(self) -> dict[str, Any]:
        """The record of the case, for JSON."""
        return {
            "lesion_ml": round(self.lesion_ml, 4),
            "lesion_fraction": round(self.lesion_fraction, 6),
            "lesions": self.lesions,
            "brain_ml": round(self.brain_ml, 2),
            **self.plausibility.figures,
            "notes": list(self.notes),
        }

    @property
    def line(self) -> str:
        """The volumes in one line."""
        lesions = "1 lesion" if self.lesions == 1 else f"{self.lesions} lesions"
        share = f"{100 * self.lesion_fraction:.2f} % of the brain ({self.brain_ml:.0f} ml)"
        return f"{self.case}: {self.lesion_ml:.2f} ml in {lesions}, {share}"


class Segmenter:
    """A network, loaded once and called with one case after another.

    Args:
        weights: ``simulated`` (the bundle's, trained on simulated newborns only), or one or several checkpoints, whose
            probabilities are averaged.
        recipe: ``paper``, ``strong``, ``strong_cpu``, or config files on top of ``inference.yaml``. None: the recipe
            recorded in the weights.
        openvino: run the network with OpenVINO on the CPU, if installed.
        options: top-level values of ``inference.yaml`` and the recipe: ``device``, ``flips``, ``threshold`` …

    Raises:
        UserError: when weights are missing or of another recipe, or an option is unknown.

    Example::

        segmenter = Segmenter()
        masks = [segmenter(adc, zadc) for adc, zadc in cases]
    """

    def __init__(
        self,
        weights: str | Path | Sequence[str | Path] = "simulated",
        recipe: str | Sequence[str | Path] | None = None,
        openvino: bool = False,
        **options: Any,
    ) -> None:
        if wrong := [f"--{name}" for name in options if name in NOT_TAKEN]:
            raise UserError(
                f"A segmentation takes no {', '.join(wrong)}: weights are named by --weights, maps and masks by path."
            )
        self.checkpoints = weights_files(weights)
        mixins = recipe_files(recipe) if recipe is not None else trained_with(self.checkpoints[0])
        files = [CONFIGS / "inference.yaml", *mixins, CONFIGS / "segment.yaml"]
        if openvino:
            files.append(CONFIGS / "inference_openvino.yaml")
        parser = _parse(files, {"ckpt_path": [str(path) for path in self.checkpoints], "dataset#data": [], **options})
        get = parser.get_parsed_content
        self.limits: Limits = get("limits")
        self.threshold = get("threshold")
        self.smallest_lesion_mm3 = get("smallest_lesion_mm3")
        self.limit_to_brain = get("limit_to_brain")
        # what determines the masks: hash of the weights, and settings
        self.making = {"weights_sha256": sha256_of(*self.checkpoints), **{name: get(name) for name in DECIDING}}
        self._preprocessing = get("preprocessing")
        network = get("network")
        load_weights(network, self.checkpoints, recipe_of(parser), get("other_recipe"))
        keep = CopyItemsd(keys="pred", names="probability")
        self._evaluator = SupervisedEvaluator(
            device=get("device"),
            val_data_loader=[{}],
            network=network,
            inferer=get("inferer"),
            postprocessing=pipeline([get("activate"), get("to_native"), [keep], get("decide")]),
        )

    def __call__(
        self, adc: Any, zadc: Any = None, *, affine: ArrayLike | None = None, output: str | Path | None = None
    ) -> Any:
        """Segment one case.

        Args:
            adc: skull-stripped ADC map, 1e-6 mm²/s; or both maps in one 4D file. A path (.nii, .nii.gz, .mha), an image
                of nibabel, SimpleITK or ITK, a MetaTensor, or a tensor or array with ``affine``; shape (X, Y, Z).
            zadc: Z-score map of the ADC, on the same grid; None: ADC alone, if the recipe allows it.
            affine: (4, 4) from voxel indices to millimetres, RAS+, for arrays and tensors without an affine.
            output: file for the mask; needs a path in ``adc``.

        Returns:
            The mask, uint8, 1 is lesion, on the grid of the ADC map, as an image of the type of ``adc``; for a path a
            nibabel image, or ``output``.

        Raises:
            UserError: when the case is unusable; names each problem.
        """
        found = self.result(adc, zadc, affine=affine)
        if output is None:
            return same_type_as(adc, found.mask, found.affine)
        if not isinstance(adc, str | Path):
            raise UserError(
                "`output` needs maps given as files; for images in memory, write the returned mask yourself."
            )
        write(output, found.mask, found.affine)
        return Path(output)

    def probability(self, adc: Any, zadc: Any = None, *, affine: ArrayLike | None = None) -> Any:
        """The lesion probability, float32 in [0, 1]; arguments, result type and errors as in a call."""
        found = self.result(adc, zadc, affine=affine)
        return same_type_as(adc, found.probability, found.affine)

    def result(
        self, adc: Any, zadc: Any = None, *, affine: ArrayLike | None = None, case: str | None = None
    ) -> Segmentation:
        """Mask, probability and figures of one case; arguments and errors as in a call.

        ``case`` is its id; None: from the file's name.
        """
        name = case or (part_of(Path(adc))[1] or Path(adc).name if isinstance(adc, str | Path) else "case")
        report, maps = read_case(name, _parts(adc, zadc, affine), self.limits)
        require_no_problems(report, "segmented")
        item = self._preprocessing({"image": metatensor_of(list(maps.values())), "case": name})
        self._evaluator.data_loader = [list_data_collate([item])]
        with _quiet("ignite"):
            self._evaluator.run()
        output: Any = self._evaluator.state.output
        (one,) = output if isinstance(output, list) else decollate_batch(output)
        mask = one["pred"].cpu().numpy()[0].astype(np.uint8)
        assert report.spacing_mm is not None
        assert report.brain_ml is not None
        return Segmentation(
            case=name,
            mask=mask,
            probability=one["probability"].cpu().numpy()[0].astype(np.float32).clip(0, 1),
            affine=maps["adc"].affine,
            lesion_ml=float(mask.sum()) * float(np.prod(report.spacing_mm)) / 1000,
            brain_ml=report.brain_ml,
            lesions=components(mask > 0)[1],
            plausibility=plausibility_of(
                mask,
                maps["adc"],
                maps["zadc"].array if "zadc" in maps else None,
                getattr(self._evaluator.inferer, "agreement", None),  # a recipe may have another inferer
            ),
            maps={part.upper(): np.asarray(volume.array, np.float32) for part, volume in maps.items()},
            notes=tuple(ALONE if note == "no ZADC map" else note for note in report.notes),
        )


def segment(
    adc: Any, zadc: Any = None, *, affine: ArrayLike | None = None, output: str | Path | None = None, **settings: Any
) -> Any:
    """Segment one case with a new :class:`Segmenter` with ``settings``; the other arguments are those of its call.

    Example::

        from hie_bundle import segment

        mask = segment("X-ADC_ss.nii.gz", "Zmap_X-ADC_smooth2mm_clipped10.nii.gz")
        mask.to_filename("X_lesion.nii.gz")
    """
    return Segmenter(**settings)(adc, zadc, affine=affine, output=output)


def trained_with(checkpoint: Path) -> list[Path]:
    """The mixins of the recipe of trained weights; if no recipe matches, those of the shipped weights."""
    trained = read_record(checkpoint).get("recipe") or {}
    for name in sorted(RECIPES, key=lambda name: name != SHIPPED):
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / "inference.yaml"), *map(str, recipe_files(name))])
        if same_recipe(trained, recipe_of(parser)):
            return recipe_files(name)
    return recipe_files(SHIPPED)


def _parse(files: Sequence[Path], options: Mapping[str, Any]) -> ConfigParser:
    """The workflow's parser, without the workflow's changes of the excepthook and the import path."""
    hook, path = sys.excepthook, list(sys.path)
    try:
        with _quiet("monai.bundle.workflows"):
            workflow = Workflow(
                [str(file) for file in files],
                meta_file=str(CONFIGS / "metadata.json"),
                logging_file=False,
                workflow_type="infer",
                **options,
            )
        workflow.initialize()
        return workflow.parser
    finally:
        sys.excepthook, sys.path[:] = hook, path


def _parts(adc: Any, zadc: Any, affine: ArrayLike | None) -> dict[str, str | Volume]:
    """The maps by part, as :func:`scripts.data.checks.read_case` takes them."""
    maps = {"stacked": adc} if zadc is None else {"adc": adc, "zadc": zadc}
    return {part: str(one) if isinstance(one, str | Path) else volume_of(one, affine) for part, one in maps.items()}


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Suppress log lines below an error of these modules."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
