"""Task of the component `choose-student`: the smallest student that is as good as its teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kubestill.errors import Problems
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact, check_kind, is_no_model
from kubestill.runtime.datasets.manifest import open_input
from kubestill.runtime.evaluation.frontier import find_frontier
from kubestill.runtime.models.export import copy_model, load_model
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.models.prune import WIDTHS
from kubestill.runtime.reports.numbers import count
from kubestill.runtime.steps.frontier import check_alike, check_choice, write_frontier
from kubestill.runtime.training.record import read_training


def choose_student(
    *,
    uris: Sequence[str],
    dataset: Artifact,
    model: Artifact,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    record: Artifact,
    teacher: Artifact | None = None,
    metric: str = "",
    tolerance: float = 0.02,
    confidence: float = 0.95,
) -> tuple[str, str, dict[str, Any]]:
    """Compare students of several sizes with their teacher, and hand on the smallest that does.

    The component documents the parameters.

    Returns:
        verdict: `within`, `unproven` or `outside`.
        reason: Why this one, in sentences.
        network_args: Arguments of its network, for a control of the same size.

    Raises:
        InvalidInput: Everything that is wrong, before anything is scored.
        CorruptData: A model or rows are damaged.
    """
    if is_no_model(teacher):
        teacher = None
    problems = Problems()
    check_choice(tolerance, confidence, problems)
    rows = open_input(dataset, "dataset", problems)
    students = _load_students(uris, problems)
    large = None
    if teacher:
        with problems.collect("teacher", teacher.uri):
            check_kind(teacher, "model", "teacher")
            large = load_model(teacher.path)
    given = [*students.values(), *([large] if large else [])]
    check_alike(given, rows, metric, problems)
    problems.raise_if_any()
    assert rows
    settings = {uri: _network_args(uri, one) for uri, one in students.items()}
    names = _names(students, settings)
    found = find_frontier(
        {names[uri]: one for uri, one in students.items()},
        large,
        rows,
        metric=metric,
        tolerance=tolerance,
        confidence=confidence,
    )
    uri = next(uri for uri, name in names.items() if name == found.chosen)
    copy_model(uri, model.path)
    chosen = students[uri]
    model.metadata.update(kind="model", digest=chosen.digest, parameters=chosen.spec.parameters)
    write_frontier(found, "students", rows, metrics, report, summary, record)
    return found.verdict, found.reason, settings[uri]


def _load_students(uris: Sequence[str], problems: Problems) -> dict[str, Predictor]:
    if not uris:
        problems.add("uris", [], "name at least one student: the `model_uri` of each iteration")
    students: dict[str, Predictor] = {}
    for uri in dict.fromkeys(uris):
        with problems.collect("uris", uri):
            students[uri] = load_model(uri)
    return students


def _network_args(uri: str, student: Predictor) -> dict[str, Any]:
    """Return the arguments that its network was asked for with, before any were filled in."""
    built: dict[str, Any] = student.spec.network["args"]
    training = read_training(uri)
    asked: set[str] = {*(training.settings["network_args"] if training else built)}
    if training and any(training.settings.get("prune", {}).values()):
        asked |= {*WIDTHS.values()}  # a network that began as the teacher was not asked for
    # As they were built: Kubeflow hands whole numbers on as floats.
    return {name: value for name, value in built.items() if name in asked}


def _names(
    students: Mapping[str, Predictor], settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Name each student by the arguments in which they differ, or by its number of parameters."""
    forms = [*settings.values()]
    keys = dict.fromkeys(key for form in forms for key in form)
    differing = [key for key in keys if any(form.get(key) != forms[0].get(key) for form in forms)]
    names = {
        uri: ", ".join(f"{key}={form[key]}" for key in differing if key in form)
        or f"{count(students[uri].spec.parameters)} parameters"
        for uri, form in settings.items()
    }
    often = Counter(names.values())
    return {
        uri: name if often[name] == 1 else f"{name} ({place})"
        for place, (uri, name) in enumerate(names.items(), 1)
    }
