"""Task of the component `check-distillation`: can both learn, and is the rest told right?"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from kubestill.errors import InvalidInput, Problem, Problems, Refused
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact, write_pages, write_record
from kubestill.runtime.base.trust import NETWORKS, TRUST, check_trusted
from kubestill.runtime.reports.overfit_batch import gates_report
from kubestill.runtime.sanity import Findings, GateSettings
from kubestill.runtime.steps.overfit_batch import check_gate, describe, examine_job, log_facts
from kubestill.runtime.steps.plan_shards import plan_shards
from kubestill.runtime.training.job import Job

__all__ = ["check_distillation"]

_TRAINING = ("network", "network_args", "steps", "learning_rate", "settings")
_OWN = {"teacher": _TRAINING, "student": _TRAINING, "synthetic": ("settings",)}
"""What is told to one of them alone, as overfit-batch and generate-synthetic call it."""


def check_distillation(
    *,
    dataset: Artifact,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    findings: Artifact,
    augmented: Artifact | None = None,
    validation: Artifact | None = None,
    teacher_network: str = "mlp",
    teacher_args: dict[str, Any] = {},
    teacher_steps: int = 1500,
    teacher_learning_rate: float = 0.001,
    teacher_settings: dict[str, Any] = {},
    student_network: str = "mlp",
    student_args: dict[str, Any] = {},
    student_steps: int = 3000,
    student_learning_rate: float = 0.001,
    student_settings: dict[str, Any] = {},
    temperature: float = 4.0,
    hard_weight: float = 0.1,
    batch_size: int = 128,
    seed: int = 0,
    device: str = "auto",
    method: str = "munge",
    rows: int = 32_768,
    shards: int = 1,
    synthetic_settings: dict[str, Any] = {},
    thresholds: dict[str, Any] = {},
    slices: list[str] = [],
    strict: bool = True,
    gate: dict[str, Any] = {},
) -> tuple[str, str, list[int]]:
    """Put teacher and student through the gate, and check what the rest of the pipeline is told.

    Args:
        dataset: Real rows.
        metrics: Output: scalars, by `teacher.` and `student.`.
        report: Output: HTML.
        summary: Output: Markdown.
        findings: Output: everything that was found, as JSON.
        augmented: The teacher's rows; the real ones where there are none.
        validation: Rows that both trainings are followed on.
        teacher_network: What the training to come is told, and so are all that follow.
        teacher_args: ″
        teacher_steps: ″
        teacher_learning_rate: ″
        teacher_settings: ″
        student_network: ″
        student_args: ″
        student_steps: ″
        student_learning_rate: ″
        student_settings: ″
        temperature: ″
        hard_weight: ″
        batch_size: ″
        seed: ″
        device: ″
        method: What generating is told.
        rows: ″
        shards: ″
        synthetic_settings: ″
        thresholds: What the evaluation is told.
        slices: ″
        strict: Raise where the verdict is not `pass`.
        gate: See `GateSettings`.

    Returns:
        verdict: The worse of the two.
        reason: Why, in sentences.
        shard_indices: What the fan-out loops over.

    Raises:
        InvalidInput: Everything wrong with parameters and data, at once.
        Refused: The verdict is not `pass`, and `strict` is set.
    """
    teacher = {
        "network": teacher_network,
        "network_args": teacher_args,
        "steps": teacher_steps,
        "learning_rate": teacher_learning_rate,
    }
    student = {
        "network": student_network,
        "network_args": student_args,
        "steps": student_steps,
        "learning_rate": student_learning_rate,
        "temperature": temperature,
        "hard_weight": hard_weight,
    }
    shared = {"batch_size": batch_size, "seed": seed, "device": device}
    gates: dict[str, tuple[Job, GateSettings]] = {}
    problems: list[Problem] = []
    for name, learned, typed, settings in (
        ("teacher", augmented or dataset, teacher, teacher_settings),
        ("student", dataset, student, student_settings),
    ):
        found = Problems()
        job, asked = check_gate(
            learned,
            validation,
            "hard",
            {**typed, **shared},
            settings,
            gate,
            thresholds,
            slices,
            problems=found,
        )
        _check_vouched(str(typed["network"]), found)
        told = [_as_told_here(problem, name) for problem in found]
        problems += [problem for problem in told if problem not in problems]
        if job and asked:
            gates[name] = job, asked
    indices: list[int] = []
    generating = Problems()
    with generating.collect():
        indices = plan_shards(shards, method, rows, synthetic_settings)
    problems += [_as_told_here(problem, "synthetic") for problem in generating]
    if problems:
        raise InvalidInput(problems)
    return *_examine(gates, metrics, report, summary, findings, strict=strict), indices


def _check_vouched(network: str, problems: Problems) -> None:
    """Note a network that later steps would not import: before anything is trained."""
    try:
        check_trusted(network, field="network", group=NETWORKS)
    except InvalidInput:
        package = network.partition(":")[0].partition(".")[0]
        remedy = (
            f"the steps that load the trained model import only what their image vouches for: set "
            f"{TRUST}={package} there (ENV {TRUST}={package}; SECURITY.md)"
        )
        problems.add("network", network, remedy)


def _as_told_here(problem: Problem, which: str) -> Problem:
    """Name a problem's field as this task calls it."""
    name = re.match(r"\w+", problem.field)
    if name is None or name[0] not in _OWN[which]:
        return problem
    return replace(problem, field=f"{which}_{problem.field.replace('network_args', 'args', 1)}")


def _examine(
    gates: dict[str, tuple[Job, GateSettings]],
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    findings: Artifact,
    *,
    strict: bool,
) -> tuple[str, str]:
    """Put both through the gate, one after the other; verdict and reason."""
    found: dict[str, Findings] = {}
    for name, (job, asked) in gates.items():
        found[name] = examine_job(job, asked)
        for check in found[name].checks:
            print(f"{name}: {check.status}: {check.name}. {check.said}", flush=True)
        log_facts(found[name], metrics, prefix=f"{name}.")
    verdicts = {one.verdict for one in found.values()}
    verdict = next(word for word in ("fail", "undetermined", "pass") if word in verdicts)
    reason = " ".join(
        f"{name}: {one.reason}" for name, one in found.items() if one.verdict == verdict
    )
    body = {name: one.to_json() for name, one in found.items()}
    write_record(findings, "findings", {"verdict": verdict, "reason": reason, **body})
    told = {name: (found[name], describe(*gate)) for name, gate in gates.items()}
    write_pages(gates_report("check-distillation", verdict, told), report, summary)
    print(f"{verdict}: {reason}", flush=True)
    if strict and verdict != "pass":
        raise Refused(f"check-distillation: {verdict}. {reason}")
    return verdict, reason
