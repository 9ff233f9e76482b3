"""The flow: labels, domain, errors, savings; what does not hold is written down, never raised."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.runtime.certification.certificate import Certificate, Condition
from kubestill.runtime.certification.cost import size_ratio, speed_ratio
from kubestill.runtime.certification.coverage import check_coverage, grid_points
from kubestill.runtime.certification.errors import (
    OffGrid,
    OnData,
    as_point,
    bounds,
    hunt,
    off_grid,
    on_data,
    statistics,
)
from kubestill.runtime.certification.exceptions import Exceptions
from kubestill.runtime.certification.labels import (
    check_conflicts,
    check_deterministic,
    check_reference,
    check_reproducible,
)
from kubestill.runtime.certification.settings import CertificateSettings
from kubestill.runtime.certification.truth import Truth, answers
from kubestill.runtime.datasets.cache import load_decoded
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.generation.systems.system import System
from kubestill.runtime.models.predict import Predictor

__all__ = ["Examined", "certify"]


@dataclass(kw_only=True)
class Examined:
    """The certificate, and what its pictures are drawn from."""

    certificate: Certificate
    predictor: Predictor
    raw: NDArray[np.float32]
    on_data: OnData
    truth: Truth | None = None
    off_grid: OffGrid | None = None
    worst: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Inputs of the worst point, one row; empty without a system."""
    exceptions: Exceptions | None = None


