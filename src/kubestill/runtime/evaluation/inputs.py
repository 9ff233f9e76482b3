"""What an evaluation works on: models from artifacts or the registry, rows, limits; all checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from kubestill.errors import CorruptData, InvalidInput, NotFound, Problem, Problems
from kubestill.runtime.base.artifacts import Artifact, check_kind
from kubestill.runtime.base.settings import read
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Task
from kubestill.runtime.evaluation.evaluate import check_scorable
from kubestill.runtime.evaluation.findings import Role
from kubestill.runtime.evaluation.record import Record, read_record
from kubestill.runtime.evaluation.settings import EvaluationSettings, check_metric, role_names
from kubestill.runtime.evaluation.slices import check_slices
from kubestill.runtime.evaluation.thresholds import Threshold, parse_thresholds
from kubestill.runtime.metrics.catalog import METRICS, TASKS, Metric
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.identity import SPEC_FILE, model_digest
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.retraining import Champion, Registry, open_registry
from kubestill.runtime.stores import open_store
from kubestill.runtime.training.record import TrainingRecord, read_training

__all__ = ["Entrant", "Job", "Question", "Throne", "check_inputs"]

Question = Literal["compare", "alone", "first", "bootstrap"]
"""What is asked: a model against a baseline; one alone; a first champion; or there is none yet."""


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One model that was loaded."""

    name: str
    predictor: Predictor
    training: TrainingRecord | None
    """None where the export has none."""
    digest: str


@dataclass(frozen=True, kw_only=True)
class Throne:
    """The registry, as far as an evaluation needs it."""

    registry: Registry
    run_id: str
    champion: Champion | None
    record: Record | None
    """Of the champion's promotion."""
    window: str = ""
    """Name of the window that the run holds."""
    end: str = ""
    """Until when its rows reach: what the history is plotted over. ISO 8601."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Checked inputs."""

    settings: EvaluationSettings
    entrants: Mapping[Role, Entrant]
    dataset: Dataset
    golden: Dataset | None = None
    thresholds: Sequence[Threshold] = ()
    slices: Sequence[str] = ()
    throne: Throne | None = None
    reigning: Role | None = None
    """Which of the entrants is the registry's champion."""
    asked_step: str = ""
    """What the history is to call this evaluation; empty follows from who is judged."""

    @property
    def question(self) -> Question:
        """What is asked."""
        if "model" not in self.entrants:
            return "bootstrap"
        if "baseline" in self.entrants:
            return "compare"
        return "first" if self.throne and self.reigning is None else "alone"

    @property
    def step(self) -> str:
        """What the history calls this evaluation."""
        alone = self.reigning == "model" or not self.entrants
        return self.asked_step or ("judge" if alone else "challenge")

    @property
    def task(self) -> Task:
        """What the models predict."""
        return cast("Task", self.entrants["model"].predictor.spec.task)

    @property
    def metric(self) -> Metric:
        """What the decision is taken on."""
        return METRICS[self.settings.metric or TASKS[self.task].primary]

    @property
    def record(self) -> Record | None:
        """What the champion was at its promotion, where the registry's champion takes part."""
        return self.throne.record if self.throne and self.reigning else None

    @property
    def alpha(self) -> float:
        """Chance of a false alarm that is accepted."""
        return 1 - self.settings.confidence


def check_inputs(
    artifacts: Mapping[Role, Artifact | None],
    dataset: Artifact,
    golden: Artifact | None,
    *,
    thresholds: Mapping[str, Any],
    slices: Sequence[str],
    registry: str,
    run_id: str,
    step: str,
    settings: Mapping[str, Any],
) -> Job:
    """Find every problem that can be found before scoring, and raise them together.

    A registry's champion is the model where none is connected, and else the baseline where none is.

    Raises:
        InvalidInput: With all problems; a damaged model, dataset or registry is one of them.
    """
    problems = Problems()
    parsed = read(EvaluationSettings, settings, problems, prefix="settings.")
    parsed = parsed or EvaluationSettings()
    rows = _open(dataset, "dataset", problems)
    fixed = _open(golden, "golden", problems)
    present: dict[Role, Artifact] = {role: a for role, a in artifacts.items() if a is not None}
    throne = _throne(registry, run_id, problems)
    if "model" not in present:
        _check_alone(present, throne, registry, problems)
    reigning = _reigning(present, throne)
    names = role_names(
        parsed, {*present, *([reigning] if reigning else [])}, reigning=reigning == "model"
    )
    entrants = _load(present, names, problems)
    if reigning and reigning not in present and throne and throne.champion:
        with problems.collect():
            entrants[reigning] = _enthroned(throne.registry, throne.champion, names[reigning])
    limits = _check_models(entrants, rows, parsed, thresholds, problems)
    for field, opened in (("dataset", rows), ("golden", fixed)):
        if opened and (present or reigning):
            _check_rows(opened, field, entrants, problems)
    if rows:
        with problems.collect():
            check_slices(slices, rows.schema)
    problems.raise_if_any()
    assert rows is not None
    if throne is not None and not throne.run_id:
        throne = replace(throne, run_id=_name_of(rows, entrants))
    return Job(
        settings=parsed,
        entrants=entrants,
        dataset=rows,
        golden=fixed,
        thresholds=limits,
        slices=slices,
        throne=throne,
        reigning=reigning,
        asked_step=step,
    )


def _open(artifact: Artifact | None, field: str, problems: Problems) -> Dataset | None:
    if artifact is None:
        return None
    with problems.collect(field, artifact.uri):
        check_kind(artifact, "dataset", field)
        return Dataset.open(artifact.path)
    return None


