"""One table, written in sixty ways and more: the rows are the same, and pandas reads the same."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kubestill.runtime.datasets.options import Reading
from kubestill.runtime.datasets.tables import read_table

ROWS = 12
FRAME = pd.DataFrame(
    {
        "count": np.arange(ROWS) * 321 + 1,
        "price": [1234.5, -0.25, None, 7.0, 1e-3, 65253.125, 3.5, 0.0, 12.75, None, 2.5, -9999.5],
        "city": ["Köln", "a b", None, "x;y", "x,y", 'say "ja"', "Ärger", "z", "z", "a b", "é", "ß"],
        "sold": [True, False] * 6,
        "day": [f"2023-{month:02d}-28" for month in range(1, ROWS + 1)],
    }
)
Rows = list[tuple[Any, ...]]
Source = tuple[Path, dict[str, Any], Callable[[], pd.DataFrame]]
"""What to import, with which options, and what pandas reads there."""


def normal(frame: pd.DataFrame) -> Rows:
    """Return rows by their count, whatever types their columns have."""
    frame = frame.sort_values("count", key=lambda column: column.astype(float))
    day = pd.to_datetime(frame["day"].astype(str).str[:10])
    columns = [
        frame["count"].astype(float),
        frame["price"].astype(float).round(9),
        frame["city"].astype(object),
        frame["sold"].map(lambda value: float(str(value).lower() in ("true", "1", "1.0", "yes"))),
        day.dt.strftime("%Y-%m-%d"),
    ]
    return [
        tuple(None if pd.isna(value) else value for value in row)
        for row in zip(*columns, strict=True)
    ]


TRUTH = normal(FRAME)


def text(
    name: str = "t.csv",
    *,
    like: dict[str, Any] | None = None,
    change: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame,
    options: dict[str, Any] | None = None,
    **written: Any,
) -> Callable[[Path], Source]:
    """Write a CSV; `like` is what pandas has to be told, `options` what the import has to be."""

    def write(folder: Path) -> Source:
        path, frame = folder / name, change(FRAME.copy())
        frame.to_csv(path, **{"index": False, **written})
        known = {"sep", "encoding", "decimal", "compression"}
        told = {key: value for key, value in written.items() if key in known} | (like or {})
        return path, options or {}, lambda: pd.read_csv(path, **told)

    return write


def parquet(
    change: Callable[[pa.Table], pa.Table] = lambda table: table,
    *,
    name: str = "t.parquet",
    options: dict[str, Any] | None = None,
    **written: Any,
) -> Callable[[Path], Source]:
    def write(folder: Path) -> Source:
        path = folder / name
        pq.write_table(change(pa.Table.from_pandas(FRAME)), path, **written)
        return path, options or {}, lambda: pq.read_table(path).to_pandas()

    return write


def cast(column: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        at = table.column_names.index(column)
        values = table.column(column)
        values = values.dictionary_encode() if pa.types.is_dictionary(kind) else values.cast(kind)
        return table.set_column(at, column, values)

    return change


def parts(*changes: Callable[[pa.Table], pa.Table], pattern: str = "") -> Callable[[Path], Source]:
    """Write a Parquet file for each change, of neighbouring rows."""

    def write(folder: Path) -> Source:
        table, each = pa.Table.from_pandas(FRAME), ROWS // len(changes)
        for at, change in enumerate(changes):
            pq.write_table(change(table.slice(at * each, each)), folder / f"{at}.parquet")
        files = sorted(folder.glob("*.parquet"))
        return folder / pattern, {}, lambda: pd.concat([pd.read_parquet(file) for file in files])

    return write


def text_parts(*changes: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], Source]:
    def write(folder: Path) -> Source:
        each = ROWS // len(changes)
        for at, change in enumerate(changes):
            rows = change(FRAME.iloc[at * each : (at + 1) * each])
            rows.to_csv(folder / f"{at}.csv", index=False)
        files = sorted(folder.glob("*.csv"))
        read = lambda: pd.concat([pd.read_csv(file, na_values="?") for file in files])  # noqa: E731
        return folder, {}, read

    return write


def hive(ending: str, pattern: str = "") -> Callable[[Path], Source]:
    """Write folders by whether a row is sold, as Spark does."""

    def write(folder: Path) -> Source:
        for sold, rows in FRAME.groupby("sold"):
            place = folder / f"sold={str(sold).lower()}"
            place.mkdir()
            rows = rows.drop(columns="sold")
            path = place / f"part.{ending}"
            rows.to_csv(path, index=False) if ending == "csv" else rows.to_parquet(path)
        files = sorted(folder.glob("*/*"))
        read = pd.read_csv if ending == "csv" else pd.read_parquet
        named = lambda file: read(file).assign(sold=file.parent.name[5:])  # noqa: E731
        return folder / pattern, {}, lambda: pd.concat(map(named, files))

    return write


def thousands(frame: pd.DataFrame, form: str = "{:,}") -> pd.DataFrame:
    return frame.assign(count=[form.format(value) for value in frame["count"]])


def days(form: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.assign(day=pd.to_datetime(frame["day"]).dt.strftime(form))


def pandas_days(form: str) -> dict[str, Any]:
    return {"parse_dates": ["day"], "date_format": form}


SAID = {"settings": {"date_formats": {"day": "%Y%m%d"}}}
GERMAN = {"settings": {"date_formats": {"day": "%d.%m.%Y"}}}
STAMP = pa.timestamp("ns")
WAYS: dict[str, Callable[[Path], Source]] = {
    **{
        f"{encoding} {mark!r}": text(sep=mark, encoding=encoding)
        for encoding in ("utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252")
        for mark in ",;\t|"
    },
    "tsv": text("t.tsv", sep="\t"),
    "csv.gz": text("t.csv.gz"),
    "tsv.gz": text("t.tsv.gz", sep="\t"),
    "csv without an ending": text("table"),
    "gzip without an ending": text("table", compression="gzip", like={"compression": "gzip"}),
    "gzip that says csv": text(compression="gzip", like={"compression": "gzip"}),
    "csv that says txt": text("t.txt", options={"settings": {"format": "csv"}}),
    "csv that says DATA": text("t.DATA", sep=";", options={"settings": {"format": "csv"}}),
    "decimal comma": text(sep=";", decimal=","),
    "decimal comma, tabs": text(sep="\t", decimal=","),
    "decimal comma, quoted": text(decimal=",", quoting=csv.QUOTE_ALL),
    "thousands": text(change=thousands, like={"thousands": ","}),
    "thousands and decimals": text(
        sep=";",
        decimal=",",
        change=lambda frame: thousands(frame).assign(
            count=lambda rows: rows["count"].str.replace(",", ".")
        ),
        like={"thousands": "."},
    ),
    "thousands by blanks": text(
        change=lambda frame: thousands(frame).assign(
            count=lambda rows: rows["count"].str.replace(",", " ")
        ),
        like={"thousands": " "},
    ),
    "everything quoted": text(quoting=csv.QUOTE_ALL),
    "text quoted": text(quoting=csv.QUOTE_NONNUMERIC),
    "line feeds of Windows": text(lineterminator="\r\n"),
    "the index written": text(index=True, like={"index_col": 0}),
    **{f"missing is {word!r}": text(na_rep=word) for word in ("NA", "NULL", "NaN", "n/a", "#N/A")},
    "missing is \\N": text(na_rep="\\N", like={"na_values": "\\N"}),
    "missing is -999": text(
        na_rep="-999", options={"settings": {"null_words": ["-999"]}}, like={"na_values": "-999"}
    ),
    "missing is ?": text(
        na_rep="?", options={"settings": {"null_words": ["?"]}}, like={"na_values": "?"}
    ),
    "truth in capitals": text(change=lambda f: f.assign(sold=f["sold"].map(str).str.upper())),
    "truth as 0 and 1": text(change=lambda frame: frame.assign(sold=frame["sold"].astype(int))),
    "truth as yes and no": text(
        change=lambda frame: frame.assign(
            sold=frame["sold"].map(lambda yes: "yes" if yes else "no")
        ),
        options={"kinds": {"sold": "boolean"}},
    ),
    "days as numbers": text(change=days("%Y%m%d"), options=SAID, like=pandas_days("%Y%m%d")),
    "German days": text(change=days("%d.%m.%Y"), options=GERMAN, like=pandas_days("%d.%m.%Y")),
    "days with hours": text(change=days("%Y-%m-%d %H:%M:%S")),
    "whole numbers as floats": text(change=lambda f: f.assign(count=f["count"].astype(float))),
    "columns in another order": text(
        change=lambda frame: frame.reindex(columns=frame.columns[::-1])
    ),
    "csv parts": text_parts(
        lambda rows: rows, lambda rows: rows.reindex(columns=rows.columns[::-1])
    ),
    "csv parts, ? in one": text_parts(
        lambda rows: rows.astype({"price": object}).fillna({"price": "?"}), lambda rows: rows
    ),
    "csv parts, floats in one": text_parts(
        lambda rows: rows.assign(count=rows["count"] * 1.0), lambda rows: rows
    ),
    "csv parts, truth as numbers in one": text_parts(
        lambda rows: rows.assign(sold=rows["sold"] * 1), lambda rows: rows
    ),
    "parquet": parquet(),
    "parquet without an ending": parquet(name="table"),
    "parquet that says pq": parquet(name="t.pq"),
    "parquet that says bin": parquet(name="t.bin", options={"settings": {"format": "parquet"}}),
    **{f"parquet by {name}": parquet(compression=name) for name in ("none", "zstd", "gzip")},
    "row groups of five": parquet(row_group_size=5),
    "format 1.0": parquet(version="1.0"),
    **{
        f"{column} as {kind}": parquet(cast(column, kind))
        for column, kind in (
            *(("count", kind) for kind in (pa.int16(), pa.uint64(), pa.float32(), pa.float64())),
            ("count", pa.decimal128(21, 2)),
            ("price", pa.decimal128(12, 3)),
            *(("city", kind) for kind in (pa.large_string(), pa.string_view())),
            ("city", pa.dictionary(pa.int32(), pa.string())),
            ("sold", pa.int8()),
            ("day", pa.date32()),
            ("day", STAMP),
            ("day", pa.timestamp("ms")),
        )
    },
    "days as int64": parquet(
        lambda table: table.set_column(
            4, "day", pa.array([int(day.replace("-", "")) for day in FRAME["day"]])
        ),
        options=SAID,
    ),
    "pandas' index": parquet(
        lambda table: pa.Table.from_pandas(FRAME.sample(frac=1, random_state=0))
    ),
    "NaN beside null": parquet(
        lambda table: table.set_column(1, "price", pa.array(FRAME["price"], from_pandas=False))
    ),
    "parts": parts(lambda rows: rows, lambda rows: rows, lambda rows: rows),
    "parts by a glob": parts(lambda rows: rows, lambda rows: rows, pattern="*.parquet"),
    "parts, columns in another order": parts(
        lambda rows: rows, lambda rows: rows.select(rows.column_names[::-1])
    ),
    "parts, dictionary and plain": parts(
        cast("city", pa.dictionary(pa.int32(), pa.string())), lambda rows: rows
    ),
    "parts, int64 and uint64": parts(lambda rows: rows, cast("count", pa.uint64())),
    "parts, int and float": parts(cast("count", pa.float64()), lambda rows: rows),
    "parts, bool and 0/1": parts(lambda rows: rows, cast("sold", pa.int64())),
    "parts, days and times": parts(cast("day", pa.date32()), cast("day", STAMP)),
    "parts, units of time": parts(cast("day", pa.timestamp("s")), cast("day", STAMP)),
    "parts, large text": parts(cast("city", pa.large_string()), lambda rows: rows),
    **{
        f"hive {ending} {pattern}": hive(ending, pattern)
        for ending in ("csv", "parquet")
        for pattern in ("", "**/*", "sold=*/part.*")
    },
}


def test_there_are_sixty_ways() -> None:
    assert len(WAYS) >= 60


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_rows_are_the_same_in_every_way(tmp_path: Path, way: str) -> None:
    source, options, pandas = WAYS[way](tmp_path)
    reading = Reading(**options.get("settings", {}))
    table = read_table(str(source), kinds=options.get("kinds"), reading=reading)
    names = list(FRAME.columns)
    read = pd.concat([piece.to_pandas(date_as_object=False) for piece in table.tables(names)])
    assert normal(read) == TRUTH
    assert normal(pandas()) == TRUTH
    assert {"count", "price"} <= {c.name for c in table.schema.features if c.kind == "numeric"}
    assert table.schema.column("city").categories == tuple(sorted(FRAME["city"].dropna().unique()))
