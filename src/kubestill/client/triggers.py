"""The trigger of a schedule: a cron expression in a time zone, or an interval.

Kubeflow reads crons by robfig/cron v1: *six* fields, seconds first. It takes five as well, but then
as second, minute, hour, day and month, so that Unix's `0 9 * * 1` would fire every hour in January.
It knows one time zone, that of its own controller (UTC, unless CRON_SCHEDULE_TIMEZONE says
otherwise). So five fields are read as everywhere else, moved to that zone, and sent as six.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from kubestill.errors import InvalidInput, Problem, Problems, counted

_NAMES = {
    "month": "jan feb mar apr may jun jul aug sep oct nov dec".split(),
    "weekday": "sun mon tue wed thu fri sat".split(),
}
_EXAMPLE = "such as '0 6 * * 1-5': minute, hour, day, month, day of the week"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_S = 366 * 86400


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """The trigger of a schedule, as it is sent to Kubeflow."""

    body: dict[str, Any]
    """The `trigger` of the API."""
    next_at: datetime | None = None
    """When it fires next, in the user's zone; None for an interval, which starts at once."""
    shift_at: datetime | None = None
    """When the user's clocks change against the cluster's, and the schedule with them."""
    given: str = ""
    """The cron as the user wrote it, with its zone; empty for an interval."""


def read_trigger(
    cron: str,
    every: str,
    *,
    time_zone: str = "UTC",
    cluster_time_zone: str = "UTC",
    now: datetime | None = None,
) -> Trigger:
    """Read a cron expression or an interval.

    Args:
        cron: Five fields in `time_zone`, or six with the seconds first; empty for an interval.
        every: Interval such as `90m`, `6h` or `1d`; empty for a cron.
        time_zone: Zone the cron is written in.
        cluster_time_zone: Zone that Kubeflow's controller reads crons in.
        now: Moment to start from; default: now.

    Raises:
        InvalidInput: With everything that is wrong, a cron that never fires among it.
    """
    problems = Problems()
    if bool(cron) == bool(every):
        problems.add("--cron / --every", cron or None, "give one of them")
    zones = {
        "--time-zone": _zone("--time-zone", time_zone, problems),
        "--cluster-time-zone": _zone("--cluster-time-zone", cluster_time_zone, problems),
    }
    match = re.fullmatch(r"([0-9]{1,9})\s*([smhd])", every.strip().lower())
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if every and not 60 <= seconds <= _LONGEST_S:
        problems.add("--every", every, "write a minute to a year, such as 90m, 6h or 1d")
    fields = _read_cron(cron, problems) if cron else []
    problems.raise_if_any()
    if every:
        return Trigger(body={"periodic_schedule": {"interval_second": str(seconds)}})
    home, cluster = zones["--time-zone"], zones["--cluster-time-zone"]
    now = (now or datetime.now(home)).astimezone(home)
    next_at = next(CronSim(" ".join(fields[1:]), now))
    moved = _move(cron, fields, home, cluster, next_at)
    return Trigger(
        body={"cron_schedule": {"cron": " ".join(moved)}},
        next_at=next_at,
        shift_at=_next_shift(home, cluster, now),
        given=f"cron {' '.join(cron.split())} {time_zone}",
    )


def describe_trigger(trigger: Mapping[str, Any], given: str = "") -> str:
    """Describe when a schedule fires, as a person would.

    Args:
        trigger: Of the API.
        given: What the user wrote, as `Trigger.given` has it; anything else counts as nothing.
    """
    interval = str((trigger.get("periodic_schedule") or {}).get("interval_second") or "")
    if interval.isdecimal():
        return _describe_interval(int(interval))
    found = re.fullmatch(r"cron (.+) ([\w+/-]+)", given)
    cron = found[1] if found else str((trigger.get("cron_schedule") or {}).get("cron") or "")
    zone = found[2] if found else "in the cluster's zone"
    if not cron:
        return "never"
    return f"{_describe_cron(cron)} {zone}"


def _describe_interval(seconds: int) -> str:
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        count, rest = divmod(seconds, unit)
        if count and not rest:
            return f"every {name}" if count == 1 else f"every {count} {name}s"
    return "never"


def _describe_cron(cron: str) -> str:
    """Put the simplest crons into words; the others stay what they are, without a second of 0."""
    fields = cron.lower().replace("?", "*").split()
    fields = fields[1:] if len(fields) == 6 and fields[0] == "0" else fields
    if len(fields) != 5 or fields[2:4] != ["*", "*"] or not fields[0].isdecimal():
        return " ".join(fields)
    minute, hour, weekday = int(fields[0]), fields[1], fields[4]
    if (hour, weekday) == ("*", "*"):
        return f"every hour at :{minute:02}"
    days = re.fullmatch(r"([0-7])(?:-([0-7]))?", weekday)
    if not hour.isdecimal() or not (days or weekday == "*"):
        return " ".join(fields)
    names = [
        _NAMES["weekday"][int(day) % 7].title() for day in (days.groups() if days else ()) if day
    ]
    return f"every {'-'.join(names) or 'day'} at {int(hour):02}:{minute:02}"


