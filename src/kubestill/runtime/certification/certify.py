"""The flow: labels, domain, errors, savings; what does not hold is written down, never raised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problems, counted
from kubestill.runtime.base.rounding import at_least, at_most, exact_percent
from kubestill.runtime.certification.answered import check_answered, excluded, unanswered
from kubestill.runtime.certification.bands import calibrate, check_enough
from kubestill.runtime.certification.certificate import (
    IF_DECLARED,
    WHERE_ANSWERED,
    About,
    Assurance,
    Band,
    Certificate,
    Condition,
    Errors,
    Excluded,
    HuntedErrors,
    Proven,
    Size,
    Solves,
    Worst,
)
from kubestill.runtime.certification.cost import packed_table, size_of, speed_ratio
from kubestill.runtime.certification.coverage import Coverage, check_coverage, grid_points
from kubestill.runtime.certification.errors import (
    OffGrid,
    OnRows,
    domain_errors,
    off_grid,
    on_domain,
    on_labels,
    sampled_errors,
)
from kubestill.runtime.certification.exceptions import MOST, Exceptions
from kubestill.runtime.certification.hunt import hunt
from kubestill.runtime.certification.labels import (
    check_conflicts,
    check_deterministic,
    check_reference,
    check_reproducible,
)
from kubestill.runtime.certification.plan import SolvePlan, finite_points, plan_solves
from kubestill.runtime.certification.settings import CertificateSettings
from kubestill.runtime.certification.truth import Truth
from kubestill.runtime.datasets.cache import load_decoded
from kubestill.runtime.datasets.columns import pandas_frame
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.generation.systems.inputs import Continuous, Levels
from kubestill.runtime.generation.systems.kept import Keep
from kubestill.runtime.generation.systems.left_out import LeftOut, as_point
from kubestill.runtime.generation.systems.system import System
from kubestill.runtime.models.bands import Bands
from kubestill.runtime.models.predict import Predictor


@dataclass(frozen=True, kw_only=True)
class Examined:
    """The certificate, and what its pictures are drawn from."""

    certificate: Certificate
    predictor: Predictor
    on_rows: OnRows
    truth: Truth | None = None
    off_grid: OffGrid | None = None
    worst: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Inputs of the worst point, one row; empty without a system."""
    exceptions: Exceptions | None = None
    bands: Bands | None = None
    side: int = 0
    """Points along each side of a picture."""


def check_exceptions(
    system: System | None,
    settings: CertificateSettings | None,
    *,
    classes: bool,
    problems: Problems,
) -> None:
    """Note why exceptions that were asked for would mean nothing.

    Args:
        system: What is certified; None for a dataset alone.
        settings: None where they, or the system, are wrong in themselves.
        classes: Whether answers are classes.
        problems: Where to note it.
    """
    if not classes:
        remedy = "only classes can be put right point by point; use a tolerance"
        problems.add("exceptions", True, remedy)
    elif settings and finite_points(system, settings) is None:
        remedy = (
            "they name points of a finite domain that is enumerated, and this domain is "
            "continuous, too large (`enumerate_rows`), to be sampled, or that of no system; use a "
            "tolerance"
        )
        problems.add("exceptions", True, remedy)


def check_bands(
    system: System | None,
    settings: CertificateSettings | None,
    *,
    classes: bool,
    problems: Problems,
) -> None:
    """Note why error bands that were asked for cannot be had; see `check_exceptions`."""
    if settings is None or not settings.bands:
        return
    if classes:
        remedy = "only numbers have error bands; ask for none"
    elif system is None or finite_points(system, settings) is not None:
        remedy = "random points calibrate them, and here every point is compared; ask for none"
    elif not settings.samples:
        remedy = "random points calibrate them; give `samples`"
    else:
        with problems.collect():
            check_enough(settings.samples, settings.bands)
        return
    problems.add("settings.bands", list(settings.bands), remedy)


