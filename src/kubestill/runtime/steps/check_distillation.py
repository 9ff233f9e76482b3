"""Task of the component `check-distillation`: can both learn, and are later steps set up right?"""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from typing import Any

from kubestill.errors import InvalidInput, Problem, Problems, Refused
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact, write_record
from kubestill.runtime.base.settings import validate
from kubestill.runtime.base.trust import TEACHERS, check_trusted
from kubestill.runtime.datasets.manifest import Dataset, open_input
from kubestill.runtime.generation.generate import check_varies
from kubestill.runtime.generation.given import FilesSettings, Given
from kubestill.runtime.generation.request import GIVEN
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.reports.overfit_batch import gates_report
from kubestill.runtime.sanity import GateFindings, GateSettings
from kubestill.runtime.steps.overfit_batch import (
    check_gate,
    check_vouched,
    describe,
    examine_job,
    log_facts,
)
from kubestill.runtime.steps.pages import write_pages
from kubestill.runtime.steps.plan_shards import plan_shards
from kubestill.runtime.steps.train_teacher import have_answers
from kubestill.runtime.training.beside import check_beside, check_ours, refuse_without
from kubestill.runtime.training.imitation import needs_teacher
from kubestill.runtime.training.job import Job
from kubestill.runtime.training.prepare import probe_network, unread_encoder
from kubestill.runtime.training.settings import parse_settings

_TRAINING = ("network", "network_args", "steps", "learning_rate", "settings")
_OWN = {"teacher": _TRAINING, "student": _TRAINING, "synthetic": ("settings",)}
"""Parameters with a prefix, by the names that overfit-batch and generate-synthetic give them."""
MOST_SIZES = 16
"""Students of a sweep: each is two pods of one Kubernetes object."""


