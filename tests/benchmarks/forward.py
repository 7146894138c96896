"""The network alone, batch 1: PyTorch as it comes against every other way to run it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from parts import Shape, sample
from timing import compare

from scripts.inference.inferers import TorchBackend
from scripts.inference.openvino_backend import OpenVINOBackend
from scripts.networks import HIEUNet


def forward(
    shape: Shape, features: list[int], repeats: int, ckpt_path: Path | None, device: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """PyTorch in float32 with its default memory layout is the stock counterpart of each.

    With weights, ``mask_dice`` compares the masks at probability 0.5 on a simulated head.
    """
    torch.manual_seed(0)
    stock = HIEUNet(features=features).to(device).eval()
    if ckpt_path:
        stock.load_state_dict(torch.load(ckpt_path, weights_only=True)["model"])
    network = HIEUNet(features=features).to(device, memory_format=torch.channels_last_3d).eval()
    network.load_state_dict(stock.state_dict())
    image = sample(shape).image.data[None].to(device)
    image = (image - image.mean((2, 3, 4), keepdim=True)) / image.std((2, 3, 4), keepdim=True)
    ways = {
        "PyTorch float32, channels last": TorchBackend("float32"),
        "PyTorch bfloat16, channels last": TorchBackend("bfloat16"),
    }
    if device == "cpu":
        ways |= {"OpenVINO float32": OpenVINOBackend("float32"), "OpenVINO bfloat16": OpenVINOBackend("bfloat16")}
    with torch.inference_mode():
        expected = stock(image)
        for name, backend in ways.items():
            output = backend(network, image)
            error = float((output - expected).abs().mean())  # of logits; those of a rare class are about -4
            assert error < (0.05 if "bfloat16" in name else 1e-3), f"{name}: {error}"
            result = compare(
                lambda net=stock, x=image: net(x), lambda f=backend, net=network, x=image: f(net, x), repeats
            )
            result["mean_logit_error"] = error
            if ckpt_path:
                masks = [torch.sigmoid(logit) > 0.5 for logit in (output, expected)]
                if total := int(masks[0].sum() + masks[1].sum()):  # two empty masks would say nothing
                    result["mask_dice"] = 2 * int((masks[0] & masks[1]).sum()) / total
            yield f"network forward, {device}: {name}", result
