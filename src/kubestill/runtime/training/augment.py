"""Random changes to images, drawn anew for each step.

Every row of every batch owns numbers of Philox that follow from seed, position in the data, and
micro-batch or process. So a training run that dies within an epoch goes on with the very images
that came next, and with `virtual_workers` the number of processes changes no bit.

It belongs to training alone: validation, the finish and the loss of a starting point see the rows
as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from torch import Tensor

from kubestill.errors import Problems
from kubestill.runtime.base.random import Draws
from kubestill.runtime.base.settings import Settings
from kubestill.runtime.datasets.schema import Schema

_STREAM = 0x6175676D656E74
"""Sets these numbers apart from others that Philox makes of the same seed."""
_WIDTH = 16
"""Numbers that a row owns: thirteen are used."""
_ROWS_BITS = 32
"""A batch has fewer rows than two to this power."""
_GREY = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in how bright a pixel looks (ITU-R BT.601)."""


class AugmentSettings(Settings):
    """What is drawn for each image of each step; at its defaults nothing is."""

    model_config = ConfigDict(allow_inf_nan=False)

    flip_horizontal: float = Field(default=0.0, ge=0, le=1)
    """Probability of mirroring an image, left to right."""
    flip_vertical: float = Field(default=0.0, ge=0, le=1)
    """Probability of mirroring an image, top to bottom."""
    shift: int = Field(default=0, ge=0)
    """Largest shift along height and width, in pixels; the pixels at the edge are repeated. The
    same as a random crop of an image that was padded by so many."""
    rotation: float = Field(default=0.0, ge=0, le=180)
    """Largest rotation, in degrees either way; bilinear, and the pixels at the edge are
    repeated."""
    brightness: float = Field(default=0.0, ge=0, le=1)
    """Largest change of the factor by which all values of an image are multiplied: 0.2 draws it
    between 0.8 and 1.2. Values are not cut off where they leave the range of the pixels."""
    contrast: float = Field(default=0.0, ge=0, le=1)
    """The same for the distances of all values from the mean grey of the image."""
    saturation: float = Field(default=0.0, ge=0, le=1)
    """The same for the distances of red, green and blue from the pixel's grey; needs three
    channels, in this order."""
    mixup: float = Field(default=0.0, ge=0)
    """Parameter alpha of the Beta distribution of the share by which an image and its target are
    mixed with another of the batch (Zhang et al. 2018); 0 turns it off."""
    cutmix: float = Field(default=0.0, ge=0)
    """The same for the share that is kept around a rectangle taken from another image (Yun et al.
    2019); 0 turns it off. With `mixup` as well, each row draws one of the two."""

    def describe(self) -> str:
        """Return what is drawn, for people; "" for nothing."""
        drawn = self.model_dump(exclude_defaults=True)
        return ", ".join(f"{name} {value:g}" for name, value in drawn.items())


def check_augment(
    asked: AugmentSettings, schema: Schema, problems: Problems, *, exact: str = ""
) -> None:
    """Note what keeps rows from being augmented.

    Args:
        asked: The settings.
        schema: Of the rows.
        problems: Takes them.
        exact: What needs the rows as they are, if something does.
    """
    drawn = asked.describe()
    if not drawn:
        return
    features, target = schema.features, schema.target
    shape = features[0].shape if features else ()
    if len(features) != 1 or len(shape) not in (2, 3):
        listed = ", ".join(f"{c.name} {list(c.shape) or c.kind}" for c in features[:3])
        remedy = f"needs a single feature, an image [H, W] or [C, H, W]; these are {listed}"
        problems.add("settings.augment", drawn, f"{remedy}; leave it out")
    elif asked.shift >= min(shape[-2:]):
        remedy = f"leaves nothing of an image {list(shape)}; use at most {min(shape[-2:]) - 1}"
        problems.add("settings.augment.shift", asked.shift, remedy)
    elif asked.saturation and tuple(shape[:-2]) != (3,):
        remedy = f"needs red, green and blue, an image [3, H, W]; this is {list(shape)}"
        problems.add("settings.augment.saturation", asked.saturation, f"{remedy}; leave it out")
    if target is not None and len(target.shape) > 1:
        remedy = f"the target {target.name!r} is a field that does not move along; leave it out"
        problems.add("settings.augment", drawn, remedy)
    if exact:
        problems.add("settings.augment", drawn, f"{exact} needs the rows as they are; leave it out")


@dataclass(frozen=True)
class Scale:
    """What an encoder made of each channel: the pixel less the mean, over the deviation."""

    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)


