"""Intervals cover and verdicts err as seldom as stated: `bench/bench_truth.py` in small."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats


@pytest.fixture
def truth(monkeypatch):
    """The bench, which no wheel holds."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))
    from bench import bench_truth  # pyright: ignore[reportMissingImports]

    return bench_truth


@pytest.mark.parametrize(
    ("balance", "rows", "in_groups"),
    [(0.02, 1000, False), (0.5, 300, True)],
    ids=["few positives", "rows in groups"],
)
def test_intervals_cover_the_truth_or_are_not_given(truth, balance, rows, in_groups) -> None:
    cells = truth.Cells()
    truth.binary(cells, balance, rows, 150, in_groups=in_groups)
    truth.regression(cells, 300, 150, in_groups=in_groups)
    for name, tally in cells.tallies.items():
        missed = tally.below + tally.above
        # More than this would one of a thousand cells of exact intervals miss.
        assert missed <= stats.binom.ppf(0.999, tally.given, 0.05), name
        assert tally.given > 100, name


def test_few_events_have_no_interval_that_could_miss(truth) -> None:
    cells = truth.Cells()
    truth.binary(cells, 0.005, 300, 50, in_groups=False)
    given = {name.split(",")[0]: tally.given for name, tally in cells.tallies.items()}
    assert given["auc"] == given["log_loss"] == given["difference of log_loss"] == 0


@pytest.mark.parametrize("looks", [1, 12], ids=["windows", "years"])
def test_unchanged_worlds_are_alarmed_and_champions_replaced_as_seldom_as_stated(truth, looks):
    found = list(truth.false_rates(0.02, 1000, looks, 240 // looks, False))
    assert len(found) == 2
    assert all(one.to_json()["holds"] for one in found), found
