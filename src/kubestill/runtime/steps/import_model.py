"""Task of the component `import-model`: make a model of another library one of this package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kubestill.errors import InvalidInput, Problem, Problems, counted
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact
from kubestill.runtime.base.settings import check_overlap, validate
from kubestill.runtime.datasets.manifest import Dataset, open_input
from kubestill.runtime.evaluation.evaluate import evaluate
from kubestill.runtime.evaluation.fitted import fitted_on
from kubestill.runtime.generation.labelling import check_fit, check_weights
from kubestill.runtime.models.export import copy_model, load_model
from kubestill.runtime.models.foreign.bring import bring
from kubestill.runtime.models.foreign.match import Options
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.reports.brought import brought_report
from kubestill.runtime.steps.pages import write_pages


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A model that was brought in."""

    predictor: Predictor
    source: str
    dataset: Dataset
    """What it was matched with, and is to label."""
    notes: tuple[str, ...]
    tried: int
    """Rows that it answered before it was taken; 0 for a model of this package."""


def import_model(
    *,
    dataset: Artifact,
    model: Artifact,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    holdout: Artifact | None = None,
    file: Artifact | None = None,
    source: str = "",
    format: str = "auto",
    inputs: list[Any] | None = None,
    classes: list[Any] | None = None,
    output: str = "auto",
    settings: Mapping[str, Any] | None = None,
) -> tuple[str]:
    """Bring a model in, match it with a dataset by name, try and score it.

    The component documents the parameters.

    Returns:
        The URI of the model.

    Raises:
        InvalidInput: Everything that is wrong with the parameters or between model and dataset;
            nothing is written.
        CorruptData: The file is damaged.
    """
    problems = Problems()
    typed = {"format": format, "inputs": inputs or [], "classes": classes or [], "output": output}
    own = check_overlap(settings or {}, typed, problems)
    options = None
    with problems.collect():
        options = validate(Options, {**(settings or {}), **typed}, prefixed=own)
    if bool(source) == (file is not None):
        remedy = "give a source, or connect the file that an earlier step wrote; one of the two"
        problems.add("source", source, remedy)
    rows = open_input(dataset, "dataset", problems)
    judged = open_input(holdout, "holdout", problems)
    problems.raise_if_any()
    assert rows
    assert options
    taken = _take(source or (file.path if file else ""), rows, options, model.path)
    write_taken(taken, judged, model, metrics, report, summary)
    return (model.uri,)


def take_teacher(
    teacher: str,
    options: Mapping[str, Any],
    dataset: Artifact,
    validation: Artifact | None,
    folder: str,
) -> tuple[Taken, Dataset | None]:
    """Bring a teacher in where it is not trained: the parameters of a pipeline say how.

    Args:
        teacher: File, folder or import path.
        options: See `Options`.
        dataset: Rows that it is matched with.
        validation: Rows that score it.
        folder: Where the model goes; what is there is replaced.

    Returns:
        The teacher, and the rows that score it.

    Raises:
        InvalidInput: Everything that is wrong.
        CorruptData: The file is damaged.
    """
    problems = Problems()
    parsed = None
    with problems.collect():
        parsed = validate(Options, options, prefix="teacher_options.")
    rows = open_input(dataset, "dataset", problems)
    judged = open_input(validation, "validation", problems)
    problems.raise_if_any()
    assert parsed
    assert rows
    try:
        return _take(teacher, rows, parsed, folder), judged
    except InvalidInput as error:
        # A problem of one of the options, in the words of the parameters.
        raise InvalidInput([_renamed(problem) for problem in error.problems]) from error


def _renamed(problem: Problem) -> Problem:
    name = problem.field.partition(".")[0]
    if name == "source":
        return replace(problem, field="teacher")
    if name in Options.model_fields:
        return replace(problem, field=f"teacher_options.{problem.field}")
    return problem


def _take(source: str, rows: Dataset, options: Options, folder: str) -> Taken:
    """Write the model at `source` into a folder, once it is found to fit the rows."""
    brought = bring(source, rows, options)
    if brought is not None:
        if brought.predictor.weighs:
            check_weights(brought.predictor, rows.schema)
        brought.write(folder)
        notes, tried = brought.notes, brought.tried
        return Taken(
            predictor=brought.predictor, source=source, dataset=rows, notes=notes, tried=tried
        )
    said = options.model_dump(exclude_defaults=True)
    if said:
        remedy = "a model of this package says all that itself; leave these out"
        raise InvalidInput([Problem("source", sorted(said), remedy)])
    copy_model(source, folder)
    predictor = load_model(folder)
    check_fit(predictor.spec, rows.schema)
    return Taken(predictor=predictor, source=source, dataset=rows, notes=(), tried=0)


def write_taken(
    taken: Taken,
    judged: Dataset | None,
    model: Artifact,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
) -> None:
    """Score a model that was brought in, and write what people read of it.

    Args:
        taken: The model.
        judged: Labelled rows that it has not seen; None or no rows: it is not scored.
        model: Output: its metadata.
        metrics: Output: its scores.
        report: Output: HTML.
        summary: Output: Markdown.
    """
    predictor = taken.predictor
    scores: dict[str, float] = {}
    notes = list(taken.notes)
    if judged is not None and judged.rows:
        found = evaluate(predictor, judged)
        scores = found.metrics
        if not predictor.remote:  # whose answers may cost
            warning = fitted_on(predictor, taken.dataset, found.per_row)
            notes += [warning] * bool(warning)
    model.metadata.update(
        kind="model", digest=predictor.digest, parameters=predictor.spec.parameters
    )
    metrics.metadata["kind"] = "metrics"
    for name, value in scores.items():
        if value == value:  # NaN fails a finished task
            metrics.log_metric(name, value)
    rows = judged.rows if scores and judged else 0
    pages = brought_report(predictor, taken.source, notes, taken.tried, scores, rows)
    write_pages(pages, report, summary, judged)
    for note in notes:
        print(f"WARNING: {note}", flush=True)
    told = f"it answered {counted(taken.tried, 'row')}"
    if scores:
        told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        told += f" on {counted(rows, 'row')} held out"
    factory = predictor.spec.network["factory"]
    print(f"brought in {factory} {predictor.digest[:12]}: {told}", flush=True)
