"""Networks for smooth functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kubestill.errors import Problems, nearest
from kubestill.runtime.models.layers import ACTIVATIONS


class Sine(nn.Module):
    """A linear layer and the sine of its outputs (Sitzmann et al. 2020, "SIREN").

    Args:
        inputs: Width below.
        outputs: Width above.
        frequency: omega_0.
        first: Whether it sees the features: sections 3.2 and supplement 1.5 tell the two
            initialisations.
    """

    def __init__(self, inputs: int, outputs: int, frequency: float, *, first: bool):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.frequency = frequency
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / frequency
        with torch.no_grad():
            self.linear.weight.uniform_(-bound, bound)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, inputs] to [B, outputs]."""
        return torch.sin(self.frequency * self.linear(features))


def siren(
    in_features: int,
    out_features: int,
    hidden: Sequence[int] = (128, 128, 128),
    first_frequency: float = 3.0,
    frequency: float = 3.0,
) -> nn.Sequential:
    """Build a network of sine layers (Sitzmann et al. 2020), for smooth functions and fields.

    Args:
        in_features: Features of a row, standardised.
        out_features: Outputs of a row.
        hidden: Units of each hidden layer.
        first_frequency: omega_0 of the first layer: raise it (30 in the paper, for images) if the
            function oscillates.
        frequency: omega_0 of the others.

    Raises:
        InvalidInput: Listing every argument that cannot work.
    """
    problems = Problems()
    _check_hidden(hidden, problems)
    for name, value in (("first_frequency", first_frequency), ("frequency", frequency)):
        if not value > 0:
            problems.add(name, value, "must be above 0")
    problems.raise_if_any()
    layers: list[nn.Module] = []
    width = in_features
    for place, units in enumerate(hidden):
        omega = frequency if place else first_frequency
        layers.append(Sine(width, units, omega, first=not place))
        width = units
    last = nn.Linear(width, out_features)
    with torch.no_grad():
        bound = math.sqrt(6 / width) / frequency
        last.weight.uniform_(-bound, bound)
    return nn.Sequential(*layers, last)


class FourierFeatures(nn.Module):
    """cos and sin of random projections beside the features (Tancik et al. 2020, eq. 5).

    Args:
        inputs: Features.
        count: Random frequencies.
        scale: Their standard deviation, in radians a standard deviation of a feature.
    """

    projection: Tensor

    def __init__(self, inputs: int, count: int, scale: float):
        super().__init__()
        self.register_buffer("projection", torch.empty(count, inputs).normal_().mul_(scale))

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, inputs] to [B, inputs + 2 count]."""
        angle = F.linear(features, self.projection)
        return torch.cat([features, torch.cos(angle), torch.sin(angle)], dim=1)


def fourier(
    in_features: int,
    out_features: int,
    hidden: Sequence[int] = (128, 128),
    frequencies: int = 64,
    scale: float = 1.0,
    activation: str = "silu",
) -> nn.Sequential:
    """Build an MLP on random Fourier features (Tancik et al. 2020), for functions with fine detail.

    Args:
        in_features: Features of a row, standardised.
        out_features: Outputs of a row.
        hidden: Units of each hidden layer.
        frequencies: Number of frequencies; fixed, not learned.
        scale: Their standard deviation: too low blurs, too high gives noise between rows.
        activation: Activation of the hidden layers.

    Raises:
        InvalidInput: Listing every argument that cannot work.
    """
    problems = Problems()
    _check_hidden(hidden, problems)
    _check_activation(activation, problems)
    if frequencies < 1:
        problems.add("frequencies", frequencies, "give at least one")
    if not scale > 0:
        problems.add("scale", scale, "must be above 0")
    problems.raise_if_any()
    layers: list[nn.Module] = [FourierFeatures(in_features, frequencies, scale)]
    width = in_features + 2 * frequencies
    for units in hidden:
        layers += [nn.Linear(width, units), ACTIVATIONS[activation]()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, out_features))


class ResidualBlock(nn.Module):
    """x + W2 act(W1 x), the second matrix zero at the start, so that depth costs nothing."""

    def __init__(self, width: int, activation: str):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.activation = ACTIVATIONS[activation]()
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, width] to [B, width]."""
        return features + self.second(self.activation(self.first(features)))


def resmlp(
    in_features: int,
    out_features: int,
    width: int = 128,
    blocks: int = 3,
    activation: str = "silu",
) -> nn.Sequential:
    """Build a residual MLP of two-layer blocks (He et al. 2016), for functions of many inputs.

    Args:
        in_features: Features of a row.
        out_features: Outputs of a row.
        width: Units of every layer.
        blocks: Blocks of two layers each.
        activation: One of the activations of `mlp`.

    Raises:
        InvalidInput: Listing every argument that cannot work.
    """
    problems = Problems()
    _check_activation(activation, problems)
    for name, value in (("width", width), ("blocks", blocks)):
        if value < 1:
            problems.add(name, value, "give at least one")
    problems.raise_if_any()
    body = [ResidualBlock(width, activation) for _ in range(blocks)]
    return nn.Sequential(
        nn.Linear(in_features, width),
        *body,
        ACTIVATIONS[activation](),
        nn.Linear(width, out_features),
    )


def _check_hidden(hidden: Sequence[int], problems: Problems) -> None:
    if not hidden or any(units < 1 for units in hidden):
        problems.add("hidden", hidden, "give at least one hidden layer, each at least one unit")


def _check_activation(activation: str, problems: Problems) -> None:
    if activation not in ACTIVATIONS:
        problems.add("activation", activation, nearest(activation, ACTIVATIONS))
