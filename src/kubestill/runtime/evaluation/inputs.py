"""What an evaluation works on: models from artifacts or the registry, rows, limits; all checked."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal, cast

from kubestill.errors import CorruptData, InvalidInput, NotFound, Problem, Problems, nearest
from kubestill.runtime.base.artifacts import Artifact, check_kind
from kubestill.runtime.base.settings import read
from kubestill.runtime.datasets.decode import check_columns
from kubestill.runtime.datasets.manifest import Dataset, open_input
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
from kubestill.runtime.retraining import Champion, Registry, State, Window, open_registry
from kubestill.runtime.retraining.collecting import parse_instant
from kubestill.runtime.retraining.history import Gain, is_reserved
from kubestill.runtime.retraining.state import Half
from kubestill.runtime.retraining.windows import WindowStore
from kubestill.runtime.stores import open_store
from kubestill.runtime.training.record import TrainingRecord, read_training

Question = Literal["compare", "alone", "first", "bootstrap", "expect"]
"""What is asked: a model against a baseline, alone, or as the first champion; `bootstrap` where
there is no model to judge yet, `expect` where there are no labels to judge it by."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model that takes part: champion, challenger, teacher, student or control."""

    name: str
    predictor: Predictor
    training: TrainingRecord | None
    """None where the export has none."""
    digest: str


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """One line of champions in a registry, as far as an evaluation needs it."""

    registry: Registry
    run_id: str
    champion: Champion | None
    record: Record | None
    """Of the champion's promotion."""
    window: str = ""
    """Name of the window that the run holds."""
    end: str = ""
    """Until when its rows reach: what the history is plotted over. ISO 8601."""
    years: float | None = None
    """Time since the window before it; None outside of a run."""
    golden_age: float | None = None
    """Days between the golden rows and those of the window; None where they are the user's own, or
    there are none."""
    state: State = dataclasses.field(default_factory=State)

    def learned(self) -> list[Dataset]:
        """Open every window that is not quarantined, the run's own as well."""
        claim = self.state.claim
        held = [claim.window] if claim and claim.run_id == self.run_id else []
        return [self._open(window, half) for window, half in self._sound(*held)]

    def before(self) -> Dataset | None:
        """Open the last sound rows before those of the window; None where there are none."""
        judged = [part for part in self._sound() if part[1] == "judge" and part[0].judge_rows]
        latest = max(judged, key=lambda part: part[0].end, default=None)
        return self._open(*latest) if latest else None

    def is_sound(self) -> bool:
        """Return whether this very run has judged all rows of its window, and found them fit."""
        told = self.registry.run(self.run_id).judged("judge")
        return told is not None and told.window == self.window and told.verdict != "unfit"

    def gains(self, metric: str, days: float) -> list[Gain]:
        """Return what challengers of this champion gained in earlier windows, oldest first.

        Only those since the last promotion are, though it was rolled back since: who gives up a
        champion gives up the evidence that made it one.

        Args:
            metric: What it was measured in.
            days: Length of the stretches into which the time since then is cut: gains of the
                stretch that this window is in are added up.
        """
        windows, champion = self.state.windows, self.champion
        made = [place for place, one in enumerate(windows) if one.verdict == "promoted"]
        if not made or not champion:
            return []
        begun = parse_instant(windows[made[-1]].end)

        def stretch(end: str) -> int:
            return (parse_instant(end) - begun) // timedelta(days=days)

        found: list[Gain] = []
        for window in windows[made[-1] + 1 :]:
            if window.judge == "quarantined" or stretch(window.end) != stretch(self.end):
                continue
            if window.verdict not in ("inconclusive", "rejected"):  # no challenger was judged
                continue
            told = self.registry.run(window.run_id).judged("challenge")
            if not told or not told.gain or told.window != window.id:
                continue
            if (told.baseline, told.metric) == (champion.model_digest, metric):
                found.append(told.gain)
        return found

    def _sound(self, *more: Window) -> list[tuple[Window, Half]]:
        halves: tuple[Half, ...] = ("train", "judge")
        return [
            (window, half)
            for window in (*self.state.windows, *more)
            for half in halves
            if getattr(window, half) != "quarantined"
        ]

    def _open(self, window: Window, half: Half) -> Dataset:
        return WindowStore(self.registry, self.state).dataset(window, half)


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """Checked inputs."""

    settings: EvaluationSettings
    candidates: Mapping[Role, Candidate]
    dataset: Dataset
    golden: Dataset | None = None
    judged: Candidate | None = None
    """The model that was judged in the champion's place, where the champion is its refit and has
    learned from the golden rows: there it stands for the champion, so that neither side has."""
    unlabelled: Dataset | None = None
    """Rows whose labels are late; None where there are none."""
    thresholds: Sequence[Threshold] = ()
    slices: Sequence[str] = ()
    lineage: Lineage | None = None
    champion_role: Role | None = None
    """Which of the candidates is the registry's champion; None where it takes no part."""
    asked_step: str = ""
    """Name of this evaluation in the history; empty derives it from who is judged."""

    @property
    def question(self) -> Question:
        """What is asked."""
        if "model" not in self.candidates:
            return "bootstrap"
        if self.dataset is self.unlabelled:
            return "expect"
        if "baseline" in self.candidates:
            return "compare"
        return "first" if self.lineage and self.champion_role is None else "alone"

    @property
    def step(self) -> str:
        """What the history calls this evaluation."""
        alone = self.champion_role == "model" or not self.candidates
        return self.asked_step or ("judge" if alone else "challenge")

    @property
    def golden_candidates(self) -> Mapping[Role, Candidate]:
        """Who is scored on the golden rows."""
        return {**self.candidates, **({"baseline": self.judged} if self.judged else {})}

    @property
    def task(self) -> Task:
        """What the models predict."""
        return cast("Task", self.candidates["model"].predictor.spec.task)

    @property
    def metric(self) -> Metric:
        """What the decision is taken on."""
        return METRICS[self.settings.metric or TASKS[self.task].primary]

    @property
    def record(self) -> Record | None:
        """What the champion was at its promotion, where the registry's champion takes part."""
        return self.lineage.record if self.lineage and self.champion_role else None

    @property
    def golden_weight(self) -> float | None:
        """What a loss on the golden rows counts beside a gain; None where it is a veto."""
        age = self.lineage.golden_age if self.lineage else None
        return None if age is None else 0.5 ** (max(0.0, age) / self.settings.golden_half_life)

    @property
    def alpha(self) -> float:
        """Chance of a false alarm that this window may spend.

        Windows of a schedule add up: each gets the part of a year's rate that its time is of a
        year, and never more than that of one window. Years then keep theirs (Bonferroni).
        """
        once = 1 - self.settings.confidence
        years = self.lineage.years if self.lineage else None
        return once if years is None else min(once, self.settings.yearly_alarms * years)

    @property
    def challenges(self) -> bool:
        """Whether a run judges a challenger, by the rows of its window that are there to judge."""
        lineage = self.lineage
        held = lineage.state.claim if lineage and lineage.window else None
        return bool(
            self.question == "compare"
            and self.champion_role == "baseline"
            and held
            and held.window.holdout == self.dataset.fingerprint
        )

    @property
    def pools(self) -> bool:
        """Whether what challengers gain is added up over windows."""
        return bool(self.settings.pool_days) and self.challenges

    @property
    def pool_budget(self) -> float:
        """Chance that added-up gains ever promote a challenger that is no better.

        That is half of a year's, which is half of that of all false alarms; less for stretches of
        less than a year, as each has its own.
        """
        return self.settings.yearly_alarms / 4 * min(1.0, self.settings.pool_days / 365.25)


