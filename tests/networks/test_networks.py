"""The U-Net: its size, its geometry, what it refuses, and that it scripts and exports."""

import math
from typing import Any

import pytest
import torch
from conftest import BUNDLE
from monai.bundle import ConfigParser
from monai.networks.utils import convert_to_torchscript

from scripts.networks import HIEUNet, with_prior
from scripts.runtime.errors import UserError


def _expected_parameters(features: tuple[int, ...], in_channels: int = 2, out_channels: int = 1) -> int:
    """Counted by hand: 3×3×3 convolutions without bias, two numbers a channel for each normalisation."""

    def double(i: int, o: int) -> int:
        return 27 * i * o + 2 * o + 27 * o * o + 2 * o

    f1, f2, f3, f4 = features
    encoder = double(in_channels, f1) + double(f1, f2) + double(f2, f3) + double(f3, f4)
    upsampling = sum(8 * a * b + b for a, b in ((f4, f3), (f3, f2), (f2, f1)))
    decoder = sum(double(2 * f, f) for f in (f1, f2, f3))
    return encoder + upsampling + decoder + f1 * out_channels + out_channels


@pytest.mark.parametrize("features", [(32, 64, 128, 256), (4, 8, 16, 24)])
def test_parameter_count(features: tuple[int, ...]) -> None:
    network = HIEUNet(features=features)
    assert sum(p.numel() for p in network.parameters()) == _expected_parameters(features)


@pytest.mark.parametrize("shape", [(8, 8, 8), (16, 24, 8), (40, 8, 16)])
def test_output_has_the_input_grid(shape: tuple[int, ...]) -> None:
    network = HIEUNet(features=(2, 4, 6, 8))
    assert network(torch.randn(2, 2, *shape)).shape == (2, 1, *shape)


@pytest.mark.parametrize("shape", [(12, 16, 16), (16, 16, 4), (16, 17, 16)])
def test_indivisible_size_is_refused(shape: tuple[int, ...]) -> None:
    network = HIEUNet(features=(2, 4, 6, 8))
    with pytest.raises(UserError, match=r"divisible by 8.*" + str(list(shape)).replace("[", r"\[")):
        network(torch.randn(1, 2, *shape))


def test_another_number_of_maps_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs 3 input channels \(in_channels\), but got 2"):
        HIEUNet(in_channels=3, features=(2, 4, 6, 8))(torch.zeros(1, 2, 8, 8, 8))


def test_receptive_field_spans_the_three_poolings() -> None:
    # two convolutions at each of four levels and back: a voxel 30 away still matters, through the bottleneck
    torch.manual_seed(0)
    network = HIEUNet(features=(4, 8, 8, 8)).eval()
    x = torch.randn(1, 2, 80, 8, 8, requires_grad=True)
    network(x)[0, 0, 40, 4, 4].backward()
    assert x.grad is not None
    reach = torch.nonzero(x.grad.abs().sum((0, 1, 3, 4))).flatten()
    assert reach.min() <= 10
    assert reach.max() >= 70


