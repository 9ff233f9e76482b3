"""Networks for smooth functions and for fields."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kubestill.errors import Problems, nearest
from kubestill.runtime.models.layers import ACTIVATIONS

__all__ = ["fno", "fourier", "resmlp", "siren"]


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


_MOST_WAVES = 1 << 22
"""Modes times points: the transform is a matrix, four times in memory while it is made."""


class SpectralConv1d(nn.Module):
    """A learned complex matrix for each of the lowest modes (Li et al. 2021, eq. 5).

    The few modes that are kept are cheaper to reach by a matrix than by a fast Fourier transform of
    all of them: a whole training step takes 0.6 of the time at 256 points and 16 modes.

    Args:
        length: Points of the field.
        channels: Of the field.
        modes: Kept.
    """

    analysis: Tensor
    synthesis: Tensor

    def __init__(self, length: int, channels: int, modes: int):
        super().__init__()
        # Real pairs, since optimizers and checkpoints know no complex numbers.
        self.weight = nn.Parameter(torch.empty(modes, channels, channels, 2))
        with torch.no_grad():
            self.weight.uniform_().div_(channels**2)
        self.modes, self.channels = modes, channels
        # For real even where the network is built for its shapes alone: these are bounded.
        mode, point = (torch.arange(count, device="cpu") for count in (modes, length))
        # Whole numbers below `length` before they become angles: exact for any length.
        angle = (mode[:, None] * point % length).double() * (2 * torch.pi / length)
        waves = torch.cat([angle.cos(), -angle.sin()])
        # A real field has every mode but the mean twice, as itself and as its conjugate.
        share = torch.where(mode == 0, 1.0, 2.0).double().repeat(2) / length
        synthesis = (waves * share[:, None]).T.contiguous()
        self.register_buffer("analysis", waves.float(), persistent=False)
        self.register_buffer("synthesis", synthesis.float(), persistent=False)

    def forward(self, fields: Tensor) -> Tensor:
        """Map [B, L, channels] to [B, L, channels]."""
        # In half precision, sums over a whole field would lose what this network is here for.
        with torch.autocast(fields.device.type, enabled=False):
            spectrum = self.analysis @ fields.to(self.analysis.dtype)
            real, imaginary = spectrum.transpose(0, 1).split(self.modes)
            mixed = torch.bmm(torch.cat([real, imaginary], dim=2), self._matrix())
            parts = torch.cat(mixed.split(self.channels, dim=2)).transpose(0, 1)
            return self.synthesis @ parts

    def _matrix(self) -> Tensor:
        """Return the complex weights as real matrices [modes, 2 channels, 2 channels]."""
        real, imaginary = self.weight.unbind(-1)
        rows = torch.cat([real, imaginary], dim=2), torch.cat([-imaginary, real], dim=2)
        return torch.cat(rows, dim=1)


class FNO1d(nn.Module):
    """A Fourier neural operator on a periodic or plain grid (Li et al. 2021, section 4).

    Args:
        length: Points of the field.
        channels: Width of the lifted field.
        modes: Fourier modes kept in each layer.
        layers: Layers of the operator.
        projection: Units of the hidden layer that maps channels to values.
        places: Whether it is told where a point lies, by sine and cosine.
    """

    place: Tensor | None

    def __init__(
        self,
        length: int,
        channels: int,
        modes: int,
        layers: int,
        projection: int,
        *,
        places: bool,
    ):
        super().__init__()
        self.lift = nn.Linear(3 if places else 1, channels)
        self.spectral = nn.ModuleList(
            SpectralConv1d(length, channels, modes) for _ in range(layers)
        )
        self.local = nn.ModuleList(nn.Linear(channels, channels) for _ in range(layers))
        self.hidden = nn.Linear(channels, projection)
        self.last = nn.Linear(projection, 1)
        angle = 2 * torch.pi * torch.arange(length, device="cpu") / length
        place = torch.stack([angle.sin(), angle.cos()], dim=1)[None] if places else None
        self.register_buffer("place", place, persistent=False)

    def forward(self, fields: Tensor) -> Tensor:
        """Map fields [B, L] to fields [B, L]."""
        given = fields[..., None]
        if self.place is not None:
            # Not len(), which torch.export takes for a constant.
            place = self.place.to(fields.dtype).expand(fields.shape[0], -1, -1)
            given = torch.cat([given, place], dim=2)
        state = self.lift(given)
        for number, (spectral, local) in enumerate(zip(self.spectral, self.local, strict=True)):
            state = spectral(state) + local(state)
            if number < len(self.local) - 1:
                state = F.gelu(state)
        return self.last(F.gelu(self.hidden(state)))[..., 0]


def fno(
    in_features: int,
    out_features: int,
    channels: int = 64,
    modes: int = 16,
    layers: int = 4,
    projection: int = 128,
    places: bool = True,
) -> FNO1d:
    """Build a Fourier neural operator in one dimension (Li et al. 2021), from field to field.

    The only feature is a field [L], the target another on the same grid. Train it with the setting
    target_scale='together', so that every point keeps the same scale.

    Args:
        in_features: Points of the field.
        out_features: The same number.
        channels: Width of the lifted field.
        modes: Fourier modes kept, at most L / 2.
        layers: Layers of the operator.
        projection: Units of the last hidden layer.
        places: Whether the network is told where a point lies. Without it, shifting the field
            around shifts the result and nothing else: right for periodic problems that are the same
            everywhere, which then need far fewer rows.

    Raises:
        InvalidInput: Listing every argument that cannot work.
    """
    problems = Problems()
    if in_features != out_features:
        remedy = f"maps a field to another on its own grid of {in_features} points; use mlp"
        problems.add("out_features", out_features, remedy)
    if not 1 <= modes <= in_features // 2:
        problems.add("modes", modes, f"give 1 to {in_features // 2}, half of the field's points")
    elif modes * in_features > _MOST_WAVES:
        remedy = f"times {in_features} points is more than {_MOST_WAVES:,}; give fewer"
        problems.add("modes", modes, remedy)
    for name, value in (("channels", channels), ("layers", layers), ("projection", projection)):
        if value < 1:
            problems.add(name, value, "give at least one")
    problems.raise_if_any()
    return FNO1d(in_features, channels, modes, layers, projection, places=places)


def _check_hidden(hidden: Sequence[int], problems: Problems) -> None:
    if not hidden or any(units < 1 for units in hidden):
        problems.add("hidden", hidden, "give at least one hidden layer, each at least one unit")


def _check_activation(activation: str, problems: Problems) -> None:
    if activation not in ACTIVATIONS:
        problems.add("activation", activation, nearest(activation, ACTIVATIONS))
