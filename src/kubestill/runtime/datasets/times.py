"""When each row is from: whatever a file holds, as microseconds since 1970 in UTC."""

# pyarrow and pandas come without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

NO_TIME = np.iinfo(np.int64).min
"""Stands for a time that is missing or cannot be read."""
_FIRST_DAY, _LAST_DAY = 1900_01_01, 2200_01_01
"""Days as whole numbers: what lies between is no count of seconds that anyone would have today."""
_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_ZONED = r"(?:[zZ]|[+-]\d\d:?\d\d)\s*$"


@dataclass(frozen=True, kw_only=True)
class Times:
    """The times of a file's rows."""

    micros: NDArray[np.int64]
    """[n]; `NO_TIME` where there is none."""
    zoned: bool
    """Some of them name a zone."""
    naive: bool
    """Some of them do not."""


def read_times(values: pa.ChunkedArray, *, zone: str = "", form: str = "") -> Times:
    """Read a column of times.

    Args:
        values: Times, dates, text, or numbers where `form` is a unit.
        zone: What times without a zone mean; UTC where empty.
        form: `strptime` pattern of text, or the unit of numbers since 1970: s, ms, us, ns.

    Raises:
        ValueError: The column's type is no time; the message is the remedy.
    """
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = pc.cast(values, kind.value_type)
        kind = values.type
    if pa.types.is_timestamp(kind) and kind.tz:
        return _times(_from_zoned(values), zoned=True, naive=False)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _times(
            _from_naive(pc.cast(values, pa.timestamp("us"), safe=False), zone), zoned=False
        )
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and "%" in form:
        # 20230601, and 20230601.0 where pandas had gaps to keep.
        values = pc.cast(pc.cast(values, pa.int64()), pa.string())
        kind = values.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return Times(micros=_from_numbers(values, form), zoned=True, naive=False)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _from_text(values, zone, form)
    if pa.types.is_null(kind):
        return Times(micros=np.full(len(values), NO_TIME), zoned=False, naive=False)
    raise ValueError(f"holds {kind}, which is no time")


def _times(column: pa.ChunkedArray, *, zoned: bool, naive: bool = True) -> Times:
    numbers = pc.fill_null(pc.cast(column, pa.int64()), NO_TIME)
    return Times(micros=numbers.to_numpy(), zoned=zoned, naive=naive)


def _from_zoned(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.cast(values, pa.timestamp("us", "UTC"), safe=False)


def _from_naive(values: pa.ChunkedArray, zone: str) -> pa.ChunkedArray:
    # Clocks that are put back show an hour twice: the earlier is meant, and the same in every run.
    return _from_zoned(
        pc.assume_timezone(values, zone or "UTC", ambiguous="earliest", nonexistent="earliest")
    )


def _from_numbers(values: pa.ChunkedArray, form: str) -> NDArray[np.int64]:
    if form == "ns":
        found = pc.divide(pc.cast(values, pa.int64(), safe=False), 1000)
    elif form in _UNITS:
        scaled = pc.multiply(pc.cast(values, pa.float64(), safe=False), float(_UNITS[form]))
        exact = pc.cast(values, pa.int64()) if pa.types.is_integer(values.type) else None
        found = pc.multiply(exact, _UNITS[form]) if exact is not None else pc.round(scaled)
    else:
        said = "settings={'timestamp_format': 's'} (or ms, us, ns) if they count since 1970"
        lowest, highest = (value.as_py() or 0 for value in pc.min_max(values).values())
        if _FIRST_DAY <= lowest <= highest <= _LAST_DAY:
            said = "settings={'timestamp_format': '%Y%m%d'} if they are days"
        raise ValueError(f"holds numbers from {lowest} to {highest}; say {said}")
    return pc.fill_null(pc.cast(found, pa.int64(), safe=False), NO_TIME).to_numpy()


def _from_text(values: pa.ChunkedArray, zone: str, form: str) -> Times:
    if form in (*_UNITS, "ns"):
        numbers = pd.to_numeric(values.to_pandas(), errors="coerce")
        return Times(
            micros=_from_numbers(pa.chunked_array([pa.array(numbers, from_pandas=True)]), form),
            zoned=True,
            naive=False,
        )
    texts = values.to_pandas().astype("str")
    valid = values.is_valid().to_numpy()
    with_zone = valid & texts.str.contains(_ZONED, regex=True).to_numpy(dtype=bool, na_value=False)
    pattern = form or "ISO8601"
    micros = np.full(len(texts), NO_TIME, np.int64)
    for zoned in (True, False):
        chosen = (with_zone == zoned) & valid
        if chosen.any():
            read = pd.to_datetime(texts[chosen], format=pattern, errors="coerce", utc=zoned)
            column = pa.chunked_array(
                [pa.array(read, pa.timestamp("us", "UTC" if zoned else None), from_pandas=True)]
            )
            micros[chosen] = _times(
                column if zoned else _from_naive(column, zone), zoned=zoned
            ).micros
    read_well = micros != NO_TIME
    return Times(
        micros=micros,
        zoned=bool((with_zone & read_well).any()),
        naive=bool((~with_zone & read_well).any()),
    )