def check_distillation(
    *,
    dataset: Artifact,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    findings: Artifact,
    augmented: Artifact | None = None,
    validation: Artifact | None = None,
    teacher_uri: str = "",
    teacher_options: dict[str, Any] = {},
    teacher_network: str = "mlp",
    teacher_args: dict[str, Any] = {},
    teacher_steps: int = 1500,
    teacher_learning_rate: float = 0.001,
    teacher_settings: dict[str, Any] = {},
    student_network: str = "mlp",
    student_args: dict[str, Any] = {},
    student_sizes: list[dict[str, Any]] = [{}],
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
    """Gate teacher and student, and check the parameters of the pipeline's later steps.

    The component documents the parameters.

    Returns:
        verdict: The worse of the two.
        reason: Why, in sentences.
        shard_indices: The indices that the fan-out loops over.

    Raises:
        InvalidInput: Everything wrong with parameters and data, at once.
        Refused: The verdict is not `pass`, and `strict` is set.
    """
    shared = {"batch_size": batch_size, "seed": seed, "device": device}
    large = {
        "network": teacher_network,
        "network_args": teacher_args,
        "steps": teacher_steps,
        "learning_rate": teacher_learning_rate,
        **shared,
    }
    small = {
        "network": student_network,
        "steps": student_steps,
        "learning_rate": student_learning_rate,
        "temperature": temperature,
        "hard_weight": hard_weight,
        **shared,
    }
    gates: dict[str, tuple[Job, GateSettings]] = {}
    problems: list[Problem] = []
    brought: Predictor | None = None
    trained = [
        (name, dataset, small | {"network_args": arguments}, student_settings)
        for name, arguments in _students(student_args, student_sizes, problems).items()
    ]
    if not teacher_uri and have_answers(dataset):
        print("the rows carry a teacher's answers: none is trained, none generated", flush=True)
    elif teacher_uri:
        found, brought = _check_teacher(teacher_uri, teacher_options, dataset, validation, rows)
        problems += found
    else:
        trained.insert(0, ("teacher", augmented or dataset, large, teacher_settings))
    for name, learned, typed, settings in trained:
        found = Problems()
        job, asked = check_gate(
            learned,
            validation,
            "hard",
            typed,
            settings,
            gate,
            thresholds,
            slices,
            problems=found,
        )
        check_vouched(str(typed["network"]), found)
        renamed = [_with_own_name(problem, name) for problem in found]
        problems += [problem for problem in renamed if problem not in problems]
        if job and asked:
            gates[name] = job, asked
            if name != "teacher":
                with (missing := Problems()).collect():
                    taught = gates["teacher"][0] if "teacher" in gates else brought
                    _check_imitation(job, typed, settings, taught)
                problems += [_with_own_name(problem, name) for problem in missing]
    indices: list[int] = []
    generating = Problems()
    with generating.collect():
        indices = plan_shards(shards, method, rows, synthetic_settings)
    with generating.collect():
        if (found := open_input(dataset, "dataset", Problems())) and found.schema.soft is None:
            if method in GIVEN and indices:
                Given(validate(FilesSettings, synthetic_settings), found.schema, most=rows)
            elif method not in GIVEN:
                check_varies(found.schema, method=method, rows=rows)
    problems += [_with_own_name(problem, "synthetic") for problem in generating]
    if problems:
        raise InvalidInput(problems)
    return *_examine(gates, metrics, report, summary, findings, strict=strict), indices


def _students(
    common: dict[str, Any], sizes: list[dict[str, Any]], problems: list[Problem]
) -> dict[str, dict[str, Any]]:
    """Return the arguments of each student's network by its name: `student`, or `student_1`, ..."""
    if not sizes or len(sizes) > MOST_SIZES:
        remedy = f"name 1 to {MOST_SIZES} sizes, such as [{{'hidden': [32]}}, {{'hidden': [64]}}]"
        problems.append(Problem("student_sizes", sizes, remedy))
    found: dict[str, dict[str, Any]] = {}
    for place, size in enumerate(sizes[:MOST_SIZES]):
        field = f"student_sizes[{place}]"
        if not isinstance(size, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            remedy = "must be the arguments of a network, such as {'hidden': [32]}"
            problems.append(Problem(field, size, remedy))
        elif sizes.index(size) < place:
            remedy = f"is the same as student_sizes[{sizes.index(size)}]; leave one out"
            problems.append(Problem(field, size, remedy))
        else:
            name = "student" if len(sizes) == 1 else f"student_{place + 1}"
            found[name] = {**common, **size}
    return found


def _check_teacher(
    teacher: str,
    options: dict[str, Any],
    dataset: Artifact,
    validation: Artifact | None,
    rows: int,
) -> tuple[list[Problem], Predictor | None]:
    """Return what train-teacher would refuse about a teacher that is brought in, and that one."""
    from kubestill.runtime.steps.import_model import take_teacher

    found, predictor = Problems(), None
    with tempfile.TemporaryDirectory(prefix="kubestill-teacher-") as folder, found.collect():
        taken, _ = take_teacher(teacher, options, dataset, validation, f"{folder}/model")
        factory = str(taken.predictor.spec.network["factory"])
        # The steps that label and judge load it from its own description.
        check_trusted(factory, field="teacher", group=TEACHERS)
        taken.predictor.announce(Dataset.open(dataset.path).rows + rows)
        predictor = taken.predictor
    return list(found), predictor


def _check_imitation(
    student: Job,
    typed: dict[str, Any],
    settings: dict[str, Any],
    teacher: Job | Predictor | None,
) -> None:
    """Check what the student wants of its teacher in each step, which the gate does without.

    Args:
        student: The checked job of its gate.
        typed: Its typed training parameters.
        settings: Its further settings.
        teacher: The job that trains the teacher, or the one brought in; None where rows carry
            answers.

    Raises:
        InvalidInput: The teacher cannot stand beside it, or lacks a layer.
    """
    asked = parse_settings(typed, settings)
    need, problems = needs_teacher(asked), Problems()
    if not need and not asked.imitate.asked():
        return
    network, width = None, 0
    if isinstance(teacher, Job):
        network = probe_network(teacher.dataset, teacher.settings)
        width = unread_encoder(teacher.dataset).width
    elif need and teacher is None:
        refuse_without(need, problems)
    elif need and teacher is not None:
        check_ours(teacher, need, "brought in", problems)
        if not problems:
            network, width = teacher.model.network, teacher.model.encoder.width
    problems.raise_if_any()
    own = probe_network(student.dataset, student.settings)
    check_beside(student.dataset, own, asked, network, width)


def _with_own_name(problem: Problem, which: str) -> Problem:
    """Give a problem's field the name that this task has for it."""
    which, _, number = which.partition("_")
    name = re.match(r"\w+", problem.field)
    if name is None or name[0] not in _OWN[which]:
        return problem
    args = f"sizes[{int(number) - 1}]" if number else "args"
    return replace(problem, field=f"{which}_{problem.field.replace('network_args', args, 1)}")


def _examine(
    gates: dict[str, tuple[Job, GateSettings]],
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    findings: Artifact,
    *,
    strict: bool,
) -> tuple[str, str]:
    """Run the gate on both, one after the other; return the verdict and the reason."""
    found: dict[str, GateFindings] = {}
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
    rows = next(iter(gates.values()))[0].dataset
    write_pages(gates_report("check-distillation", verdict, told), report, summary, rows)
    print(f"{verdict}: {reason}", flush=True)
    if strict and verdict != "pass":
        raise Refused(f"check-distillation: {verdict}. {reason}")
    return verdict, reason
