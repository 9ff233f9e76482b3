"""Read JSON that lies in a store, which anybody may have written, torn or altered.

`parse_json` turns bytes into plain JSON within bounds, `check_format` refuses another format
version, and `read_as` turns plain JSON into a dataclass or pydantic model. Every reader of a
record goes through them, so that whatever a file holds ends in a value or in `CorruptData`
(another version: `InvalidInput`), never in a `KeyError`, a `RecursionError` or a full memory.

The annotated types are for the fields of records: pydantic's own `int` takes "3", 3.0 and true.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from itertools import accumulate
from typing import Annotated, Any, TypeAlias, TypeVar, cast

from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
)

from kubestill.errors import CorruptData, InvalidInput, Problem
from kubestill.runtime.base import LARGEST

MAX_DEPTH = 100
"""Objects and lists inside one another. Deeper JSON exhausts the reader's stack."""
MAX_ITEMS = 4_000_000
"""Values in a record: Python needs up to 60 times the bytes that a small one takes as text."""
_GREATEST_INT = 1 << 64

JsonObject: TypeAlias = dict[str, Any]
T = TypeVar("T")


class Value(BaseModel):
    """A value in a store. A later version may add facts, which are nothing to fail over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class StrictValue(BaseModel):
    """A value in a store. Fields that this version does not know would change what it means."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _checked_key(key: str) -> str:
    if any(name in ("", ".", "..") for name in key.split("/")) or not key.isprintable():
        raise ValueError("must be names joined by '/', without '.' and '..'")
    return key


def _checked_time(text: str) -> str:
    if not 1 < datetime.fromisoformat(text).year < 9999:
        raise ValueError("must lie in the years 2 to 9998")
    return text


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole: TypeAlias = Annotated[int, Strict(), Field(ge=0, le=1 << 53)]
"""A count, which float64 still holds exactly."""
WholeFloat: TypeAlias = Annotated[int, BeforeValidator(_whole), Strict(), Field(ge=0, le=1 << 53)]
"""A count that may have passed through Kubeflow, which turns numbers into floats."""
Number: TypeAlias = Annotated[float, Strict(), AllowInfNan(False)]
Seconds: TypeAlias = Annotated[float, Strict(), Field(ge=0, le=1e9)]
"""A duration."""
Instant: TypeAlias = Annotated[float, Strict(), Field(ge=0, le=253_402_300_799)]
"""Seconds since 1970, up to the last year that a date can have."""
Time: TypeAlias = Annotated[str, AfterValidator(_checked_time)]
"""A date and time in ISO 8601."""
Flag: TypeAlias = Annotated[bool, Strict()]
Digest: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in hexadecimal."""
Key: TypeAlias = Annotated[str, AfterValidator(_checked_key)]
"""Of an object below a store's root, and never above it."""


