"""Turn raw columns into features: the preprocessing that is part of every exported model.

Features are laid out in four groups, each in schema order:

    scaled      numeric (x - mean) / std, boolean x - mean, tensor elements (x - mean) / std
    indicators  1 where the value is missing; only for columns with gaps where training saw them
    one-hot     a feature a category, for categorical columns of at most 16; all zero where missing
    codes       code + 1 for larger categorical columns, 0 where missing or unseen; then id + 1 for
                each n-gram of text, 0 behind the last; `Embed` reads them
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from kubestill.errors import CorruptData, Problems
from kubestill.runtime.base.values import Flag, Number, WholeFloat, read_as
from kubestill.runtime.models.moments import Moments

if TYPE_CHECKING:
    from kubestill.runtime.datasets.decode import RawLayout
    from kubestill.runtime.datasets.schema import Column

MAX_ONE_HOT = 16
"""Categorical columns with more categories than this are embedded."""
_ROWS_FOR_EDGES = 1 << 17
"""Rows whose quantiles are those of all to within a fraction of a percent."""


@dataclass(frozen=True, kw_only=True)
class ColumnEncoding:
    """How one raw column becomes features."""

    name: str
    kind: str
    shape: Annotated[tuple[WholeFloat, ...], Field(max_length=32)] = ()
    mean: tuple[Number, ...] = ()
    """One value; one a leading channel for tensors [C, H, W]; none for labels and text."""
    std: tuple[Annotated[Number, Field(gt=0)], ...] = ()
    indicator: Flag = False
    """Whether a feature says that the value is missing."""
    categories: WholeFloat = 0

    length: WholeFloat = 0
    """Ids of a text."""

    @property
    def width(self) -> int:
        """Raw columns it occupies."""
        return self.length if self.kind == "text" else math.prod(self.shape)

    @property
    def one_hot(self) -> bool:
        """Whether this is a categorical column spread over one feature a category."""
        return self.kind == "categorical" and self.categories <= MAX_ONE_HOT

    @property
    def embedded(self) -> bool:
        """Whether this is a categorical column passed on as a code."""
        return self.kind == "categorical" and self.categories > MAX_ONE_HOT


class Encoder(nn.Module):
    """Turns raw [B, R] into features [B, F], both float32, without learned parameters.

    The statistics live in the spec, not in the weights: buffers are derived and not persistent.
    """

    mean: Tensor
    scale: Tensor
    scaled_at: Tensor | None
    indicator_at: Tensor | None
    hot_at: Tensor | None
    hot_code: Tensor | None
    code_at: Tensor | None

    def __init__(self, columns: Iterable[ColumnEncoding]):
        super().__init__()
        self.columns = tuple(columns)
        self.vocabulary = tuple(c.categories for c in self.columns if c.embedded)
        """Number of categories of each code column, in the order of those features."""
        self.texts = tuple(c.length for c in self.columns if c.kind == "text")
        """Number of ids of each text, in the order of the last features."""

        starts = np.cumsum([0, *(c.width for c in self.columns)]).tolist()
        self.raw_width: int = starts[-1]
        placed = list(zip(self.columns, starts, strict=False))
        scaled = [i for c, at in placed if c.mean for i in range(at, at + c.width)]
        indicators = [at for c, at in placed if c.indicator]
        hot = [(at, k) for c, at in placed if c.one_hot for k in range(c.categories)]
        codes = [at for c, at in placed if c.embedded]
        # Ids are codes of as many categories as there are hashes.
        codes += [i for c, at in placed if c.kind == "text" for i in range(at, at + c.width)]
        self.scaled = len(scaled)
        """Features of the first group."""
        self.width = len(scaled) + len(indicators) + len(hot) + len(codes)
        self.plain = self.width - len(self.vocabulary) - sum(self.texts)
        """Features that are numbers, the first ones; codes and ids follow."""

        mean = [_spread(c, c.mean) for c in self.columns if c.mean]
        std = [_spread(c, c.std) for c in self.columns if c.mean]
        # One number where no column is scaled: this buffer tells the device, too.
        self._buffer("mean", np.concatenate(mean or [np.zeros(1)]).astype(np.float32))
        self._buffer("scale", (1.0 / np.concatenate(std or [np.ones(1)])).astype(np.float32))
        self._buffer("scaled_at", np.asarray(scaled, np.int64))
        self._buffer("indicator_at", np.asarray(indicators, np.int64))
        self._buffer("hot_at", np.asarray([at for at, _ in hot], np.int64))
        self._buffer("hot_code", np.asarray([k for _, k in hot], np.float32))
        self._buffer("code_at", np.asarray(codes, np.int64))
        self._all_scaled = scaled == list(range(self.raw_width))

    def _buffer(self, name: str, values: np.ndarray) -> None:
        # None where empty: torch.export cannot save tensors without elements.
        kept = torch.from_numpy(values) if len(values) else None
        self.register_buffer(name, kept, persistent=False)

    @classmethod
    def fit(
        cls,
        blocks: Iterable[np.ndarray],
        layout: RawLayout,
        weights: Iterable[np.ndarray | None] = itertools.repeat(None),
    ) -> Encoder:
        """Measure the columns in one pass over `blocks`, each raw [N, R] float32.

        Args:
            blocks: All rows, in pieces.
            layout: Where the columns are.
            weights: How many rows each row of a block counts for, [N]; None where all do the same.

        Raises:
            InvalidInput: A column is infinite somewhere, or has no value at all; all are listed.
        """
        measured = _measure(blocks, layout, weights)
        problems = Problems()
        for name, found in measured.items():
            if found.infinite:
                problems.add(name, "inf", "replace infinite values, or leave them missing")
            elif found.empty:
                problems.add(name, "nothing but missing values", "leave this column out")
        problems.raise_if_any()
        return cls(_encoding(column, measured.get(column.name)) for column in layout.features)

    def forward(self, raw: Tensor) -> Tensor:
        """Encode raw [B, R]; what is not a finite number counts as missing."""
        groups: list[Tensor] = []
        if self.scaled_at is not None:
            values = raw if self._all_scaled else raw.index_select(1, self.scaled_at)
            # In place: whole datasets pass here, and fresh memory costs more than arithmetic.
            groups.append((values - self.mean).mul_(self.scale).nan_to_num_(0.0, 0.0, 0.0))
        if self.indicator_at is not None:
            marked = raw.index_select(1, self.indicator_at)
            groups.append((~torch.isfinite(marked)).to(raw.dtype))
        if self.hot_at is not None and self.hot_code is not None:
            hot = torch.eq(raw.index_select(1, self.hot_at), self.hot_code)
            groups.append(hot.to(raw.dtype))
        if self.code_at is not None:
            codes = raw.index_select(1, self.code_at) + 1.0
            groups.append(codes.nan_to_num_(0.0, 0.0, 0.0))
        return groups[0] if len(groups) == 1 else torch.cat(groups, dim=1)

    def find_edges(
        self, raw: np.ndarray, bins: int, weights: np.ndarray | None = None
    ) -> np.ndarray:
        """Return edges of bins for each scaled feature, float64 [S, bins + 1] in rising order.

        They are the values themselves where those are few, else quantiles; a value with more rows
        than a bin is an edge of its own, and the quantiles are those of the other rows. Where
        values are fewer than edges, the last edge is repeated.

        Args:
            raw: Rows [N, R], float32; of many, a regular sample is looked at.
            bins: Of each feature, at least 1.
            weights: How many rows each row counts for, [N]; None where all do the same.
        """
        step = max(1, len(raw) // _ROWS_FOR_EDGES)
        sample = np.asarray(raw[::step])
        counts = np.ones(len(sample)) if weights is None else weights[::step].astype(np.float64)
        places = [] if self.scaled_at is None else self.scaled_at.tolist()
        mean, scale = self.mean.double().cpu().numpy(), self.scale.double().cpu().numpy()
        edges = np.zeros((len(places), bins + 1))
        for i, place in enumerate(places):
            there = np.isfinite(sample[:, place]) & (counts > 0)
            values = (sample[there, place].astype(np.float64) - mean[i]) * scale[i]
            found, at = np.unique(values, return_inverse=True)
            if len(found) > bins + 1:
                found = _cut(found, np.bincount(at, counts[there]), bins)
            if len(found):
                edges[i] = np.pad(found, (0, bins + 1 - len(found)), mode="edge")
        return edges

    def to_spec(self) -> dict[str, Any]:
        """Return what `from_spec` needs, as JSON."""
        sizes = ("shape", "mean", "std")
        return {
            "columns": [
                {
                    **{name: one for name, one in vars(column).items() if name != "length" or one},
                    **{name: list(getattr(column, name)) for name in sizes},
                }
                for column in self.columns
            ]
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any], features: Iterable[Column]) -> Encoder:
        """Rebuild the encoder, bit for bit.

        Args:
            spec: What `to_spec` gave.
            features: The schema's, whose sizes are backed by labels and bounds; what the encoder
                claims must be the same.

        Raises:
            CorruptData: It is no encoder, or not one of these features.
        """
        columns = read_as(_Spec, spec, source="the model spec", what="encoder").columns
        if [_claim(column) for column in columns] != [_expected(column) for column in features]:
            raise CorruptData("the model spec has an encoder that does not fit its features")
        return cls(columns)


@dataclass(frozen=True, kw_only=True)
class _Spec:
    columns: tuple[ColumnEncoding, ...]


def _cut(values: np.ndarray, counts: np.ndarray, bins: int) -> np.ndarray:
    """Return at most bins + 1 of many values, as the edges of bins with equally many rows.

    Of a column that is 0 in most rows, most quantiles are 0: all else would share a few bins. So
    each value with more rows than a bin becomes an edge, and the rest is cut without them, as in a
    compressed histogram (Poosala et al. 1996).

    Args:
        values: [V] in rising order, more than edges.
        counts: [V] rows of each, above 0.
        bins: At least 1.
    """
    alone = np.zeros(len(values), bool)
    while True:
        free = bins - int(alone.sum())
        frequent = ~alone & (counts > counts[~alone].sum() / free)
        if not frequent.any():
            break
        alone |= frequent
    # A row of weight 2 is two rows.
    quantiles = np.quantile(
        values[~alone],
        np.linspace(0.0, 1.0, free + 1),
        weights=counts[~alone],
        method="inverted_cdf",
    )
    return np.union1d(values[alone], quantiles)


def _claim(column: ColumnEncoding) -> tuple[Any, ...]:
    sizes = (len(column.mean), len(column.std), column.categories)
    may_lack = not column.indicator or column.kind in ("numeric", "boolean")
    return column.name, column.kind, column.shape, *sizes, column.length, may_lack


def _expected(column: Column) -> tuple[Any, ...]:
    sizes = (*_channels(column), len(column.categories or ()), _length(column))
    return column.name, column.kind, column.shape, *sizes, True


def _channels(column: Column) -> tuple[int, int]:
    """Return how many means and deviations a column has."""
    if column.kind in ("categorical", "text"):
        return 0, 0
    count = column.shape[0] if len(column.shape) == 3 else 1
    return count, count


def _length(column: Column) -> int:
    return column.text.length if column.text else 0


def _measure(
    blocks: Iterable[np.ndarray], layout: RawLayout, weights: Iterable[np.ndarray | None]
) -> dict[str, Moments]:
    """Measure every column of numbers; scalars together, which is much faster."""
    scalars = [c for c in layout.features if c.kind in ("numeric", "boolean")]
    tensors = [c for c in layout.features if c.kind == "tensor"]
    at = [layout.slices[column.name].start for column in scalars]
    together = Moments(len(scalars))
    measured = {c.name: Moments(c.shape[0] if len(c.shape) == 3 else 1) for c in tensors}
    for block, counts in zip(blocks, weights, strict=False):
        if scalars:
            together.update(block if len(at) == layout.width else block[:, at], counts)
        for column in tensors:
            measured[column.name].update(block[:, layout.slices[column.name]], counts)
    return measured | {c.name: together[i : i + 1] for i, c in enumerate(scalars)}


def _encoding(column: Column, found: Moments | None) -> ColumnEncoding:
    if found is None:
        count = len(column.categories or ())
        return ColumnEncoding(
            name=column.name, kind=column.kind, categories=count, length=_length(column)
        )
    return ColumnEncoding(
        name=column.name,
        kind=column.kind,
        shape=column.shape,
        mean=found.mean,
        std=(1.0,) if column.kind == "boolean" else found.std,
        indicator=found.missing and column.kind != "tensor",
    )


def _spread(column: ColumnEncoding, values: tuple[float, ...]) -> np.ndarray:
    """Repeat one value a channel over every element of the column."""
    return np.repeat(np.asarray(values, np.float64), column.width // len(values))