def _read_cron(cron: str, problems: Problems) -> list[str]:
    """Split into six fields, names as numbers, and check them."""
    fields = cron.lower().replace("?", "*").split()
    if len(fields) not in (5, 6):
        problems.add("--cron", cron, f"has {counted(len(fields), 'field')}; write five, {_EXAMPLE}")
        return []
    fields = ["0", *fields] if len(fields) == 5 else fields
    for place, names in ((4, _NAMES["month"]), (5, _NAMES["weekday"])):
        for number, name in enumerate(names, start=place == 4):
            fields[place] = re.sub(rf"\b{name}\b", str(number), fields[place])
    try:
        if not re.fullmatch(r"[0-5]?[0-9]", fields[0]):
            raise CronSimError("the seconds are one number from 0 to 59")
        if re.search(r"[^0-9*,/ -]", " ".join(fields)):
            raise CronSimError("only numbers, names and * , - / are understood by Kubeflow")
        CronSim(" ".join(fields[1:]), datetime(2026, 1, 1))
    except CronSimError as error:
        said = str(error)
        day = "(?:3[01]|[0-2]?[0-9])"
        if said == "Bad day-of-month" and re.fullmatch(f"{day}(?:[,-]{day})*", fields[3]):
            said = "never fires: no year has such a day"
        problems.add("--cron", cron, f"{said}; write five fields, {_EXAMPLE}")
    return fields


def _move(
    cron: str, fields: list[str], home: ZoneInfo, cluster: ZoneInfo, moment: datetime
) -> list[str]:
    """Write a cron of one zone in another, by the offset between them at `moment`."""
    minutes = int((_offset(cluster, moment) - _offset(home, moment)) / timedelta(minutes=1))
    seconds, minute, hour, day, month, weekday = fields
    whole_day = hour == "*" and (day, month, weekday) == ("*", "*", "*")
    if not minutes or (whole_day and (minute == "*" or minutes % 60 == 0)):
        return [seconds, minute, hour, day, month, _weekdays(weekday)]
    times = [
        divmod(60 * h + m + minutes, 1440)
        for h in _expand(hour, 0, 23)
        for m in _expand(minute, 0, 59)
    ]
    days = {day_shift for day_shift, _ in times}
    hours = sorted({time // 60 for _, time in times})
    in_hour = sorted({time % 60 for _, time in times})
    if len(hours) * len(in_hour) != len(times) or (len(days) > 1 and not whole_day):
        raise _problem("--cron", cron, f"cannot be said in the cluster's zone {cluster}; {_SPLIT}")
    shift = 0 if whole_day else days.pop()
    if shift and (day != "*" or month != "*"):
        raise _problem(
            "--cron", cron, f"is another day of the month in the cluster's zone {cluster}; {_SPLIT}"
        )
    listed = ",".join(map(str, in_hour)), ",".join(map(str, hours))
    return [seconds, *listed, day, month, _weekdays(weekday, shift)]


_SPLIT = "make it several schedules, or write it in that zone and give no --time-zone"


def _weekdays(field: str, shift: int = 0) -> str:
    """Sunday is 0 for Kubeflow, never 7."""
    if field == "*" or (not shift and "7" not in field):
        return field
    return ",".join(map(str, sorted({(day + shift) % 7 for day in _expand(field, 0, 7)})))


def _expand(field: str, low: int, high: int) -> list[int]:
    """Return all numbers of a checked field: `*/15`, `1-5`, `0,30`."""
    numbers: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        if span == "*":
            first, last = str(low), str(high)
        elif not last:
            last = str(high) if step else first
        numbers.update(range(int(first), int(last) + 1, int(step or 1)))
    return sorted(numbers)


def _next_shift(home: ZoneInfo, cluster: ZoneInfo, now: datetime) -> datetime | None:
    """Return the first day within a year on which the zones' offset differs from today's."""
    today = _offset(home, now) - _offset(cluster, now)
    days = (now + timedelta(days=count) for count in range(1, 366))
    return next((day for day in days if _offset(home, day) - _offset(cluster, day) != today), None)


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    offset = moment.astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def _zone(field: str, name: str, problems: Problems) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        problems.add(field, name, "is no time zone; write one such as Europe/Berlin or UTC")
        return ZoneInfo("UTC")


def _problem(field: str, value: object, remedy: str) -> InvalidInput:
    return InvalidInput([Problem(field, value, remedy)])
