"""A refit learns from the rows that judged: nothing else may change by that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scene import Scene, Taken, rows

from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.models.identity import read_digest
from kubestill.runtime.reports.registry import registry_page
from kubestill.runtime.retraining import inspection, transitions
from kubestill.runtime.retraining.champions import check_champion
from kubestill.runtime.retraining.outcomes import abandon, conclude
from kubestill.runtime.steps.continuous_eval import continuous_eval
from kubestill.runtime.steps.open_champion import open_champion
from kubestill.runtime.steps.promote_model import promote_model
from kubestill.runtime.steps.train_teacher import train_teacher
from kubestill.runtime.stores import open_store


def later(scene: Scene, number: int, **given: Any) -> Taken:
    """Fifty rows of another month, and the run that takes them."""
    day = f"2013-{number:02d}-01"
    scene.deliver(f"{number}.parquet", rows(50 * number, 50, day=day))
    return scene.run(f"2013-{number + 1:02d}-01", **given)


def test_a_refit_has_every_row_of_its_window_and_the_golden_ones(scene: Scene) -> None:
    scene.deliver("first.parquet", rows(0, 100))
    settings = {"judge_gap": 0.1}
    first = scene.run("2013-01-20", validation_fraction=0.2, settings=settings)
    assert first.ids("whole") == list(range(100))
    parts = [first.ids(port) for port in ("dataset", "validation", "holdout")]
    assert sum(map(len, parts)) == 90  # ten lie next to those that judge
    scene.promote(first, refit=True)
    second = later(scene, 2, replay_rows=1000)
    golden = first.ids("holdout")
    assert second.ids("whole") == sorted([*golden, *range(100, 150)])
    for port in ("dataset", "validation", "replay"):
        assert not {*golden} & {*second.ids(port)}, port
    # What was learned judges nobody: these rows are new.
    assert not {*first.ids("whole")} & {*second.ids("fresh")}
    assert {*second.ids("replay")} == {*range(100)} - {*golden}


def test_golden_rows_of_the_users_own_are_learned_by_nobody(scene: Scene) -> None:
    own = scene.folder / "golden.parquet"
    rows(1000, 20).to_parquet(own)
    scene.deliver("first.parquet", rows(0, 100))
    first = scene.run("2013-01-20", golden_source=str(own))
    scene.promote(first, refit=True)
    second = later(scene, 2, golden_source=str(own))
    # Those that judged the first one are learned from like any others.
    assert second.ids("whole") == sorted([*first.ids("holdout"), *range(100, 150)])
    assert {*first.ids("holdout")} <= {*second.ids("dataset")}


def test_entities_that_judge_are_kept_from_the_judged_model_only(scene: Scene) -> None:
    frame = rows(0, 100, who=[f"c{place % 20}" for place in range(100)])
    scene.deliver("first.parquet", frame)
    given = {"settings": {"group": "who"}, "replay_rows": 1000}
    first = scene.run("2013-01-20", **given)
    scene.promote(first, refit=True)
    frame = rows(100, 100, day="2013-02-01", who=[f"c{place % 20}" for place in range(100)])
    scene.deliver("second.parquet", frame)
    second = scene.run("2013-03-01", **given)
    judging = {*second.frame("holdout")["who"]}
    assert not judging & {*second.frame("dataset")["who"], *second.frame("replay")["who"]}
    assert {*second.ids("whole"), *second.ids("replay")} == {*range(200)}
    assert not {*second.ids("whole")} & {*second.ids("replay")}


def test_who_learned_from_what_follows_the_promotions(scene: Scene) -> None:
    scene.started(refit=True)
    scene.promote(later(scene, 2), refit=True)
    first, second = scene.registry.read().windows
    assert (first.judge, first.trained_by) == ("golden", {"train": 1, "judge": 1})
    assert (second.judge, second.trained_by) == ("trainable", {"train": 2, "judge": 2})
    # The next challenger learns from them, and the refit before it did so first.
    third = later(scene, 3)
    assert {*later_judges(second, scene)} <= {*third.ids("dataset")}
    scene.promote(third)
    second = scene.registry.read().windows[1]
    assert (second.judge, second.trained_by) == ("trained", {"train": 2, "judge": 2})


def later_judges(window: Any, scene: Scene) -> list[int]:
    uri = f"{scene.registry.uri}/windows/{window.id}/judge"
    return [int(value) for value in Dataset.open(uri).to_pandas()["id"]]


@pytest.mark.parametrize("refit", [True, False])
def test_who_quarantines_what_a_refit_has_learned_hears_of_it(scene: Scene, refit: bool) -> None:
    scene.started()
    taken = later(scene, 2)
    scene.promote(taken, refit=refit)
    # Without a refit it has learned from the other half, which is not what is quarantined.
    window = scene.registry.read().windows[1]
    told = inspection.quarantine(scene.registry.uri, [window.id])
    assert ("; champion 2 has learned from some of these rows already" in told) == refit
    assert scene.registry.read().windows[1].judge == "quarantined"


def test_a_rollback_quarantines_what_only_a_refit_learned(scene: Scene) -> None:
    scene.started(refit=True)
    scene.promote(later(scene, 2), refit=True)
    scene.promote(later(scene, 3))
    scene.registry.change(lambda now: transitions.rollback(now, to=2))
    first, second, third = scene.registry.read().windows
    assert (second.train, second.judge) == ("trained", "trained")  # champion 2 had learned them
    assert (third.train, third.judge) == ("quarantined", "trainable")  # no refit was promoted
    scene.registry.change(transitions.rollback)
    first, second, third = scene.registry.read().windows
    assert (second.train, second.judge) == ("quarantined", "quarantined")
    assert first.judge == "golden"


def test_a_year_later_golden_rows_that_a_refit_has_learned_become_lessons(scene: Scene) -> None:
    first = scene.started(refit=True)
    scene.deliver("b.parquet", rows(100, 50, day="2014-02-01"))
    second = scene.run("2014-03-01")
    scene.promote(second, refit=True)
    old, new = scene.registry.read().windows
    assert (old.judge, old.trained_by["judge"]) == ("trainable", 1)
    assert (new.judge, new.trained_by["judge"]) == ("golden", 2)
    assert {*first.ids("holdout")} <= {*second.ids("whole")}


def test_a_champion_without_the_model_that_was_judged_is_damaged(scene: Scene) -> None:
    scene.started(refit=True)
    state = scene.registry.read()
    check_champion(scene.registry, state)
    assert state.champion is not None
    scene.registry.store.delete(f"{state.champion.folder}/judged/model/model.json")
    with pytest.raises(CorruptData, match="model.json"):
        check_champion(scene.registry, state)


# With models that are trained


class Run:
    """The first run of a registry, step by step."""

    def __init__(self, scene: Scene):
        self.scene = scene
        random = np.random.default_rng(0)
        frame = rows(0, 600).assign(x=random.normal(size=600))
        frame["y"] = np.where(frame["x"] + 0.5 * random.normal(size=600) > 0, "yes", "no")
        scene.deliver("first.parquet", frame)
        self.taken = scene.run("2013-03-01", "first", features=["x"], validation_fraction=0.15)
        given = {port: self.rows(port) for port in ("dataset", "validation")}
        how = {"network_args": {"hidden": [8]}, "epochs": 4.0, "learning_rate": 0.02}
        self.made = self.ports("model", "ledger", "metrics", "report", "summary", step="train")
        train_teacher(**given, **how, checkpoint_uri=str(scene.folder / "store"), **self.made)
        told = self.ports("metrics", "report", "summary", "record", step="judge")
        about: dict[str, Any] = {"registry": scene.registry.uri, "run_id": "first"}
        decision, reason = continuous_eval(
            model=self.made["model"],
            dataset=self.rows("holdout"),
            step="challenge",
            **about,
            **told,
        )
        assert decision == "promote", reason
        self.inputs = {
            **about,
            **{port: self.made[port] for port in ("model", "ledger")},
            "record": told["record"],
            "checkpoint_uri": str(scene.folder / "store"),
        }

    def rows(self, port: str) -> LocalArtifact:
        return LocalArtifact(str(self.taken.folder / port), metadata={"kind": "dataset"})

    def ports(self, *names: str, step: str) -> dict[str, Any]:
        return {name: LocalArtifact(str(self.scene.folder / step / name)) for name in names}

    def promote(self, whole: LocalArtifact | None = None, **more: Any) -> str:
        """Promote, and return what the history says of the refit."""
        whole = whole or self.rows("whole")
        promote_model(**self.inputs, whole=whole, **self.ports("summary", step="promote"), **more)
        promotion = self.scene.registry.run("first").promotion
        assert promotion is not None
        return promotion.refit


@pytest.fixture
def run(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("KUBESTILL_CACHE", str(scene.folder / "cache"))
    return Run(scene)


def test_promoted_is_the_refit_and_its_evidence_is_the_judged_models(run: Run) -> None:
    told = run.promote()
    registry, judged = run.scene.registry, read_digest(open_store(run.made["model"].path))
    champion = registry.read().champion
    assert champion is not None
    assert champion.judged == champion.decision.model == judged != champion.model_digest
    assert read_digest(open_store(registry.model_uri(champion))) == champion.model_digest
    assert read_digest(open_store(registry.judged_uri(champion))) == judged
    learned = len(run.taken.ids("dataset"))
    assert told == (
        f"Judged was model {judged[:12]}, trained on {learned} rows without the newest; promoted "
        "is the same recipe, trained on all 600."
    )
    done = conclude(registry, "first", succeeded=True)
    assert done.outcome == "promoted"
    assert done.reason.endswith(told)
    assert told in Path(run.scene.folder / "promote" / "summary").read_text()
    page = registry_page(registry.uri, registry.read(), list(registry.runs()))
    before, _, after = page.partition(" refit of ")
    assert f">{champion.model_digest[:12]}</a>" in before
    assert after.index(f">{judged[:12]}</a>") < 100
    assert told in page
    # The next challenger begins where the judged model did, and its golden rows are nobody's yet.
    names = ("model", "ledger", "checkpoint", "golden")
    opened = run.ports(*names, step="open")
    open_champion(registry=registry.uri, **opened)
    assert opened["model"].metadata["digest"] == champion.model_digest
    assert opened["golden"].metadata["rows"] == len(run.taken.ids("holdout"))


def test_a_run_killed_between_refit_and_promotion_goes_on(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, before = run.scene.registry, run.scene.registry.read()
    with monkeypatch.context() as patch:
        patch.setattr(transitions, "promote", lambda state, champion: 1 / 0)  # it dies here
        with pytest.raises(ZeroDivisionError):
            run.promote()
    assert registry.read() == before
    run.promote()
    assert "its result is adopted" in capsys.readouterr().out
    after = registry.read()
    assert after.champion is not None
    assert after.champion.judged
    # A second driver that comes late changes nothing.
    run.promote()
    assert registry.read() == after


def test_what_a_refit_learned_is_given_back_if_it_is_never_promoted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(transitions, "promote", lambda state, champion: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.promote()
    abandon(run.scene.registry, "first", "Somebody killed it.")
    again = run.scene.run("2013-03-01", "second", features=["x"])
    assert again.ids() == run.taken.ids()
    assert not run.scene.registry.read().windows


def test_a_refit_that_went_wrong_is_not_promoted(run: Run) -> None:
    path = Path(run.taken.folder / "whole")
    frame = Dataset.open(str(path)).to_pandas()
    turned = run.scene.folder / "turned"
    with DatasetWriter(str(turned), Dataset.open(str(path)).schema) as writer:
        frame["y"] = pd.Categorical(
            np.where(frame["y"] == "yes", "no", "yes"), categories=["no", "yes"]
        )
        writer.write(frame)
    told = run.promote(LocalArtifact(str(turned), metadata={"kind": "dataset"}))
    assert told.startswith("Promoted is the judged model as it was: trained with all rows, its log")
    champion = run.scene.registry.read().champion
    assert champion is not None
    assert (champion.judged, champion.model_digest) == ("", champion.decision.model)
    (window,) = run.scene.registry.read().windows
    assert window.trained_by == {"train": 1}


def test_without_a_refit_the_judged_model_is_promoted(run: Run) -> None:
    assert run.promote(refit=False) == ""
    champion = run.scene.registry.read().champion
    assert champion is not None
    assert (champion.judged, champion.model_digest) == ("", champion.decision.model)


def test_another_model_than_the_judged_one_is_refused_before_it_is_trained(run: Run) -> None:
    run.inputs["model"] = LocalArtifact(run.inputs["model"].path, metadata={"kind": "dataset"})
    with pytest.raises(InvalidInput, match="connect a model"):
        run.promote()
