"""Text as numbers, times and truth values, as a user's files hold it."""

# pyarrow and pandas come without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from kubestill.errors import counted

NULL_WORDS = (
    *("", "NA", "N/A", "n/a", "#NA", "#N/A", "#N/A N/A", "NULL", "null", "nan", "NaN", "-nan"),
    *("-NaN", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN", "\\N"),
)
"""What CSV readers take for a missing value: Arrow's words, which are nearly those of pandas, and
what Hive and the COPY of PostgreSQL and MySQL write."""
_TRUTHS = {
    **dict.fromkeys(("true", "yes", "y", "t", "1", "on"), True),
    **dict.fromkeys(("false", "no", "n", "f", "0", "off"), False),
}
_BLANKS = " \u00a0\u202f"


@dataclass(frozen=True)
class Numerals:
    """How numbers are written."""

    decimal: str = "."
    thousands: str = ""
    """"" for none."""

    @property
    def pattern(self) -> str:
        """The whole text of a number, as a regular expression."""
        point, digits = re.escape(self.decimal), r"(\d+"
        if self.thousands:
            group = f"[{_BLANKS}]" if self.thousands == " " else re.escape(self.thousands)
            digits += rf"|[1-9]\d{{0,2}}({group}\d{{3}})+"
        return rf"^\s*[+-]?({digits})({point}\d*)?|{point}\d+)([eE][+-]?\d+)?\s*$"

    def __str__(self) -> str:
        said = f"decimal {self.decimal!r}"
        return f"{said}, thousands {self.thousands!r}" if self.thousands else said

    def fits(self, texts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """Return which texts are numbers; null where there is none."""
        return pc.match_substring_regex(texts, self.pattern)

    def parse(self, texts: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return texts that all fit as whole numbers where they all are, else as float64."""
        if self.thousands:
            marks = f"[{_BLANKS}]" if self.thousands == " " else re.escape(self.thousands)
            texts = pc.replace_substring_regex(texts, marks, "")
        if self.decimal != ".":
            texts = pc.replace_substring(texts, self.decimal, ".")
        texts = pc.replace_substring_regex(pc.utf8_trim_whitespace(texts), r"^\+", "")
        # Arrow reads "5." and ".5" as Python does.
        if pc.all(pc.match_substring_regex(texts, r"^-?\d{1,18}$")).as_py() is not False:
            return pc.cast(texts, pa.int64())
        return pc.cast(texts, pa.float64())


PLAIN = Numerals()


@dataclass(frozen=True, kw_only=True)
class TextReader:
    """Reads one column of text as what the user says it is."""

    kind: str = ""
    """A schema kind; text of any other than numeric and boolean stays as it is."""
    numerals: Numerals = PLAIN
    null_words: tuple[str, ...] = ()
    date_format: str = ""

    def type(self, stored: pa.DataType) -> pa.DataType:
        """Return what is read of a column that is stored as text."""
        if self.date_format:
            return stored if pa.types.is_temporal(stored) else pa.timestamp("ns")
        read = {"numeric": pa.float64(), "boolean": pa.bool_()}
        return read.get(self.kind, pa.string())

    def read(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return the values; whatever is no text is left alone, but for dates.

        Raises:
            ValueError: A value is not what was said; the message is the remedy.
        """
        if self.date_format:
            return self._dates(values)
        if not is_text(values.type):
            return values
        if pa.types.is_dictionary(values.type):
            values = pc.cast(values, values.type.value_type)
        if self.null_words:
            values, _ = without_words(values, self.null_words)
        if self.kind == "numeric":
            return self._numbers(values)
        if self.kind == "boolean":
            return self._truths(values)
        return values

    def _numbers(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        wrong = pc.invert(self.numerals.fits(values))
        if pc.any(wrong).as_py():
            words, count = _shown(values.filter(wrong))
            raise ValueError(
                f"{words} in {counted(count, 'row')} are not numbers ({self.numerals}); "
                "settings={'null_words': [...]} reads words as missing, 'decimal' and 'thousands' "
                "name the separators"
            )
        return self.numerals.parse(values)

    def _truths(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        lower = pc.utf8_lower(pc.utf8_trim_whitespace(values))
        known = pa.array(_TRUTHS)
        wrong = pc.invert(pc.is_in(lower, value_set=known))
        wrong = pc.and_(wrong, pc.is_valid(lower))
        if pc.any(wrong).as_py():
            words, _ = _shown(values.filter(wrong))
            raise ValueError(f"{words} are no truth values; known: {', '.join(_TRUTHS)}")
        yes = pc.is_in(lower, value_set=pa.array([word for word, told in _TRUTHS.items() if told]))
        return pc.if_else(pc.is_valid(lower), yes, None)

    def _dates(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        if pa.types.is_temporal(values.type):
            return values
        texts = pc.cast(_whole(values), pa.string())
        texts, _ = without_words(texts, self.null_words or NULL_WORDS)
        read = pd.to_datetime(texts.to_pandas(), format=self.date_format, errors="coerce")
        stamps = pa.chunked_array([pa.array(read, from_pandas=True)])
        wrong = pc.and_(pc.is_valid(texts), pc.is_null(stamps))
        if pc.any(wrong).as_py():
            words, count = _shown(texts.filter(wrong))
            raise ValueError(
                f"{words} in {counted(count, 'row')} is no time of the form {self.date_format!r}"
            )
        return stamps


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a column of this type holds text, plain or as a dictionary."""
    types = pa.types
    if types.is_dictionary(kind):
        return is_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def is_number_type(kind: pa.DataType) -> bool:
    """Tell whether a column of this type holds numbers."""
    types = pa.types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)


def replaced(table: pa.Table, columns: Mapping[int, pa.ChunkedArray]) -> pa.Table:
    """Return a table with other values in some columns, by their place."""
    if not columns:
        return table
    arrays = [columns.get(at, column) for at, column in enumerate(table.columns)]
    return pa.table(arrays, names=table.column_names, metadata=table.schema.metadata)


def without_words(
    values: pa.ChunkedArray, words: tuple[str, ...]
) -> tuple[pa.ChunkedArray, dict[str, int]]:
    """Return text without the words that stand for missing values, and how often each was there."""
    found = pc.is_in(values, value_set=pa.array(words, values.type))
    if not pc.any(found).as_py():
        return values, {}
    tally = pc.value_counts(values.filter(found)).to_pylist()
    counts = {entry["values"]: entry["counts"] for entry in tally}
    return pc.if_else(found, pa.scalar(None, values.type), values), counts


def _whole(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return floats as whole numbers where they are: 20230601.0 is how pandas keeps gaps."""
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
        return pc.cast(values, pa.int64())
    return values


def _shown(values: Any) -> tuple[str, int]:
    words = [repr(word) for word in pc.unique(values).to_pylist()[:3]]
    return ", ".join(words), len(values)
