"""When schedules fire: crons as Kubeflow reads them, zones, and what can never fire."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from kubestill.client import read_trigger
from kubestill.client.triggers import describe_trigger
from kubestill.errors import InvalidInput

NOW = datetime(2026, 1, 14, 12, tzinfo=UTC)  # a Wednesday


def sent(cron: str, **options: str) -> str:
    return read_trigger(cron, "", now=NOW, **options).body["cron_schedule"]["cron"]


@pytest.mark.parametrize(
    ("cron", "six"),
    [
        ("0 6 * * 1-5", "0 0 6 * * 1-5"),
        ("*/15 * * * *", "0 */15 * * * *"),
        ("30 0 6 * * 1", "30 0 6 * * 1"),
        ("0 6 ? jan,jul mon-fri", "0 0 6 * 1,7 1-5"),
        ("0 6 * * 7", "0 0 6 * * 0"),
    ],
    ids=["five-fields", "steps", "six-fields", "names", "sunday-is-0"],
)
def test_a_cron_is_sent_in_kubeflows_six_fields(cron, six):
    assert sent(cron) == six


@pytest.mark.parametrize(
    ("cron", "zone", "six"),
    [
        ("0 9 * * 1", "Europe/Berlin", "0 0 8 * * 1"),
        ("30 0 * * 1", "Europe/Berlin", "0 30 23 * * 0"),
        ("0 20 * * 5", "America/New_York", "0 0 1 * * 6"),
        ("15 6 * * *", "Asia/Kolkata", "0 45 0 * * *"),
        ("0 * * * *", "Europe/Berlin", "0 0 * * * *"),
        ("0 * * * *", "Asia/Kolkata", "0 30 " + ",".join(map(str, range(24))) + " * * *"),
    ],
    ids=["west", "the-day-before", "the-day-after", "half-hours", "hourly", "hourly-half"],
)
def test_a_cron_moves_from_its_zone_to_the_clusters(cron, zone, six):
    moved = sent(cron, time_zone=zone)
    assert moved == six
    there = CronSim(moved.partition(" ")[2], NOW)
    here = CronSim(cron, NOW.astimezone(ZoneInfo(zone)))
    for _ in range(7):  # until the first clocks change
        assert next(there) == next(here).astimezone(UTC)


def test_a_change_of_the_clocks_is_reported():
    trigger = read_trigger("0 9 * * *", "", time_zone="Europe/Berlin", now=NOW)
    assert trigger.next_at == datetime(2026, 1, 15, 8, tzinfo=UTC)
    assert trigger.shift_at is not None
    assert trigger.shift_at.date().isoformat() == "2026-03-29"
    both = {"time_zone": "Europe/Berlin", "cluster_time_zone": "Europe/Paris"}
    assert read_trigger("0 9 * * *", "", now=NOW, **both).shift_at is None


@pytest.mark.parametrize(
    ("every", "seconds"), [("90m", 5400), ("6h", 21600), ("1d", 86400), ("60 s", 60)]
)
def test_an_interval_is_sent_in_seconds(every, seconds):
    body = read_trigger("", every, now=NOW).body
    assert body == {"periodic_schedule": {"interval_second": str(seconds)}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("0 0 30 2 *", ""), "never fires"),
        (("0 0 31 2,4 *", ""), "never fires"),
        (("0 6 32 * *", ""), "Bad day-of-month"),
        (("2 4 / 4 /", ""), "Bad day-of-month"),
        (("0 0 1/ * *", ""), "Bad day-of-month"),
        (("１ 0 6 * * *", ""), "seconds are one number"),
        (("0 6 * *", ""), "has 4 fields"),
        (("", "9" * 5000 + "d"), "a minute to a year"),
        (("", "367d"), "a minute to a year"),
        (("0 0 6 * * 1 2026", ""), "has 7 fields"),
        (("0 25 * * *", ""), "write five fields"),
        (("0 6 L * *", ""), "understood by Kubeflow"),
        (("61 0 6 * * *", ""), "seconds"),
        (("", "10s"), "a minute to a year"),
        (("", "often"), "such as 90m"),
        (("", ""), "give one of them"),
        (("0 6 * * *", "6h"), "give one of them"),
    ],
)
def test_what_cannot_fire_is_refused(arguments, said):
    with pytest.raises(InvalidInput, match=said):
        read_trigger(*arguments, now=NOW)


@pytest.mark.parametrize(
    ("cron", "said"),
    [("0 0 1 * *", "another day of the month"), ("0 0,12 * * 1", "several schedules")],
    ids=["first-of-the-month", "two-days"],
)
def test_a_time_that_the_clusters_zone_cannot_express_is_refused(cron, said):
    with pytest.raises(InvalidInput, match=said):
        sent(cron, time_zone="Europe/Berlin")


def test_everything_wrong_is_reported_at_once():
    with pytest.raises(InvalidInput) as error:
        read_trigger("0 6 *", "", time_zone="Europe/Berlim", cluster_time_zone="Moon", now=NOW)
    assert {problem.field for problem in error.value.problems} == {
        "--cron",
        "--time-zone",
        "--cluster-time-zone",
    }


def test_an_interval_says_nothing_of_clocks():
    trigger = read_trigger("", "1d", time_zone="Europe/Berlin", now=NOW + timedelta(days=1))
    assert (trigger.next_at, trigger.shift_at) == (None, None)


@pytest.mark.parametrize(
    ("trigger", "given", "said"),
    [
        ({"periodic_schedule": {"interval_second": "120"}}, "", "every 2 minutes"),
        ({"periodic_schedule": {"interval_second": "90"}}, "", "every 90 seconds"),
        ({"periodic_schedule": {"interval_second": "3600"}}, "", "every hour"),
        ({"periodic_schedule": {"interval_second": "172800"}}, "", "every 2 days"),
        (
            {"cron_schedule": {"cron": "0 0 6 * * *"}},
            "",
            "every day at 06:00 in the cluster's zone",
        ),
        ({"cron_schedule": {"cron": "0 5 * * * *"}}, "", "every hour at :05 in the cluster's zone"),
        ({"cron_schedule": {"cron": "7 5 * * * *"}}, "", "7 5 * * * * in the cluster's zone"),
        (
            {"cron_schedule": {"cron": "0 0 4 * * 1-5"}},
            "cron 0 6 * * 1-5 Europe/Berlin",
            "every Mon-Fri at 06:00 Europe/Berlin",
        ),
        (
            {"cron_schedule": {"cron": "0 0 4 * * 1-5"}},
            "somebody's own words",
            "every Mon-Fri at 04:00 in the cluster's zone",
        ),
        (
            {"cron_schedule": {"cron": "0 */15 * 1 * *"}},
            "cron */15 * 1 * * UTC",
            "*/15 * 1 * * UTC",
        ),
        (
            {"cron_schedule": {"cron": "0 0 0 * * 7"}},
            "",
            "every Sun at 00:00 in the cluster's zone",
        ),
        ({}, "", "never"),
    ],
)
def test_a_trigger_in_words(trigger, given, said):
    assert describe_trigger(trigger, given) == said


def test_what_the_user_wrote_is_kept():
    trigger = read_trigger("0  6 * * mon-fri", "", time_zone="Europe/Berlin")
    assert trigger.given == "cron 0 6 * * mon-fri Europe/Berlin"
    assert read_trigger("", "6h").given == ""
