"""Task of the component `continuous-eval`: score, compare, decide, report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from kubestill.errors import Problems
from kubestill.runtime.artifacts import Artifact, MetricsArtifact, check_kind
from kubestill.runtime.data.manifest import Dataset
from kubestill.runtime.data.schema import Task
from kubestill.runtime.evaluation.comparison import agreement, mcnemar
from kubestill.runtime.evaluation.cost import running_costs
from kubestill.runtime.evaluation.decision import Decision, judge_alone, judge_challenger
from kubestill.runtime.evaluation.evaluate import Evaluation, evaluate
from kubestill.runtime.evaluation.findings import Findings, Role, Subject, clean
from kubestill.runtime.evaluation.intervals import Bootstrap, bootstrap
from kubestill.runtime.evaluation.metrics import METRICS, PRIMARY, metrics_of
from kubestill.runtime.evaluation.settings import EvaluationSettings, check_metric, role_names
from kubestill.runtime.evaluation.slices import Slice, check_slices, slice_scores
from kubestill.runtime.evaluation.thresholds import Threshold, parse_thresholds
from kubestill.runtime.models.export import load_model, read_training
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.reports.evaluation import evaluation_report
from kubestill.runtime.reports.scores import scores_text
from kubestill.runtime.training.settings import validate

__all__ = ["continuous_eval"]


def continuous_eval(
    *,
    model: Artifact,
    dataset: Artifact,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    baseline: Artifact | None = None,
    teacher: Artifact | None = None,
    golden: Artifact | None = None,
    thresholds: Mapping[str, Any] | None = None,
    slices: Sequence[str] | None = None,
    registry: str = "",
    settings: Mapping[str, Any] | None = None,
) -> tuple[str, str]:
    """Score a model with confidence intervals, compare it with others, and decide.

    Args:
        model: The model to judge.
        dataset: Labelled rows that no training has seen.
        metrics: Output: scalars; `metadata["scores"]` holds everything.
        report: Output: HTML.
        summary: Output: Markdown.
        baseline: What the model would replace, or its control.
        teacher: What the model imitates.
        golden: A fixed second dataset that must not get worse.
        thresholds: Limits by metric, such as `{"accuracy": {"min": 0.95}}`.
        slices: Columns by whose values the scores are broken down.
        registry: Root of the evaluation history.
        settings: See `EvaluationSettings`.

    Returns:
        decision: `promote`, `reject` or `insufficient` with a baseline; `healthy`, `degraded` or
            `insufficient` without.
        reason: Why, in sentences.

    Raises:
        InvalidInput: With everything that is wrong, before anything is scored.
        CorruptData: A model or dataset is damaged.
    """
    artifacts: dict[Role, Artifact | None] = {
        "model": model,
        "baseline": baseline,
        "teacher": teacher,
    }
    job = _check(artifacts, dataset, golden, thresholds or {}, slices or [], settings or {})
    findings = _examine(job)
    if registry:
        print(f"registry {registry}: this version keeps no evaluation history yet", flush=True)
    _write(findings, metrics, report, summary)
    print(scores_text(findings), flush=True)
    print(f"{findings.decision.verdict}: {findings.decision.reason}", flush=True)
    return findings.decision.verdict, findings.decision.reason


@dataclass(frozen=True, kw_only=True)
class _Entrant:
    """One model that was loaded."""

    name: str
    predictor: Predictor
    training: Mapping[str, Any] | None
    digest: str


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Checked inputs."""

    settings: EvaluationSettings
    entrants: Mapping[Role, _Entrant]
    dataset: Dataset
    golden: Dataset | None
    thresholds: Sequence[Threshold]
    slices: Sequence[str]

    @property
    def task(self) -> Task:
        return cast("Task", self.entrants["model"].predictor.spec.task)