def certify(
    predictor: Predictor,
    dataset: Dataset,
    system: System | None,
    settings: CertificateSettings,
    *,
    weights: int,
) -> Examined:
    """Look at everything; never raises over what it finds.

    Args:
        predictor: The surrogate.
        dataset: The rows it was made from: a grid, or samples of the domain.
        system: What labelled them; None for a table that is all there is.
        settings: Tolerance, samples, confidence.
        weights: Bytes of the exported weights.
    """
    decoded = load_decoded(dataset, predictor.layout)
    assert decoded.target is not None
    raw, labels = decoded.raw, decoded.target
    found = Examined(
        certificate=Certificate(),
        predictor=predictor,
        raw=raw,
        on_data=on_data(predictor, raw, labels),
    )
    conditions = found.certificate.conditions
    conditions.append(check_conflicts(raw, labels))
    if system is None:
        conditions.append(_all_there_is(dataset))
        kind = "complete"
    else:
        found.truth = Truth(system, predictor)
        rows, some = _some_rows(dataset, labels, settings)
        conditions.append(check_deterministic(found.truth, rows))
        conditions.append(check_reproducible(found.truth, rows, some))
        few = rows.iloc[:: max(1, len(rows) // settings.reference_rows)]
        conditions.append(check_reference(found.truth, few, settings.tolerance))
        points = grid_points(system.domain, dataset.provenance)
        coverage = check_coverage(system.domain, raw, predictor.layout, points)
        conditions.append(coverage.condition)
        kind = coverage.kind
    _measure(found, settings, complete=kind == "complete" and not found.certificate.failed)
    if settings.exceptions:
        found.exceptions = _exceptions(predictor, raw, labels)
    conditions.append(_within(found, settings))
    _save(found, dataset, system, settings, weights)
    found.certificate.about |= {
        "coverage": kind,
        "model": predictor.digest,
        "weights": predictor.spec.digest,
        "dataset": dataset.fingerprint,
        "system": system.name if system else None,
        "domain": system.domain.describe() if system else None,
        "unit": system.output.unit if system else "",
        "parameters": predictor.spec.parameters,
        "settings": settings.model_dump(),
    }
    return found


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
    dataset: Dataset, labels: NDArray[Any], settings: CertificateSettings
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Return inputs and labels [n, T] of a few rows, spread over the whole dataset."""
    take = np.unique(np.linspace(0, dataset.rows - 1, settings.resolve_rows).astype(np.int64))
    names = [column.name for column in dataset.schema.features]
    parts, start = [], 0
    for table in dataset.iter_blocks(names):
        here = take[(take >= start) & (take < start + table.num_rows)] - start
        if len(here):
            parts.append(table.take(here).to_pandas())
        start += table.num_rows
    known = np.asarray(labels[take], np.float64).reshape(len(take), -1)
    return pd.concat(parts, ignore_index=True), known


def _measure(found: Examined, settings: CertificateSettings, *, complete: bool) -> None:
    """Errors on the dataset, off it, and at the worst point that can be found."""
    certificate, data, truth = found.certificate, found.on_data, found.truth
    certificate.errors["data"] = {
        **statistics(data.errors, data.mean),
        "rms": data.rms,
        "standardised_rms": data.rms / data.spread if data.spread else None,
        "relative_l2": data.relative or None,
    }
    if found.predictor.spec.task != "regression":
        certificate.errors["data"]["disagreements"] = int(data.errors.sum())
    worst: dict[str, Any] = {
        "found": "on the dataset",
        "error": float(data.errors.max()),
        "row": data.worst,
    }
    if truth is not None:
        found.worst = _inputs_of(found, data.worst)
        # What has been compared at every input there is needs no samples.
        if settings.samples and not complete:
            samples = found.off_grid = off_grid(truth, settings.samples, seed=settings.seed)
            certificate.errors["off_grid"] = {
                **statistics(samples.errors, samples.mean),
                "seed": settings.seed,
                **bounds(samples.errors, settings.tolerance, confidence=settings.confidence),
            }
            inputs, error = hunt(truth, samples, settings.hunts, seed=settings.seed)
            certificate.errors["hunted"] = {"max": error, "around": settings.hunts}
            if error > worst["error"]:
                worst = {"found": "between the rows of the dataset", "error": error}
                found.worst = inputs
        worst |= _at(truth, found.worst)
    certificate.worst = worst


def _inputs_of(found: Examined, row: int) -> pd.DataFrame:
    """Return one row of the raw matrix as inputs of the system."""
    assert found.truth is not None
    layout, columns = found.predictor.layout, {}
    for column in layout.features:
        values = found.raw[row, layout.slices[column.name]].astype(np.float64)
        if column.kind == "categorical":
            assert column.categories
            columns[column.name] = [column.categories[int(values[0])]]
        else:
            columns[column.name] = [values] if column.shape else values
    return pd.DataFrame(columns)


def _at(truth: Truth, inputs: pd.DataFrame) -> dict[str, Any]:
    solved, told = truth.solve(inputs)[0], truth.predict(inputs)[0]
    classes = truth.system.output.classes
    if classes:
        return {
            "inputs": as_point(inputs),
            "solution": classes[int(solved[0])],
            "surrogate": classes[int(told[0])],
        }
    place = int(np.abs(solved - told).argmax())
    return {
        "inputs": as_point(inputs),
        "solution": float(solved[place]),
        "surrogate": float(told[place]),
        "output": place,
    }


def _exceptions(predictor: Predictor, raw: NDArray[np.float32], labels: NDArray[Any]) -> Exceptions:
    told = np.concatenate(
        [answers(predictor, raw[at : at + 65536])[:, 0] for at in range(0, len(raw), 65536)]
    ).astype(np.int64)
    rows = np.flatnonzero(told != labels)
    return Exceptions(rows, np.asarray(labels)[rows])


def _within(found: Examined, settings: CertificateSettings) -> Condition:
    """Hold the error against the tolerance."""
    errors, statistic = found.certificate.errors, settings.statistic
    if found.predictor.spec.task != "regression":
        return _agrees(found, settings)
    places = {"on the dataset": errors["data"][statistic]}
    if "off_grid" in errors:
        off = errors["off_grid"]
        between = f"between its rows, on {off['rows']:,} random points"
        if statistic == "p999":
            bound = next(q["bound"] for q in off["quantiles"] if q["quantile"] == 0.999)
            places[f"{between}, with {settings.confidence:.0%} confidence"] = (
                float("inf") if bound is None else bound
            )
        else:
            places[between] = off[statistic]
    if statistic == "max" and "hunted" in errors:
        places["at the worst point found"] = errors["hunted"]["max"]
    where, value = max(places.items(), key=lambda item: item[1])
    names = {"max": "largest", "p999": "99.9th percentile of the", "mean": "mean"}
    seen = f"The {names[statistic]} error is {value:.3g} {where}"
    name = "the error is within the tolerance"
    if not settings.tolerance:
        said = f"{seen}; no tolerance was given."
        return Condition(name=name, status="not shown", said=said)
    if value <= settings.tolerance:
        said = f"{seen}, with a tolerance of {settings.tolerance:g}."
        return Condition(name=name, status="shown", said=said)
    return Condition(
        name=name,
        status="failed",
        code="error",
        said=f"{seen}, with a tolerance of {settings.tolerance:g}.",
        remedy="Train longer or a larger network, generate more rows, or widen the tolerance.",
    )


def _agrees(found: Examined, settings: CertificateSettings) -> Condition:
    name = "the surrogate gives the table's answers"
    wrong, rows = int(found.on_data.errors.sum()), len(found.raw)
    if not wrong:
        said = f"It gives the very answer of the table in all {rows:,} rows."
        return Condition(name=name, status="shown", said=said)
    share = wrong / rows
    if found.exceptions is not None:
        said = (
            f"With {wrong:,} exceptions written down beside the network ({100 * share:.3g}% of the "
            f"rows) every one of {rows:,} rows is answered as in the table."
        )
        return Condition(name=name, status="shown", said=said)
    if share <= settings.tolerance:
        said = f"{wrong:,} of {rows:,} rows disagree ({100 * share:.3g}%), as is tolerated."
        return Condition(name=name, status="shown", said=said)
    return Condition(
        name=name,
        status="failed",
        code="error",
        said=f"{wrong:,} of {rows:,} rows disagree ({100 * share:.3g}%); "
        f"{100 * settings.tolerance:.3g}% are tolerated.",
        remedy="Train longer or a larger network, or ask for exceptions.",
    )


def _save(
    found: Examined,
    dataset: Dataset,
    system: System | None,
    settings: CertificateSettings,
    weights: int,
) -> None:
    """Bytes and seconds saved."""
    column = dataset.schema.target
    assert column is not None
    own = system.table_bytes if system else 0
    table = settings.table_bytes or own or dataset.rows * 4 * column.width
    what = f"{dataset.rows:,} rows of {column.width} float32"
    if settings.table_bytes or own:
        what = "as the user says" if settings.table_bytes else f"the table of {dataset.rows:,} rows"
    extra = len(found.exceptions.to_bytes()) if found.exceptions else 0
    found.certificate.size = size_ratio(weights, extra, table, what=what)
    if found.truth is not None:
        found.certificate.speed = speed_ratio(found.truth, settings.batch)