class Augmentation:
    """Changes the batches of one training run.

    Args:
        asked: What is drawn.
        shape: Of an image: [H, W] or [C, H, W].
        outputs: K, the outputs of a row.
        seed: Of the training run.
        scales: Of the features. A second one says that the last target of a row is its image as
            a teacher reads it, which is changed in the same way.
    """

    def __init__(
        self,
        asked: AugmentSettings,
        shape: Sequence[int],
        outputs: int,
        seed: int,
        *,
        scales: Sequence[Scale] = (Scale(),),
    ):
        self._asked, self._outputs, self._seed, self._scales = asked, outputs, seed, scales
        self._shape = tuple(shape) if len(shape) == 3 else (1, *shape)

    def __call__(self, rows: tuple[Tensor, ...], number: int) -> tuple[Tensor, ...]:
        """Return rows as a step gets them.

        Args:
            rows: Features [n, C * H * W] and targets [n, ...], which stay as they are.
            number: Of this part of a batch, among all parts of all batches.
        """
        features, *targets = rows
        views = [features, *(targets.pop() for _ in self._scales[1:])]
        start = number << _ROWS_BITS
        draws = Draws(self._seed, _STREAM, start, start + len(features), width=_WIDTH)
        flips, places, turns = draws.take(2), draws.take(2), draws.take(1)[:, 0]
        shares, colours = draws.take(6), draws.take(3)
        images = [self._moved(one.view(-1, *self._shape), flips, places, turns) for one in views]
        if self._asked.brightness or self._asked.contrast or self._asked.saturation:
            pairs = zip(images, self._scales, strict=True)
            images = [self._coloured(one, scale, colours) for one, scale in pairs]
        if self._asked.mixup or self._asked.cutmix:
            images, targets = self._mixed(images, targets, shares)
        first, *others = (one.reshape(len(features), -1) for one in images)
        return first, *targets, *others

    def _moved(
        self,
        images: Tensor,
        flips: NDArray[np.float64],
        places: NDArray[np.float64],
        turns: NDArray[np.float64],
    ) -> Tensor:
        """Flip, shift and rotate."""
        asked, device = self._asked, images.device
        if asked.rotation:
            images = _rotated(images, np.deg2rad(asked.rotation * (2 * turns - 1)))
        if not (asked.shift or asked.flip_horizontal or asked.flip_vertical):
            return images
        shifts = np.floor(places * (2 * asked.shift + 1)).astype(np.int64) - asked.shift
        for axis, chance in ((0, asked.flip_vertical), (1, asked.flip_horizontal)):
            size = images.shape[2 + axis]
            index = np.arange(size) + shifts[:, axis : axis + 1]
            index = np.clip(index, 0, size - 1)
            index = np.where(flips[:, axis : axis + 1] < chance, size - 1 - index, index)
            along = [len(images), 1, 1, 1]
            along[2 + axis] = size
            chosen = torch.from_numpy(index).to(device).view(along).expand(images.shape)
            images = images.gather(2 + axis, chosen)
        return images

    def _coloured(self, images: Tensor, scale: Scale, draws: NDArray[np.float64]) -> Tensor:
        """Change brightness, then contrast, then saturation, of the pixels as they were read."""
        asked, channels = self._asked, images.shape[1]
        most = np.array([asked.brightness, asked.contrast, asked.saturation])
        factors = torch.from_numpy((1 + most * (2 * draws - 1)).astype(np.float32))
        brightness, contrast, saturation = factors.to(images.device).T[..., None, None, None]
        mean, std, shares = (
            torch.tensor(values, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
            for values in (scale.mean, scale.std, _GREY if channels == 3 else [1 / channels])
        )
        pixels = (images * std + mean) * brightness
        if asked.contrast:
            middle = (pixels * shares).sum(1, keepdim=True).mean((2, 3), keepdim=True)
            pixels = middle + (pixels - middle) * contrast
        if asked.saturation:
            grey = (pixels * shares).sum(1, keepdim=True)
            pixels = grey + (pixels - grey) * saturation
        return (pixels - mean) / std

    def _mixed(
        self, views: list[Tensor], targets: list[Tensor], draws: NDArray[np.float64]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Mix each row with another (Zhang et al. 2018, eq. 1; Yun et al. 2019, eq. 1)."""
        from scipy.special import betaincinv  # a third of what every training step would import

        asked, device, rows = self._asked, views[0].device, len(views[0])
        order, which, share, *centre, _ = draws.T
        height, width = views[0].shape[2:]
        both = asked.mixup and asked.cutmix
        cuts = which < 0.5 if both else np.full(rows, asked.cutmix > 0)
        alpha = np.where(cuts, asked.cutmix, asked.mixup)
        kept = betaincinv(alpha, alpha, share)
        masks = np.broadcast_to(kept[:, None, None], (rows, height, width)).astype(np.float32)
        inside = np.ones((rows, 1, 1), bool)
        for axis, size in enumerate((height, width)):
            # A side of sqrt(1 - share), so that the rectangle has that share of the image.
            half, middle = np.sqrt(1 - kept) * size / 2, centre[axis] * size
            at = np.arange(size) + 0.5
            within = np.abs(at - middle[:, None]) < half[:, None]
            inside = inside & (within[:, :, None] if axis == 0 else within[:, None])
        masks[cuts] = ~inside[cuts]
        # What counts is how much is kept after all: a rectangle may reach beyond the image.
        kept = np.where(cuts, masks.mean((1, 2)), kept)
        mask = torch.from_numpy(masks)[:, None].to(device)
        weight = torch.from_numpy(kept.astype(np.float32)).to(device)
        partner = torch.from_numpy(np.argsort(order, kind="stable")).to(device)
        views = [images * mask + images[partner] * (1 - mask) for images in views]
        mixed: list[Tensor] = []
        for target in targets:
            target = self._as_shares(target)
            along = weight.view(-1, *[1] * (target.dim() - 1))
            mixed.append(target * along + target[partner] * (1 - along))
        return views, mixed

    def _as_shares(self, target: Tensor) -> Tensor:
        """Return class numbers int64 [n] as shares of classes [n, K], NaN where there is none."""
        if target.is_floating_point():
            return target
        if self._outputs == 1:
            shares = target[:, None].float()
        else:
            shares = F.one_hot(target.clamp(min=0), self._outputs).float()
        return shares.masked_fill_((target < 0)[:, None], float("nan"))


def _rotated(images: Tensor, angles: NDArray[np.float64]) -> Tensor:
    """Rotate each image about its middle, by an angle in radians."""
    height, width = images.shape[2:]
    y, x = np.meshgrid(
        np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij"
    )
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    # In units of half the image, from the middle of its first to that of its last pixel's outside.
    places = np.stack([(cos * x + sin * y) * 2 / width, (cos * y - sin * x) * 2 / height], axis=-1)
    grid = torch.from_numpy(places.astype(np.float32)).to(images.device)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
