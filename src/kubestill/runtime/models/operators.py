"""Fourier neural operators: from fields to fields, in one to three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kubestill.errors import Problems

_MOST_WAVES = 1 << 22
"""Modes times points: the transform is a matrix, four times in memory while it is made."""


class SpectralConv(nn.Module):
    """A learned complex matrix for each of the lowest modes (Li et al. 2021, eq. 5).

    The few modes that are kept are cheaper to reach by a matrix along each dimension than by a fast
    Fourier transform of all of them: in one dimension a whole training step takes 0.6 of the time
    at 256 points and 16 modes. All of it is real arithmetic, which every exporter knows.

    Args:
        grid: Points along each dimension.
        channels: Of the field.
        modes: Kept along each dimension: frequencies 0 to m - 1 along the last, which stand for
            their conjugates as well, and -m to m - 1 along the others.
    """

    analysis: Tensor
    synthesis: Tensor

    def __init__(self, grid: Sequence[int], channels: int, modes: Sequence[int]):
        super().__init__()
        self.grid, self.channels = tuple(grid), channels
        self.modes = math.prod(modes) << len(modes) - 1
        # Real pairs: the same numbers as complex ones, and the optimizers' fused kernels take them.
        self.weight = nn.Parameter(torch.empty(self.modes, channels, channels, 2))
        with torch.no_grad():
            self.weight.uniform_().div_(channels**2)
        for axis, (points, kept) in enumerate(zip(grid[:-1], modes[:-1], strict=True)):
            # In the order of a fast Fourier transform: 0, ..., m - 1, -m, ..., -1.
            frequency = torch.arange(2 * kept, device="cpu")
            frequency = torch.where(frequency < kept, frequency, frequency - 2 * kept)
            cos, sin = _waves(frequency, points)
            there = torch.cat([torch.cat([cos, sin], dim=1), torch.cat([-sin, cos], dim=1)])
            self.register_buffer(f"analysis_{axis}", there.float(), persistent=False)
            back = (there.T / points).float().contiguous()
            self.register_buffer(f"synthesis_{axis}", back, persistent=False)
        points, mode = grid[-1], torch.arange(modes[-1], device="cpu")
        cos, sin = _waves(mode, points)
        waves = torch.cat([cos, -sin])
        # A real field has every mode but the mean twice, as itself and as its conjugate.
        share = torch.where(mode == 0, 1.0, 2.0).double().repeat(2) / points
        synthesis = (waves * share[:, None]).T.contiguous()
        self.register_buffer("analysis", waves.float(), persistent=False)
        self.register_buffer("synthesis", synthesis.float(), persistent=False)

    def forward(self, fields: Tensor) -> Tensor:
        """Map [B, *grid, channels] to [B, *grid, channels]."""
        # In half precision, sums over a whole field would lose what this network is here for.
        with torch.autocast(fields.device.type, enabled=False):
            spectrum = self._analyse(fields.to(self.analysis.dtype))
            real, imaginary = spectrum.transpose(0, 1).split(self.modes)
            mixed = torch.bmm(torch.cat([real, imaginary], dim=2), self._matrix())
            parts = torch.cat(mixed.split(self.channels, dim=2)).transpose(0, 1)
            return self._synthesise(parts)

    def _analyse(self, fields: Tensor) -> Tensor:
        """Return the real and imaginary parts of the modes kept: [B, 2 modes, channels]."""
        if len(self.grid) == 1:
            return self.analysis @ fields
        spectrum = self.analysis @ fields.reshape(-1, self.grid[-1], self.channels)
        width = spectrum.shape[1] // 2 * self.channels
        for axis in reversed(range(len(self.grid) - 1)):
            points = self.grid[axis]
            pairs = spectrum.reshape(-1, points, 2, width).transpose(1, 2)
            waves: Tensor = getattr(self, f"analysis_{axis}")
            spectrum = waves @ pairs.reshape(-1, 2 * points, width)
            width *= len(waves) // 2
        return spectrum.reshape(-1, 2 * self.modes, self.channels)

    def _synthesise(self, parts: Tensor) -> Tensor:
        """Return the field of which these are the modes: the inverse of `_analyse`."""
        if len(self.grid) == 1:
            return self.synthesis @ parts
        width = self.modes * self.channels
        for axis in range(len(self.grid) - 1):
            points = self.grid[axis]
            waves: Tensor = getattr(self, f"synthesis_{axis}")
            width //= waves.shape[1] // 2
            pairs = waves @ parts.reshape(-1, waves.shape[1], width)
            parts = pairs.reshape(-1, 2, points, width).transpose(1, 2)
        modes = self.synthesis.shape[1]
        fields = self.synthesis @ parts.reshape(-1, modes, self.channels)
        return fields.reshape(-1, *self.grid, self.channels)

    def _matrix(self) -> Tensor:
        """Return the complex weights as real matrices [modes, 2 channels, 2 channels]."""
        real, imaginary = self.weight.unbind(-1)
        rows = torch.cat([real, imaginary], dim=2), torch.cat([-imaginary, real], dim=2)
        return torch.cat(rows, dim=1)


def _waves(frequency: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [frequencies, points], on the CPU and in float64.

    For real even where the network is built for its shapes alone: they are bounded.
    """
    point = torch.arange(points, device="cpu")
    # Whole numbers below `points` before they become angles: exact for any number of points.
    angle = (frequency[:, None] * point % points).double() * (2 * torch.pi / points)
    return angle.cos(), angle.sin()


