"""Where fine-tuning has failed often enough, the next challenger is trained from scratch."""

from __future__ import annotations

import pytest
from scene import Scene, Taken, rows

from kubestill.runtime.retraining.history import Judgement
from kubestill.runtime.retraining.outcomes import conclude

KEPT = 100
"""Rows of the first window, whose judging ones become the golden set."""


def month(scene: Scene, number: int, **given) -> Taken:
    scene.deliver(f"{number}.parquet", rows(100 * number, 30, day=f"2013-{number:02d}-01"))
    return scene.run(f"2013-{number + 1:02d}-01", **given)


def lose(scene: Scene, taken: Taken, decision: str = "reject") -> None:
    """End a run whose challenger was judged."""
    judged = Judgement(run_id=taken.run_id, step="challenge", decision=decision, reason="It lost.")
    scene.registry.append(judged)
    conclude(scene.registry, taken.run_id, succeeded=True)


def test_every_fourth_challenger_is_trained_from_scratch_until_one_is_promoted(
    scene: Scene,
) -> None:
    assert scene.started().method == "fine-tune"
    methods = []
    for number in range(2, 10):
        taken = month(scene, number)
        methods.append(taken.method)
        lose(scene, taken)
    assert methods == ["fine-tune"] * 3 + ["rebuild"] + ["fine-tune"] * 3 + ["rebuild"]
    scene.promote(month(scene, 10))
    assert month(scene, 11).method == "fine-tune"


@pytest.mark.parametrize(("after", "methods"), [(0, "ffff"), (1, "frfr"), (2, "ffrf")])
def test_how_many_may_lose_is_the_users_word(scene: Scene, after, methods) -> None:
    scene.started()
    for number, method in enumerate(methods, start=2):
        taken = month(scene, number, rebuild_after=after)
        assert taken.method[0] == method
        lose(scene, taken)


@pytest.mark.parametrize("decision", ["healthy", "insufficient", "unfit"])
def test_only_a_challenger_that_lost_counts(scene: Scene, decision) -> None:
    scene.started()
    for number in range(2, 6):
        taken = month(scene, number)
        assert taken.method == "fine-tune"
        lose(scene, taken, decision)


def test_a_rebuild_learns_from_all_rows_but_golden_quarantined_and_judging_ones(
    scene: Scene,
) -> None:
    golden = set(scene.started().ids("holdout"))
    for number, decision in ((2, "reject"), (3, "unfit"), (4, "reject")):
        lose(scene, month(scene, number), decision)
    given = {"rebuild_after": 2, "validation_fraction": 0.2, "replay_rows": 1000}
    taken = month(scene, 5, **given)
    learned = taken.ids("dataset") + taken.ids("validation")
    every = {*range(KEPT), *(100 * number + place for number in (2, 4, 5) for place in range(30))}
    assert sorted(learned) == sorted(every - golden - set(taken.ids("holdout")))
    assert taken.ids("replay") == []
    said = "2 challengers lost since the last promotion: if one is needed now, it is trained from"
    assert said in taken.reason
    assert f"all {len(learned)} rows" in taken.reason
    # A retried pod finds the same.
    again = scene.run("2013-06-01", taken.run_id, **given)
    assert (again.method, again.ids("dataset")) == (taken.method, taken.ids("dataset"))
