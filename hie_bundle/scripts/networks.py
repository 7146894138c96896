"""The paper's 3D U-Net (section 3.2.2 and Figure 1), and output biases for other networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from torch import nn

from .runtime.errors import UserError

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class DoubleConvolution(nn.Sequential):
    """Two 3×3×3 convolutions, each followed by batch normalisation, LeakyReLU and dropout of whole feature maps.

    Instance normalisation would remove the absolute level of ZADC, which separates lesion from healthy tissue.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__(
            *(
                Convolution(
                    spatial_dims=3,
                    in_channels=channels,
                    out_channels=out_channels,
                    adn_ordering="NAD",
                    norm="BATCH",
                    act=("LEAKYRELU", {"inplace": True}),
                    dropout=dropout,
                    dropout_dim=3,
                    bias=False,  # batch normalisation has a bias
                )
                for channels in (in_channels, out_channels)
            )
        )


class HIEUNet(nn.Module):
    """3D U-Net with three encoder and three decoder blocks for two-channel (ADC, ZADC) volumes. TorchScript-able.

    Max pooling by 2, transposed convolutions by 2, skip connections; a 1×1×1 convolution gives the logits.

    Args:
        in_channels: number of input maps.
        out_channels: number of logits.
        features: channels of the three encoder blocks and the bottleneck; the paper does not state them.
        dropout: probability at the same four levels, in [0, 1). In the paper it increases with depth.
        prior: lesion probability of the untrained network, see :func:`with_prior`. None: near 0.5, as in the paper.

    Raises:
        ValueError: when ``features`` or ``dropout`` does not have four values, or a probability is out of range.
    """

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 1,
        features: Sequence[int] = (32, 64, 128, 256),
        dropout: Sequence[float] = (0.05, 0.1, 0.15, 0.2),
        prior: float | None = 0.02,
    ) -> None:
        super().__init__()
        if len(features) != 4 or len(dropout) != 4:
            raise UserError(
                "features and dropout need four values each, for three blocks and the bottleneck; "
                f"got features={list(features)}, dropout={list(dropout)}."
            )
        if not all(0 <= p < 1 for p in dropout):
            raise ValueError(f"dropout probabilities must be in [0, 1), got {list(dropout)}.")

        self.in_channels = in_channels
        f1, f2, f3, f4 = features
        p1, p2, p3, p4 = dropout
        self.encoder1 = DoubleConvolution(in_channels, f1, p1)
        self.encoder2 = DoubleConvolution(f1, f2, p2)
        self.encoder3 = DoubleConvolution(f2, f3, p3)
        self.pool = nn.MaxPool3d(2)
        self.bottleneck = DoubleConvolution(f3, f4, p4)
        self.upsample3 = nn.ConvTranspose3d(f4, f3, kernel_size=2, stride=2)
        self.decoder3 = DoubleConvolution(2 * f3, f3, p3)
        self.upsample2 = nn.ConvTranspose3d(f3, f2, kernel_size=2, stride=2)
        self.decoder2 = DoubleConvolution(2 * f2, f2, p2)
        self.upsample1 = nn.ConvTranspose3d(f2, f1, kernel_size=2, stride=2)
        self.decoder1 = DoubleConvolution(2 * f1, f1, p1)
        self.output = nn.Conv3d(f1, out_channels, kernel_size=1)
        with_prior(self, "output", prior)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, out_channels, X, Y, Z) of normalised maps (B, in_channels, X, Y, Z); sizes divisible by 8."""
        if x.shape[1] != self.in_channels:
            raise UserError(f"The network needs {self.in_channels} input channels (in_channels), but got {x.shape[1]}.")
        for size in x.shape[2:]:
            if size % 8 != 0:
                raise UserError(
                    f"each spatial size must be divisible by 8 (three poolings by 2), got {list(x.shape[2:])}: "
                    "choose another spatial_size or pad the volume."
                )
        skip1 = self.encoder1(x)
        skip2 = self.encoder2(self.pool(skip1))
        skip3 = self.encoder3(self.pool(skip2))
        x = self.bottleneck(self.pool(skip3))
        # del reduces the memory of a prediction by a quarter
        x = torch.cat([skip3, self.upsample3(x)], dim=1)
        del skip3
        x = torch.cat([skip2, self.upsample2(self.decoder3(x))], dim=1)
        del skip2
        x = torch.cat([skip1, self.upsample1(self.decoder2(x))], dim=1)
        del skip1
        return self.output(self.decoder1(x))


def with_prior(network: nn.Module, layers: str | Sequence[str], prior: float | None = 0.02) -> nn.Module:
    """Set the biases of a network's output layers to a lesion probability (Lin et al. 2017, section 4.1).

    Args:
        network: with a single output channel, the lesion's logit.
        layers: names of its output layers: convolutions with a bias, or modules with such convolutions.
        prior: in (0, 1); None changes nothing.

    Raises:
        ValueError: when ``prior`` is outside (0, 1), or a layer has no convolution with a bias.
        AttributeError: when a layer does not exist.
    """
    if prior is None:
        return network
    if not 0 < prior < 1:
        raise ValueError(f"prior must be in (0, 1), got {prior}.")
    for name in [layers] if isinstance(layers, str) else layers:
        parts = network.get_submodule(name).modules()
        biases = [m.bias for m in parts if isinstance(m, _CONVOLUTIONS) and m.bias is not None]
        if not biases:
            raise ValueError(f"the layer {name!r} of {type(network).__name__} has no convolution with a bias.")
        for bias in biases:
            nn.init.constant_(bias, math.log(prior / (1 - prior)))
    return network
