"""Which rows a run takes: each exactly once, however and whenever its file arrives."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scene import Scene, rows

from kubestill.errors import CorruptData, Fenced, InvalidInput
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.retraining import open_registry, transitions
from kubestill.runtime.retraining.decision import Score
from kubestill.runtime.retraining.history import Judgement
from kubestill.runtime.retraining.outcomes import conclude


def test_the_first_run_takes_everything_that_is_due(scene: Scene) -> None:
    scene.deliver("a.parquet", rows(0, 48))
    taken = scene.run("2013-01-02")
    assert taken.status == "bootstrap"
    assert taken.ids() == list(range(24))


def test_judging_and_training_rows_share_none_and_lose_none(scene: Scene) -> None:
    scene.deliver("a.parquet", rows(0, 500))
    taken = scene.run("2013-03-01", validation_fraction=0.2, judge_fraction=0.3)
    parts = [taken.ids(port) for port in ("dataset", "validation", "holdout")]
    assert sorted(sum(parts, [])) == list(range(500))
    assert 100 < len(parts[2]) < 200
    assert 70 < len(parts[1]) < 130


def test_the_latest_rows_judge_and_their_neighbours_teach_nobody(scene: Scene) -> None:
    """In whatever order the files hold them."""
    scene.deliver("a.parquet", rows(0, 200).sample(frac=1, random_state=0))
    taken = scene.run("2013-02-01", settings={"judge_gap": 0.1})
    assert taken.ids("holdout") == list(range(140, 200))
    assert taken.ids("dataset") == list(range(120))
    # They are not lost: a champion's older rows are replayed, and a loser's are learned from.
    scene.promote(taken)
    scene.deliver("b.parquet", rows(200, 50, day="2013-02-01"))
    later = scene.run("2013-03-01", replay_rows=1000)
    assert later.ids("replay") == list(range(140))


def test_validation_rows_are_stretches_of_time(scene: Scene) -> None:
    scene.deliver("a.parquet", rows(0, 2000).sample(frac=1, random_state=0))
    taken = scene.run("2013-06-01", validation_fraction=0.14)
    found = np.asarray(taken.ids("validation"))
    assert len(found) == pytest.approx(0.14 * 2000, abs=75)
    assert (np.diff(found) > 1).sum() < 25  # of 280 rows
    for month in np.array_split(np.arange(1400), 4):
        assert np.isin(month, found).mean() > 0.05
    assert sorted([*found, *taken.ids("dataset")]) == list(range(1400))


def test_a_retry_gets_the_same_window_though_more_rows_have_arrived(scene: Scene) -> None:
    scene.deliver("a.parquet", rows(0, 48))
    first = scene.run("2013-01-02", "r")
    scene.deliver("b.parquet", rows(100, 10))
    again = scene.run("2013-01-02", "r")
    assert again.ids() == first.ids() == list(range(24))
    assert again.ids("holdout") == first.ids("holdout")
    assert (again.status, again.reason) == (first.status, first.reason)


def test_a_failed_run_loses_no_rows_and_the_next_counts_none_twice(scene: Scene) -> None:
    scene.started()
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    failed = scene.run("2013-03-01")
    assert conclude(scene.registry, failed.run_id, succeeded=False).outcome == "failed"
    scene.deliver("c.parquet", rows(150, 50, day="2013-03-01"))
    taken = scene.run("2013-04-01")
    assert taken.ids() == list(range(100, 200))


def test_the_same_window_twice_has_nothing_left(scene: Scene) -> None:
    scene.started()
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    scene.judged(scene.run("2013-03-01"), "healthy")
    again = scene.run("2013-03-01")
    assert again.status == "waiting"
    assert again.reason.startswith("0 fresh rows")
    assert conclude(scene.registry, again.run_id, succeeded=True).outcome == "waiting"


def test_a_run_beside_one_at_work_leaves_it_alone(scene: Scene) -> None:
    scene.started()
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    first = scene.run("2013-03-01")
    second = scene.run("2013-03-01")
    assert second.status == "busy"
    assert first.run_id in second.reason
    assert conclude(scene.registry, second.run_id, succeeded=True).outcome == "busy"
    assert scene.judged(first, "healthy").outcome == "healthy"


def test_a_run_that_died_is_taken_over_and_refused_from_then_on(scene: Scene) -> None:
    scene.started()
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    dead = scene.run("2013-03-01", lease_hours=1e-9)
    time.sleep(0.01)
    alive = scene.run("2013-03-01")
    assert alive.ids() == dead.ids()
    with pytest.raises(Fenced, match="holds no window any more"):
        scene.promote(dead)
    assert scene.judged(dead, "healthy").outcome == "abandoned"
    assert scene.judged(alive, "healthy").outcome == "healthy"
    assert [window.run_id for window in scene.registry.read().windows[1:]] == [alive.run_id]


@pytest.mark.parametrize(
    ("decision", "unfit", "outcome", "part", "next_ids"),
    [
        ("healthy", [], "healthy", "trainable", range(100, 200)),
        ("insufficient", [], "inconclusive", "trainable", range(100, 200)),
        ("reject", [], "rejected", "trainable", range(100, 200)),
        ("broken", [], "rejected", "trainable", range(100, 200)),
        ("unfit", ["x: in another unit."], "unfit", "quarantined", range(150, 200)),
        ("reject", ["x: in another unit."], "unfit", "quarantined", range(150, 200)),
    ],
    ids=[
        "healthy",
        "inconclusive",
        "the challenger lost",
        "the challenger gave NaN",
        "the rows are unfit",
        "unfit, in an older version's word",
    ],
)
def test_what_later_runs_may_learn_from(
    scene: Scene, decision: str, unfit: list[str], outcome: str, part: str, next_ids
) -> None:
    scene.started()
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    done = scene.judged(scene.run("2013-03-01"), decision, unfit=unfit)
    window = scene.registry.read().windows[-1]
    assert done.outcome == window.verdict == outcome
    assert (window.train, window.judge) == (part, part)
    scene.deliver("c.parquet", rows(150, 50, day="2013-03-01"))
    taken = scene.run("2013-04-01")
    # What judges is new; what is learned from is new, or was judged in an earlier run. The first
    # champion's judges are golden: nobody learns from those.
    assert set(taken.ids("holdout")) <= set(range(150, 200))
    assert sorted(taken.ids("dataset") + taken.ids("holdout")) == list(next_ids)


def test_after_a_promotion_its_judges_are_the_next_ones_lessons(scene: Scene) -> None:
    first = scene.started()
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    second = scene.run("2013-03-01")
    scene.promote(second)
    scene.deliver("c.parquet", rows(150, 50, day="2013-03-01"))
    third = scene.run("2013-04-01", replay_rows=1000)
    assert set(third.ids("dataset")) == set(second.ids("holdout")) | (
        set(range(150, 200)) - set(third.ids("holdout"))
    )
    assert set(third.ids("replay")) == set(first.ids("dataset")) | set(second.ids("dataset"))


def test_late_rows_are_those_of_files_that_no_run_took(scene: Scene) -> None:
    scene.started()
    scene.deliver("late.parquet", rows(500, 3, day="2013-01-02"))
    scene.deliver("b.parquet", rows(100, 5, day="2013-02-01"))
    taken = scene.run("2013-03-01")
    assert taken.ids() == [100, 101, 102, 103, 104, 500, 501, 502]
    assert "3 of them late" in taken.reason


def test_a_window_of_late_rows_alone_says_so(scene: Scene) -> None:
    scene.started()
    scene.deliver("late.parquet", rows(500, 3, day="2013-01-02"))
    taken = scene.run("2013-03-01")
    assert "All of them are late" in taken.reason


def test_one_file_that_holds_the_whole_year_is_taken_in_pieces(scene: Scene) -> None:
    scene.deliver("year.csv", rows(0, 24 * 90))
    scene.promote(scene.run("2013-02-01"))
    february = scene.run("2013-03-01")
    assert february.ids() == list(range(24 * 31, 24 * 59))
    scene.judged(february, "healthy")
    assert scene.run("2013-04-01").ids() == list(range(24 * 59, 24 * 90))


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_file_that_is_appended_to_adds_only_what_is_new(scene: Scene, name: str) -> None:
    scene.deliver(name, rows(0, 20))
    scene.promote(scene.run("2013-02-01"))
    scene.deliver(name, rows(0, 30))
    assert scene.run("2013-02-01").ids() == list(range(20, 30))


def test_a_row_that_is_corrected_is_a_new_row(scene: Scene) -> None:
    scene.deliver("a.csv", rows(0, 20))
    scene.promote(scene.run("2013-02-01"))
    changed = rows(0, 20)
    changed.loc[3, "x"] = 99.0
    scene.deliver("a.csv", changed)
    assert scene.run("2013-02-01").ids() == [3]


def test_with_keys_a_row_that_is_corrected_is_the_old_row(scene: Scene) -> None:
    scene.deliver("a.csv", rows(0, 20))
    scene.promote(scene.run("2013-02-01", keys=["id"]))
    changed = rows(0, 22)
    changed.loc[3, "x"] = 99.0
    scene.deliver("a.csv", changed)
    assert scene.run("2013-02-01", keys=["id"]).ids() == [20, 21]


def test_equal_rows_of_one_file_count_and_those_of_a_second_delivery_do_not(scene: Scene) -> None:
    frame = pd.concat([rows(0, 5), rows(0, 5), rows(7, 1)])
    scene.deliver("a.parquet", frame)
    scene.deliver("copy.parquet", frame)
    assert scene.run("2013-02-01").ids() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 7]


def test_a_row_delivered_again_in_another_file_is_not_taken_again(scene: Scene) -> None:
    scene.started()
    scene.deliver("again.csv", rows(90, 20, day="2013-01-01"))
    # Other times: other rows, though the ids are the same.
    again = scene.run("2013-02-01")
    assert again.ids() == list(range(90, 110))
    scene.judged(again, "healthy")
    scene.deliver("once-more.parquet", rows(90, 25, day="2013-01-01"))
    assert scene.run("2013-02-01").ids() == list(range(110, 115))


def test_rows_whose_labels_are_on_their_way_are_left_to_the_next_run(scene: Scene) -> None:
    scene.deliver("a.parquet", rows(0, 48))
    taken = scene.run("2013-01-03", label_delay_hours=24)
    assert taken.ids() == list(range(24))
    scene.promote(taken)
    assert scene.run("2013-01-04", label_delay_hours=24).ids() == list(range(24, 48))


def test_a_row_without_its_label_is_taken_once_it_has_one(scene: Scene) -> None:
    scene.started()
    frame = rows(100, 10, day="2013-02-01")
    scene.deliver("b.parquet", frame.assign(y=frame["y"].where(frame["id"] < 105)))
    first = scene.run("2013-03-01")
    assert first.ids() == list(range(100, 105))
    assert "no target" in first.summary
    scene.judged(first, "healthy")
    scene.deliver("b.parquet", frame)
    assert scene.run("2013-03-01").ids() == list(range(105, 110))


def test_too_few_rows_wait_and_come_along_later(scene: Scene) -> None:
    scene.started()
    scene.deliver("b.parquet", rows(100, 5, day="2013-02-01"))
    waiting = scene.run("2013-03-01", min_rows=10)
    assert waiting.status == "waiting"
    assert "a verdict needs 10" in waiting.reason
    assert conclude(scene.registry, waiting.run_id, succeeded=True).outcome == "waiting"
    scene.deliver("c.parquet", rows(105, 5, day="2013-03-01"))
    assert scene.run("2013-04-01", min_rows=10).ids() == list(range(100, 110))


LARGE = {"settings": {"min_judge_rows": 100, "min_events": 10}, "min_rows": 200}


def test_a_window_that_could_decide_nothing_waits_before_anything_is_trained(scene: Scene) -> None:
    """200 rows, of which about 60 would judge."""
    scene.deliver("a.parquet", rows(0, 200))
    waiting = scene.run("2013-02-01", **LARGE)
    assert waiting.status == "waiting"
    assert "of them would judge (judge_fraction 0.3), where at least 100 have to" in waiting.reason
    scene.deliver("b.parquet", rows(200, 250))
    assert scene.run("2013-02-01", **LARGE).ids() == list(range(450))


def test_rare_events_are_waited_for_but_not_for_ever(scene: Scene) -> None:
    scene.deliver("a.parquet", rows(0, 500, y=["yes", *["no"] * 49] * 10))
    waiting = scene.run("2013-03-01", **LARGE)
    assert waiting.status == "waiting"
    assert "are outside of the most frequent class, where at least 10 have to be" in waiting.reason
    scene.deliver("b.parquet", rows(500, 1500, y=["no"] * 1500))
    assert scene.run("2013-05-01", **LARGE).status == "bootstrap"


def test_rows_of_an_entity_judge_together(scene: Scene) -> None:
    frame = rows(0, 400)
    scene.deliver("a.parquet", frame.assign(who=frame["id"] // 4))
    taken = scene.run("2013-02-01", settings={"group": "who"})
    judging, learned = (set(taken.frame(port)["who"]) for port in ("holdout", "dataset"))
    assert not judging & learned
    assert judging | learned == set(range(100))
    assert 15 < len(judging) < 45
    scene.judged(taken, "insufficient")
    scene.deliver("b.parquet", rows(400, 50, day="2013-02-01"))
    with pytest.raises(InvalidInput, match="did you mean 'id'|no column of this name"):
        scene.run("2013-03-01", settings={"group": "whom"})


def test_entities_that_come_back_are_learned_from_but_for_those_that_judge(scene: Scene) -> None:
    """Customers of every month: other ones judge each time, and no earlier row of theirs helps."""
    given = {"settings": {"group": "who"}, "validation_fraction": 0.2, "replay_rows": 1000}
    judged: list[set[int]] = []
    for month in range(1, 6):
        frame = rows(1000 * month, 400, day=f"2013-{month:02d}-01")
        scene.deliver(f"{month}.parquet", frame.assign(who=frame["id"] % 100))
        taken = scene.run(f"2013-{month + 1:02d}-01", **given)
        own = {port: set(taken.frame(port)["who"]) for port in ("holdout", "validation", "dataset")}
        assert sum(map(len, own.values())) == len(set.union(*own.values())) == 100
        older = taken.frame("replay")
        replayed = set(older["who"]) if len(older) else set()
        assert not replayed & (own["holdout"] | own["validation"])
        assert (month == 1) == (not replayed)
        judged.append(own["holdout"])
        scene.promote(taken)
    assert len({frozenset(one) for one in judged}) == 5
    assert not set.intersection(*judged)


def test_rows_whose_labels_are_late_are_handed_on_without_them(scene: Scene) -> None:
    """Those without a label, and those younger than the delay, but none of the future."""
    scene.started()
    scene.deliver("late.parquet", rows(100, 120, day="2013-02-01", y=None))
    scene.deliver("young.parquet", rows(300, 100, day="2013-02-10"))
    scene.deliver("again.parquet", rows(300, 10, day="2013-02-10"))
    given = {"label_delay_hours": 48.0, "min_rows": 10, "settings": {"min_judge_rows": 100}}
    taken = scene.run("2013-02-12", **given)
    assert taken.status == "late"
    assert taken.ids("unlabelled") == [*range(100, 220), *range(300, 348)]
    assert "y" not in taken.frame("unlabelled")
    kept = scene.registry.run(taken.run_id).collection
    assert kept
    assert kept.unlabelled == 168
    told = Judgement(
        run_id=taken.run_id,
        step="expect",
        decision="insufficient",
        reason="Expected of 168 rows: much.",
        expected={"log_loss": Score(value=0.4, low=0.3, high=0.5, rows=168)},
    )
    scene.registry.append(told)
    ended = conclude(scene.registry, taken.run_id, succeeded=True)
    assert ended.outcome == "waiting"
    assert "(110 not due yet, 120 without a usable target)" in ended.reason
    assert ended.reason.endswith(" Expected of 168 rows: much.")
    # Enough rows with labels are judged as ever, and the others told of beside them.
    scene.deliver("due.parquet", rows(500, 50, day="2013-02-05"))
    ready = scene.run("2013-02-12", label_delay_hours=48.0)
    assert ready.status == "ready"
    assert ready.ids() == list(range(500, 550))
    assert ready.ids("unlabelled") == taken.ids("unlabelled")


def test_without_a_champion_nothing_is_expected(scene: Scene) -> None:
    scene.deliver("late.parquet", rows(100, 120, y=[None] * 110 + ["no", "yes"] * 5))
    settings = {"min_judge_rows": 100}
    assert scene.run("2013-02-12", min_rows=20, settings=settings).status == "waiting"


WEIGHTED = {"settings": {"roles": {"weight": "weight"}}}


@pytest.mark.parametrize(
    ("columns", "given", "told"),
    [
        pytest.param({"weight": 0.0}, WEIGHTED, "weight 'weight' = 'all zero'", id="all zero"),
        pytest.param({"weight": np.nan}, WEIGHTED, "every row needs a weight", id="NaN"),
        pytest.param({"weight": np.inf}, WEIGHTED, "200 infinite values", id="infinite"),
        pytest.param({"weight": -1.0}, WEIGHTED, "negative values, down to -1", id="negative"),
        pytest.param({"weight": "many"}, WEIGHTED, "are not numbers", id="words"),
        pytest.param({"y": "no"}, {}, "target 'y' = .*at least two classes", id="one class"),
        pytest.param(
            {}, {"settings": {"group": "y"}}, "is the target, and no entity", id="group: target"
        ),
        pytest.param(
            {}, {"settings": {"group": "t"}}, "is the timestamp, and no entity", id="group: time"
        ),
        pytest.param(
            {"p": 2.0},
            {"settings": {"roles": {"p": "soft"}}},
            r"settings.roles\['p'\] = 'soft': .* and no teacher",
            id="soft",
        ),
        pytest.param(
            {},
            {"settings": {"roles": {"x": "time", "id": "group"}}},
            r"settings.roles\['x'\] = 'time': .*`timestamp` as their time",
            id="time and group",
        ),
    ],
)
def test_a_stream_refuses_by_name_what_it_cannot_use(scene: Scene, columns, given, told) -> None:
    scene.deliver("a.parquet", rows(0, 200, **columns))
    with pytest.raises(InvalidInput, match=told):
        scene.run("2013-02-01", **given)
    assert scene.registry.read().claim is None, "no row was taken"


def test_rows_that_count_for_nothing_do_not_judge(scene: Scene) -> None:
    scene.deliver("a.parquet", rows(0, 200, weight=1.0))
    scene.promote(scene.run("2013-02-01", settings=WEIGHTED["settings"]))
    scene.deliver("b.parquet", rows(200, 100, day="2013-02-01", weight=0.0))
    waiting = scene.run("2013-03-01", settings=WEIGHTED["settings"])
    assert waiting.status == "waiting"
    assert "0 of them would judge" in waiting.reason
    assert "those with a 'weight' of 0 do not" in waiting.reason


def test_one_entity_alone_cannot_both_teach_and_judge(scene: Scene) -> None:
    scene.deliver("a.parquet", rows(0, 300, who="one"))
    settings = {"group": "who", "min_judge_rows": 100}
    waiting = scene.run("2013-01-20", settings=settings)
    assert waiting.status == "waiting"
    assert "would judge (judge_fraction 0.3 of 1 value of 'who')" in waiting.reason


def test_roles_of_columns_reach_every_split(scene: Scene) -> None:
    """Validation rows are of other entities than those that are learned from or judge."""
    frame = rows(0, 400)
    frame = frame.assign(who=(frame["id"] * 7) % 100, weight=frame["id"] % 5 + 1.0)
    scene.deliver("a.parquet", frame)
    roles = {"who": "group", "weight": "weight", "id": "ignored"}
    taken = scene.run("2013-02-01", settings={"roles": roles}, validation_fraction=0.2)
    schema = Dataset.open(str(taken.folder / "dataset")).schema
    assert [column.name for column in schema.features] == ["x"]
    held = [set(taken.frame(port)["who"]) for port in ("holdout", "validation", "dataset")]
    assert sum(map(len, held)) == len(set.union(*held)) == 100
    assert all(held)
    weights = Dataset.open(str(taken.folder / "fresh")).weights()
    assert weights is not None
    assert weights.sum() == frame["weight"].sum()
    with pytest.raises(InvalidInput, match=r"settings.roles\['x'\].*no teacher"):
        scene.run("2013-03-01", settings={"roles": {"x": "soft"}})
    scene.deliver("b.parquet", frame.assign(weight=-1.0, id=frame["id"] + 1000, t=frame["t"]))
    scene.judged(taken, "insufficient")
    with pytest.raises(InvalidInput, match="weight 'weight'.*negative"):
        scene.run("2013-03-01", settings={"roles": roles})


def test_a_quiet_month_says_what_it_found_instead(scene: Scene) -> None:
    scene.deliver("a.parquet", rows(0, 30, y=[None] * 10 + ["no", "yes"] * 10))
    waiting = scene.run("2013-01-01T20:00:00", min_rows=50)
    assert waiting.status == "waiting"
    assert "10 not due yet" in waiting.reason
    assert "10 without a usable target" in waiting.reason


def test_dates_in_folder_names_are_times_where_asked_for(scene: Scene) -> None:
    for day, first in (("2013-04-01", 0), ("2013-04-02", 10)):
        frame = rows(first, 10).drop(columns="t")
        scene.deliver(f"date={day}/part.parquet", frame)
    assert scene.run("2013-04-02", timestamp="date").ids() == list(range(10))


def test_dates_in_folder_names_are_no_feature(scene: Scene) -> None:
    scene.deliver("date=2013-01-01/region=north/a.parquet", rows(0, 20))
    scene.deliver("date=2013-01-02/region=south/a.parquet", rows(20, 20))
    assert set(scene.run("2013-02-01").frame().columns) == {"t", "id", "x", "y", "region"}


def test_changes_of_the_columns_are_reported_and_survived(scene: Scene) -> None:
    scene.deliver("a.parquet", rows(0, 100, k=["a", "b"] * 50, flag=[True, False] * 50))
    scene.promote(scene.run("2013-02-01"))
    texts = ["1.5"] * 19 + ["unknown"]
    frame = rows(100, 20, day="2013-02-01", k=["c"] * 20, fresh=[1] * 20)
    frame["x"] = texts
    scene.deliver("b.parquet", frame)
    taken = scene.run("2013-03-01")
    for part in (
        "column 'fresh' (int64) is new",
        "column 'flag' is missing in 20 rows",
        "column 'x' changed its type: ",
        "column 'x': 1 value that cannot be read",
        "column 'k' has labels never seen: 'c'",
    ):
        assert part in taken.summary
    got: Any = taken.frame()
    assert set(got["k"]) == {"c"}
    assert got["x"].isna().sum() == 1
    assert (got["x"].dropna() == 1.5).all()
    assert got["flag"].isna().all()


def test_a_class_that_no_model_knows_is_left_out_and_reported(scene: Scene) -> None:
    scene.started()
    frame = rows(100, 10, day="2013-02-01")
    scene.deliver("b.parquet", frame.assign(y=["maybe"] * 4 + ["no", "yes"] * 3))
    taken = scene.run("2013-03-01")
    assert taken.ids() == list(range(104, 110))
    assert "class 'maybe' of the target is not one the model knows: 4 rows" in taken.summary


def test_times_with_a_zone_are_compared_as_instants(scene: Scene) -> None:
    frame = rows(0, 48)
    scene.deliver("a.parquet", frame.assign(t=frame["t"].dt.tz_localize("Europe/Berlin")))
    # 24 hours of Berlin's first of January are over an hour before UTC's.
    assert scene.run("2013-01-02").ids() == list(range(25))


def test_naive_times_mean_what_the_settings_say(scene: Scene) -> None:
    scene.deliver("a.parquet", rows(0, 48))
    taken = scene.run("2013-01-02", settings={"timezone": "Europe/Berlin"})
    assert taken.ids() == list(range(25))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"as_of": "[[ScheduledTime]]"}, "as_of = '[[ScheduledTime]]'", id="as-of"),
        pytest.param({"registry": "gs://b/[[x]]"}, "registry = 'gs://b/[[x]]'", id="registry"),
        pytest.param({"run_id": "{{$.pipeline_job_uuid}}"}, "a placeholder", id="run-id"),
        pytest.param({"source": "data-[[Date]]/"}, "a placeholder", id="source"),
        pytest.param({"as_of": "soon"}, "is not a date; write 2013-04-01", id="no-date"),
        pytest.param({"since": "2014-01-01"}, "no row is from after it and before", id="since"),
        pytest.param({"target": "yy"}, "did you mean 'y'", id="no-target"),
        pytest.param({"timestamp": "tt"}, "did you mean 't'", id="no-timestamp"),
        pytest.param({"timestamp": "x"}, "say settings={'timestamp_format': 's'}", id="numbers"),
        pytest.param({"timestamp": "word"}, "no time can be read from 'hello'", id="words"),
        pytest.param({"source": "/nowhere"}, "matches no Parquet or CSV file", id="no-file"),
        pytest.param({"judge_fraction": 1.0}, "judge_fraction = 1.0", id="all-judge"),
        pytest.param({"validation_fraction": 0.8}, "leave nothing to train on", id="no-train"),
        pytest.param({"settings": {"timezon": "UTC"}}, "unknown key", id="unknown-setting"),
        pytest.param({"settings": {"timezone": "Mars"}}, "no such time zone", id="no-zone"),
        pytest.param({"features": ["t"]}, "is the time of a row", id="time-as-feature"),
        pytest.param({"registry": ""}, "registry = ''", id="no-registry"),
    ],
)
def test_bad_input_is_named_with_its_remedy(scene: Scene, given: dict, message: str) -> None:
    scene.deliver("a.parquet", rows(0, 10, word=["hello"] * 10))
    values = {"as_of": "2013-02-01", "run_id": "r", **given}
    registry = values.pop("registry", scene.registry.uri)
    with pytest.raises(InvalidInput) as caught:
        scene.run(values.pop("as_of"), values.pop("run_id"), registry=registry, **values)
    assert message in str(caught.value)
    assert scene.registry.read().claim is None


def test_all_problems_are_reported_at_once(scene: Scene) -> None:
    with pytest.raises(InvalidInput, match="4 problems"):
        scene.run("soon", "{{x}}", min_rows=0, judge_fraction=2.0)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        pytest.param("zone", "settings={'timezone': 'Europe/Berlin'}", id="zones-mixed"),
        pytest.param("cut", "cut off, or not Parquet", id="cut-off"),
        pytest.param("no-target", "has no such column", id="target-missing"),
    ],
)
def test_a_file_that_does_not_fit_stops_the_run_before_it_takes_anything(
    scene: Scene, second: str, message: str
) -> None:
    scene.started()
    frame = rows(100, 10, day="2013-02-01")
    scene.deliver("c.parquet", frame)
    if second == "zone":
        scene.deliver("b.parquet", frame.assign(t=frame["t"].dt.tz_localize("UTC")))
    elif second == "cut":
        path = scene.deliver("b.parquet", frame)
        path.write_bytes(path.read_bytes()[:-20])
    else:
        scene.deliver("b.parquet", frame.drop(columns="y"))
    with pytest.raises(InvalidInput, match="problem") as caught:
        scene.run("2013-03-01")
    assert message in str(caught.value)
    assert "b.parquet" in str(caught.value)
    assert scene.registry.read().claim is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"target": "x"}, "agreed on 'y'", id="target"),
        pytest.param({"keys": ["id"]}, "agreed on \\[\\]", id="keys"),
    ],
)
def test_the_meaning_of_rows_cannot_change(scene: Scene, given: dict, message: str) -> None:
    scene.started()
    with pytest.raises(InvalidInput, match=message):
        scene.run("2013-03-01", **given)


def test_a_champion_deleted_by_hand_is_missed_before_rows_are_taken(scene: Scene) -> None:
    scene.started()
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    scene.promote(scene.run("2013-03-01"))
    champion = scene.registry.read().champion
    assert champion is not None
    scene.registry.store.delete(f"{champion.folder}/model/model.safetensors")
    with pytest.raises(CorruptData, match="champion 2 .* rollback .* --to 1"):
        scene.run("2013-04-01")
    scene.registry.change(transitions.rollback)
    assert scene.run("2013-04-01").status == "waiting"


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        pytest.param(b"{", CorruptData, "cannot be read as JSON", id="torn"),
        pytest.param(b'{"format": "other/1"}', CorruptData, "is not a registry", id="foreign"),
        pytest.param(
            b'{"format": "kubestill/registry/2"}', InvalidInput, "another version", id="newer"
        ),
        pytest.param(
            b'{"format": "kubestill/registry/1", "soul": 1}', CorruptData, "soul", id="field"
        ),
    ],
)
def test_a_registry_that_cannot_be_read(scene: Scene, content, error, message: str) -> None:
    scene.deliver("a.parquet", rows(0, 10))
    scene.registry.store.cell("state.json").swap(content, expect="0")
    with pytest.raises(error, match=message):
        scene.run("2013-02-01")


def test_a_registry_on_cloud_storage(gcs, tmp_path) -> None:
    scene = Scene(tmp_path, f"{gcs.uri}/registry")
    scene.started()
    source = open_registry(f"{gcs.uri}/data").store
    path = scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    source.upload(str(path), "date=2013-02-01/b.parquet")
    taken = scene.run("2013-03-01", source=f"{gcs.uri}/data/**/*.parquet")
    assert taken.ids() == list(range(100, 150))
    assert scene.judged(taken, "healthy").outcome == "healthy"
