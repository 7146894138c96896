"""Averages against plain arithmetic; OpenVINO and bfloat16 against PyTorch in float32."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import BUNDLE
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from torch import nn

from scripts.inference import openvino_backend
from scripts.inference.inferers import EnsembleInferer, EnsembleMembers, TorchBackend
from scripts.inference.openvino_backend import OpenVINOBackend
from scripts.networks import HIEUNet
from scripts.runtime.errors import UserError

SHAPE = (1, 2, 16, 24, 8)


def _network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = HIEUNet(in_channels=2, out_channels=1, features=[2, 3, 4, 5])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)  # so that probabilities differ visibly
    return network.eval()


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    paths = []
    for seed in range(3):
        content = _network(seed).state_dict()
        paths.append(str(tmp_path / f"{seed}.pt"))
        torch.save({"model": content} if seed else content, paths[-1])  # with and without the key `model`
    return paths


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_one_checkpoint_without_flips_is_the_network(checkpoints: list[str], image: torch.Tensor) -> None:
    network = _network(0)
    for one in (checkpoints[0], checkpoints[:1]):
        inferer = EnsembleInferer(one)
        assert torch.equal(inferer(image, network), network(image))
        assert inferer.members is None


@torch.no_grad()
@pytest.mark.parametrize("flips", [(), (0,), (0, 2), (0, 1, 2)])
def test_mean_probability_by_hand(checkpoints: list[str], image: torch.Tensor, flips: tuple[int, ...]) -> None:
    networks = [_network(seed) for seed in range(3)]
    expected = []
    for network, signs in product(networks, product([1, -1], repeat=len(flips))):
        steps = dict(zip(flips, signs, strict=True))
        mirror = tuple(slice(None, None, steps.get(axis, 1)) for axis in range(3))
        mirrored = torch.from_numpy(image.numpy()[(slice(None), slice(None), *mirror)].copy())
        output = torch.sigmoid(network(mirrored))[:, 0].numpy()
        expected.append(torch.from_numpy(output[(slice(None), *mirror)].copy()))
    inferer = EnsembleInferer(checkpoints, flips=flips)
    for _ in range(2):  # the second call uses the copies of the first
        logit = inferer(image, networks[0])
        assert logit.shape == (1, 1, *SHAPE[2:])
        assert inferer.members is not None
        assert inferer.members.shape == (1, 3, *SHAPE[2:])
        mean = torch.stack(expected).mean(0)
        assert mean.std() > 0.02
        torch.testing.assert_close(torch.sigmoid(logit[:, 0]), mean, rtol=0, atol=1e-6)
        for channel, network in enumerate(networks):
            torch.testing.assert_close(inferer.members[:, channel : channel + 1], network(image), rtol=0, atol=1e-5)


class TwoLogits(nn.Module):
    """Background's and lesion's logit, whose softmax is the sigmoid of the inner network's."""

    def __init__(self, inner: nn.Module, channels: int = 2) -> None:
        super().__init__()
        self.inner, self.channels = inner, channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = self.inner(x)
        return torch.cat([torch.full_like(logit, 0.7)] * (self.channels - 1) + [logit + 0.7], dim=1)


@torch.no_grad()
def test_networks_with_a_background_channel_are_averaged_by_their_softmax(image: torch.Tensor, tmp_path: Path) -> None:
    networks = [TwoLogits(_network(seed)).eval() for seed in range(2)]
    paths = [str(tmp_path / f"{seed}.pt") for seed in range(2)]
    for network, path in zip(networks, paths, strict=True):
        torch.save(network.state_dict(), path)
    inferer = EnsembleInferer(paths)
    expected = torch.stack([torch.softmax(network(image), dim=1) for network in networks]).mean(0)
    torch.testing.assert_close(torch.softmax(inferer(image, networks[0]), dim=1), expected)
    assert inferer.members is not None
    torch.testing.assert_close(inferer.members[:, :1], networks[0].inner(image), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="3 output channels"):
        EnsembleInferer(paths[:1], flips=[0])(image, TwoLogits(_network(0), channels=3))


def test_members_stand_beside_the_prediction(checkpoints: list[str], image: torch.Tensor) -> None:
    for paths, expected in ((checkpoints, (1, 3, *SHAPE[2:])), (checkpoints[:1], None)):
        inferer = EnsembleInferer(paths)
        engine = SupervisedEvaluator(
            device=torch.device("cpu"), val_data_loader=[{"image": image}], network=_network(0), inferer=inferer,
            val_handlers=[EnsembleMembers(inferer, "members")], decollate=False,
        )  # fmt: skip
        engine.run()
        members = engine.state.output.get("members")
        assert (None if members is None else tuple(members.shape)) == expected


@torch.no_grad()
def test_equal_members_change_nothing_even_where_they_are_certain(tmp_path: Path, image: torch.Tensor) -> None:
    network = nn.Conv3d(2, 1, 1)
    torch.nn.init.constant_(network.weight, 60.0)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    logit = EnsembleInferer([str(tmp_path / "model.pt")] * 3, flips=[0])(image, network)
    assert not logit.isnan().any()
    torch.testing.assert_close(torch.sigmoid(logit), torch.sigmoid(network(image)))


