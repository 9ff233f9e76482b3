"""Small changes that leave the label alone: noise on numbers, small motions of pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kubestill.runtime.base.random import Draws, normals
from kubestill.runtime.base.settings import Settings
from kubestill.runtime.generation.frame import Floats, Frame, Originals, Spread, Tensor

Images = NDArray[np.float32]


class JitterSettings(Settings):
    """How much rows change."""

    noise: float = Field(default=0.05, ge=0)
    """Standard deviation of the noise on numbers, in standard deviations of the column."""
    shift: float = Field(default=0.5, ge=0)
    """Images move by up to this many pixels along each axis; 0 for tensors that are not images."""
    rotation: float = Field(default=10.0, ge=0, le=180)
    """Images turn by up to this many degrees either way; 0 for tensors that are not images."""
    pixel_noise: float = Field(default=0.05, ge=0)
    """Standard deviation of the noise on tensor elements, in standard deviations of the column."""


class Jitter:
    """Disturbs each original a little. Booleans, categories and missing values stay as they are."""

    keeps_label = True

    def __init__(self, originals: Originals, settings: JitterSettings, *, seed: int):
        self._originals = originals
        self._settings = settings
        self._seed = seed
        self.width = originals.numeric.shape[1] + sum(
            3 + tensor.values.shape[1] for tensor in originals.tensors
        )

    def rows(self, start: int, stop: int) -> Frame:
        """Make synthetic rows `start` to `stop`."""
        originals = self._originals
        mine = originals.take(np.arange(start, stop) % len(originals))
        draws = Draws(self._seed, 0, start, stop, width=self.width)
        spread = originals.numeric_spread
        noise = normals(draws.take(mine.numeric.shape[1])) * self._settings.noise
        return Frame(
            numeric=spread.valid(mine.numeric + noise * spread.std),
            codes=mine.codes,
            tensors=tuple(
                self._disturb(tensor, of, draws)
                for tensor, of in zip(mine.tensors, originals.tensor_spreads, strict=True)
            ),
        )

    def _disturb(self, tensor: Tensor, spread: Spread, draws: Draws) -> Tensor:
        settings = self._settings
        motion = 2 * draws.take(3) - 1
        noise = normals(draws.take(tensor.values.shape[1])) * settings.pixel_noise
        values = tensor.values
        if is_image(tensor.shape):
            images = values.reshape(len(values), -1, *tensor.shape[-2:])
            turned = moved(
                images,
                shift=motion[:, :2] * settings.shift,
                angle=np.deg2rad(motion[:, 2] * settings.rotation),
            )
            values = turned.reshape(values.shape)
        values = spread.valid(values + noise * spread.std)
        return Tensor(values=values.astype(np.float32), shape=tensor.shape)


def is_image(shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is a picture that may be moved: [H, W], or [C <= 4, H, W]."""
    return len(shape) in (2, 3) and min(shape[-2:]) >= 4 and (len(shape) == 2 or shape[0] <= 4)


def moved(images: Images, *, shift: Floats, angle: Floats) -> Images:
    """Turn pictures around their middle, then shift them, by bilinear interpolation.

    Args:
        images: [N, C, H, W].
        shift: [N, 2] pixels down and to the right.
        angle: [N] radians.

    Returns:
        [N, C, H, W]; what comes in from outside repeats the border.
    """
    count, height, width = (int(images.shape[axis]) for axis in (0, 2, 3))
    middle = np.array([height - 1, width - 1]) / 2
    # Where each pixel of the result comes from: the motion, backwards.
    down = np.arange(height).reshape(-1, 1) - middle[0] - shift[:, :1].reshape(-1, 1, 1)
    right = np.arange(width) - middle[1] - shift[:, 1:].reshape(-1, 1, 1)
    cos, sin = np.cos(angle).reshape(-1, 1, 1), np.sin(angle).reshape(-1, 1, 1)
    from_down = np.clip(cos * down + sin * right + middle[0], 0, height - 1)
    from_right = np.clip(cos * right - sin * down + middle[1], 0, width - 1)
    top = np.minimum(from_down.astype(np.int64), height - 2)
    left = np.minimum(from_right.astype(np.int64), width - 2)
    low = (from_down - top).astype(np.float32)[:, None]
    far = (from_right - left).astype(np.float32)[:, None]
    pixels = images.transpose(0, 2, 3, 1)
    which = np.arange(count).reshape(-1, 1, 1)

    def at(row: NDArray[np.int64], column: NDArray[np.int64]) -> Images:
        return pixels[which, row, column].transpose(0, 3, 1, 2)

    upper = at(top, left) * (1 - far) + at(top, left + 1) * far
    lower = at(top + 1, left) * (1 - far) + at(top + 1, left + 1) * far
    return upper * (1 - low) + lower * low
