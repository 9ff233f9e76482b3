"""What a user asks of `collect-fresh`, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator

from kubestill.errors import Problems, nearest
from kubestill.runtime.base.settings import validate
from kubestill.runtime.datasets.options import Reading


class CollectSettings(Reading):
    """Which rows, and what they mean."""

    source: str = Field(min_length=1)
    timestamp: str = Field(min_length=1)
    target: str = Field(min_length=1)
    task: Literal["auto", "regression", "binary", "multiclass"] = "auto"
    features: tuple[str, ...] = ()
    kinds: Mapping[str, str] = Field(default_factory=dict[str, str])
    keys: tuple[str, ...] = ()
    golden_source: str = ""
    as_of: str = ""
    since: str = ""
    label_delay_hours: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    min_rows: int = Field(default=200, ge=1)
    judge_fraction: float = Field(default=0.3, gt=0, lt=1)
    validation_fraction: float = Field(default=0.15, ge=0, lt=1)
    replay_rows: int = Field(default=0, ge=0)
    rebuild_after: int = Field(default=3, ge=0)
    lease_hours: float = Field(default=12.0, gt=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0)
    timezone: str = ""
    """Zone of times that have none, such as `Europe/Berlin`. Empty means UTC, and refuses files
    that mix times with and without a zone."""
    timestamp_format: str = ""
    """Format of times that are not ISO 8601: a `strptime` pattern, or `s`, `ms`, `us`, `ns` since
    1970."""
    min_judge_rows: int = Field(default=100, ge=0)
    """Rows that have to judge, as `min_rows` of continuous-eval: with fewer, all rows wait for the
    next run, because nothing could be decided on what was trained."""
    min_events: int = Field(default=10, ge=0)
    """Judging rows outside of the most frequent class, below which all rows wait as well, until
    there are ten times `min_rows`: a class that is gone must not be waited for."""
    judge_gap: float = Field(default=0.02, ge=0, lt=1)
    """Share of the fresh rows, the latest before those that judge, which this run does not learn
    from: rows that are close in time are alike. Later runs may."""
    group: str = ""
    """Column whose equal values belong to one entity, such as a customer: all of its rows in a
    window judge, or none. Which ones is then drawn; without it the latest rows judge."""

    @field_validator("as_of", "since")
    @classmethod
    def _instant(cls, text: str) -> str:
        if text:
            parse_instant(text)
        return text

    @field_validator("timezone")
    @classmethod
    def _zone(cls, name: str) -> str:
        try:
            return name and ZoneInfo(name).key
        except (KeyError, ValueError, OSError) as error:
            message = "no such time zone; give an IANA name such as 'Europe/Berlin'"
            raise ValueError(message) from error

    @property
    def now(self) -> datetime:
        """No row from later than this is known yet."""
        return parse_instant(self.as_of) if self.as_of else datetime.now(UTC)

    @property
    def end(self) -> datetime:
        """Rows from before this instant are taken: as of when, less the labels' delay."""
        return self.now - timedelta(hours=self.label_delay_hours)

    @classmethod
    def of(cls, values: Mapping[str, Any], settings: Mapping[str, Any]) -> CollectSettings:
        """Check parameters and settings together.

        Raises:
            InvalidInput: With every problem found.
        """
        problems = Problems()
        parsed: CollectSettings | None = None
        check_placeholders(values, problems)
        typed = {name: value for name, value in values.items() if not _unfilled(value)}
        names = ("timezone", "timestamp_format", "min_judge_rows", "min_events")
        names += ("judge_gap", "group")
        names += tuple(Reading.model_fields)
        known = {name: value for name, value in settings.items() if name in names}
        for name in settings.keys() - known:
            problems.add(f"settings.{name}", settings[name], f"unknown key; {nearest(name, names)}")
        with problems.collect():
            parsed = validate(cls, {**typed, **known}, prefixed=dict.fromkeys(known, "settings."))
        if parsed:
            entity = [name for name, role in parsed.roles.items() if role == "group"]
            if entity and not parsed.group:
                parsed = parsed.model_copy(update={"group": entity[0]})
            parsed._check(problems)
        problems.raise_if_any()
        assert parsed
        return parsed

    def _check(self, problems: Problems) -> None:
        shares = self.judge_fraction + self.validation_fraction
        if shares >= 1:
            remedy = "with judge_fraction they leave nothing to train on; give less"
            problems.add("validation_fraction", self.validation_fraction, remedy)
        if self.timestamp == self.target:
            problems.add("timestamp", self.timestamp, "is the target; give the column of the time")
        for name in {self.target, self.timestamp} & {self.group}:
            what = "target" if name == self.target else "timestamp"
            remedy = f"is the {what}, and no entity; give a column such as an id"
            problems.add("settings.group", name, remedy)
        if self.timestamp in self.features:
            remedy = "is the time of a row, which later rows never share; derive hour or weekday"
            problems.add("features", self.timestamp, remedy)
        for name, role in self.roles.items():
            if role == "time" or role.startswith("soft"):
                remedy = "a stream's rows have `timestamp` as their time, and no teacher; ignore it"
                problems.add(f"settings.roles[{name!r}]", role, remedy)
        if self.since and parse_instant(self.since) >= self.end:
            remedy = f"no row is from after it and before {iso(micros(self.end))}"
            problems.add("since", self.since, remedy)


def check_placeholders(values: Mapping[str, Any], problems: Problems) -> None:
    """Note every string that is a placeholder which Kubeflow should have filled in.

    Some versions pass `[[ScheduledTime]]` on as it is (kubeflow/pipelines#12494).
    """
    for name, value in values.items():
        if _unfilled(value):
            remedy = "is a placeholder that was not filled in; give a value, or leave it empty"
            problems.add(name, value, remedy)


def _unfilled(value: Any) -> bool:
    texts: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]  # pyright: ignore[reportUnknownVariableType]
    return any(isinstance(text, str) and ("[[" in text or "{{" in text) for text in texts)


def parse_instant(text: str) -> datetime:
    """Read a date or time, UTC where it names no zone.

    Raises:
        ValueError: It is none.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        message = "is not a date; write 2013-04-01 or 2013-04-01T06:00:00+02:00"
        raise ValueError(message) from error
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def micros(instant: datetime) -> int:
    """Return microseconds since 1970."""
    return math.floor((instant - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


def iso(microseconds: int) -> str:
    """Return ISO 8601 in UTC, always of one length so that texts sort as times do."""
    found = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    return found.isoformat(timespec="microseconds")