@torch.no_grad()
def test_another_network_gets_its_own_copies(checkpoints: list[str], image: torch.Tensor) -> None:
    """A server may load new weights into a new network and keep the inferer."""
    inferer = EnsembleInferer(checkpoints[:2])
    first = inferer(image, _network(0))
    second = inferer(image, _network(2))
    expected = (torch.sigmoid(_network(2)(image)) + torch.sigmoid(_network(1)(image))) / 2
    assert not torch.allclose(first, second)
    torch.testing.assert_close(torch.sigmoid(second), expected)


@torch.no_grad()
def test_windows_are_averaged_like_whole_volumes(checkpoints: list[str], image: torch.Tensor) -> None:
    window = SlidingWindowInferer(roi_size=SHAPE[2:], sw_batch_size=1)
    network = _network(0)
    whole = EnsembleInferer(checkpoints)(image, network)
    torch.testing.assert_close(EnsembleInferer(checkpoints, window=window)(image, network), whole)


def test_members_that_do_not_fit_are_named(checkpoints: list[str], image: torch.Tensor, tmp_path: Path) -> None:
    torch.save(HIEUNet(in_channels=2, out_channels=1, features=[2, 3, 4, 6]).state_dict(), tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt do not fit"):
        EnsembleInferer([checkpoints[0], str(tmp_path / "other.pt")])(image, _network(0))
    with pytest.raises(UserError, match="absent"):
        EnsembleInferer([checkpoints[0], str(tmp_path / "absent.pt")])(image, _network(0))
    with pytest.raises(UserError, match="empty list"):
        EnsembleInferer([])


# --- backends and precisions ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_bfloat16_gives_float32_logits_close_to_those_of_float32(image: torch.Tensor) -> None:
    network = _network(0)
    exact, rounded = TorchBackend()(network, image), TorchBackend("bfloat16")(network, image)
    assert torch.equal(exact, network(image))
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)  # it was rounded
    assert (rounded - exact).abs().mean() < 0.05 * exact.std()
    with pytest.raises(UserError, match="choose one of: float32, bfloat16"):
        TorchBackend("float16")


@torch.no_grad()
def test_openvino_equals_pytorch(image: torch.Tensor) -> None:
    other = torch.randn((2, 2, 8, 16, 8), generator=torch.Generator().manual_seed(6))
    backend = OpenVINOBackend("float32")
    for seed in (0, 1):  # two networks and two shapes through one inferer
        network = _network(seed)
        for volume in (image, MetaTensor(other), image):
            output = backend(network, volume)
            assert output.dtype == torch.float32
            torch.testing.assert_close(output, network(volume.as_subclass(torch.Tensor)), rtol=1e-4, atol=1e-4)
    rounded, exact = OpenVINOBackend("bfloat16")(network, image), network(image)
    assert (rounded - exact).abs().mean() < 0.05 * exact.std()


@torch.no_grad()
def test_openvino_in_an_ensemble(checkpoints: list[str], image: torch.Tensor) -> None:
    network = _network(0)
    window = SlidingWindowInferer(roi_size=(8, 16, 8), sw_batch_size=1, overlap=0.5)
    for layers in ({}, {"window": window}):
        reference = EnsembleInferer(checkpoints, flips=[0], **layers)
        inferer = EnsembleInferer(checkpoints, flips=[0], backend=OpenVINOBackend("float32"), **layers)
        torch.testing.assert_close(inferer(image, network), reference(image, network), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(inferer.members, reference.members, rtol=1e-3, atol=1e-3)


OFFLINE = """
import sys
import time

asked = []


def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        asked.append((event, str(arguments[-1])))
        raise OSError("no network here")


sys.addaudithook(hook)
import torch
from scripts.inference.openvino_backend import OpenVINOBackend

network = torch.nn.Conv3d(1, 1, 3).eval()
found = OpenVINOBackend("float32")(network, torch.zeros(1, 1, 8, 8, 8))
assert found.shape == (1, 1, 6, 6, 6)
time.sleep(1)  # OpenVINO's telemetry sends from a thread or a process of its own
assert not asked, asked
assert sys.modules["openvino_telemetry"] is None
"""


def test_openvino_tells_no_server_of_it() -> None:
    pytest.importorskip("openvino")
    environment = {**os.environ, "PYTHONPATH": str(BUNDLE)}
    environment.pop("CI", None)  # where it is set, OpenVINO is silent anyway
    result = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@torch.no_grad()
def test_without_openvino_pytorch_does_the_work_and_says_so(
    image: torch.Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openvino_backend, "openvino", None)
    network = _network(0)
    with caplog.at_level(logging.WARNING):
        backend = OpenVINOBackend()
        assert torch.equal(backend(network, image), network(image))
    (record,) = caplog.records
    assert "'openvino' is not installed" in record.message


def test_a_cpu_without_bfloat16_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(openvino_backend.openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    with caplog.at_level(logging.WARNING):
        assert OpenVINOBackend("bfloat16").hint == "f32"
    assert "no instructions for bfloat16" in caplog.text