def _check(
    artifacts: Mapping[Role, Artifact | None],
    dataset: Artifact,
    golden: Artifact | None,
    thresholds: Mapping[str, Any],
    slices: Sequence[str],
    settings: Mapping[str, Any],
) -> _Job:
    """Find every problem that can be found before scoring, and raise them together."""
    problems = Problems()
    parsed = EvaluationSettings()
    with problems.collect():
        prefixes = dict.fromkeys(settings, "settings.")
        parsed = validate(EvaluationSettings, settings, prefixed=prefixes)
    rows = _open(dataset, "dataset", problems)
    fixed = _open(golden, "golden", problems)
    entrants = _load(artifacts, parsed, problems)
    limits: Sequence[Threshold] = ()
    if "model" in entrants:
        task = cast("Task", entrants["model"].predictor.spec.task)
        _check_comparable(entrants, problems)
        with problems.collect():
            limits = parse_thresholds(thresholds, task)
        with problems.collect():
            check_metric(parsed.metric, task)
    if rows:
        with problems.collect():
            check_slices(slices, rows.schema)
    problems.raise_if_any()
    assert rows is not None
    return _Job(
        settings=parsed,
        entrants=entrants,
        dataset=rows,
        golden=fixed,
        thresholds=limits,
        slices=slices,
    )


def _open(artifact: Artifact | None, field: str, problems: Problems) -> Dataset | None:
    if artifact is None:
        return None
    with problems.collect():
        check_kind(artifact, "dataset", field)
        return Dataset.open(artifact.path)
    return None


def _load(
    artifacts: Mapping[Role, Artifact | None], settings: EvaluationSettings, problems: Problems
) -> dict[Role, _Entrant]:
    present: dict[Role, Artifact] = {role: a for role, a in artifacts.items() if a is not None}
    names = role_names(settings, present)
    loaded: dict[Role, _Entrant] = {}
    for role, artifact in present.items():
        with problems.collect():
            check_kind(artifact, "model", role)
            predictor = load_model(artifact.path)
            loaded[role] = _Entrant(
                name=names[role],
                predictor=predictor,
                training=read_training(artifact.path),
                digest=str(artifact.metadata.get("digest") or predictor.spec.digest),
            )
    return loaded


def _check_comparable(entrants: Mapping[Role, _Entrant], problems: Problems) -> None:
    mine = entrants["model"].predictor.spec
    for role, entrant in entrants.items():
        spec = entrant.predictor.spec
        if (spec.task, spec.outputs) != (mine.task, mine.outputs):
            found = f"{spec.task} {list(spec.outputs)[:12]}"
            remedy = (
                f"it predicts something else than the model: {mine.task} {list(mine.outputs)[:12]}"
            )
            problems.add(role, found, remedy)


def _examine(job: _Job) -> Findings:
    """Score every model, compare, judge."""
    settings = job.settings
    evaluations = _evaluate(job, job.dataset)
    scores = _scores(job, evaluations)
    golden = _scores(job, _evaluate(job, job.golden)) if job.golden else None
    costs = running_costs({role: entrant.predictor for role, entrant in job.entrants.items()})
    subjects: dict[Role, Subject] = {
        role: Subject(
            role=role,
            name=entrant.name,
            evaluation=evaluations[role],
            cost=costs[role],
            spec=entrant.predictor.spec.to_json(),
            training=entrant.training,
        )
        for role, entrant in job.entrants.items()
    }
    mine = evaluations["model"]
    metric = metrics_of(job.task)[settings.metric or PRIMARY[job.task]]
    classes = "baseline" in subjects and job.task != "regression"
    return Findings(
        task=job.task,
        classes=job.entrants["model"].predictor.spec.outputs,
        subjects=subjects,
        scores=scores,
        metric=metric,
        decision=_decide(job, scores, golden),
        dataset={
            "rows": job.dataset.rows,
            "labelled": len(mine.rows),
            "fingerprint": job.dataset.fingerprint,
        },
        settings=_shown_settings(job),
        slices=_slices(job, subjects),
        golden=golden,
        agreement=(
            agreement(mine.outcome, evaluations["teacher"].outcome)
            if "teacher" in evaluations
            else float("nan")
        ),
        mcnemar=mcnemar(mine.outcome, evaluations["baseline"].outcome) if classes else None,
        images=_images(job, mine),
        references={
            **{entrant.name: entrant.digest for entrant in job.entrants.values()},
            "dataset": job.dataset.fingerprint,
        },
    )