class FNO(nn.Module):
    """A Fourier neural operator on a periodic or plain grid (Li et al. 2021, section 4).

    Args:
        grid: Points of the field along each dimension.
        inputs: Channels of the fields that it reads.
        outputs: Channels of those that it gives.
        channels: Width of the lifted field.
        modes: Fourier modes kept in each layer, along each dimension.
        layers: Layers of the operator.
        projection: Units of the hidden layer that maps channels to values.
        places: Whether it gets a point's position, as sine and cosine along each dimension.
        padding: Points of zeros behind the field along each dimension, while layers work on it.
    """

    place: Tensor | None

    def __init__(
        self,
        grid: Sequence[int],
        inputs: int,
        outputs: int,
        *,
        channels: int,
        modes: Sequence[int],
        layers: int,
        projection: int,
        places: bool,
        padding: Sequence[int],
    ):
        super().__init__()
        self.grid, self.inputs = tuple(grid), inputs
        whole = tuple(points + more for points, more in zip(grid, padding, strict=True))
        # As F.pad takes it: from the last dimension, the channels, backwards.
        self.padding = [0, 0, *(n for more in reversed(padding) for n in (0, more))]
        self.lift = nn.Linear(inputs + 2 * len(grid) * places, channels)
        self.spectral = nn.ModuleList(SpectralConv(whole, channels, modes) for _ in range(layers))
        self.local = nn.ModuleList(nn.Linear(channels, channels) for _ in range(layers))
        self.hidden = nn.Linear(channels, projection)
        self.last = nn.Linear(projection, outputs)
        self.register_buffer("place", _places(grid) if places else None, persistent=False)

    def forward(self, fields: Tensor) -> Tensor:
        """Map fields [B, inputs, *grid], or the same numbers flat, to [B, outputs * points]."""
        given = fields.reshape(-1, self.inputs, *self.grid).movedim(1, -1)
        if self.place is not None:
            # Not len(), which torch.export takes for a constant.
            shape = (fields.shape[0], *self.place.shape[1:])
            given = torch.cat([given, self.place.to(fields.dtype).expand(shape)], dim=-1)
        state = self.lift(given)
        if any(self.padding):
            state = F.pad(state, self.padding)
        for number, (spectral, local) in enumerate(zip(self.spectral, self.local, strict=True)):
            state = spectral(state) + local(state)
            if number < len(self.local) - 1:
                state = F.gelu(state)
        if any(self.padding):
            for axis, points in enumerate(self.grid):
                state = state.narrow(1 + axis, 0, points)
        return self.last(F.gelu(self.hidden(state))).movedim(-1, 1).flatten(1)


