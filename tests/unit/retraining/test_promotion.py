"""Nothing but what was judged becomes champion; and one can go back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scene import Scene, Taken, rows

from kubestill.cli.main import main
from kubestill.errors import Conflict, CorruptData, Fenced, InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact, read_record, write_record
from kubestill.runtime.checkpoints.ledger import Ledger, write_ledger_artifact
from kubestill.runtime.retraining import State, transitions
from kubestill.runtime.steps.open_champion import open_champion
from kubestill.runtime.steps.promote_model import promote_model
from model_registry import model_registry

SCORE = ("value", "low", "high", "rows", "median")
"""Fields of a score; this version knows no `median`."""


@pytest.fixture
def second(scene: Scene) -> Taken:
    """A run with a champion to beat."""
    scene.started()
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    return scene.run("2013-03-01")


def challenger(scene: Scene, taken: Taken, **changed: str) -> dict:
    """The inputs of promote-model for a challenger that was judged well."""
    state = scene.registry.read()
    assert state.claim is not None
    assert state.champion is not None
    made = scene.champion(taken.run_id, "challenger")
    folder = scene.folder / "challenger"
    folder.mkdir()
    for name in ("model.json", "model.safetensors"):
        (folder / name).write_bytes(scene.registry.store.get(f"models/challenger/model/{name}"))
    ledger = str(scene.folder / "ledger")
    write_ledger_artifact(Ledger(uri=str(scene.folder / "training")), ledger)
    decision = {
        "decision": "promote",
        "reason": "It is better.",
        "model": made.model_digest,
        "baseline": state.champion.model_digest,
        "dataset": state.claim.window.holdout,
        **changed,
    }
    artifact = LocalArtifact(str(scene.folder / "record"))
    write_record(artifact, "decision", {"decision": decision})
    return {
        "model": LocalArtifact(str(folder), metadata={"kind": "model"}),
        "ledger": LocalArtifact(ledger, metadata={"kind": "ledger"}),
        "record": artifact,
        "registry": scene.registry.uri,
        "run_id": taken.run_id,
        "summary": LocalArtifact(str(scene.folder / "promoted.md")),
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"decision": "insufficient"}, "only 'promote' makes a champion", id="verdict"),
        pytest.param({"model": "0" * 64}, "the challenger had the digest", id="another-model"),
        pytest.param({"baseline": "0" * 64}, "the champion it was compared with", id="opponent"),
        pytest.param({"dataset": "0" * 64}, "the rows it was judged by", id="another-dataset"),
    ],
)
def test_only_what_was_judged_is_promoted(scene: Scene, second: Taken, changed, message) -> None:
    before = scene.registry.read()
    with pytest.raises(InvalidInput, match=message):
        promote_model(**challenger(scene, second, **changed))
    assert scene.registry.read() == before


def test_weights_that_were_changed_after_the_verdict_are_refused(
    scene: Scene, second: Taken
) -> None:
    inputs = challenger(scene, second)
    (scene.folder / "challenger" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(CorruptData, match=r"is not what model\.json names"):
        promote_model(**inputs)


def test_a_run_without_a_window_promotes_nothing(scene: Scene, second: Taken) -> None:
    inputs = challenger(scene, second)
    scene.judged(second, "healthy")
    with pytest.raises(Fenced):
        promote_model(**inputs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "holds no decision on a model; connect the `record`"),
        ('{"decision": []}', "holds no decision on a model; connect the `record`"),
        (
            '{"decision": {"decision": "bootstrap", "reason": "", "dataset": ""}}',
            "holds no decision on a model; connect the `record`",
        ),
        ('{"decision": {"decision": "promote", "model": 7}}', "reason: Field required"),
        ("[]", "holds no JSON object"),
        ("", "cannot be read"),
    ],
    ids=["empty", "another-type", "nothing-judged", "torn", "a-list", "no-json"],
)
def test_a_record_without_a_decision_is_refused(
    scene: Scene, second: Taken, content: str, message: str
) -> None:
    inputs = challenger(scene, second)
    Path(inputs["record"].path).write_text(content)
    with pytest.raises(InvalidInput, match=message):
        promote_model(**inputs)


def test_without_any_record_nothing_is_promoted(scene: Scene, second: Taken) -> None:
    inputs = challenger(scene, second)
    del inputs["record"]
    with pytest.raises(InvalidInput, match="connect the `record`"):
        promote_model(**inputs)


@pytest.mark.parametrize("wrap", [lambda it: it, lambda it: {"struct": it}], ids=["bare", "struct"])
def test_the_metrics_of_an_older_version_hold_the_decision(
    scene: Scene, second: Taken, wrap: Callable[[Any], Any]
) -> None:
    inputs = challenger(scene, second)
    decision = read_record(inputs.pop("record"))["decision"] | {"decision": "insufficient"}
    metadata = {"kind": "metrics", "decision_record": wrap(decision)}
    with pytest.raises(InvalidInput, match="only 'promote' makes a champion"):
        promote_model(**inputs, metrics=LocalArtifact("m", metadata=metadata))


def test_promotion_finds_its_work_done(scene: Scene, second: Taken) -> None:
    inputs = challenger(scene, second)
    state = scene.registry.read()
    assert state.claim is not None
    champion = scene.champion(second.run_id, state.claim.window.id)
    champion = champion.model_copy(
        update={"model_digest": read_record(inputs["record"])["decision"]["model"]}
    )
    scene.registry.change(lambda now: transitions.promote(now, champion))
    with model_registry() as served:
        asked: dict[str, Any] = {"model_registry": served.host, "model_name": "flights"}
        assert promote_model(**inputs, **asked)[0] == 2
    assert [one["name"] for one in served.versions] == ["2"]
    assert "Model Registry: version 2 of 'flights'" in Path(inputs["summary"].path).read_text()
    # Nobody answers any more, and the champion stays champion.
    assert promote_model(**inputs, **asked)[0] == 2
    assert "not registered" in Path(inputs["summary"].path).read_text()
    assert scene.registry.read().versions == 2


def test_a_challenger_judged_against_another_champion_loses_to_a_rollback(scene: Scene) -> None:
    scene.started()
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    scene.promote(scene.run("2013-03-01"))
    scene.deliver("c.parquet", rows(150, 50, day="2013-03-01"))
    third = scene.run("2013-04-01")
    done = CliRunner().invoke(main, ["registry", "rollback", scene.registry.uri, "--yes"])
    assert "champion 1 is the champion again, instead of champion 2" in done.output
    with pytest.raises(Conflict, match="judged against champion 2, but champion 1"):
        scene.promote(third)


def test_rows_that_a_rolled_back_champion_learned_from_are_quarantined(scene: Scene) -> None:
    scene.started()
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    second = scene.run("2013-03-01")
    scene.promote(second)
    scene.registry.change(transitions.rollback)
    scene.deliver("c.parquet", rows(150, 50, day="2013-03-01"))
    third = scene.run("2013-04-01")
    assert not set(third.ids("dataset")) & set(second.ids("dataset"))
    scene.promote(third)
    # Numbers are not used twice: champion 2 was another.
    champion = scene.registry.read().champion
    assert champion is not None
    assert champion.version == 3


@pytest.mark.parametrize("to", ["0", "7"])
def test_a_rollback_needs_a_former_champion(scene: Scene, to: str) -> None:
    scene.started()
    asked = ["registry", "rollback", scene.registry.uri, "--yes", "--to", to]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 1
    assert "no former champion" in done.output


def test_facts_of_a_newer_versions_decision_survive_a_change_of_the_registry(scene: Scene) -> None:
    scene.started()
    registry = scene.registry
    state = json.loads(registry.store.get("state.json"))
    state["champion"]["decision"] |= {"by": "a person", "scores": {"rmse": dict.fromkeys(SCORE, 1)}}
    registry.change(lambda _: State.model_validate(state))
    registry.change(lambda now: now.model_copy(update={"versions": 7}))
    again = json.loads(registry.store.get("state.json"))
    assert again["versions"] == 7
    assert again["champion"] == state["champion"]


def test_a_rollback_asks_once_nothing_stands_in_its_way(scene: Scene) -> None:
    scene.started()
    asked = ["registry", "rollback", scene.registry.uri]
    assert "Roll back" not in CliRunner().invoke(main, asked, input="y\n").output
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    scene.promote(scene.run("2013-03-01"))
    before = scene.registry.read()
    done = CliRunner().invoke(main, asked, input="n\n")
    assert "The champion is champion 2. Roll back to champion 1?" in done.output
    assert scene.registry.read() == before
    assert CliRunner().invoke(main, asked, input="y\n").exit_code == 0
    champion = scene.registry.read().champion
    assert champion is not None
    assert champion.version == 1


def test_the_command_lists_runs_and_shows_how_things_stand(scene: Scene, second: Taken) -> None:
    scene.judged(second, "unfit", unfit=["x: in another unit."])
    listed = CliRunner().invoke(main, ["registry", "ls", scene.registry.uri]).output
    lines = listed.splitlines()
    assert len(lines) == 3
    assert "promoted" in lines[1]
    assert "unfit" in lines[2]
    shown = CliRunner().invoke(main, ["registry", "show", scene.registry.uri]).output
    assert "champion         champion 1" in shown
    assert "quarantined" in shown
    assert "rows that judged the first champion" in shown


def test_the_json_of_runs_and_of_how_things_stand_keeps_its_names(
    scene: Scene, second: Taken
) -> None:
    """Scripts read it: names, order and values are an interface."""
    scene.judged(second, "unfit", unfit=["x: in another unit."])
    state, uri = scene.registry.read(), scene.registry.uri
    first, last = state.windows
    assert state.champion is not None
    standing = {
        "registry": uri,
        "champion": "champion 1",
        "model": f"{uri}/models/{first.id}/model",
        "judged through": "2013-03-01T00:00:00",
        "trained through": "2013-01-05T03:00:00",
        "golden": "30 rows that judged the first champion",
        "at work": "nobody",
        "champions": [
            {
                "version": 1,
                "promoted": "2013-01-01T00:00",
                "window": first.id,
                "digest": state.champion.model_digest[:12],
                "run": "run1",
            }
        ],
        "windows": [
            {
                "window": first.id,
                "before": "2013-01-20T00:00",
                "rows": 100,
                "late": 0,
                "verdict": "promoted",
                "to learn from": "trained",
                "judges": "golden",
                "run": "run1",
            },
            {
                "window": last.id,
                "before": "2013-03-01T00:00",
                "rows": 50,
                "late": 0,
                "verdict": "unfit",
                "to learn from": "quarantined",
                "judges": "quarantined",
                "run": "run2",
            },
        ],
    }
    runs = [
        {
            "run_id": run.run_id,
            "at": run.entries[0].at,
            "end": end,
            "rows": rows,
            "outcome": outcome,
            "version": None,
            "reason": reason,
            "drift": [],
        }
        for run, end, rows, outcome, reason in zip(
            scene.registry.runs(),
            ("2013-01-20T00:00:00.000000+00:00", "2013-03-01T00:00:00.000000+00:00"),
            (100, 50),
            ("promoted", "unfit"),
            ("", "It is unfit."),
            strict=True,
        )
    ]
    for command, expected in (("show", standing), ("ls", runs)):
        done = CliRunner().invoke(main, ["registry", command, "--json", uri])
        assert done.output == json.dumps(expected, indent=2) + "\n"


def test_a_quarantined_window_is_released_by_hand(scene: Scene, second: Taken) -> None:
    scene.judged(second, "unfit", unfit=["x: in another unit."])
    window = scene.registry.read().windows[-1].id
    asked = ["registry", "release", scene.registry.uri, window]
    for _ in range(2):
        done = CliRunner().invoke(main, asked)
        assert (done.exit_code, "released by hand" in done.output) == (0, True), done.output
    listed = CliRunner().invoke(main, ["registry", "ls", scene.registry.uri]).output
    assert listed.count(f"to be learned from: {window}") == 2
    scene.deliver("c.parquet", rows(150, 50, day="2013-03-01"))
    third = scene.run("2013-04-01")
    # Its rows have judged: they may teach now, and never judge again.
    assert set(second.ids()) <= set(third.ids("dataset"))
    assert not set(second.ids()) & set(third.ids("holdout"))


def test_only_quarantined_windows_can_be_released(scene: Scene, second: Taken) -> None:
    first = scene.registry.read().windows[0].id
    asked = ["registry", "release", scene.registry.uri, first, "20130101T000000-0"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 1
    assert "train: trained, judge: golden; nothing is quarantined" in done.output
    assert "no such window" in done.output


def test_a_challenger_that_learned_from_a_window_quarantined_since_is_refused(
    scene: Scene, second: Taken
) -> None:
    scene.judged(second, "healthy")
    scene.deliver("c.parquet", rows(150, 50, day="2013-03-01"))
    third = scene.run("2013-04-01")
    window = scene.registry.read().windows[-1].id
    done = CliRunner().invoke(main, ["registry", "quarantine", scene.registry.uri, window])
    assert "quarantined by hand" in done.output
    with pytest.raises(Conflict, match=f"learned from {window}, which was quarantined"):
        scene.promote(third)


def test_no_registry_is_an_error_not_an_empty_table(tmp_path) -> None:
    done = CliRunner().invoke(main, ["registry", "ls", str(tmp_path / "nothing")])
    assert done.exit_code == 1
    assert "there is no registry here" in done.output


def test_open_champion_refuses_a_window_that_is_for_another(scene: Scene, second: Taken) -> None:
    names = ("model", "ledger", "checkpoint", "golden")
    ports = {name: LocalArtifact(str(scene.folder / name)) for name in names}
    with pytest.raises(Fenced):
        open_champion(registry=scene.registry.uri, run_id="somebody", **ports)


def test_a_registry_is_verified_to_the_last_champion(scene: Scene, second: Taken) -> None:
    def verify() -> tuple[int, str]:
        done = CliRunner().invoke(main, ["registry", "verify", scene.registry.uri])
        return done.exit_code, done.output

    scene.promote(second)
    assert verify() == (0, "2 champions, all as they were promoted\n")
    state = scene.registry.read()
    weights = Path(scene.registry.uri) / state.previous[0].folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])
    code, told = verify()
    assert code == 1
    assert "champion 1: " in told
    assert "champion 2" not in told
    weights.unlink()
    assert verify()[0] == 1