def _evaluate(job: _Job, dataset: Dataset) -> dict[Role, Evaluation]:
    return {role: evaluate(entrant.predictor, dataset) for role, entrant in job.entrants.items()}


def _scores(job: _Job, evaluations: Mapping[Role, Evaluation]) -> Bootstrap:
    outcomes = {job.entrants[role].name: one.outcome for role, one in evaluations.items()}
    settings = job.settings
    return bootstrap(
        outcomes,
        resamples=settings.resamples,
        confidence=settings.confidence,
        seed=settings.seed,
    )


def _decide(job: _Job, scores: Bootstrap, golden: Bootstrap | None) -> Decision:
    settings, model = job.settings, job.entrants["model"].name
    if "baseline" not in job.entrants:
        return judge_alone(scores, model, job.thresholds, min_rows=settings.min_rows)
    return judge_challenger(
        scores,
        model,
        job.entrants["baseline"].name,
        job.thresholds,
        metric=METRICS[job.task][settings.metric or PRIMARY[job.task]],
        min_rows=settings.min_rows,
        min_improvement=settings.min_improvement,
        golden=golden,
    )


def _slices(job: _Job, subjects: Mapping[Role, Subject]) -> tuple[Slice, ...]:
    if not job.slices:
        return ()
    rows = subjects["model"].evaluation.rows
    table = job.dataset.to_pandas(columns=list(job.slices)).iloc[rows].reset_index(drop=True)
    outcomes = {subject.name: subject.evaluation.outcome for subject in subjects.values()}
    return tuple(
        part for column in job.slices for part in slice_scores(column, table[column], outcomes)
    )


def _images(job: _Job, evaluation: Evaluation) -> np.ndarray | None:
    """Return [N, H, W] of the scored rows where a row is one picture of at most 64 by 64."""
    predictor = job.entrants["model"].predictor
    features = predictor.layout.features
    shape = [size for size in features[0].shape if size != 1]
    if len(features) != 1 or len(shape) != 2 or max(shape) > 64 or min(shape) < 4:
        return None
    from kubestill.runtime.data.cache import load_decoded

    raw = load_decoded(job.dataset, predictor.layout).raw
    return np.asarray(raw)[evaluation.rows].reshape(-1, *shape)


def _shown_settings(job: _Job) -> dict[str, Any]:
    return {
        **job.settings.model_dump(),
        "metric": job.settings.metric or PRIMARY[job.task],
        "thresholds": ", ".join(map(str, job.thresholds)),
        "slices": list(job.slices),
    }


def _write(
    findings: Findings, metrics: MetricsArtifact, report: Artifact, summary: Artifact
) -> None:
    html, markdown = evaluation_report(findings)
    for artifact, content, kind in ((report, html, "report"), (summary, markdown, "summary")):
        os.makedirs(os.path.dirname(artifact.path) or ".", exist_ok=True)
        with open(artifact.path, "w", encoding="utf-8") as file:
            file.write(content)
        artifact.metadata["kind"] = kind
    for name, value in _scalars(findings).items():
        metrics.log_metric(name, value)
    metrics.metadata["kind"] = "metrics"
    metrics.metadata["scores"] = findings.to_scores()


def _scalars(findings: Findings) -> dict[str, float]:
    """Return what Kubeflow plots: finite numbers only."""
    found: dict[str, Any] = {}
    for role, subject in findings.subjects.items():
        prefix = "" if role == "model" else f"{role}_"
        for name, value in findings.scores.points[subject.name].items():
            found[prefix + name] = value
        found[f"{prefix}parameters"] = float(subject.cost.parameters)
        found[f"{prefix}latency_ms"] = 1e3 * subject.cost.latency[1]
    gain = findings.improvement(findings.metric)
    if gain is not None:
        found |= {f"improvement_{key}": value for key, value in asdict(gain).items()}
    gap = findings.recovered_gap(findings.metric)
    found["recovered_gap"] = gap.value if gap else None
    found["agreement"] = findings.agreement
    found["rows"] = float(findings.dataset["labelled"])
    return {name: value for name, value in clean(found).items() if value is not None}