def _places(grid: Sequence[int]) -> Tensor:
    """Return sine and cosine of where each point lies along each dimension: [1, *grid, 2 d]."""
    told: list[Tensor] = []
    for axis, points in enumerate(grid):
        angle = 2 * torch.pi * torch.arange(points, device="cpu") / points
        along = [1] * len(grid)
        along[axis] = points
        told += [wave.reshape(along).expand(tuple(grid)) for wave in (angle.sin(), angle.cos())]
    return torch.stack(told, dim=-1)[None]


def fno(
    in_features: int,
    out_features: int,
    channels: int = 64,
    modes: int | Sequence[int] = 16,
    layers: int = 4,
    projection: int = 128,
    places: bool = True,
    padding: float = 0.0,
    input_shape: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
) -> FNO:
    """Build a Fourier neural operator (Li et al. 2021), from field to field, in 1 to 3 dimensions.

    The only feature is a field on a grid, the target another on the same grid: [L], [H, W] or
    [D, H, W], either with a dimension for channels in front. Train it with the setting
    target_scale='together', so that every point keeps the same scale.

    Args:
        in_features: Numbers of the field that it reads.
        out_features: Numbers of the field that it gives.
        channels: Width of the lifted field.
        modes: Fourier modes kept along each dimension of the grid, at most half of its points. The
            length of a list says how many dimensions the grid has, as in [12, 12]; dimensions in
            front of them are channels. One number holds for every dimension of the target.
        layers: Layers of the operator.
        projection: Units of the last hidden layer.
        places: Whether the network is told where a point lies. Without it, shifting the field
            around shifts the result and nothing else: right for periodic problems that are the same
            everywhere, which then need far fewer rows.
        padding: Zeros behind the field along each dimension, as a share of its points; for fields
            that are not periodic, such as 0.25.
        input_shape: Shape of the field that it reads; [in_features] where it is not given.
        output_shape: Shape of the field that it gives; [out_features] where it is not given.

    Raises:
        InvalidInput: Listing every argument that cannot work.
    """
    problems = Problems()
    there, here = tuple(output_shape or [out_features]), tuple(input_shape or [in_features])
    kept = (modes,) * len(there) if isinstance(modes, int) else tuple(modes)
    grid = there[len(there) - len(kept) :] if len(kept) else ()
    if not 1 <= len(kept) <= 3 or len(there) - len(kept) not in (0, 1):
        remedy = f"gives {len(kept)} dimensions to a target {list(there)}; give one number for each"
        problems.add("modes", modes, f"{remedy} dimension of its grid, 1 to 3: [12, 12]")
    elif here[-len(grid) :] != grid or len(here) - len(grid) not in (0, 1):
        remedy = f"is no field on the grid {list(grid)} that the feature {list(here)} lies on; "
        problems.add("out_features", out_features, remedy + "use mlp, or say modes as a list")
    else:
        for most, number in zip((points // 2 for points in grid), kept, strict=True):
            if not 1 <= number <= most:
                remedy = f"give 1 to {most} along a dimension of {2 * most} points, half of them"
                problems.add("modes", modes, remedy + "; a list, [12, 12], leaves out channels")
            elif 4 * number * most > _MOST_WAVES:
                remedy = f"times {2 * most} points is more than {_MOST_WAVES:,}; give fewer"
                problems.add("modes", modes, remedy)
    for name, value in (("channels", channels), ("layers", layers), ("projection", projection)):
        if value < 1:
            problems.add(name, value, "give at least one")
    if not 0 <= padding <= 1:
        problems.add("padding", padding, "is a share of the field's points; give 0 to 1")
    problems.raise_if_any()
    return FNO(
        grid,
        math.prod(here) // math.prod(grid),
        math.prod(there) // math.prod(grid),
        channels=channels,
        modes=kept,
        layers=layers,
        projection=projection,
        places=places,
        padding=[round(padding * points) for points in grid],
    )