def parse_json(content: bytes | str, *, source: str, what: str) -> JsonObject:
    """Parse a JSON object within the bounds of this module.

    Args:
        content: UTF-8.
        source: Where it comes from, for messages.
        what: What it should be, for messages: "ledger".

    Raises:
        CorruptData: It is no JSON object, is too large or too deep, names a key twice, or holds a
            number that is not finite or beyond 64 bits, or half a character.
    """
    try:
        return _parse(content)
    except (json.JSONDecodeError, UnicodeError) as error:
        raise CorruptData(f"{source} is not a {what}: cannot be read as JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"{source} is not a {what}: {error}") from error


def read_file(path: str, *, what: str) -> bytes:
    """Return the content of a local record.

    Raises:
        CorruptData: It is too large for one, or cannot be read.
        FileNotFoundError: There is no such file, or a folder in its place.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            # No more than there is: Python takes memory for all that it is asked to read.
            content = b"" if size > LARGEST else file.read(size + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(*error.args) from error
    except (OSError, ValueError) as error:
        raise CorruptData(f"{path} cannot be read: {error}") from error
    if size > LARGEST or len(content) > LARGEST:
        raise CorruptData(f"{path} is not a {what}: it is larger than {LARGEST} bytes")
    return content


def check_format(
    found: object, expected: str, *, source: str, what: str, remedy: str = "upgrade kubestill"
) -> None:
    """Refuse JSON of another format version, saying which.

    Args:
        found: What stands under `format`.
        expected: Such as "kubestill/ledger/1".
        source: Where it comes from, for messages.
        what: What it should be, for messages.
        remedy: What to do about another version.

    Raises:
        CorruptData: It names no format of this kind at all.
        InvalidInput: It is of this kind, in another version.
    """
    if found == expected:
        return
    family = expected.rpartition("/")[0]
    if not isinstance(found, str) or found.rpartition("/")[0] != family:
        shown = _shown(found)
        raise CorruptData(f"{source} is not a {what}: its format is {shown}, not {expected!r}")
    message = (
        f"another version of kubestill wrote this {what}; this one reads {expected!r}: {remedy}"
    )
    raise InvalidInput([Problem(f"{source} format", found, message)])


def read_as(kind: type[T], form: object, *, source: str, what: str) -> T:
    """Turn plain JSON into a dataclass or a pydantic model, every field of its exact type.

    Args:
        kind: The class; fields that it does not know are refused.
        form: From `parse_json`.
        source: Where it comes from, for messages.
        what: What it should be, for messages.

    Raises:
        CorruptData: With the first few fields that are missing, unknown or wrong.
    """
    try:
        return _adapter(kind).validate_python((form,))[0]
    except ValidationError as error:
        details = error.errors(include_url=False)
        told: list[str] = []
        for one in details[:3]:
            place = ".".join(str(name)[:60] for name in one["loc"][1:])
            held = "" if one["type"] == "missing" else f", not {_shown(one['input'])}"
            told.append(f"{place or what}: {one['msg'][:200]}{held}")
        if len(details) > len(told):
            told.append(f"and {len(details) - len(told)} more")
        raise CorruptData(f"{source} is not a {what}: {'; '.join(told)}") from error


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    # In a tuple: a dataclass takes its configuration from what it lies in, and none directly.
    wrapped: Any = tuple.__class_getitem__((kind,))
    return TypeAdapter(wrapped, config=ConfigDict(extra="forbid", allow_inf_nan=False))


def _parse(content: bytes | str) -> JsonObject:
    if len(content) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST} bytes")
    text = content if isinstance(content, str) else content.decode()
    _check_extent(text)
    found: object = json.loads(
        text,
        object_pairs_hook=_unique,
        parse_int=_bounded,
        parse_float=_finite,
        parse_constant=_finite,
    )
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    if _SURROGATE.search(text):
        json.dumps(found, ensure_ascii=False).encode()  # half a character: a ValueError
    return cast(JsonObject, found)


# Possessive, and an open string ends with the text: the time is linear whatever the text holds.
_STRINGS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = re.compile(r"[^\[\]{}]+")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}


def _check_extent(text: str) -> None:
    """Refuse too many values and too deep nesting before anything is built."""
    opened = text.count("[") + text.count("{")
    if opened + text.count(",") <= MAX_ITEMS and opened <= MAX_DEPTH:
        return
    bare = _STRINGS.sub("", text)
    opened = bare.count("[") + bare.count("{")
    if opened + bare.count(",") > MAX_ITEMS:
        raise ValueError(f"it holds more than {MAX_ITEMS:,} values")
    depths = accumulate(_STEPS[bracket] for bracket in _NOT_BRACKETS.sub("", bare))
    if max(depths, default=0) > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH}")


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it names {_shown(double)} twice")
    return found


def _bounded(text: str) -> int:
    if len(text) > 20 or abs(number := int(text)) >= _GREATEST_INT:
        raise ValueError(f"it holds the number {text[:40]}, which takes more than 64 bits")
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds the number {text[:40]}, which is not finite")
    return number


def _shown(value: object) -> str:
    """Return a short text of a value that may be of any size."""
    if isinstance(value, str):
        return repr(value[:60] + ("…" if len(value) > 60 else ""))
    if isinstance(value, Mapping | list | tuple):
        return f"{type(value).__name__} of {len(cast(list[Any], value))}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
