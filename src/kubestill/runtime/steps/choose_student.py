"""Task of the component `choose-student`: the smallest student that is as good as its teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kubestill.errors import Problems
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact, check_kind, write_record
from kubestill.runtime.datasets.manifest import Dataset, open_input
from kubestill.runtime.evaluation.evaluate import check_scorable
from kubestill.runtime.evaluation.frontier import Frontier, find_frontier
from kubestill.runtime.evaluation.settings import check_metric
from kubestill.runtime.models.export import copy_model, load_model
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.reports.frontier import frontier_report, frontier_text
from kubestill.runtime.reports.numbers import count
from kubestill.runtime.steps.pages import write_pages
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
    if teacher and teacher.metadata.get("kind") == "no-model":
        # The rows carried a teacher's answers, and nothing was trained to give them.
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
    log_frontier(found, metrics)
    write_pages(frontier_report(found, "students"), report, summary, rows)
    write_record(record, "frontier", frontier_record(found))
    print(frontier_text(found), flush=True)
    print(f"{found.verdict}: {found.reason}", flush=True)
    return found.verdict, found.reason, settings[uri]


def check_choice(tolerance: float, confidence: float, problems: Problems) -> None:
    """Note a tolerance or a confidence that no choice can be held to."""
    if not 0 <= tolerance < 1:
        remedy = "must be in [0, 1): the share of the reference's score that may be lost"
        problems.add("tolerance", tolerance, remedy)
    if not 0.5 < confidence < 1:
        problems.add("confidence", confidence, "must be in (0.5, 1), such as 0.95")


def check_alike(
    models: Sequence[Predictor], rows: Dataset | None, metric: str, problems: Problems
) -> None:
    """Note models that predict different things, or cannot be scored on the rows by the metric."""
    if not models or rows is None:
        return
    first = models[0].spec
    for one in models[1:]:
        if (one.spec.task, one.spec.outputs) != (first.task, first.outputs):
            told = f"{one.spec.task} {list(one.spec.outputs)[:12]}"
            remedy = f"predicts something else than {first.task} {list(first.outputs)[:12]}"
            problems.add("uris", told, remedy)
    with problems.collect():
        check_metric(metric, first.task, field="metric")  # pyright: ignore[reportArgumentType]
    for one in models:
        found = Problems()
        with found.collect():
            check_scorable(one.layout, rows)
        for problem in found:
            if problem not in problems:
                problems.add(problem.field, problem.value, problem.remedy)
    if not rows.rows:
        problems.add("dataset", rows.root, "is empty; give at least one labelled row")


def log_frontier(frontier: Frontier, metrics: MetricsArtifact) -> None:
    """Log what the chosen model scores and costs."""
    chosen = next(one for one in frontier.entries if one.name == frontier.chosen)
    metrics.metadata["kind"] = "metrics"
    told = {
        frontier.metric.name: chosen.score.value,
        f"{frontier.metric.name}_gain": chosen.gain.value,
        f"{frontier.metric.name}_gain_low": chosen.gain.low,
        "tolerance": frontier.tolerance,
        "bytes": float(chosen.cost.bytes),
        "parameters": float(chosen.cost.parameters),
        "latency_seconds": chosen.cost.latency[1],
        "candidates": float(len(frontier.candidates)),
    }
    for name, value in told.items():
        if value == value:  # NaN fails a finished task
            metrics.log_metric(name, value)


def frontier_record(frontier: Frontier) -> dict[str, Any]:
    """Return the JSON form of a choice; a number that is not finite is null."""

    def number(value: float) -> float | None:
        return value if value - value == 0 else None

    def ends(one: Any) -> dict[str, float | None]:
        return {end: number(getattr(one, end)) for end in ("value", "low", "high")}

    return {
        "chosen": frontier.chosen,
        "verdict": frontier.verdict,
        "reason": frontier.reason,
        "reference": frontier.reference,
        "metric": frontier.metric.name,
        "tolerance": frontier.tolerance,
        "confidence": frontier.confidence,
        "rows": frontier.rows,
        "models": {
            one.name: {
                "standing": one.standing,
                "front": one.on_front,
                "score": ends(one.score),
                "gain": ends(one.gain),
                "parameters": one.cost.parameters,
                "bytes": one.cost.bytes,
                "seconds": {str(rows): seconds for rows, seconds in one.cost.latency.items()},
            }
            for one in frontier.entries
        },
    }


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
    asked = training.settings["network_args"] if training else built
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
