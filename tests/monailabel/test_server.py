"""The unchanged bundle in a real MONAI Label server: listed, segmenting, trained, refusing what it should.

    make test-monailabel

makes an environment of its own (several GB) and runs this there. The tests are one conversation, in their order, held
twice: with the bundle as it lies in the tree, and with what ``make package RECIPE=strong`` makes of it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import requests
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
APP = Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle"
PAPER, STRONG = "hie_bundle", "hie_bundle_strong"
# cases are small; the network and its input are those of the bundle as it is
PHANTOM = {"matrix_sizes": [36, 44], "slice_range": [10, 14], "fine_mm": 4.0, "atlas_step_mm": 4.0, "num_healthy": 4}


class Server:
    """A running server, its folders and its log."""

    def __init__(self, folder: Path, name: str) -> None:
        self.app, self.studies, self.log = folder / "app", folder / "studies", folder / "server.log"
        self.name = name  # of the bundle's folder
        self.model = self.app / "model" / name
        self.labels = folder / "labels"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "monailabel.main", "start_server"),
            *("--app", str(self.app), "--studies", str(self.studies), "--host", "127.0.0.1", "--port", str(self.port)),
            *("--conf", "models", self.name, "--conf", "zoo_source", "local", "--conf", "sam2", "false"),
        ]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self.app, start_new_session=True
            )
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                pytest.fail(f"the server ended:\n{self.log.read_text()[-3000:]}")
            try:
                self.info = requests.get(self.url("info/"), timeout=20).json()
            except requests.ConnectionError:
                time.sleep(0.5)
            else:
                return
        pytest.fail("the server did not start within three minutes")

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def infer(self, image: str, output: str, **params: Any) -> requests.Response:
        return requests.post(
            self.url(f"infer/{self.name}"),
            params={"image": image, "output": output},
            data={"params": json.dumps({"device": "cpu", **params})},
            timeout=300,
        )

    def mask(self, image: str, folder: Path) -> nibabel.Nifti1Image:
        answer = self.infer(image, "image")
        assert answer.status_code == 200, answer.text
        file = folder / f"{image}_mask.nii.gz"
        file.write_bytes(answer.content)
        return nibabel.load(file)


def _bundle(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "monai.bundle", *arguments], check=True, cwd=ROOT, capture_output=True)


def _turned(file: Path, target: Path, oblique: bool) -> None:
    """The same case in another storage order, its axes flipped and swapped, and tilted if asked to."""
    image = nibabel.load(file)
    data, affine = np.asarray(image.dataobj), image.affine
    orientation = nibabel.orientations.axcodes2ornt("PIL")
    change = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), orientation)
    affine = affine @ nibabel.orientations.inv_ornt_aff(change, data.shape[:3])
    data = nibabel.orientations.apply_orientation(data, change)
    if oblique:
        c, s = np.cos(0.2), np.sin(0.2)
        affine = np.array([[c, -s, 0, 3], [s, c, 0, -7], [0, 0, 1, 5], [0, 0, 0, 1]]) @ affine
    nibabel.save(nibabel.Nifti1Image(data, affine), target)


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated cases as the documentation has them made: a folder for each split, labels in ``labels/final``."""
    folder = tmp_path_factory.mktemp("cohort")
    options = [f"--{name}={value}" for name, value in PHANTOM.items()]
    data = str(ROOT / "hie_bundle" / "configs" / "data.yaml")
    _bundle(
        *("run", "phantom", "--config_file", data, "--output_dir", str(folder / "cohort"), "--num_train", "4"),
        *("--num_val", "1", "--num_test", "1", "--seed", "3", *options),
    )
    _bundle(
        *("run", "preprocessing", "--config_file", data, "--dataset_dir", str(folder / "cohort")),
        *("--format", "native_stack", "--output_dir", str(folder / "stacks")),
    )
    return folder / "stacks"


