"""What a user might bring along: networks reached by import path."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class TinyConv(nn.Module):
    """Learns from images [B, C, H, W]."""

    def __init__(self, in_channels: int, num_classes: int, channels: int = 4):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.convolution(images)).relu()
        return self.head(hidden.mean(dim=(2, 3)))


class Rows(nn.Module):
    """Reads an image [B, H, W] row by row: has no convolution, so gets no channel dimension."""

    def __init__(self, input_shape: list[int], out_features: int):
        super().__init__()
        self.cell = nn.GRU(input_shape[-1], 5, batch_first=True)
        self.head = nn.Linear(5, out_features)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.cell(images)[0][:, -1])


class Lazy(nn.Module):
    """Finds out its input's width by itself."""

    def __init__(self, out_features: int):
        super().__init__()
        self.layers = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, out_features))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class Tied(nn.Module):
    """Uses one matrix twice."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.first = nn.Linear(in_features, in_features)
        self.second = nn.Linear(in_features, in_features)
        self.second.weight = self.first.weight
        self.head = nn.Linear(in_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.second(self.first(features).relu()))


class OneOutput(nn.Module):
    """Ignores how many outputs are wanted."""

    def __init__(self, in_features: int):
        super().__init__()
        self.layer = nn.Linear(in_features, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features)


class Pair(nn.Module):
    """Returns no tensor."""

    def __init__(self, in_features: int):
        super().__init__()
        self.layer = nn.Linear(in_features, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(features), features


def open_ended(**options: int) -> nn.Module:
    """As torchvision's factories: everything in `**options`."""
    return TinyConv(in_channels=3, **options)


def narrow(in_features: int, **options: int) -> nn.Module:
    """Takes `**options`, but not `num_classes`."""
    if "num_classes" in options:
        raise TypeError("narrow() got an unexpected keyword argument 'num_classes'")
    return nn.Linear(in_features, options["width"])


def unannotated(in_features, out_features):  # noqa: ANN001, ANN201
    return nn.Linear(in_features, out_features)


def broken() -> nn.Module:
    raise RuntimeError("no such file: weights.bin")


class Holder:
    """Factories may sit inside of other things."""

    Inner = Tied


def dose(amount: float, out_features: int, in_features: int, steps: int = 1) -> nn.Module:
    """Tells floats from ints by annotation."""
    assert isinstance(amount, float), amount
    assert isinstance(steps, int), steps
    return nn.Sequential(nn.Dropout(amount), nn.Linear(in_features, out_features))


class Fields(nn.Module):
    """Maps fields [B, C, *grid] to fields, whatever their size; says nothing of what it reads."""

    def __init__(
        self, in_channels: int, out_channels: int, dimensions: int = 2, drop: bool = False
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels))
        self.dimensions, self.drop = dimensions, drop

    def forward(self, fields: Tensor) -> Tensor:
        assert fields.dim() == self.dimensions + 2, fields.shape
        found = torch.einsum("oc,bc...->bo...", self.weight, fields)
        return found[:, 0] if self.drop else found


class Planes(Fields):
    """Says that it reads fields [B, C, H, W]."""

    reads = "2d"


class Sides(Planes):
    """Swaps height and width."""

    def forward(self, fields: Tensor) -> Tensor:
        return super().forward(fields).swapaxes(2, 3)


class Rise(nn.Module):
    """Makes a field of a row, with a dimension for its one channel."""

    def __init__(self, in_features: int, output_shape: list[int]):
        super().__init__()
        self.layer = nn.Linear(in_features, math.prod(output_shape))
        self.shape = output_shape

    def forward(self, rows: Tensor) -> Tensor:
        return self.layer(rows).reshape(-1, 1, *self.shape)


class Library(nn.Module):
    """As a library's operator may be: complex weights, and a state that holds more than numbers."""

    reads = "2d"

    def __init__(self, in_channels: int, out_channels: int, modes: int = 2):
        super().__init__()
        shape = (modes, modes, in_channels, out_channels)
        self.weight = nn.Parameter(torch.randn(shape, dtype=torch.complex64))
        self.local = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, fields: Tensor) -> Tensor:
        modes = len(self.weight)
        kept = torch.fft.rfft2(fields)[..., :modes, :modes]
        mixed = torch.einsum("bcyx,yxco->boyx", kept, self.weight)
        return self.local(fields) + torch.fft.irfft2(mixed, s=fields.shape[-2:])

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state = super().state_dict(*args, **kwargs)
        state["_metadata"] = {"version": "1.0"}
        return state