def test_dropout_rises_with_depth_and_is_off_in_evaluation() -> None:
    network = HIEUNet(features=(2, 4, 6, 8), dropout=(0.1, 0.2, 0.3, 0.4))
    rates = [m.p for m in network.bottleneck.modules() if isinstance(m, torch.nn.Dropout3d)]
    assert rates == [0.4, 0.4]
    assert [m.p for m in network.decoder1.modules() if isinstance(m, torch.nn.Dropout3d)] == [0.1, 0.1]
    x = torch.randn(1, 2, 16, 16, 16)
    assert not torch.equal(network.train()(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


@pytest.mark.parametrize("prior", [0.01, 0.3])
def test_untrained_network_predicts_the_prior(prior: float) -> None:
    torch.manual_seed(0)
    network = HIEUNet(features=(4, 8, 8, 8), prior=prior).eval()
    logits = network(torch.zeros(1, 2, 16, 16, 16))
    assert float(logits.mean()) == pytest.approx(math.log(prior / (1 - prior)), abs=0.6)


def test_order_is_convolution_normalisation_activation_dropout() -> None:
    block = HIEUNet(features=(2, 4, 6, 8)).encoder2
    kinds = [type(m).__name__ for m in block.modules() if not list(m.children())]
    assert kinds == ["Conv3d", "BatchNorm3d", "LeakyReLU", "Dropout3d"] * 2


@pytest.mark.parametrize(
    "arguments", [{"features": (2, 4, 8)}, {"prior": 0.0}, {"dropout": (0.1,)}, {"dropout": (0.0, 0.1, 0.2, 1.0)}]
)
def test_bad_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"dropout|prior"):
        HIEUNet(**arguments)


def test_torchscript_gives_the_same_output_and_the_same_error() -> None:
    network = HIEUNet(features=(2, 4, 6, 8)).eval()
    scripted = torch.jit.script(network)
    x = torch.randn(1, 2, 16, 8, 24)
    torch.testing.assert_close(scripted(x), network(x))
    with pytest.raises(Exception, match="divisible by 8"):
        scripted(torch.randn(1, 2, 12, 8, 8))


def test_the_papers_start_has_no_prior_and_an_l1_term_above_the_region_loss() -> None:
    torch.manual_seed(0)
    with_prior = HIEUNet()
    torch.manual_seed(0)
    paper = HIEUNet(prior=None)
    assert torch.sigmoid(with_prior.output.bias).item() == pytest.approx(0.02)
    assert abs(paper.output.bias.item()) <= 32**-0.5  # PyTorch's own
    for name, value in paper.state_dict().items():
        assert name == "output.bias" or torch.equal(value, with_prior.state_dict()[name])
    assert 1e-4 * sum(p.abs().sum().item() for p in paper.parameters()) == pytest.approx(4.84, abs=0.02)


# --- other networks: the network_*.yaml; test_recipes.py trains, evaluates and segments with each ------------

OTHERS = ["segresnet", "dynunet", "swinunetr", "mednext", "attentionunet"]


def _made(name: str, **values: Any) -> torch.nn.Module:
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / f"{file}.yaml") for file in ("inference", f"network_{name}")])
    parser.update({"features": [2, 4, 6, 8], **({"feature_size": 12} if name == "swinunetr" else {}), **values})
    torch.manual_seed(0)
    return parser.get_parsed_content("network_def")


@torch.no_grad()
@pytest.mark.parametrize("name", OTHERS)
def test_another_network_starts_from_the_prior_and_can_be_traced(name: str) -> None:
    network = _made(name, prior=0.1).eval()
    size = (64, 32, 32)  # at less SwinUNETR's instance normalisation has one voxel
    seen = torch.randn(1, 2, *size)
    traced = convert_to_torchscript(network, inputs=[seen], use_trace=True, check_trace=False)
    other = torch.randn(1, 2, *size)
    logits = network(other)
    assert logits.shape == (1, 1, *size)
    torch.testing.assert_close(traced(other), logits, rtol=1e-4, atol=1e-5)
    shifted = _made(name, prior=0.5).eval()(other) + math.log(0.1 / 0.9)  # a prior of 0.5 is a bias of 0
    torch.testing.assert_close(logits, shifted, rtol=1e-4, atol=1e-5)


def test_deep_supervision_gives_each_scale_of_training_its_prior() -> None:
    network = _made("dynunet", prior=0.1).train()
    for layer in (network.output_block, *network.deep_supervision_heads):  # type: ignore[union-attr]
        assert layer.conv.conv.bias.item() == pytest.approx(math.log(0.1 / 0.9))
    assert network(torch.randn(2, 2, 16, 16, 16)).shape == (2, 3, 1, 16, 16, 16)


def test_layers_without_a_prior_are_refused() -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 1, 1, bias=False))
    with pytest.raises(AttributeError, match="no attribute `output`"):
        with_prior(network, "output")
    with pytest.raises(ValueError, match="no convolution with a bias"):
        with_prior(network, "0")
    with pytest.raises(ValueError, match="prior must be"):
        with_prior(torch.nn.Sequential(torch.nn.Conv3d(1, 1, 1)), "0", prior=1.0)
