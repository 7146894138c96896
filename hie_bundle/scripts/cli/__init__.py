"""The command ``hie-bundle``: segmentation, and a subcommand for each workflow of the bundle."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import typer
from typer.completion import completion_init, get_completion_script

from ..io.volumes import extension_of
from ..runtime.errors import UserError, choose, user_error
from ..runtime.text import printable, show_any_text
from .workflows import WORKFLOWS, add_workflow, parsed, separated

NAME = "hie-bundle"
SHELLS = {"bash": "bash", "zsh": "zsh", "fish": "fish"}
COMPLETE = "_HIE_BUNDLE_COMPLETE"  # Typer's name; the shell sets it to request completions
IN_CONFIGS = ("device", "threshold", "flips")  # options of segmentation that are values of inference.yaml
FILE_RULES = """A folder ADC without ZADC holds cases with the file names of BONBID-HIE (X-ADC_ss,
Zmap_X-ADC_smooth2mm_clipped10). Files of two folders are matched by file name or case id. Any top-level value of
inference.yaml is also an option. Exit status: 0; 1 if a case could not be segmented (the others are); 2 if the
command line is wrong. Research software, not a medical device."""

Weights = Annotated[str, typer.Option(help="simulated (shipped), or checkpoints, comma-separated for an ensemble")]
Recipe = Annotated[str | None, typer.Option(help="recipe of your weights: paper, strong, strong_cpu, or config files")]
Openvino = Annotated[bool, typer.Option("--openvino", help="run the network with OpenVINO, on the CPU")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda:N")]
Threshold = Annotated[str | None, typer.Option(help="threshold of the probability, from 0 to 1")]
Flips = Annotated[str | None, typer.Option(help='axes of test-time flips: "[0]"; "[]": none')]


def _segment(
    context: typer.Context,
    adc: Annotated[str, typer.Argument(help="skull-stripped ADC map in 1e-6 mm²/s, both maps in 4D, or a folder")],
    zadc: Annotated[str | None, typer.Argument(help="Z-score map of the ADC on the same grid, or a folder")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="the mask: a file, or a folder for CASE_lesion.nii.gz")
    ] = None,
    weights: Weights = "simulated",
    recipe: Recipe = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="also write CASE_probability.nii.gz")] = False,
    lesions: Annotated[
        bool, typer.Option("--lesions", help="also write CASE_lesions.csv: volume, location, ADC, Z, probability")
    ] = False,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="apply the calibration stored with the weights; masks do not change")
    ] = False,
    regions: Annotated[
        str | None, typer.Option(help="folder of an atlas with regions, for the injured share of each region")
    ] = None,
    studies: Annotated[
        str | None, typer.Option(help="folder of MONAI Label's studies: also write both maps there, one file per case")
    ] = None,
    overlay: Annotated[
        str | None, typer.Option(help="picture of the slices with the outline: OUT.png or folder")
    ] = None,
    report: Annotated[str | None, typer.Option(help="page with slices and measurements: OUT.html or folder")] = None,
    extension: Annotated[str, typer.Option(help=".nii.gz, .nii or .mha, of masks in a folder")] = ".nii.gz",
    bids: Annotated[bool, typer.Option("--bids", help="write OUT as a BIDS derivative")] = False,
    json: Annotated[bool, typer.Option("--json", help="print only the measurements, as JSON")] = False,
    anonymise_ids: Annotated[
        str | None,
        typer.Option("--anonymise_ids", help="KEYFILE, created if missing: name masks by keyed hashes of the case ids"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print errors only")] = False,
    openvino: Openvino = False,
    shard: Annotated[
        str | None, typer.Option(help="3/10: third of ten shards of a folder; resumes; OUT/manifest.csv after the last")
    ] = None,
    device: Device = None,
    threshold: Threshold = None,
    flips: Flips = None,
) -> None:
    """Segment lesions: masks from files or folders."""
    if not output:
        raise typer.BadParameter("the output is missing; give the mask's file or folder with -o OUT.")
    _run_segment(context)


def _challenge(
    context: typer.Context,
    input: Annotated[str, typer.Option(help="folder with the two maps")] = "/input",
    output: Annotated[str, typer.Option(help="folder for the mask, uint8 on the maps' grid")] = "/output",
    weights: Weights = "simulated",
    recipe: Recipe = None,
    openvino: Openvino = False,
    device: Device = None,
    threshold: Threshold = None,
    flips: Flips = None,
) -> None:
    """Segment the case in /input, like a container of the challenge."""
    maps = (Path(input) / "images" / kind for kind in ("skull-stripped-adc-brain-mri", "z-score-adc"))
    adc, zadc = map(_only_map, maps)
    mask = Path(output) / "images" / "hie-lesion-segmentation" / "overlay.mha"
    _run_segment(context, adc=str(adc), zadc=str(zadc), output=str(mask))


def _only_map(folder: Path) -> Path:
    found = sorted(path for path in folder.glob("*") if path.is_file() and extension_of(path))
    if len(found) != 1:
        raise UserError(f"{folder} has {len(found)} maps; it must have exactly one.")
    return found[0]


def _run_segment(context: typer.Context, **fixed: str) -> None:
    """Segment with the options of a command, defaults of `segment` for missing options, and values of configs."""
    defaults = {name: option.default for name, option in signature(_segment).parameters.items()}
    config = {name: context.params[name] for name in IN_CONFIGS if context.params[name] is not None}
    given = SimpleNamespace(**{**defaults, **context.params, **fixed})
    import_module(".segment", __name__).segment(given, parsed({**config, **context.obj}))


def _doctor() -> None:
    """Check this installation: packages, hardware, shipped weights."""
    import_module(".doctor", __name__).doctor()


def _completion(shell: Annotated[str, typer.Argument(help=", ".join(SHELLS))] = "bash") -> None:
    """Print the completion script for a shell."""
    print(get_completion_script(prog_name=NAME, complete_var=COMPLETE, shell=choose(SHELLS, shell, "shell")))


def _app() -> typer.Typer:
    app = typer.Typer(
        add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
        context_settings={"max_content_width": 120, "help_option_names": ["--help", "-h"]},
        help="Segmentation of HIE lesions in newborns from diffusion MRI. hie-bundle COMMAND --help lists the options.",
    )  # fmt: skip
    app.command("segment", epilog=" ".join(FILE_RULES.split()))(_segment)
    for name in WORKFLOWS:
        add_workflow(app, name)
    app.command("challenge")(_challenge)
    app.command("doctor")(_doctor)
    app.command("completion")(_completion)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Exit status: 0 on success; 1 for a user error, with the message at the end of stderr; 2 for an invalid command line.

    Args:
        arguments: command-line arguments; None for those of the process.
    """
    show_any_text()
    completion_init()  # lets Typer answer completion requests
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command = typer.main.get_command(_app())
        known, others = separated(words, getattr(command, "commands", {}).get(words[0] if words else ""))
        command(known, prog_name=NAME, obj=others)
    except Exception as error:
        mistake = user_error(error)
        if mistake is None:
            raise
        print(f"\nerror: {printable(mistake)}", file=sys.stderr)
        sys.exit(1)