def _throne(registry: str, run_id: str, problems: Problems) -> Throne | None:
    if not registry:
        return None
    with problems.collect():
        try:
            return _read_throne(registry, run_id)
        except CorruptData as error:
            # What made it is a line of runs, which nobody can run again.
            problems.add("registry", registry, f"{error}; restore it, or use another registry")
    return None


def _read_throne(registry: str, run_id: str) -> Throne:
    opened = open_registry(registry)
    state = opened.read()
    champion, claim = state.champion, state.claim
    source = f"{opened.uri}: champion {champion.version}" if champion else ""
    record = read_record(champion.decision, source) if champion else None
    window = claim.window if claim and claim.run_id == run_id else None
    return Throne(
        registry=opened,
        run_id=run_id,
        champion=champion,
        record=record,
        window=window.id if window else "",
        end=window.end if window else "",
    )


def _check_alone(
    present: Mapping[Role, Artifact], throne: Throne | None, registry: str, problems: Problems
) -> None:
    if not registry:
        remedy = "connect a model, or name the registry whose champion is to be judged"
        problems.add("model", "not connected", remedy)
    if "baseline" in present and throne:
        remedy = "the champion is judged alone; connect the challenger as the model"
        problems.add("baseline", present["baseline"].uri, remedy)


def _reigning(present: Mapping[Role, Artifact], throne: Throne | None) -> Role | None:
    """Return which role the registry's champion plays: by its digest, or where nobody else does."""
    if throne is None or throne.champion is None:
        return None
    for role in ("model", "baseline"):
        if role not in present or _digest(present[role].path) == throne.champion.model_digest:
            return role
    return None


def _load(
    present: Mapping[Role, Artifact], names: Mapping[Role, str], problems: Problems
) -> dict[Role, Entrant]:
    loaded: dict[Role, Entrant] = {}
    for role, artifact in present.items():
        with problems.collect(role, artifact.uri):
            check_kind(artifact, "model", role)
            predictor = load_model(artifact.path)
            loaded[role] = Entrant(
                name=names[role],
                predictor=predictor,
                training=read_training(artifact.path),
                digest=predictor.digest,
            )
    return loaded


def _enthroned(registry: Registry, champion: Champion, name: str) -> Entrant:
    """Load the champion from the registry and check that it is the model that was promoted."""
    uri = registry.model_uri(champion)
    try:
        predictor, training = load_model(uri), read_training(uri)
    except (InvalidInput, CorruptData) as error:
        remedy = (
            f"champion {champion.version} cannot be loaded from where it was promoted to "
            f"({error}); restore the folder, or go back with `kubestill registry rollback`"
        )
        raise InvalidInput([Problem("registry", registry.uri, remedy)]) from error
    found = predictor.digest
    if found != champion.model_digest:
        remedy = (
            f"champion {champion.version} is not the model that was promoted: {SPEC_FILE} has "
            f"SHA-256 {found[:12]}…, the registry says {champion.model_digest[:12]}…; restore it, "
            "or go back with `kubestill registry rollback`"
        )
        raise InvalidInput([Problem("registry", registry.uri, remedy)])
    return Entrant(name=name, predictor=predictor, training=training, digest=found)


def _digest(uri: str) -> str:
    """Return the digest of the model at `uri`; empty where there is none."""
    try:
        return model_digest(open_store(uri).get(SPEC_FILE))
    except NotFound:
        return ""


def _check_models(
    entrants: Mapping[Role, Entrant],
    rows: Dataset | None,
    settings: EvaluationSettings,
    thresholds: Mapping[str, Any],
    problems: Problems,
) -> Sequence[Threshold]:
    # Where there is no model to ask, its task is that of the rows it is to be judged on.
    task = rows.schema.task if rows else None
    if "model" in entrants:
        _check_comparable(entrants, problems)
        task = cast("Task", entrants["model"].predictor.spec.task)
    if task is None:
        return ()
    with problems.collect():
        check_metric(settings.metric, task)
    with problems.collect():
        return parse_thresholds(thresholds, task)
    return ()


def _check_comparable(entrants: Mapping[Role, Entrant], problems: Problems) -> None:
    mine = entrants["model"].predictor.spec
    for role, entrant in entrants.items():
        spec = entrant.predictor.spec
        if (spec.task, spec.outputs) != (mine.task, mine.outputs):
            found = f"{spec.task} {list(spec.outputs)[:12]}"
            remedy = (
                f"it predicts something else than the model: {mine.task} {list(mine.outputs)[:12]}"
            )
            problems.add(role, found, remedy)


def _check_rows(
    rows: Dataset, field: str, entrants: Mapping[Role, Entrant], problems: Problems
) -> None:
    """Note what keeps rows from being scored; once, however many of the models say so."""
    if not rows.rows:
        problems.add(field, rows.root, "is empty; give at least one labelled row")
        return
    found: dict[Problem, None] = {}
    for entrant in entrants.values():
        own = Problems()
        with own.collect():
            check_scorable(entrant.predictor.layout, rows)
        found |= dict.fromkeys(own)
    for problem in found:
        place = field if problem.field == "dataset" else f"{field}: {problem.field}"
        problems.add(place, problem.value, problem.remedy)


def _name_of(rows: Dataset, entrants: Mapping[Role, Entrant]) -> str:
    """Return a name for an evaluation outside of any run: the same for the same models and rows."""
    text = "/".join([rows.fingerprint, *(entrants[role].digest for role in sorted(entrants))])
    return f"eval-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