def check_inputs(
    artifacts: Mapping[Role, Artifact | None],
    dataset: Artifact,
    golden: Artifact | None,
    unlabelled: Artifact | None = None,
    *,
    thresholds: Mapping[str, Any],
    slices: Sequence[str],
    registry: str,
    run_id: str,
    step: str,
    settings: Mapping[str, Any],
) -> EvaluationInputs:
    """Find every problem that can be found before scoring, and raise them together.

    A registry's champion is the model where none is connected, and else the baseline where none is.

    Raises:
        InvalidInput: With all problems; a damaged model, dataset or registry is one of them.
    """
    problems = Problems()
    parsed = read(EvaluationSettings, settings, problems, prefix="settings.")
    parsed = parsed or EvaluationSettings()
    rows = open_input(dataset, "dataset", problems)
    fixed = open_input(golden, "golden", problems)
    later = open_input(unlabelled, "unlabelled", problems)
    present: dict[Role, Artifact] = {role: a for role, a in artifacts.items() if a is not None}
    lineage = _lineage(registry, run_id, problems)
    if is_reserved(step):
        problems.add("step", step, "the history has other entries of this name; use another")
    if "model" not in present:
        _check_alone(present, lineage, registry, problems)
    champion_role = _find_champion(present, lineage)
    names = role_names(
        parsed,
        {*present, *([champion_role] if champion_role else [])},
        judges_champion=champion_role == "model",
    )
    candidates = _load(present, names, problems)
    if champion_role and champion_role not in present and lineage and lineage.champion:
        with problems.collect():
            candidates[champion_role] = _load_champion(
                lineage.registry, lineage.champion, names[champion_role]
            )
    judged = None
    if fixed and champion_role == "baseline" and lineage and lineage.champion:
        own = lineage.state.golden is None
        if own and lineage.champion.judged:
            with problems.collect():
                judged = _load_champion(
                    lineage.registry, lineage.champion, names["baseline"], judged=True
                )
    limits = _check_models(candidates, rows, parsed, thresholds, problems)
    later = later if later and later.rows else None
    if lineage and not later and rows and rows.rows and rows.schema.target is None:
        later = rows
    for field, opened in (("dataset", rows if rows is not later else None), ("golden", fixed)):
        if opened and (present or champion_role):
            _check_rows(opened, field, candidates, problems)
    for candidate in candidates.values() if later else ():
        with problems.collect():
            check_columns(later, candidate.predictor.layout, ["raw"])
    if rows:
        with problems.collect():
            check_slices(slices, rows.schema)
    for field, opened in (("dataset", rows), ("golden set", fixed)):
        if opened and parsed.group:
            _check_group(opened, field, parsed.group, problems)
    problems.raise_if_any()
    assert rows is not None
    if lineage is not None and not lineage.run_id:
        lineage = replace(lineage, run_id=_name_of(rows, candidates))
    return EvaluationInputs(
        settings=parsed,
        candidates=candidates,
        dataset=rows,
        golden=fixed,
        judged=judged,
        unlabelled=later,
        thresholds=limits,
        slices=slices,
        lineage=lineage,
        champion_role=champion_role,
        asked_step=step,
    )


