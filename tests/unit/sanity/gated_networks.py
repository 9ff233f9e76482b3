"""Networks a user might bring along, by import path: first the broken ones, then sound ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Mlp(nn.Module):
    """What the broken ones are broken versions of."""

    reads = "rows"

    def __init__(self, in_features: int, out_features: int, width: int = 64):
        super().__init__()
        self.first = nn.Linear(in_features, width)
        self.second = nn.Linear(width, width)
        self.head = nn.Linear(width, out_features)

    def body(self, features: Tensor) -> Tensor:
        return self.second(self.first(features).relu()).relu()

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.body(features))


class FrozenLayer(Mlp):
    """A layer left frozen after an experiment: wide enough to memorise a batch all the same."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.second.requires_grad_(False)


class SoftmaxTwice(Mlp):
    """Ends in a softmax, and the loss applies its own."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).softmax(1)


class Detached(Mlp):
    """Cuts the graph below the head: the head alone learns, from random features."""

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.body(features).detach())


class ZeroInit(Mlp):
    """Every weight starts at zero: no gradient ever reaches a hidden layer."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class DeadUnits(Mlp):
    """Biases so low that no unit is ever active."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        nn.init.constant_(self.first.bias, -100.0)


class Exploding(nn.Module):
    """Forty layers with a gain of eight each."""

    reads = "rows"

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(in_features, 32)]
        for _ in range(40):
            layer = nn.Linear(32, 32)
            nn.init.normal_(layer.weight, std=8 / 32**0.5)
            layers += [layer, nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(32, out_features))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class RowsMixed(Mlp):
    """Normalises over the batch instead of over the units: a row's answer hangs on the others."""

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.body(features)
        return self.head(hidden - hidden.mean(0))


class TinyConv(nn.Module):
    """Learns from images [B, C, H, W]."""

    def __init__(self, in_channels: int, num_classes: int, channels: int = 8):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Recurrent(nn.Module):
    """Reads an image [B, H, W] row by row."""

    def __init__(self, input_shape: list[int], out_features: int):
        super().__init__()
        self.cell = nn.GRU(input_shape[-1], 32, batch_first=True)
        self.head = nn.Linear(32, out_features)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.cell(images)[0][:, -1])


class ZeroHead(nn.Module):
    """Residual blocks whose last layer starts at zero, on purpose (Zhang et al. 2019)."""

    reads = "rows"

    def __init__(self, in_features: int, out_features: int, width: int = 64):
        super().__init__()
        self.first = nn.Linear(in_features, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(2)
        )
        self.head = nn.Linear(width, out_features)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.first(features)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(hidden)


class FrozenBackbone(Mlp):
    """Random features by design: only the head learns."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, width=128)
        self.first.requires_grad_(False)
        self.second.requires_grad_(False)


class Sine(nn.Module):
    """Sine layers (Sitzmann et al. 2020), as for fields."""

    reads = "rows"

    def __init__(self, in_features: int, out_features: int, width: int = 64):
        super().__init__()
        self.first = nn.Linear(in_features, width)
        self.second = nn.Linear(width, width)
        self.head = nn.Linear(width, out_features)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(torch.sin(self.second(torch.sin(3 * self.first(features)))))
