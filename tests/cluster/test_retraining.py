"""Eight scheduled runs over one registry: each ends as its rows deserve, whatever Kubeflow says."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from rows import ROWS, parameters, put_month
from session import Cluster, Done

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

FOLDER = "months"


@pytest.fixture(scope="module")
def place(stored: Cluster) -> Cluster:
    """A source of seven months; from the third and from the fifth on, rows follow another law."""
    for number in range(1, 8):
        put_month(stored, FOLDER, number, drift=0.0 if number < 3 else 1.6 if number < 5 else -3.0)
    return stored


def run(cluster: Cluster, as_of: str, **more: object) -> Done:
    return cluster.run("continuous-retraining", **parameters(cluster, FOLDER, as_of, **more))


def registry(cluster: Cluster, command: str) -> Any:
    uri = f"{cluster.root}/{FOLDER}-registry"
    done = cluster.kubestill("registry", command, uri, "--json")
    assert done.code == 0, done.out
    return json.loads(done.out)


def check(
    cluster: Cluster, done: Done, outcome: str, *, champions: int, steps: tuple[str, ...]
) -> dict[str, Any]:
    """Hold the server's word, the registry's and the command's against what must be."""
    assert done.code == 0, done.out
    assert cluster.state(done.run_id) == "SUCCEEDED"
    tasks = cluster.tasks(done.run_id)
    ran = {name for name, states in tasks.items() if states == Counter(SUCCEEDED=1)}
    assert ran.issuperset({"collect-fresh", "record-outcome", *steps})
    (entry,) = (one for one in registry(cluster, "ls") if one["run_id"] == done.run_id)
    assert entry["outcome"] == outcome, entry
    assert outcome in done.out
    standing = registry(cluster, "show")
    assert len(standing["champions"]) == champions
    assert standing["at work"] == "nobody"
    return entry


def test_the_first_run_makes_a_champion(place: Cluster) -> None:
    entry = check(
        place,
        run(place, "2013-02-01"),
        "promoted",
        champions=1,
        steps=("train-first", "promote-first"),
    )
    assert entry["version"] == 1
    assert entry["rows"] == ROWS


def test_where_nothing_is_new_the_rows_wait(place: Cluster) -> None:
    done = run(place, "2013-02-01")
    check(place, done, "waiting", champions=1, steps=())
    assert not place.tasks(done.run_id).get("open-champion", Counter())["SUCCEEDED"]


def test_a_sound_champion_stays(place: Cluster) -> None:
    done = run(place, "2013-03-01")
    entry = check(place, done, "healthy", champions=1, steps=("open-champion", "judge-champion"))
    assert entry["rows"] == ROWS
    assert not place.tasks(done.run_id).get("finetune-fresh", Counter())["SUCCEEDED"]


def test_a_challenger_that_learned_nothing_is_rejected(place: Cluster) -> None:
    done = run(place, "2013-04-01", finetune_learning_rate=1e-12)
    check(place, done, "rejected", champions=1, steps=("finetune-fresh", "judge-challenger"))
    assert not place.tasks(done.run_id).get("promote-model", Counter())["SUCCEEDED"]


def test_a_decayed_champion_is_replaced(place: Cluster) -> None:
    done = run(place, "2013-05-01")
    entry = check(place, done, "promoted", champions=2, steps=("finetune-fresh", "promote-model"))
    assert entry["version"] == 2


def test_after_one_that_lost_a_challenger_is_trained_anew(place: Cluster) -> None:
    lost = run(place, "2013-06-01", finetune_learning_rate=1e-12)
    check(place, lost, "rejected", champions=2, steps=("finetune-fresh", "judge-challenger"))
    done = run(place, "2013-07-01", rebuild_after=1)
    steps = ("train-anew", "judge-rebuilt", "promote-rebuilt")
    check(place, done, "promoted", champions=3, steps=steps)
    assert not place.tasks(done.run_id).get("finetune-fresh", Counter())["SUCCEEDED"]


def test_while_labels_are_late_scores_are_expected(place: Cluster) -> None:
    done = run(place, "2013-07-20", label_delay_hours=480.0)
    entry = check(place, done, "waiting", champions=3, steps=("open-standing", "expect"))
    assert entry["rows"] == 0


def test_every_row_was_judged_once(place: Cluster) -> None:
    windows = registry(place, "show")["windows"]
    assert [one["rows"] for one in windows] == [ROWS] * 6
