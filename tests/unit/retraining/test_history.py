"""The history of a registry: each entry is a record, read as earlier versions wrote it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from kubestill.errors import CorruptData
from kubestill.runtime.base.values import read_as
from kubestill.runtime.metrics.catalog import METRICS
from kubestill.runtime.reports.history import history_section
from kubestill.runtime.retraining import Registry, open_registry
from kubestill.runtime.retraining.history import (
    Collection,
    HistoryEntry,
    Judgement,
    Promotion,
    RunOutcome,
    TakeOver,
    read_entry,
)
from kubestill.runtime.retraining.state import State
from kubestill.runtime.retraining.windows import WindowRecord

OLDER = Path(__file__).parents[2] / "older"
FILES = sorted(OLDER.glob("registry*/history/*.json"))
KINDS = {
    "collect": Collection,
    "judge": Judgement,
    "challenge": Judgement,
    "promote": Promotion,
    "outcome": RunOutcome,
    "taken-over": TakeOver,
}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return open_registry(str(tmp_path))


def judgement(run_id: str, step: str = "judge", **given: Any) -> Judgement:
    return Judgement(run_id=run_id, step=step, decision="healthy", reason="Well.", **given)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]}-{path.stem[-20:]}")
def test_an_older_entry_is_a_record_of_its_kind_and_written_again_byte_for_byte(path: Path) -> None:
    entry = read_entry(path.read_bytes(), source=str(path))
    kind = next(kind for word, kind in KINDS.items() if f"-{word}" in path.stem)
    assert type(entry) is kind
    assert entry.to_bytes() == path.read_bytes()
    assert not entry.model_extra


def test_an_older_window_is_a_record_and_written_again_byte_for_byte() -> None:
    content = (OLDER / "window.json").read_bytes()
    window = read_as(WindowRecord, json.loads(content), source="older", what="window")
    assert [(file.rows, file.taken) for file in window.files] == [(100, 100)]
    assert window.to_bytes() == content


def test_an_older_state_is_a_record_and_written_again_byte_for_byte() -> None:
    content = (OLDER / "state.json").read_bytes()
    state = read_as(State, json.loads(content), source="older", what="registry")
    assert state.contract
    assert state.claim
    assert state.claim.contract == state.contract
    assert state.contract.schema.target
    assert state.model_dump_json(indent=1).encode() == content


@pytest.mark.parametrize(
    "damage", [{"extra": 1}, {"schema": {"task": "none", "columns": []}}, {"keys": "id"}]
)
def test_what_is_no_contract_is_corrupt(damage: dict[str, object]) -> None:
    form = json.loads((OLDER / "state.json").read_bytes())
    form["contract"] |= damage
    with pytest.raises(CorruptData, match=f"contract.{next(iter(damage))}"):
        read_as(State, form, source="older", what="registry")


def test_every_kind_of_entry_is_among_the_older_ones() -> None:
    found = {type(read_entry(path.read_bytes(), source=str(path))) for path in FILES}
    assert found == set(KINDS.values())


def test_the_history_of_an_older_run_is_read() -> None:
    registry = open_registry(str(OLDER / "registry"))
    runs = {run.run_id: run for run in registry.runs()}
    assert len(runs) == 6
    lost = runs["c07ca4d1-b03a-4da1-a8ed-1f6dfe9e25b9"]
    assert lost.outcome
    assert lost.outcome.outcome == "abandoned"
    assert [one.window for one in lost.taken_over] == ["20261128T092134-d0ed1e5f"]
    judged = runs["r1"].judgement
    assert judged
    assert (judged.step, judged.decision, judged.metric) == ("challenge", "promote", "log_loss")
    assert judged.scores["log_loss"].value == 0.2709976839799382
    assert judged.baseline_scores["log_loss"].rows == 2000
    assert registry.run("r1") == runs["r1"]


def test_a_judgement_from_before_unfit_was_a_decision_says_unfit() -> None:
    run = open_registry(str(OLDER / "registry-before-unfit")).run("r1")
    assert [one.decision for one in run.judgements] == ["reject", "reject"]
    assert [one.verdict for one in run.judgements] == ["unfit", "unfit"]


def test_what_a_later_version_adds_is_kept_and_a_step_it_adds_is_no_error() -> None:
    later = json.loads(FILES[0].read_bytes()) | {"mood": {"good": 1}}
    content = json.dumps(later, indent=1, sort_keys=True).encode()
    assert read_entry(content, source="later").to_bytes() == content
    unknown = {"format": later["format"], "at": "2027", "run_id": "r", "step": "sing"}
    assert type(read_entry(json.dumps(unknown).encode(), source="later")) is HistoryEntry


@pytest.mark.parametrize(
    ("step", "facts", "said"),
    [
        ("outcome", {"reason": "?"}, "outcome"),
        ("collect", {"status": "asleep", "reason": "?"}, "status"),
        ("promote", {"version": "two", "model": "", "window": "", "reason": ""}, "version"),
        ("judge", {"decision": "healthy", "reason": "?", "scores": {"r": 3}}, "scores"),
    ],
)
def test_an_entry_that_lacks_a_fact_is_corrupt_not_a_key_error(
    registry: Registry, step: str, facts: dict[str, Any], said: str
) -> None:
    form = {"format": "kubestill/registry/1", "at": "2027", "run_id": "r", "step": step, **facts}
    registry.store.put(f"history/r-{step}.json", json.dumps(form).encode(), create=True)
    with pytest.raises(CorruptData, match=said):
        registry.runs()


def test_a_run_whose_name_begins_another_ones_has_its_own_entries(registry: Registry) -> None:
    registry.append(judgement("r"))
    registry.append(RunOutcome(run_id="r-2", outcome="healthy", reason="Well."))
    registry.append(judgement("r-2"))
    assert [entry.step for entry in registry.run("r").entries] == ["judge"]
    assert registry.run("r").outcome is None


def test_the_first_attempt_stands(registry: Registry) -> None:
    first = registry.append(RunOutcome(run_id="r", outcome="failed", reason="The disk is full."))
    again = registry.append(RunOutcome(run_id="r", outcome="healthy", reason="Well."))
    assert again == first
    assert first.at


def test_the_report_draws_the_judgement_that_counts(tmp_path: Path) -> None:
    """A retry that judged another model has an entry beside that of the attempt before."""
    steps = {"challenge": 0.5, "challenge-1f2e3d4c": 0.6}

    def drawn(*told: str) -> str:
        registry = open_registry(str(tmp_path / "-".join(told)))
        for month in range(2):
            for step in told:
                score = {"value": steps[step] + month, "low": 0.4, "high": None, "rows": 100}
                scores, end = {"log_loss": score}, f"2027-0{month + 1}"
                registry.append(judgement(f"m{month}", step, end=end, scores=scores))
                time.sleep(0.002)  # the clock of the entries counts milliseconds
        return str(history_section(registry.runs(), METRICS["log_loss"])[0])

    first, last = steps
    assert drawn(first, last) == drawn(last)
    assert drawn(first, last) != drawn(first)


def test_the_report_draws_rows_once_that_a_run_gave_back(tmp_path: Path) -> None:
    """A run that was killed has judged rows that the run after it judges, too."""

    def drawn(*killed: str) -> str:
        registry = open_registry(str(tmp_path / f"registry-{len(killed)}"))
        for run in ("m0", *killed, "m1", "m2"):
            score = {"value": 0.5, "low": 0.4, "high": 0.6, "rows": 100}
            end = "2027-02" if run in killed else f"2027-0{int(run[1]) + 1}"
            facts: dict[str, Any] = {"end": end, "scores": {"log_loss": score}, "cause": "golden"}
            registry.append(judgement(run, "challenge", **facts))
            if run in killed:
                registry.append(
                    RunOutcome(run_id=run, outcome="abandoned", reason="It was killed.")
                )
        return str(history_section(registry.runs(), METRICS["log_loss"])[0])

    assert drawn("dead") == drawn()
    assert "3 windows, 0 promotions, 3 challengers vetoed by golden rows" in drawn()


def test_the_report_draws_what_was_expected_while_labels_were_late(tmp_path: Path) -> None:
    """In a run that judged and in one that only waited, by both scores, at the time of the rows."""

    def drawn(*late: str) -> list[str]:
        registry = open_registry(str(tmp_path / f"registry-{len(late)}"))
        band = {"value": 0.5, "low": 0.4, "high": 0.6, "rows": 100}
        both = {"log_loss": band, "accuracy": band}
        for month in (1, 2):
            told = both if f"m{month}" in late else {}
            end = f"2013-0{month}-01T00:00:00Z"
            registry.append(judgement(f"m{month}", end=end, scores=both, expected=told))
        if "m3" in late:
            waited = {"status": "waiting", "reason": "Labels.", "end": "2013-03-01T00:00:00Z"}
            registry.append(Collection.model_validate({"run_id": "m3", **waited}))
            registry.append(judgement("m3", "expect", expected=both))
        html = str(history_section(registry.runs(), METRICS["log_loss"])[0])
        assert "2 windows, 0 promotions" in html
        assert ("expected while labels are late" in html) is bool(late)
        return re.findall("<svg[^>]* aria-label.*?</svg>", html, re.DOTALL)

    (plain,) = drawn()
    for late in (("m2",), ("m2", "m3")):
        found = drawn(*late)
        assert ["log loss of" in found[0], "accuracy of" in found[1]] == [True, True]
        for plot in found:
            # Each a band and a square.
            assert plot.count("var(--fifth)") >= 2 * len(late)
            assert ("2013-03-01" in plot) is ("m3" in late)
    assert "var(--fifth)" not in plain
