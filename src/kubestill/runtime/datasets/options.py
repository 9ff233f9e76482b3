"""How a user's files are to be read: the options, without what reads them.

The client half checks them, too, and has neither pyarrow nor pandas.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    field_validator,
)

from kubestill.runtime.base.settings import Settings

ROLES = ("weight", "group", "time", "soft", "ignored")
"""What a column can be besides a feature and the target."""


class TextOptions(Settings):
    """How text of one column becomes numbers."""

    words: tuple[NonNegativeInt, NonNegativeInt] = (1, 2)
    """Shortest and longest n-gram of words; `[0, 0]` for none."""
    chars: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)
    """Shortest and longest n-gram of the characters of a word; `[0, 0]` for none. Languages that do
    not separate words by spaces need some, such as `[1, 3]`."""
    length: PositiveInt = 256
    """Most n-grams of a text, from its beginning; the rest is cut off."""


class Reading(Settings):
    """Options of reading a table; what is left out is detected and reported."""

    format: Literal["auto", "csv", "parquet", "images", "idx"] = "auto"
    """Format of the files. `auto` goes by their endings, or by how a file without one begins."""
    encoding: str = ""
    """Encoding of CSV, such as `latin-1`. Empty reads UTF-8 and UTF-16, and files that are neither
    as Windows-1252."""
    delimiter: str = Field(default="", max_length=1)
    """Character between the fields of CSV. Empty detects comma, semicolon, tab and bar."""
    decimal: Literal["", ".", ","] = ""
    """Decimal separator of numbers in text. Empty detects it."""
    thousands: Literal["", ",", ".", " ", "'", "none"] = ""
    """Separator between groups of three digits; `none` for none. Empty detects it."""
    null_words: tuple[str, ...] | None = None
    """Words that stand for a missing value, such as `["?"]`, in place of the usual `NA`, `N/A`,
    `NULL`, `NaN` and their spellings. The empty text always does."""
    date_formats: Mapping[str, str] = {}
    """Columns that hold dates or times, each with its `strptime` pattern, as in
    `{"day": "%Y%m%d"}`."""

    image_mode: Literal["", "grey", "rgb"] = ""
    """What images become: `grey` one channel, by the luma of ITU-R BT.601, `rgb` three. Empty keeps
    what they are, and refuses a mixture."""
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width to which images are resized, as in `[32, 32]`, whatever their proportions.
    Left out, all images have one size."""
    channels: Mapping[str, Literal["first", "last"]] = {}
    """Where arrays of bytes in three dimensions, by column, have their channels: `first` for
    `[C, H, W]`, `last` for `[H, W, C]`. That of an IDX file is called `image`."""

    text: Mapping[str, TextOptions] = {}
    """How columns of the kind `text` become numbers, as in `{"body": {"chars": [3, 5], "length":
    512}}`, where that is not the default: n-grams of one and two words, the first 256 of them."""

    roles: Mapping[str, str] = {}
    """Columns that are neither features nor the target: `weight` is how many rows a row counts for,
    `group` an entity whose rows stay together, `time` when a row is from, which splits go by, and
    `soft` a teacher's answer, or `soft:<class>` with a column for each class. `ignored` is kept and
    not learned from."""
    soft_values: Literal["probability", "logit"] = "probability"
    """What `soft` columns hold where the target has classes."""

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return name and codecs.lookup(name).name
        except LookupError as error:
            message = "no such encoding; give a name that Python knows, such as 'latin-1'"
            raise ValueError(message) from error

    @field_validator("delimiter")
    @classmethod
    def _usable(cls, mark: str) -> str:
        if mark and (mark in '"\r\n' or not mark.isascii()):
            raise ValueError("cannot separate fields; give one ASCII character, such as ';'")
        return mark

    @field_validator("roles")
    @classmethod
    def _known_roles(cls, given: Mapping[str, str]) -> Mapping[str, str]:
        for name, role in given.items():
            if role.partition(":")[0] not in ROLES or (":" in role and role[:5] != "soft:"):
                known = ", ".join(ROLES)
                raise ValueError(f"{role!r} of {name!r} is no role; use {known} or soft:<class>")
        for role in ("weight", "group", "time"):
            names = [name for name, said in given.items() if said == role]
            if len(names) > 1:
                shown = " and ".join(map(repr, names))
                raise ValueError(f"{shown} are all {role!r}; give one of them, ignore the others")
        return given

    @field_validator("date_formats")
    @classmethod
    def _patterns(cls, given: Mapping[str, str]) -> Mapping[str, str]:
        for name, pattern in given.items():
            if "%" not in pattern:
                message = f"{pattern!r} of {name!r} is no strptime pattern; give one such as %Y%m%d"
                raise ValueError(message)
        return given
