"""Fresh rows in files as people have them: read by the same rules as an import."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from scene import Scene, rows

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.times import read_times

DAYS = pd.date_range("2023-06-01", periods=24)


def taken_rows(scene: Scene, **given: Any) -> pd.DataFrame:
    return scene.run("2024-01-01", **given).frame().sort_values("id")


@pytest.mark.parametrize("kind", ["int64", "float64", "str"])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_days_as_numbers(scene: Scene, kind: str, ending: str) -> None:
    days = DAYS.strftime("%Y%m%d").astype("int64").astype(kind)
    scene.deliver(f"a.{ending}", rows(0, 24, t=days))
    found = taken_rows(scene, settings={"timestamp_format": "%Y%m%d"})
    assert list(pd.to_datetime(found["t"]).dt.tz_localize(None)) == list(DAYS)


def test_the_advice_for_days_as_numbers_is_no_count_of_seconds() -> None:
    days = pa.chunked_array([[20230601, None, 20230630]])
    with pytest.raises(ValueError, match="from 20230601 to 20230630; say .*'%Y%m%d'"):
        read_times(days)
    with pytest.raises(ValueError, match="say settings={'timestamp_format': 's'}"):
        read_times(pa.chunked_array([[1_700_000_000]]))


def test_labels_and_numbers_follow_the_users_word(scene: Scene) -> None:
    frame = rows(0, 24, zip=["01234", "1234"] * 12, price=["1,5", "?"] * 12)
    frame["t"] = frame["t"].astype(str)
    scene.source.joinpath("a.csv").write_bytes(frame.to_csv(index=False, sep=";").encode())
    found = taken_rows(scene, kinds={"zip": "categorical"})
    assert list(found["zip"]) == ["01234", "1234"] * 12
    assert list(found["price"].fillna(-1)) == [1.5, -1] * 12
    with pytest.raises(InvalidInput, match="settings.decimal = 'x'"):
        scene.run("2024-01-01", settings={"decimal": "x"})


def test_parts_that_differ_harmlessly(scene: Scene) -> None:
    first = rows(0, 12, flag=[True, False] * 6, store=["a", "b"] * 6)
    scene.deliver("a.parquet", first.astype({"store": "category"}))
    scene.deliver("b.parquet", rows(12, 12, day="2013-02-01", flag=[1, 0] * 6, store=["a"] * 12))
    found = taken_rows(scene)
    assert list(found["flag"]) == [1, 0] * 12
    scene.deliver("c.parquet", rows(30, 2, day="2013-03-01", flag=["yes", "no"]))
    fresh = Scene(scene.folder, str(scene.folder / "other"))
    with pytest.raises(InvalidInput, match=r"column 'flag' = '.*string in .*c.parquet': is int64"):
        fresh.run("2024-01-01")