@pytest.fixture(scope="module", params=[PAPER, STRONG])
def server(request: pytest.FixtureRequest, stacks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("monailabel")
    server = Server(folder, request.param)
    shutil.copytree(APP, server.app)
    shutil.copytree(ROOT / "hie_bundle", server.model, ignore=shutil.ignore_patterns("__pycache__", "eval", "*.pt"))
    (server.model / "models").mkdir(exist_ok=True)
    server.studies.mkdir()
    server.labels.mkdir()
    for split in ("train", "test"):
        for file in (stacks / split).glob("*.nii.gz"):
            shutil.copy(file, server.studies / file.name)
            shutil.copy(stacks / split / "labels" / "final" / file.name, server.labels / file.name)
    first = sorted(server.studies.iterdir())[0]
    _turned(first, server.studies / "turned.nii.gz", oblique=False)
    _turned(first, server.studies / "oblique.nii.gz", oblique=True)
    if server.name == STRONG:
        _write_recipe(server.model, folder / "weights")
    else:
        _save_weights(server)
    server.start()
    yield server
    server.stop()


def _write_recipe(bundle: Path, folder: Path) -> None:
    """What ``make package RECIPE=strong`` does to a copy; the shipped weights in half precision, if they are not so."""
    folder.mkdir()
    shipped = sorted((ROOT / "hie_bundle" / "models" / "simulated").glob("model*.pt"), key=lambda path: len(path.name))
    for file in shipped:
        content = torch.load(file, weights_only=True)
        content["model"] = {k: v.half() if v.is_floating_point() else v for k, v in content["model"].items()}
        torch.save(content, folder / file.name)
    command = "import sys; from scripts.cli.packaging import write_recipe; write_recipe(sys.argv[1], sys.argv[2:])"
    files = [str(folder / file.name) for file in shipped]
    subprocess.run([sys.executable, "-c", command, str(bundle), *files], check=True, cwd=ROOT / "hie_bundle")
    train = bundle / "configs" / "train.yaml"  # where epochs are so many steps: a few
    train.write_text(re.sub(r"^steps_per_epoch: \d+", "steps_per_epoch: 4", train.read_text(), flags=re.MULTILINE))


def _save_weights(server: Server) -> None:
    """Weights of a network that marks dark ADC and low ZADC: random ones, with the last bias set to mark 5 %."""
    sys.path.insert(0, str(server.model))
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(server.model / "configs" / "inference.yaml")
    parser.update({"dataset_dir": str(server.studies), "bundle_root": str(server.model)})
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    image = parser.get_parsed_content("preprocessing")({"image": str(sorted(server.studies.iterdir())[0])})["image"]
    with torch.no_grad():
        network.output.bias -= network(image[None].as_tensor()).flatten().sort().values[-(image[0].numel() // 20)]
    torch.save({"model": network.state_dict()}, server.model / "models" / "model.pt")
    sys.path.remove(str(server.model))


def _masks_of_the_command(server: Server, studies: list[Path], folder: Path) -> dict[str, NDArray[Any]]:
    """By the study's name, what ``monai.bundle run`` makes of them with the same bundle."""
    cases, masks = folder / "cases", folder / "command"
    cases.mkdir()
    for study in studies:
        shutil.copy(study, cases)
    _bundle(
        *("run", "--config_file", str(server.model / "configs" / "inference.yaml")),
        *("--dataset_dir", str(cases), "--output_dir", str(masks)),
    )
    return {
        file.name.removesuffix("_lesion.nii.gz"): np.asarray(nibabel.load(file).dataobj)
        for file in masks.glob("*.nii.gz")
    }


def _dice(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(2 * ((one > 0) & (other > 0)).sum() / max(1, (one > 0).sum() + (other > 0).sum()))


def _assert_lesions_are_marked(server: Server, folder: Path) -> None:
    """Better by far than by marking the whole brain, which itself is more than an untrained network does."""
    found, brain = [], []
    for file in sorted(server.labels.iterdir()):
        truth = np.asarray(nibabel.load(file).dataobj)
        mask = server.mask(file.name.removesuffix(".nii.gz"), folder)
        found.append(_dice(np.asarray(mask.dataobj), truth))
        brain.append(_dice(np.asarray(nibabel.load(server.studies / file.name).dataobj)[..., 0], truth))
    assert np.mean(found) > np.mean(brain) + 0.2, (found, brain)


def _weights(file: Path) -> torch.Tensor:
    """The network's kernels in one row; statistics of normalisations are no weights."""
    content = torch.load(file, weights_only=True)
    return torch.cat([value.float().flatten() for value in content.get("model", content).values() if value.ndim > 1])


def _study_of_channels(server: Server, channels: list[int]) -> str:
    """A study of these channels of the first case; its name."""
    source = nibabel.load(sorted(server.studies.glob("MGH*.nii.gz"))[0])
    data = np.asarray(source.dataobj)[..., channels].squeeze()
    name = f"channels_{'_'.join(map(str, channels))}"
    nibabel.save(nibabel.Nifti1Image(data, source.affine), server.studies / f"{name}.nii.gz")
    time.sleep(3)  # the server watches the folder
    return name


def _assert_refused(server: Server, study: str, message: str) -> None:
    assert server.infer(study, "image").status_code == 500
    deadline = time.monotonic() + 20
    while message not in server.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert message in server.log.read_text()


def test_the_bundle_is_listed_with_its_one_label(server: Server) -> None:
    model = server.info["models"][server.name]
    assert model["type"] == "segmentation"
    assert model["dimension"] == 3
    assert model["labels"] == {"lesion": 1}
    assert server.name in server.info["trainers"]
    metadata = json.loads((server.model / "configs" / "metadata.json").read_text())
    assert model["version"] == metadata["version"]


def test_masks_lie_on_the_cases_grid_and_equal_those_of_the_command(server: Server, tmp_path: Path) -> None:
    studies = sorted(server.studies.glob("*.nii.gz"))
    commands = _masks_of_the_command(server, studies, tmp_path)
    for file in studies:
        name = file.name.removesuffix(".nii.gz")
        study, mask = nibabel.load(file), server.mask(name, tmp_path)
        values = np.asarray(mask.dataobj)
        assert values.dtype == np.uint8
        assert set(np.unique(values)) == {0, 1}
        assert mask.shape == study.shape[:3]
        np.testing.assert_allclose(mask.affine, study.affine, atol=1e-4)
        np.testing.assert_array_equal(values, commands[name])


def test_a_turned_case_has_the_mask_in_the_same_place(server: Server, tmp_path: Path) -> None:
    """What a wrong inversion would get wrong, though shape and affine are right."""
    first = sorted(path for path in server.studies.glob("*.nii.gz") if path.name.startswith("MGH"))[0]
    straight = server.mask(first.name.removesuffix(".nii.gz"), tmp_path)
    for name in ("turned", "oblique"):
        turned = server.mask(name, tmp_path)
        to_straight = nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("PIL"), nibabel.io_orientation(straight.affine)
        )
        back = nibabel.orientations.apply_orientation(np.asarray(turned.dataobj), to_straight) > 0
        same = np.asarray(straight.dataobj) > 0
        # a voxel at the threshold may fall to the other side when it is summed in another order
        assert same.any()
        assert (back != same).sum() <= 1 + 0.02 * same.sum()


def test_the_package_marks_lesions_at_the_first_start(server: Server, tmp_path: Path) -> None:
    if server.name != STRONG:
        pytest.skip("the bundle in the tree comes without weights")
    _assert_lesions_are_marked(server, tmp_path)


def test_two_files_become_a_study_in_one_step(server: Server, stacks: Path, tmp_path: Path) -> None:
    """``segment --studies`` writes what the running server lists and segments as the command does."""
    if server.name != STRONG:
        pytest.skip("the command's weights are those of the package")
    adc, zadc = (
        next((stacks.parent / "cohort" / "BONBID2023_Test" / part).iterdir()) for part in ("1ADC_ss", "2Z_ADC")
    )
    pair = [tmp_path / "two files.mha", tmp_path / "zadc.mha"]
    for source, target in zip((adc, zadc), pair, strict=True):
        shutil.copy(source, target)
    words = ["segment", *map(str, pair), "-o", str(tmp_path / "mask.nii.gz"), "--studies", str(server.studies)]
    subprocess.run([sys.executable, "-m", "hie_bundle", *words], check=True, cwd=ROOT, capture_output=True)
    deadline = time.monotonic() + 30  # the server watches the folder
    while "Adding New Image: two files " not in server.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.5)
    mask, expected = server.mask("two files", tmp_path), nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)
    assert np.asarray(expected.dataobj).any()
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))


