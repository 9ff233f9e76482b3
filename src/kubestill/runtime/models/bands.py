"""Error bands beside an exported model: how far an answer may be off, and how often it is further.

The half-width of an answer's band is the size of errors where its inputs lie, which a small tree
estimates, times a factor that split conformal calibration chose (`certification.bands`).
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kubestill.errors import CorruptData, InvalidInput, NotFound, Problem
from kubestill.runtime.base.values import (
    Digest,
    Number,
    Value,
    Whole,
    check_format,
    parse_json,
    read_as,
)
from kubestill.runtime.stores.base import Store

BANDS_FILE = "bands.json"
FORMAT = "kubestill/bands/1"
_MOST = 64 << 20
"""Bytes of the file."""


class Scale(Value):
    """A binary tree over raw features: the size of errors in each of its leaves.

    Node 0 is the root; children have higher numbers than their parents.
    """

    feature: tuple[int, ...]
    """Raw feature that a node looks at; -1 in a leaf."""
    threshold: tuple[Number, ...]
    """Values up to it go left."""
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[Number, ...]
    """Size of errors, in the target's unit; above 0."""

    def __call__(self, raw: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the size of errors at raw features [N, R]: [N]."""
        feature, left, right = (np.asarray(v) for v in (self.feature, self.left, self.right))
        threshold, value = np.asarray(self.threshold), np.asarray(self.value)
        node, rows = np.zeros(len(raw), np.int64), np.arange(len(raw))
        while True:
            inner = feature[node] >= 0
            if not inner.any():
                return value[node]
            at = node[inner]
            low = raw[rows[inner], feature[at]] <= threshold[at]
            node[inner] = np.where(low, left[at], right[at])

    def check(self, features: int) -> None:
        """Raise CorruptData unless it ends at a leaf for every row of so many features."""
        count = len(self.feature)
        sizes = {len(v) for v in (self.threshold, self.left, self.right, self.value)}
        damaged = not count or sizes != {count} or not all(value > 0 for value in self.value)
        for node in range(0 if damaged else count):
            least = node + 1 if self.feature[node] >= 0 else -1
            children = (self.left[node], self.right[node])
            damaged |= not -1 <= self.feature[node] < features
            damaged |= not all(least <= child < count for child in children)
        if damaged:
            raise CorruptData(f"{BANDS_FILE}: its tree is damaged")


class Bands(Value):
    """The bands of one model, for each coverage that was asked for."""

    model: Digest
    """Digest of the model that they are of."""
    samples: Whole
    """Points that the factors were calibrated on."""
    holds: str
    """For which inputs, and in which sense."""
    coverages: tuple[Annotated[float, Field(gt=0, lt=1)], ...]
    factors: tuple[tuple[Number, ...], ...]
    """By coverage: one for each output."""
    scale: Scale

    def widths(self, raw: NDArray[np.float32]) -> dict[float, NDArray[np.float64]]:
        """Return half-widths [N, T] by coverage, at raw features [N, R]."""
        size = self.scale(raw)[:, None]
        with np.errstate(over="ignore"):  # an infinite band is one
            return {
                coverage: size * np.asarray(factors)
                for coverage, factors in zip(self.coverages, self.factors, strict=True)
            }

    def to_json(self) -> dict[str, Any]:
        """Return the content of `bands.json`."""
        return {"format": FORMAT, **json.loads(self.model_dump_json())}


def read_bands(store: Store, *, model: str, features: int, outputs: int) -> Bands:
    """Read the bands beside a model.

    Args:
        store: Rooted at the model's folder.
        model: Its digest.
        features: Raw features that it reads.
        outputs: Numbers that it gives.

    Raises:
        InvalidInput: There are none.
        CorruptData: They are damaged, or those of another model.
    """
    source = f"{store.uri}/{BANDS_FILE}"
    try:
        form = parse_json(store.get(BANDS_FILE, most=_MOST), source=source, what="error bands")
    except NotFound as error:
        remedy = (
            f"has none ({error}); certify-surrogate writes them, with a copy of the model, into "
            "the folder `model` of its certificate, where `settings.bands` asks for them"
        )
        raise InvalidInput([Problem("bands", store.uri, remedy)]) from error
    check_format(form.pop("format", None), FORMAT, source=source, what="error bands")
    bands = read_as(Bands, form, source=source, what="error bands")
    bands.scale.check(features)
    if len(bands.factors) != len(bands.coverages) or {len(f) for f in bands.factors} != {outputs}:
        raise CorruptData(f"{source} has not one factor for each output")
    if bands.model != model:
        raise CorruptData(f"{source} is of the model {bands.model[:16]}, not of {model[:16]}")
    return bands
