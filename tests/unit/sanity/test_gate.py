"""The gate against the seeded bugs and the healthy set-ups; what it finds is the table in docs."""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from gated_cases import BUGS, HEALTHY, Case
from gated_rows import write

from kubestill.runtime.datasets.cache import load_decoded
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.sanity import CODES, GateData, GateFindings, GateSettings, examine
from kubestill.runtime.training.device import arithmetic, choose_machine
from kubestill.runtime.training.prepare import prepare, resolve_loss
from kubestill.runtime.training.settings import TrainingSettings

DOCS = Path(__file__).parents[3] / "docs" / "overfit-batch.md"
UPDATE = "KUBESTILL_UPDATE_DOCS"


@cache
def run(name: str) -> GateFindings:
    """Examine one set-up."""
    return examined(next(case for case in [*BUGS, *HEALTHY] if case.name == name))


def examined(case: Case) -> GateFindings:
    """Examine a set-up through the training's own parts."""
    with TemporaryDirectory() as folder:
        dataset = write(case.table(), folder, case.change)
        told = {"network": case.network, "network_args": dict(case.network_args), **case.settings}
        settings = TrainingSettings(batch_size=128, threads=1, **told)
        machine = choose_machine(settings)
        loss_name = resolve_loss(settings, dataset, distil=case.distil)
        with arithmetic(settings):
            prepared = case.tamper(prepare(dataset, None, settings, machine, loss_name=loss_name))
            decoded = load_decoded(dataset, RawLayout(dataset.schema))
            rows = GateData(labels=decoded.target, soft=decoded.soft, complete=False)
            return examine(prepared, rows, settings, machine, GateSettings(**case.gate))


def told(findings: GateFindings) -> str:
    lines = [f"{c.status:12} {c.code:16} {c.said} {c.remedy}" for c in findings.checks]
    for trace in findings.traces:
        ended = f"{trace.ended:8} {trace.reached} {trace.best:.3g} {trace.seconds:.2f} s"
        lines.append(f"{trace.name:24} {ended}")
    return "\n".join([*lines, str(findings.facts)])


@pytest.mark.parametrize("case", BUGS, ids=lambda case: case.name)
def test_a_seeded_bug_is_caught(case):
    findings = run(case.name)
    assert findings.verdict == case.verdict, told(findings)
    assert {check.code for check in findings.diagnoses} <= set(case.diagnosis), told(findings)


@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.name)
def test_a_healthy_set_up_passes(case):
    findings = run(case.name)
    assert findings.verdict == "pass", told(findings)


@pytest.mark.parametrize("steps", range(140, 260, 10))
def test_a_network_that_is_slow_is_not_accused_of_its_evaluation_mode(steps):
    """A plain MLP has but one mode, however many steps it gets."""
    plain = next(case for case in HEALTHY if case.name == "digits, plain MLP")
    findings = examined(replace(plain, gate={"steps": steps}))
    assert findings.verdict == "pass", told(findings)


def test_the_table_in_the_docs_is_what_was_found():
    lines = ["| seeded bug | verdict | diagnosis |", "| --- | --- | --- |"]
    for case in BUGS:
        found = run(case.name)
        why = "; ".join(f"`{c.code}`: {CODES[c.code]}" for c in found.diagnoses)
        lines.append(f"| {case.name} | {found.verdict} | {why or 'not caught'} |")
    lines += ["", "| healthy set-up | verdict |", "| --- | --- |"]
    lines += [f"| {case.name} | {run(case.name).verdict} |" for case in HEALTHY]
    caught = sum(run(case.name).verdict == case.verdict for case in BUGS)
    passed = sum(run(case.name).verdict == "pass" for case in HEALTHY)
    said = (
        f"{caught} of {len(BUGS)} bugs are caught, {passed} of {len(HEALTHY)} healthy set-ups pass."
    )
    before, rest = DOCS.read_text().split("<!-- table -->")
    _, after = rest.split("<!-- /table -->")
    made = "\n\n".join(
        [before + "<!-- table -->", "\n".join(lines), said, "<!-- /table -->" + after]
    )
    if UPDATE in os.environ:
        DOCS.write_text(made)
    assert DOCS.read_text() == made, f"run this test with {UPDATE}=1"
