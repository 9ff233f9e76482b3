"""The protocol behind which every foreign model stands, and the rows that it gets."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.datasets.schema import Column, Schema, TextForm
from kubestill.runtime.datasets.text import PADDING, packed_texts
from kubestill.runtime.models.foreign.spec import Answers, Input, Spelling

if TYPE_CHECKING:
    import pandas as pd

MOST = 2 << 30
"""Bytes that a model's file may have: more are never read."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What a file says about its model; None where it says nothing."""

    inputs: tuple[str, ...] | None
    """Names of what it reads, in its order."""
    width: int | None
    """Numbers that it reads for a row."""
    reads: Literal["numbers", "labels", "text"]
    """Whether a category has to be a number, or may be its label; or whether text is all it reads.
    """
    numeric: frozenset[str] = frozenset()
    """Inputs whose labels have to be numbers although others need not."""
    learned: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    """Labels by input that an encoder inside the model has learned, and reads itself."""
    worded: frozenset[str] = frozenset()
    """Inputs that take labels as text, and no numbers."""
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Labels by input, each at the place of its code."""
    coded: frozenset[str] = frozenset()
    """Inputs that take codes of categories, whether or not the file knows the labels."""
    ids: Mapping[str, TextForm] = field(default_factory=dict[str, TextForm])
    """Inputs that take the ids of text, and how they are made."""
    classes: tuple[str, ...] | None
    """Labels in the order of the outputs."""
    outputs: int | None
    """For a row."""
    answers: Answers | None
    output: str = ""
    """Name of the output that is read, where there are several."""
    parameters: int = 0
    """Learned numbers: of trees, their leaves and thresholds. 0 where nobody can tell."""
    tried: int = 256
    """Rows that it answers before it is taken."""


def declare_own(schema: Schema, parameters: int) -> Declared:
    """Return what a file says of a model of this package, which takes one matrix of all columns."""
    classes = schema.classes if schema.task != "regression" else None
    target = schema.target
    width = target.width if target and schema.task == "regression" else len(schema.classes)
    return Declared(
        inputs=tuple(column.name for column in schema.features),
        width=sum(1 if column.text else column.width for column in schema.features),
        reads="numbers",
        categories={c.name: c.categories for c in schema.features if c.categories},
        coded=frozenset(c.name for c in schema.features if c.categories),
        ids={c.name: c.text for c in schema.features if c.text},
        classes=classes,
        outputs=1 if schema.task == "binary" else width,
        answers="value" if schema.task == "regression" else "logit",
        output="outputs",
        parameters=parameters,
    )


class Runtime(Protocol):
    """A foreign model, loaded. Several threads may call it."""

    declared: Declared

    def predict(self, rows: Block) -> NDArray[Any]:
        """Return the outputs [B] or [B, K], in the model's own order.

        Raises:
            Exception: Whatever the library raises; the caller says of which model.
        """
        ...


class Block:
    """Some rows as a foreign model takes them: one matrix, or columns by name."""

    def __init__(self, raw: NDArray[np.float32], layout: RawLayout, inputs: tuple[Input, ...]):
        self._raw, self._layout = _as_given(raw, layout), layout
        self._codes = {one.name: one.codes for one in inputs if one.codes is not None}
        self._decimal = [one.name for one in inputs if one.decimal]
        self.inputs = {one.name: one for one in inputs}
        self._wide = False

    def in_float64(self) -> Block:
        """Return the same rows with their numbers in float64, decimals as they were written.

        A model that compares in float64 may split at a number of the table: 12.34 is below a
        threshold of 12.34, and the nearest float32 is above it.
        """
        block = copy.copy(self)
        block._wide = True
        for name in ("matrix", "frame"):
            block.__dict__.pop(name, None)
        return block

    def __len__(self) -> int:
        return len(self._raw)

    @cached_property
    def matrix(self) -> NDArray[np.floating[Any]]:
        """[B, R], NaN where missing: numbers, 0 and 1, codes of categories, flattened tensors."""
        decimal = self._decimal if self._wide else ()
        if not self._codes and not decimal:
            return self._raw
        matrix = self._raw.astype(np.float64 if decimal else self._raw.dtype)
        for name in (*self._codes, *decimal):
            matrix[:, self._layout.slices[name].start] = self.numbers(name)
        return matrix

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that the model reads, in its order."""
        return tuple(column.name for column in self._layout.features)

    def column(self, name: str) -> Column:
        """Return what the schema says of a column."""
        return self._layout.schema.column(name)

    def numbers(self, name: str) -> NDArray[np.floating[Any]]:
        """Return a column as numbers: [B], or [B, *shape] of a tensor."""
        place = self._layout.slices[name]
        column = self._layout.schema.column(name)
        if column.kind == "tensor":
            return self._raw[:, place].reshape(len(self._raw), *column.shape)
        found = self._raw[:, place.start]
        codes = self._codes.get(name)
        if codes is None:
            if not self._wide or name not in self._decimal:
                return found
            decimals, same = _decimals(found)
            return np.where(same, decimals, found)
        # The last place is for missing labels. float64, since a label such as 0.1 is looked up.
        return np.array([*codes, np.nan], np.float64)[_places(found)]

    def ids(self, name: str) -> NDArray[np.int64]:
        """Return a column of text as the ids of its n-grams [B, length]; a missing one has none."""
        # Each processor makes another whole number of NaN.
        ids = self._raw[:, self._layout.slices[name]]
        return np.where(np.isnan(ids), PADDING, ids).astype(np.int64)

    def labels(self, name: str, missing: Any = np.nan) -> NDArray[Any]:
        """Return a categorical column as its labels [B], or text as it is."""
        column = self._layout.schema.column(name)
        if column.text:
            texts = packed_texts(self._raw[:, self._layout.slices[name]])
            return np.array([missing if one is None else one for one in texts], dtype=object)
        categories = self._layout.schema.column(name).categories or ()
        lookup = np.array([*categories, missing], dtype=object)
        return lookup[_places(self._raw[:, self._layout.slices[name].start])]

    def categorical(self, name: str) -> pd.Categorical:
        """Return a column as labels [B], each of which is there once, in the model's spelling."""
        import pandas as pd

        one, column = self.inputs[name], self.column(name)
        if column.kind == "categorical":
            labels = list(column.categories or ())
            places = _places(self._raw[:, self._layout.slices[name].start])
        else:
            # A whole number is a category by its digits.
            numbers, places = np.unique(self.numbers(name), return_inverse=True)
            labels = [
                f"{number:.0f}" if number % 1 == 0 else str(number) for number in numbers.tolist()
            ]
            places = np.where(np.isnan(numbers)[places], -1, places)
        labels = [spell(label, one.spelling) for label in labels]
        if one.missing not in labels:
            labels.append(one.missing)
        return pd.Categorical.from_codes(
            np.where(places < 0, labels.index(one.missing), places), categories=labels
        )

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A DataFrame: labels as text or as their numbers, a cell of a tensor an array."""
        import pandas as pd

        names = [column.name for column in self._layout.features]
        if all(column.kind in ("numeric", "boolean") for column in self._layout.features):
            return pd.DataFrame(self.matrix, columns=names)
        columns: dict[str, Any] = {}
        for column in self._layout.features:
            text = column.kind in ("categorical", "text")
            if column.categories and column.name not in self._codes:
                # Thousands of rows share a few labels, which pandas makes its own text once.
                labels = pd.Series(np.array([*column.categories, np.nan], dtype=object)).array
                places = _places(self._raw[:, self._layout.slices[column.name].start])
                columns[column.name] = labels.take(places % len(labels))
            elif text and column.name not in self._codes:
                columns[column.name] = self.labels(column.name)
            elif column.kind == "tensor":
                columns[column.name] = list(self.numbers(column.name))
            else:
                columns[column.name] = self.numbers(column.name)
        return pd.DataFrame(columns)


def _as_given(raw: NDArray[np.float32], layout: RawLayout) -> NDArray[Any]:
    """Return raw rows with their offsets, in float64 where there is one; unseen labels are NaN."""
    columns, rows = layout.features, raw
    if any(column.offset for column in columns):
        rows = raw.astype(np.float64)
    for column in columns:
        place = layout.slices[column.name]
        if column.offset:
            rows[:, place] += column.offset
        elif column.kind == "categorical" and (raw[:, place] < 0).any():
            rows = rows.copy() if rows is raw else rows
            rows[:, place][raw[:, place] < 0] = np.nan
    return rows


def are_decimals(numbers: NDArray[np.floating[Any]]) -> bool:
    """Return whether all numbers could have been written with seven digits, as prices are.

    Of any other float32, every tenth to nearly every one could, depending on its size.
    """
    counted = numbers[np.isfinite(numbers) & (numbers != 0)]
    return bool(len(counted) and _decimals(counted)[1].all())


def _decimals(
    numbers: NDArray[np.floating[Any]],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the nearest numbers of seven digits, and where float32 cannot tell them apart."""
    wide = numbers.astype(np.float64)
    with np.errstate(all="ignore"):  # of 0, infinity and NaN
        digits = 6 - np.floor(np.log10(np.abs(wide)))
        scale = 10.0 ** np.abs(digits)
        # A power of ten is exact up to 10^22, so that the quotient is the nearest to the decimal.
        found = np.where(digits >= 0, np.rint(wide * scale) / scale, np.rint(wide / scale) * scale)
        return found, found.astype(np.float32) == numbers


def _places(codes: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    return np.where(np.isnan(codes), -1, codes).astype(np.int64)


_TRUTHS = {
    **{"1": ("0", "1"), "1.0": ("0.0", "1.0")},
    **{"True": ("False", "True"), "true": ("false", "true")},
    **{"TRUE": ("FALSE", "TRUE"), "yes": ("no", "yes"), "Yes": ("No", "Yes"), "YES": ("NO", "YES")},
    **{"y": ("n", "y"), "Y": ("N", "Y"), "t": ("f", "t"), "T": ("F", "T")},
}


def spell(label: str, spelling: Spelling) -> str:
    """Return a label of a dataset as a model was given it."""
    if not spelling:
        return label
    no, yes = _TRUTHS[spelling]
    if spelling == "1.0" and re.fullmatch(r"-?\d+", label):
        return f"{label}.0"
    return {"0": no, "false": no, "1": yes, "true": yes}.get(label, label)


def need(module: str, kind: str, *, extra: str = "teachers") -> ModuleType:
    """Import what runs a kind of model.

    Raises:
        InvalidInput: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = f"needs {error.name or module}: install kubestill[{extra}] in the image"
        raise InvalidInput([Problem("model", kind, remedy)]) from error