def _check_group(rows: Dataset, field: str, group: str, problems: Problems) -> None:
    """Note a column of entities that is not there, or has no values to compare."""
    columns = {column.name: column for column in rows.schema.columns}
    if group not in columns:
        remedy = f"the {field} has no column of this name; {nearest(group, columns)}"
        problems.add("settings.group", group, remedy)
    elif columns[group].kind in ("tensor", "text") or columns[group].role == "target":
        problems.add("settings.group", group, "names no entity; give a plain column such as an id")


def _lineage(registry: str, run_id: str, problems: Problems) -> Lineage | None:
    if not registry:
        return None
    with problems.collect():
        try:
            return _read_lineage(registry, run_id)
        except CorruptData as error:
            # What made it is a line of runs, which nobody can run again.
            problems.add("registry", registry, f"{error}; restore it, or use another registry")
    return None


def _read_lineage(registry: str, run_id: str) -> Lineage:
    opened = open_registry(registry)
    state = opened.read()
    champion, claim = state.champion, state.claim
    source = f"{opened.uri}: champion {champion.version}" if champion else ""
    record = read_record(champion.decision.record, source) if champion else None
    window = claim.window if claim and claim.run_id == run_id else None
    return Lineage(
        registry=opened,
        state=state,
        run_id=run_id,
        champion=champion,
        record=record,
        window=window.id if window else "",
        end=window.end if window else "",
        years=_years(state.judged_through or window.first, window.end) if window else None,
        golden_age=_golden_age(state, window) if window else None,
    )


def _golden_age(state: State, window: Window) -> float | None:
    if state.golden is not None:
        return None
    last = [kept.last for kept in state.windows if kept.judge == "golden"]
    if not last:
        return None
    return (parse_instant(window.end) - parse_instant(max(last))) / timedelta(days=1)


def _years(before: str, end: str) -> float:
    """Return the years between two instants: at least an hour, where rows are late or replayed."""
    passed = parse_instant(end) - parse_instant(before)
    return max(passed, timedelta(hours=1)) / timedelta(days=365.25)


def _check_alone(
    present: Mapping[Role, Artifact], lineage: Lineage | None, registry: str, problems: Problems
) -> None:
    if not registry:
        remedy = "connect a model, or name the registry whose champion is to be judged"
        problems.add("model", "not connected", remedy)
    if "baseline" in present and lineage:
        remedy = "the champion is judged alone; connect the challenger as the model"
        problems.add("baseline", present["baseline"].uri, remedy)


