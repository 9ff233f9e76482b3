"""A registry that cannot move says so: after three windows that end alike, and what to change."""

from __future__ import annotations

from typing import get_args

import pytest
from click.testing import CliRunner
from scene import Scene, rows

from kubestill.cli.main import main
from kubestill.runtime.evaluation.decision import Cause
from kubestill.runtime.retraining.history import Judgement, RunOutcome
from kubestill.runtime.retraining.outcomes import REMEDIES, STUCK, conclude


def end_alike(scene: Scene, number: int, decision: str, cause: str = "") -> RunOutcome:
    """Take the rows of a month, and end the run as continuous-eval decided."""
    scene.deliver(f"{number}.parquet", rows(100 * number, 30, day=f"2013-{number:02d}-01"))
    taken = scene.run(f"2013-{number + 1:02d}-01")
    step = "judge" if decision in ("healthy", "unfit") else "challenge"
    judged = Judgement(
        run_id=taken.run_id, step=step, decision=decision, cause=cause, reason="So it is."
    )
    scene.registry.append(judged)
    return conclude(scene.registry, taken.run_id, succeeded=True)


def check(scene: Scene) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["registry", "check", scene.registry.uri])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("decision", "cause", "usual"),
    [*(("reject", cause, "rejected") for cause in get_args(Cause)), ("unfit", "", "unfit")],
)
def test_the_third_window_that_ends_alike_is_stuck_and_names_what_to_change(
    scene: Scene, decision, cause, usual
) -> None:
    scene.started()
    ends = [end_alike(scene, number, decision, cause) for number in range(2, 2 + STUCK)]
    assert [end.outcome for end in ends] == [usual] * (STUCK - 1) + ["stuck"]
    assert REMEDIES[cause or "unfit"] in ends[-1].reason
    # The state's own word for the window stays: rows are learned from, or not, as before.
    assert scene.registry.read().windows[-1].verdict == usual
    code, told = check(scene)
    assert (code, told.startswith("stuck: So it is.")) == (3, True)
    assert end_alike(scene, 9, "healthy").outcome == "healthy"
    assert check(scene)[0] == 0


@pytest.mark.parametrize(
    "between", [("healthy", ""), ("reject", "gain")], ids=["healthy", "another reason"]
)
def test_what_comes_between_begins_the_count_anew(scene: Scene, between) -> None:
    scene.started()
    sequence = [("reject", "golden")] * 2 + [between] + [("reject", "golden")] * 2
    ends = [end_alike(scene, number, *how) for number, how in enumerate(sequence, start=2)]
    assert "stuck" not in [end.outcome for end in ends]


def test_an_inconclusive_window_neither_counts_nor_begins_anew(scene: Scene) -> None:
    scene.started()
    sequence = [("reject", "golden")] * 2 + [("insufficient", ""), ("reject", "golden")]
    ends = [end_alike(scene, number, *how) for number, how in enumerate(sequence, start=2)]
    assert [end.outcome for end in ends][-2:] == ["inconclusive", "stuck"]


def test_a_registry_without_a_run_alarms_nobody(scene: Scene) -> None:
    scene.started()
    assert check(scene) == (0, "promoted: \n")


def test_golden_rows_of_the_registrys_own_are_replaced_when_they_are_a_year_old(
    scene: Scene,
) -> None:
    scene.started()
    judges: list[list[str]] = []
    for number, day in enumerate(("2013-06-01", "2014-02-01", "2014-06-01"), start=1):
        scene.deliver(f"{day}.parquet", rows(1000 * number, 40, day=day))
        month = f"{day[:6]}{int(day[6]) + 1}-01"
        scene.promote(scene.run(month))
        judges.append([window.judge for window in scene.registry.read().windows])
    assert judges == [
        ["golden", "trainable"],
        # The second champion's judges taught the third.
        ["trainable", "trained", "golden"],
        ["trained", "trained", "golden", "trainable"],
    ]


def test_a_champion_that_nothing_beats_is_not_stuck(scene: Scene) -> None:
    """It showed no decay, and challengers were tried because there were rows to learn from."""
    scene.started()
    for number in range(2, 2 + STUCK):
        scene.deliver(f"{number}.parquet", rows(100 * number, 30, day=f"2013-{number:02d}-01"))
        taken = scene.run(f"2013-{number + 1:02d}-01")
        for step, decision, cause in (
            ("judge", "degraded", "rows"),
            ("challenge", "reject", "gain"),
        ):
            judged = Judgement(
                run_id=taken.run_id, step=step, decision=decision, cause=cause, reason="So it is."
            )
            scene.registry.append(judged)
        ended = conclude(scene.registry, taken.run_id, succeeded=True)
        assert ended.outcome == "rejected"