def certify(
    predictor: Predictor,
    dataset: Dataset,
    system: System | None,
    settings: CertificateSettings,
    *,
    weights: int,
    told: Callable[[str], None] = lambda said: None,
    keep: Keep | None = None,
) -> Examined:
    """Look at everything; conditions that do not hold are part of what is returned.

    Args:
        predictor: The surrogate.
        dataset: The rows it was made from: a grid, or samples of the domain.
        system: What labelled them; None for a table that is all there is.
        settings: Assurance, tolerance, samples, confidence.
        weights: Bytes of the exported weights.
        told: Gets a sentence about how much is to be solved, before it is.
        keep: Opens the rows of a slow system that were solved before.

    Raises:
        InvalidInput: The surrogate or the system answers with what is not a finite number.
    """
    decoded = load_decoded(dataset, predictor.layout)
    assert decoded.target is not None
    raw, labels = decoded.raw, decoded.target
    truth = Truth(system, predictor, settings.on_failure) if system else None
    plan: SolvePlan | None = None
    known: pd.DataFrame | None = None
    points, finite = None, finite_points(system, settings)
    conditions = [check_conflicts(raw, labels)]
    if truth is not None:
        points = grid_points(truth.system.domain, dataset.provenance)
        missing = max(math.prod(points.values()) - dataset.rows, 0) if points and not finite else 0
        plan = plan_solves(
            truth,
            dataset.rows,
            settings,
            points=math.prod(finite.values()) if finite else None,
            missing=missing if settings.on_failure == "leave-out" else 0,
        )
        if settings.bands and plan.samples:
            check_enough(plan.samples, settings.bands)
        told("; ".join(filter(None, (plan.said, keep and truth.reuse(keep, plan.seconds)))))
        rows, some = _some_rows(dataset, labels, plan.labels)
        once = truth.solve(rows)
        known = rows.iloc[np.flatnonzero(~np.isnan(once[:, 0]))]
        conditions.append(check_deterministic(truth, rows, once))
        conditions.append(check_reproducible(truth, once, some))
        few = slice(None, None, max(1, len(rows) // max(plan.reference, 1)))
        conditions.append(check_reference(truth, rows.iloc[few], once[few], settings.tolerance))
        truth.begin()
    on_rows = on_domain(truth, finite) if truth and finite else on_labels(predictor, raw, labels)
    seen = _measure(truth, on_rows, settings, plan)
    if truth is None or plan is None:
        coverage = Coverage(kind="complete", condition=_all_there_is(dataset))
    else:
        without = unanswered(truth, seen.off_grid, plan.missing)
        domain = truth.system.domain
        coverage = check_coverage(domain, raw, predictor.layout, points, without)
    conditions.append(coverage.condition)
    outside = excluded(
        seen.left_out, seen.off_grid, finite=finite is not None, confidence=settings.confidence
    )
    if truth and settings.on_failure == "leave-out":
        conditions.append(check_answered(truth, outside, settings))
    exceptions = _exceptions(on_rows) if settings.exceptions else None
    proven = _prove(predictor, system, settings, outside, found=_solved_error(seen))
    assurance = _assurance(truth, seen, coverage, proven, finite=finite is not None)
    if truth or settings.assurance != "auto":
        conditions += _asked_for(assurance, proven, settings)
    bands = None
    if truth and seen.off_grid and settings.bands:
        drawn = _drawn(system, outside)
        bands = calibrate(truth, seen.off_grid, settings.bands, drawn=drawn)
    speed = None
    if truth and plan:
        speed = speed_ratio(truth, plan.batch, plan.repeats, known if outside else None)
    made = Certificate(
        assurance=assurance,
        conditions=(
            *conditions,
            _within(assurance, seen, proven, exceptions, settings, _drawn(system, outside)),
        ),
        errors=seen.errors.model_copy(update={"proven": proven.record}),
        worst=seen.worst,
        covered=coverage.looked_at,
        size=_size(on_rows, exceptions, coverage, system, settings, weights),
        speed=speed,
        solves=plan
        and truth
        and Solves(
            planned=plan.counts, seconds=plan.seconds, done=truth.solved, reused=truth.reused
        ),
        excluded=outside,
        bands=_widths(bands, predictor, seen.off_grid),
        about=About(
            coverage=coverage.kind,
            model=predictor.digest,
            weights=predictor.spec.digest or "",
            dataset=dataset.fingerprint,
            system=system.name if system else None,
            domain=tuple(system.domain.describe()) if system else None,
            unit=system.output.unit if system else "",
            parameters=predictor.spec.parameters,
            settings=settings,
        ),
    )
    return Examined(
        certificate=made,
        predictor=predictor,
        on_rows=on_rows,
        truth=truth,
        off_grid=seen.off_grid,
        worst=seen.inputs,
        exceptions=exceptions,
        bands=bands,
        side=plan.side if plan else 0,
    )


def _all_there_is(dataset: Dataset) -> Condition:
    name = "the dataset covers the domain"
    if dataset.complete_domain:
        said = f"{dataset.rows:,} rows, declared to be all inputs there are; no system can tell."
        return Condition(name=name, status="not shown", said=said)
    return Condition(
        name=name,
        status="failed",
        code="incomplete",
        said="The dataset does not claim to be complete, and without a system nothing is known of "
        "any other input.",
        remedy="Name the system, or import the whole table as one.",
    )


def _some_rows(
    dataset: Dataset, labels: NDArray[Any], count: int
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Return inputs and labels [n, T] of a few rows, spread over the whole dataset."""
    take = np.unique(np.linspace(0, dataset.rows - 1, count).astype(np.int64))
    names = [column.name for column in dataset.schema.features]
    parts, start = [], 0
    for table in dataset.iter_blocks(names):
        here = take[(take >= start) & (take < start + table.num_rows)] - start
        if len(here):
            parts.append(pandas_frame(table.take(here)))
        start += table.num_rows
    known = np.asarray(labels[take], np.float64).reshape(len(take), -1)
    return pd.concat(parts, ignore_index=True), known


def _widths(bands: Bands | None, predictor: Predictor, found: OffGrid | None) -> tuple[Band, ...]:
    """Return how wide bands are at random points."""
    if bands is None or found is None:
        return ()
    widths = bands.widths(decode_features(found.inputs, predictor.layout))
    return tuple(
        Band(coverage=coverage, mean=float(width.mean(0).max()), largest=float(width.max()))
        for coverage, width in widths.items()
    )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What was measured."""

    errors: Errors
    worst: Worst
    inputs: pd.DataFrame
    off_grid: OffGrid | None
    left_out: LeftOut | None = None
    """Inputs that were asked for, and those on which the solver failed; None without a system."""


def _measure(
    truth: Truth | None, on_rows: OnRows, settings: CertificateSettings, plan: SolvePlan | None
) -> _Seen:
    """Measure the error on rows, between them, and at the worst point that can be found."""
    errors = Errors(data=domain_errors(on_rows))
    found = "among all points" if plan and plan.domain else "on the dataset"
    worst = Worst(found=found, error=errors.data.max, row=on_rows.worst)
    if truth is None or plan is None:
        return _Seen(errors=errors, worst=worst, inputs=pd.DataFrame(), off_grid=None)
    inputs, samples = _inputs_of(truth, on_rows.raw, on_rows.worst), None
    # Where every point was compared, samples tell nothing more.
    if plan.samples:
        samples = off_grid(truth, plan.samples, seed=settings.seed)
        elsewhere, error = hunt(
            truth, samples.unit, samples.errors, plan.hunts, plan.corners, seed=settings.seed
        )
        if error > worst.error:
            worst = Worst(found="between the rows of the dataset", error=error)
            inputs = elsewhere
        sampled = sampled_errors(
            samples, settings, largest=worst.error, classes=on_rows.told is not None
        )
        hunted = HuntedErrors(max=error, around=plan.hunts)
        errors = errors.model_copy(update={"off_grid": sampled, "hunted": hunted})
    left_out = truth.left_out
    worst = worst.model_copy(update=_at(truth, inputs))
    return _Seen(errors=errors, worst=worst, inputs=inputs, off_grid=samples, left_out=left_out)


def _inputs_of(truth: Truth, raw: NDArray[np.float32], row: int) -> pd.DataFrame:
    """Return one row of the raw matrix as inputs of the system."""
    layout, columns = truth.predictor.layout, {}
    levels = {
        given.name: given for given in truth.system.domain.inputs if isinstance(given, Levels)
    }
    for column in layout.features:
        values = raw[row, layout.slices[column.name]].astype(np.float64) + column.offset
        if column.name in levels:
            values = levels[column.name].every[levels[column.name].index(values)]
        if column.kind == "categorical":
            assert column.categories
            columns[column.name] = [column.categories[int(values[0])]]
        else:
            columns[column.name] = [values.reshape(column.shape)] if column.shape else values
    return pd.DataFrame(columns)


def _at(truth: Truth, inputs: pd.DataFrame) -> dict[str, Any]:
    """Return what solver and surrogate say at a point, in the fields of `Worst`."""
    solved, told = truth.solve(inputs)[0], truth.predict(inputs)[0]
    classes = truth.system.output.classes
    if classes:
        answered = {"solution": classes[int(solved[0])], "surrogate": classes[int(told[0])]}
        return {"inputs": as_point(inputs.iloc[0].to_dict()), **answered}
    place = int(np.abs(solved - told).argmax())
    return {
        "inputs": as_point(inputs.iloc[0].to_dict()),
        "solution": float(solved[place]),
        "surrogate": float(told[place]),
        "output": place,
    }


def _exceptions(on_rows: OnRows) -> Exceptions:
    assert on_rows.told is not None
    wrong = np.flatnonzero(on_rows.told != on_rows.right)
    made = Exceptions(on_rows.raw[wrong], on_rows.right[wrong])
    stored = Exceptions.from_bytes(made.to_bytes(), most=max(MOST, len(made)))
    # What the certificate is about to say, of the bytes that are shipped.
    assert (stored.correct(on_rows.raw, on_rows.told) == on_rows.right).all()
    return stored


@dataclass(frozen=True, kw_only=True)
class _Proving:
    """A proof, or why there is none."""

    record: Proven | None = None
    reason: str = ""


def _solved_error(seen: _Seen) -> float:
    """Return the largest error at a point that was solved for the comparison, in float64."""
    errors, worst = seen.errors, seen.worst
    found = [float(part.max) for part in (errors.off_grid, errors.hunted) if part is not None]
    if isinstance(worst.solution, float) and isinstance(worst.surrogate, float):
        found.append(abs(worst.solution - worst.surrogate))
    return max(found, default=0.0)


def _prove(
    predictor: Predictor,
    system: System | None,
    settings: CertificateSettings,
    outside: Excluded | None,
    *,
    found: float,
) -> _Proving:
    """Bound the error over the whole domain, if that was asked for.

    Args:
        predictor: The surrogate.
        system: What it stands for.
        settings: Assurance, tolerance, seconds.
        outside: Where the solver fails.
        found: An error that was found at a point: a proof that says less rests on an enclosure that
            is wrong.
    """
    if settings.assurance != "proven":
        return _Proving()
    if system is None:
        return _Proving(reason="Without a system there is nothing to prove the error against.")
    if outside is not None:
        return _Proving(reason="A proof is about the whole domain, and the solver fails on a part.")
    # Nothing but a proof needs interval arithmetic.
    from kubestill.runtime.certification.proof import prove

    try:
        proof = prove(
            predictor,
            system,
            tolerance=settings.tolerance or None,
            seconds=settings.proof_seconds,
        )
    except InvalidInput as error:
        said = "; ".join(f"{p.field} = {p.value}: {p.remedy}" for p in error.problems)
        return _Proving(reason=f"{said}.")
    except Exception as error:
        if settings.on_failure == "stop":
            raise
        # It failed at no point before, but does at one of the proof's own.
        return _Proving(reason=f"The solver raises {type(error).__name__}: {error}.")
    if proof.upper < found:
        reason = (
            f"The proof bounds the error by {at_most(proof.upper, 3)}, but a point errs by "
            f"{found:.3g}: what it rests on does not hold, correct that ({proof.assumptions[-1]})"
        )
        return _Proving(reason=reason)
    record = Proven(
        status=proof.status,
        upper=proof.upper if np.isfinite(proof.upper) else None,
        lower=proof.lower,
        at={name: str(value) for name, value in proof.at.items()},
        done=proof.done,
        boxes=proof.boxes,
        seconds=proof.seconds,
        assumptions=proof.assumptions,
        conditional=proof.conditional,
    )
    return _Proving(record=record, reason=proof.reason)


def _assurance(
    truth: Truth | None, seen: _Seen, coverage: Coverage, proven: _Proving, *, finite: bool
) -> Assurance | None:
    """Return the strongest assurance that was reached; None where nothing is known."""
    if proven.record is not None and proven.record.status == "proven":
        return "proven"
    if finite or (truth is None and coverage.condition.status != "failed"):
        return "enumerated"
    return "sampled" if seen.errors.off_grid is not None else None


def _asked_for(
    reached: Assurance | None, proven: _Proving, settings: CertificateSettings
) -> list[Condition]:
    """Refuse less than was asked for; where nobody asked there is nothing to hold."""
    name, asked = "the assurance that was asked for", settings.assurance
    if asked == "auto" and reached is not None:
        return []
    if asked == reached:
        said = f"{asked}, as asked."
        if asked == "proven" and proven.record is not None and proven.record.conditional:
            said = f"{asked}, as asked, {IF_DECLARED}: {proven.record.assumptions[-1]}"
        return [Condition(name=name, status="shown", said=said)]
    said = f"{asked} was asked for; what was reached is {reached or 'nothing'}."
    if asked == "proven" and proven.record is not None and proven.record.status == "refuted":
        # The tolerance is what does not hold, and that is said below.
        return [Condition(name=name, status="failed", code="error", said=proven.reason)]
    remedies = {
        "auto": "Give `samples`: no point between the rows was compared.",
        "enumerated": "Only a finite domain can be enumerated, of at most `enumerate_rows` points; "
        "ask for `sampled` or `proven`.",
        "proven": "Ask for `sampled`, give the proof more `proof_seconds`, or widen the tolerance.",
        "sampled": "Give `samples`, on a domain that is not enumerated; or ask for `auto`.",
    }
    said = f"{said} {proven.reason}".rstrip()
    # What stood in the way of a proof comes with its own remedy.
    remedy = remedies[asked] if asked != "proven" or proven.record is not None else ""
    return [Condition(name=name, status="failed", code="assurance", said=said, remedy=remedy)]


_STATISTICS = {"max": "largest", "p999": "99.9th percentile of the", "mean": "mean"}


def _within(
    assurance: Assurance | None,
    seen: _Seen,
    proven: _Proving,
    exceptions: Exceptions | None,
    settings: CertificateSettings,
    drawn: str,
) -> Condition:
    """Hold the error against the tolerance, with the words that the assurance allows."""
    errors, tolerance = seen.errors, settings.tolerance
    if errors.data.disagreements is not None:
        return _agrees(assurance, seen, exceptions, settings, drawn)
    name = "the error is within the tolerance"
    what = _STATISTICS[settings.statistic]
    if assurance == "proven" and proven.record is not None and proven.record.upper is not None:
        value = proven.record.upper
        said = f"Proven: no point of the domain errs by more than {at_most(value, 3)}"
        if proven.record.conditional:
            said += f", {IF_DECLARED}"
    elif assurance == "enumerated":
        value = float(getattr(errors.data, settings.statistic))
        said = f"Over all {errors.data.rows:,} points the {what} error is {at_most(value, 3)}"
    else:
        value, said = _sampled_error(seen, settings)
    if not tolerance:
        return Condition(name=name, status="not shown", said=f"{said}; no tolerance was given.")
    remedy = "Train longer or a larger network, generate more rows, or widen the tolerance."
    if value == math.inf:
        remedy = "Give more `samples`, or another `statistic`."
        return Condition(name=name, status="failed", code="error", said=f"{said}.", remedy=remedy)
    said = f"{said}, with a tolerance of {tolerance:g}."
    if value > tolerance:
        return Condition(name=name, status="failed", code="error", said=said, remedy=remedy)
    return Condition(name=name, status="shown", said=said + _share(assurance, seen, drawn))


def _sampled_error(seen: _Seen, settings: CertificateSettings) -> tuple[float, str]:
    """Return what is held against the tolerance of a sampled domain, and a sentence about it."""
    errors, statistic, off = seen.errors, settings.statistic, seen.errors.off_grid
    where = f"The worst point found, {seen.worst.found}, errs by {at_most(seen.worst.error, 3)}"
    if off is None or statistic == "max":
        return seen.worst.error, where
    value = float(getattr(errors.data, statistic))
    if statistic == "mean":
        assert off.mean_bound is not None
        said = (
            f"{where}. If no point errs by more, the mean error is at most "
            f"{at_most(off.mean_bound, 3)} with {exact_percent(off.confidence)} confidence"
        )
        return max(value, off.mean_bound), said
    (found,) = (q for q in off.quantiles if q.quantile == 0.999)
    if found.bound is None:
        said = (
            f"{where}. {off.rows:,} random points are too few to bound the 99.9th percentile: it "
            f"takes {found.samples_needed:,}"
        )
        return math.inf, said
    said = (
        f"{where}. The 99.9th percentile of the error is at most {at_most(found.bound, 3)} with "
        f"{exact_percent(off.confidence)} confidence"
    )
    return max(value, found.bound), said


def _share(assurance: Assurance | None, seen: _Seen, drawn: str) -> str:
    """Say for which share of a sampled domain the tolerance holds."""
    off = seen.errors.off_grid
    if assurance != "sampled" or off is None or off.above_tolerance is None:
        return ""
    return (
        f" With {exact_percent(off.confidence)} confidence at least "
        f"{at_least(1 - off.above_tolerance.bound, 3)} of the domain{drawn} is within it, after "
        f"{off.rows:,} random points."
    )


def _agrees(
    assurance: Assurance | None,
    seen: _Seen,
    exceptions: Exceptions | None,
    settings: CertificateSettings,
    drawn: str,
) -> Condition:
    """Hold the share of disagreements against the tolerance."""
    name = "the surrogate gives the right classes"
    data, off, tolerance = seen.errors.data, seen.errors.off_grid, settings.tolerance
    assert data.disagreements is not None
    share, of = data.disagreements / data.rows, "points" if assurance == "enumerated" else "rows"
    said = f"{data.disagreements:,} of {data.rows:,} {of} disagree ({at_most(100 * share, 3)}%)"
    if not data.disagreements:
        said = f"All {data.rows:,} {of} agree"
    if assurance == "enumerated":
        if exceptions is not None and data.disagreements:
            said = (
                f"With {counted(len(exceptions), 'exception')} written down beside the network "
                f"({at_most(100 * share, 3)}% of the points) every one of {data.rows:,} points is "
                "answered right."
            )
            return Condition(name=name, status="shown", said=said)
        if share <= tolerance:
            tolerated = f"; {100 * tolerance:.3g}% are tolerated." if tolerance else "."
            return Condition(name=name, status="shown", said=said + tolerated)
    else:
        if off is not None:
            said += f"; between them {at_most(100 * off.mean, 3)}% of {off.rows:,} random points do"
        if not tolerance:
            said += "; no tolerance was given, and no sample can show that every point agrees."
            return Condition(name=name, status="not shown", said=said)
        if off is not None and off.above_tolerance is not None:
            bound = off.above_tolerance.bound
            said += (
                f". With {exact_percent(off.confidence)} confidence at most "
                f"{at_most(100 * bound, 3)}% of the domain{drawn} disagree"
            )
            if max(share, bound) <= tolerance:
                said += f"; {100 * tolerance:.3g}% are tolerated."
                return Condition(name=name, status="shown", said=said)
    return Condition(
        name=name,
        status="failed",
        code="error",
        said=f"{said}; {100 * tolerance:.3g}% are tolerated.",
        remedy="Train longer or a larger network, draw more samples, or widen the tolerance"
        + (", or ask for exceptions." if assurance == "enumerated" else "."),
    )


def _drawn(system: System | None, outside: Excluded | None) -> str:
    """Say which part of the domain random points are of, and how they weigh it."""
    where = f" {WHERE_ANSWERED}" if outside else ""
    given = system.domain.inputs if system else ()
    bent = [g for g in given if isinstance(g, Continuous) and g.mapping != "linear"]
    named = [f"{g.name} by its {'logarithm' if g.mapping == 'log' else g.mapping}" for g in bent]
    return f"{where} ({', '.join(named)})" if named else where


def _size(
    on_rows: OnRows,
    exceptions: Exceptions | None,
    coverage: Coverage,
    system: System | None,
    settings: CertificateSettings,
    weights: int,
) -> Size:
    """Compare bytes with what would be shipped in place of the surrogate."""
    stated = settings.table_bytes or (system.table_bytes if system else 0)
    packed, table = None, "none: the domain is continuous, and its solver is what would be shipped"
    if coverage.kind != "samples":
        packed = packed_table(on_rows.right)
        table = f"the {len(on_rows.right):,} answers"
        if coverage.kind == "grid":
            table += " of the grid, which say nothing between its points"
    extra = len(exceptions.to_bytes()) if exceptions is not None else 0
    return size_of(weights, extra, packed, table=table, stated=stated)