def _find_champion(present: Mapping[Role, Artifact], lineage: Lineage | None) -> Role | None:
    """Return which role the registry's champion plays: by its digest, or where nobody else does."""
    if lineage is None or lineage.champion is None:
        return None
    for role in ("model", "baseline"):
        if role not in present or _digest(present[role].path) == lineage.champion.model_digest:
            return role
    return None


def _load(
    present: Mapping[Role, Artifact], names: Mapping[Role, str], problems: Problems
) -> dict[Role, Candidate]:
    loaded: dict[Role, Candidate] = {}
    for role, artifact in present.items():
        with problems.collect(role, artifact.uri):
            check_kind(artifact, "model", role)
            predictor = load_model(artifact.path)
            loaded[role] = Candidate(
                name=names[role],
                predictor=predictor,
                training=read_training(artifact.path),
                digest=predictor.digest,
            )
    return loaded


def _load_champion(
    registry: Registry, champion: Champion, name: str, *, judged: bool = False
) -> Candidate:
    """Load the champion, or the model that was judged in its place, and check that it is that."""
    uri = registry.judged_uri(champion) if judged else registry.model_uri(champion)
    wanted = champion.judged if judged else champion.model_digest
    try:
        predictor, training = load_model(uri), read_training(uri)
    except (InvalidInput, CorruptData) as error:
        remedy = (
            f"champion {champion.version} cannot be loaded from where it was promoted to "
            f"({error}); restore the folder, or go back with `kubestill registry rollback`"
        )
        raise InvalidInput([Problem("registry", registry.uri, remedy)]) from error
    found = predictor.digest
    if found != wanted:
        what = "judged" if judged else "promoted"
        remedy = (
            f"{uri} is not the model that was {what} as champion {champion.version}: {SPEC_FILE} "
            f"has SHA-256 {found[:12]}…, the registry says {wanted[:12]}…; restore it, "
            "or go back with `kubestill registry rollback`"
        )
        raise InvalidInput([Problem("registry", registry.uri, remedy)])
    return Candidate(name=name, predictor=predictor, training=training, digest=found)


def _digest(uri: str) -> str:
    """Return the digest of the model at `uri`; empty where there is none."""
    try:
        return model_digest(open_store(uri).get(SPEC_FILE))
    except NotFound:
        return ""


def _check_models(
    candidates: Mapping[Role, Candidate],
    rows: Dataset | None,
    settings: EvaluationSettings,
    thresholds: Mapping[str, Any],
    problems: Problems,
) -> Sequence[Threshold]:
    # Where there is no model to ask, its task is that of the rows it is to be judged on.
    task = rows.schema.task if rows else None
    if "model" in candidates:
        _check_comparable(candidates, problems)
        task = cast("Task", candidates["model"].predictor.spec.task)
    if task is None:
        return ()
    with problems.collect():
        check_metric(settings.metric, task)
    with problems.collect():
        return parse_thresholds(thresholds, task)
    return ()


def _check_comparable(candidates: Mapping[Role, Candidate], problems: Problems) -> None:
    mine = candidates["model"].predictor.spec
    for role, candidate in candidates.items():
        spec = candidate.predictor.spec
        if (spec.task, spec.outputs) != (mine.task, mine.outputs):
            found = f"{spec.task} {list(spec.outputs)[:12]}"
            remedy = (
                f"it predicts something else than the model: {mine.task} {list(mine.outputs)[:12]}"
            )
            problems.add(role, found, remedy)


def _check_rows(
    rows: Dataset, field: str, candidates: Mapping[Role, Candidate], problems: Problems
) -> None:
    """Note what keeps rows from being scored; once, however many of the models say so."""
    if not rows.rows:
        problems.add(field, rows.root, "is empty; give at least one labelled row")
        return
    found: dict[Problem, None] = {}
    for candidate in candidates.values():
        own = Problems()
        with own.collect():
            check_scorable(candidate.predictor.layout, rows)
        found |= dict.fromkeys(own)
    for problem in found:
        place = field if problem.field == "dataset" else f"{field}: {problem.field}"
        problems.add(place, problem.value, problem.remedy)


def _name_of(rows: Dataset, candidates: Mapping[Role, Candidate]) -> str:
    """Return a name for an evaluation outside of any run: the same for the same models and rows."""
    text = "/".join([rows.fingerprint, *(candidates[role].digest for role in sorted(candidates))])
    return f"eval-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
