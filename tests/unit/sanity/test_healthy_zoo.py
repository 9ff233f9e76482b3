"""Healthy set-ups pass: quick ones of the zoo, and those that were once refused.

`bench/bench_overfit.py` asks many more of them.
"""

import time
from dataclasses import replace

import numpy as np
import pytest
from healthy_zoo import SetUp, asked, asked_of_shuffled, draw_rows, examined, set_up

from kubestill.runtime.sanity import GateSettings
from kubestill.runtime.sanity.heldout import Question

QUICK = (5, 9, 10, 158)
PLAIN = replace(
    set_up(0),
    network="mlp",
    network_args={"hidden": [64, 64]},
    features=1,
    rows=1500,
    classes=0,
    explained=0.93,
    function="sine",
    settings={},
)
ONCE_REFUSED = {
    "sin(a) and a little noise": PLAIN,
    "three labels of ten at random": replace(PLAIN, classes=3, features=8, explained=0.6),
    "eight units for fifty classes": replace(
        PLAIN,
        network_args={"hidden": [8]},
        features=4,
        classes=50,
        explained=0.8,
        function="linear",
    ),
    "batch norm that is slow": replace(
        PLAIN, network_args={"hidden": [32, 32], "norm": "batch", "dropout": 0.3}, classes=10
    ),
}


@pytest.mark.parametrize(
    "drawn", [*map(set_up, QUICK), *ONCE_REFUSED.values()], ids=[*map(str, QUICK), *ONCE_REFUSED]
)
def test_a_healthy_set_up_is_not_refused(drawn: SetUp) -> None:
    findings = examined(drawn, GateSettings())
    assert findings.verdict == "pass", findings.reason
    assert findings.learned is not None


@pytest.mark.parametrize("draw", range(4))
def test_a_faint_signal_on_1500_rows_is_known(draw: int) -> None:
    """An AUC of about 0.7, of ten features."""
    faint = replace(PLAIN, features=10, classes=2, explained=0.12, function="three of them")
    check, held_out = asked(*draw_rows(faint, np.random.default_rng(draw)))
    assert check.status == "ok"
    assert held_out is not None
    assert held_out.sigmas > 4


@pytest.mark.parametrize(
    ("rows", "features", "status"), [(1500, 10, "undetermined"), (300, 300, "note")]
)
def test_labels_without_meaning_are_refused_where_a_faint_signal_would_show(
    rows: int, features: int, status: str
) -> None:
    drawn = replace(PLAIN, rows=rows, features=features, classes=2)
    assert asked_of_shuffled(drawn)[0].status == status


def test_rows_that_hold_their_own_past_are_not_misaligned() -> None:
    """The last label is a feature: it tells the row before exactly, and its own row in part."""
    random = np.random.default_rng(0)
    series = np.zeros(1501)
    for place in range(1, 1501):
        series[place] = 0.7 * series[place - 1] + random.normal()
    inputs = np.stack([series[:-1], random.normal(size=1500)], 1)
    assert asked(inputs, series[1:, None])[0].status == "ok"


def test_labels_of_the_row_before_are_misaligned() -> None:
    drawn = replace(PLAIN, features=5, explained=0.9, function="linear")
    inputs, labels = draw_rows(drawn, np.random.default_rng(0))
    check, held_out = asked(inputs, np.roll(labels, 1))
    assert check.code == "misaligned"
    assert held_out is not None
    assert held_out.shift == 1


def test_what_takes_long_is_not_asked_once_the_time_is_over() -> None:
    inputs, labels = draw_rows(PLAIN, np.random.default_rng(0))
    over = Question(inputs, deadline=time.thread_time()).ask(labels)
    assert over.share == 0.0  # the trees tell it
    assert Question(inputs).ask(labels).share > 0.5