def test_a_lone_adc_map_is_segmented_where_the_recipe_can(server: Server, tmp_path: Path) -> None:
    name = sorted(path.name for path in server.studies.glob("MGH*.nii.gz"))[0].removesuffix(".nii.gz")
    alone = _study_of_channels(server, [0])
    if server.name != STRONG:
        _assert_refused(server, alone, "has 1 channel; a stacked file has two")
        return
    mask, truth = server.mask(alone, tmp_path), nibabel.load(server.labels / f"{name}.nii.gz")
    assert mask.shape == truth.shape
    np.testing.assert_allclose(mask.affine, truth.affine, atol=1e-4)
    (expected,) = _masks_of_the_command(server, [server.studies / f"{alone}.nii.gz"], tmp_path).values()
    assert expected.any()
    np.testing.assert_array_equal(np.asarray(mask.dataobj), expected)


def test_the_answer_numbers_its_one_label(server: Server) -> None:
    """3D Slicer makes a segment of each name here, and colours it itself."""
    name = sorted(path.name for path in server.studies.glob("MGH*.nii.gz"))[0].removesuffix(".nii.gz")
    answer = server.infer(name, "json")
    assert answer.status_code == 200
    assert answer.json()["label_names"] == {"lesion": 1}


def test_training_from_submitted_labels_saves_new_weights_that_are_used(server: Server, tmp_path: Path) -> None:
    names = [path.name.removesuffix(".nii.gz") for path in sorted(server.labels.iterdir())][:3]
    for name in names:
        with (server.labels / f"{name}.nii.gz").open("rb") as label:
            answer = requests.put(
                server.url("datastore/label"),
                params={"image": name, "tag": "final"},
                data={"params": json.dumps({"label_info": [{"name": "lesion", "idx": 1}]})},
                files={"label": (f"{name}.nii.gz", label)},
                timeout=60,
            )
        assert answer.status_code == 200, answer.text
    weights = server.model / "models" / "model.pt"
    before, old_mask = _weights(weights), np.asarray(server.mask(names[0], tmp_path).dataobj)
    answer = requests.post(
        server.url(f"train/{server.name}"),
        # as 3D Slicer asks, with an empty run_id
        json={"device": "cpu", "max_epochs": 1, "val_split": 0.34, "pretrained": True, "run_id": ""},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    deadline = time.monotonic() + 900
    while (task := requests.get(server.url("train/"), timeout=60).json())["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < deadline, task
        time.sleep(2)
    assert task["status"] == "DONE", "\n".join(map(str, task.get("details", [task])))[-3000:]
    after = _weights(weights)
    assert torch.isfinite(after).all()
    assert not torch.equal(after, before)
    assert torch.nn.functional.cosine_similarity(before, after, dim=0) > 0.9  # of other ones about 0
    new_mask = np.asarray(server.mask(names[0], tmp_path).dataobj)
    assert (new_mask != old_mask).any()
    commands = _masks_of_the_command(server, [server.studies / f"{names[0]}.nii.gz"], tmp_path)
    np.testing.assert_array_equal(new_mask, commands[names[0]])
    if server.name == STRONG:
        _assert_lesions_are_marked(server, tmp_path)


@pytest.mark.parametrize(
    ("channels", "message"),
    [([0, 1, 1], "3 channels"), ([1, 0], "are swapped")],
    ids=["three channels", "swapped"],
)
def test_a_case_without_the_two_maps_in_order_is_refused(channels: list[int], message: str, server: Server) -> None:
    _assert_refused(server, _study_of_channels(server, channels), message)


def test_a_bundle_without_weights_is_named(server: Server) -> None:
    """Last: the server is started anew."""
    server.stop()
    for file in (server.model / "models").glob("*.pt"):
        file.unlink()
    server.start()
    assert server.name not in server.info["models"] or not server.info["models"][server.name]["labels"]
    assert "model.pt" in server.log.read_text()
