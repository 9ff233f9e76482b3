"""How wrong the surrogate is: on rows, and at random points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.certification.ahead import random_points
from kubestill.runtime.certification.certificate import (
    DomainErrors,
    Quantile,
    SampledErrors,
    Share,
)
from kubestill.runtime.certification.quantiles import (
    covered_share,
    mean_bound,
    quantile_bound,
    samples_needed,
    share_above,
)
from kubestill.runtime.certification.settings import CertificateSettings
from kubestill.runtime.certification.truth import Truth, answers
from kubestill.runtime.datasets.columns import centred
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.models.predict import Predictor

Floats = NDArray[np.float64]

QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999)
_CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class OnRows:
    """Errors on rows that were all compared."""

    raw: NDArray[np.float32]
    """What the network read: [N, R]."""
    errors: Floats
    """[N], the largest of a row's outputs; 1 where a class is wrong."""
    right: NDArray[Any]
    """Right classes int64 [N], or values float32 [N, T] less what they have in common: what a table
    would hold."""
    told: NDArray[np.int64] | None
    """The surrogate's classes [N]; None for regression."""
    mean: float
    """Over rows and outputs."""
    rms: float
    """Root mean square over rows and outputs."""
    spread: float
    """Standard deviation of the solution, over rows and outputs: the scale of `rms`."""
    relative: float | None
    """Mean over rows of |error| / |solution|, L2 over the outputs; None where there is one."""
    against: str

    @property
    def worst(self) -> int:
        """Row number of the largest error; of many as large, as with classes, the middle one."""
        largest = np.flatnonzero(self.errors == self.errors.max())
        return int(largest[len(largest) // 2])


def on_labels(predictor: Predictor, raw: NDArray[np.float32], labels: NDArray[Any]) -> OnRows:
    """Compare with every stored label; classes int64 [N], values [N, T].

    A value stored in float64 is the original. One in float32 is the nearest to it: half of the
    distance between float32 numbers there is added to the error, so that it bounds the error
    against the original.
    """
    classes = predictor.spec.task != "regression"
    exact = classes or labels.dtype == np.float64

    def parts() -> Iterator[_Part]:
        for start in range(0, len(raw), _CHUNK):
            block, known = raw[start : start + _CHUNK], labels[start : start + _CHUNK]
            known = known.reshape(len(block), -1)
            rounding = np.zeros(()) if exact else np.spacing(np.abs(known)).astype(float) / 2
            yield _Part(block, known.astype(np.float64), rounding)

    against = "the labels as stored" + ("" if exact else ", half a float32 step added")
    right = labels if classes else centred(labels, _offset(predictor))
    return _compare(predictor, parts(), len(raw), against, table=(raw, right))


def on_domain(truth: Truth, points: Mapping[str, int]) -> OnRows:
    """Solve every point of a finite domain and compare: float64 against the deployed network.

    Raises:
        InvalidInput: The solver fails on all of them, or on one and must not.
    """
    domain, layout = truth.system.domain, truth.predictor.layout
    total = int(np.prod(list(points.values()), dtype=np.int64))

    def parts() -> Iterator[_Part]:
        for start in range(0, total, _CHUNK):
            frame = domain.grid(np.arange(start, min(start + _CHUNK, total)), points)
            solved = truth.solve(frame)
            known = np.flatnonzero(~np.isnan(solved[:, 0]))
            yield _Part(decode_features(frame.iloc[known], layout), solved[known], np.zeros(()))

    against = "the system's own float64 solutions"
    return _compare(truth.predictor, parts(), total, against)


@dataclass(frozen=True)
class _Part:
    """Some rows: what the network reads, the solution, and by how much that may be off."""

    raw: NDArray[np.float32]
    known: Floats
    rounding: Floats


def _compare(
    predictor: Predictor,
    parts: Iterable[_Part],
    rows: int,
    against: str,
    table: tuple[NDArray[np.float32], NDArray[Any]] | None = None,
) -> OnRows:
    """Compare part by part, up to `rows`; `table` is raw features and answers, in memory."""
    classes = predictor.spec.task != "regression"
    outputs = 1 if classes else predictor.layout.outputs
    kind, offset = np.int64 if classes else np.float32, _offset(predictor)
    raw, right = table or (
        np.empty((rows, predictor.layout.width), np.float32),
        np.empty((rows, outputs), kind),
    )
    errors, codes = np.empty(rows), np.empty(rows if classes else 0, np.int64)
    total = squares = relative = 0.0
    sums, start = np.zeros(2), 0
    for part in parts:
        here = slice(start, start + len(part.raw))
        start = here.stop
        told = answers(predictor, part.raw)
        apart = (part.known != told).astype(np.float64)
        if classes:
            codes[here] = told[:, 0]
        else:
            apart = np.abs(part.known - told) + part.rounding
        if table is None:
            raw[here], right[here] = part.raw, part.known - offset
        errors[here] = apart.max(axis=1)
        total, squares = total + apart.sum(), squares + np.square(apart).sum()
        # Of numbers that have much in common the squares would leave no digit of their spread.
        sums += (part.known - offset).sum(), np.square(part.known - offset).sum()
        norms = np.sqrt(np.square(part.known).sum(1))
        relative += (np.sqrt(np.square(apart).sum(1)) / np.where(norms > 0, norms, 1.0)).sum()
    rows = start
    if not rows:
        raise _unanswered("every one of the domain's points")
    count = rows * outputs
    mean, square = sums / count
    return OnRows(
        raw=raw[:rows],
        errors=errors[:rows],
        right=right[:rows].reshape(rows) if classes else right[:rows],
        told=codes[:rows] if classes else None,
        mean=float(total / count),
        rms=float(np.sqrt(squares / count)),
        spread=float(np.sqrt(max(square - mean**2, 0.0))),
        relative=float(relative / rows) if outputs > 1 else None,
        against=against,
    )


def _offset(predictor: Predictor) -> float:
    target = predictor.layout.schema.target
    return target.offset if target else 0.0


def domain_errors(data: OnRows) -> DomainErrors:
    """Return the record of errors on rows that were all compared."""
    return DomainErrors(
        **_statistics(data.errors),
        mean=data.mean,
        rms=data.rms,
        standardised_rms=data.rms / data.spread if data.spread else None,
        relative_l2=data.relative,
        disagreements=None if data.told is None else int(data.errors.sum()),
        against=data.against,
    )


@dataclass(frozen=True, kw_only=True)
class OffGrid:
    """Errors on random points of the domain, without those that were left out."""

    unit: Floats
    """[n, width]"""
    inputs: pd.DataFrame
    errors: Floats
    """[n]"""
    means: Floats
    """Of each point over its outputs [n]."""
    apart: Floats
    """Of every output [n, T]."""
    drawn: int
    """Points that were drawn: n, and those on which the solver fails."""


def off_grid(truth: Truth, samples: int, *, seed: int) -> OffGrid:
    """Solve and predict independent random points."""
    unit = random_points(truth.system.domain, 0, samples, seed=seed)
    inputs = truth.system.domain.at(unit)
    solved = truth.solve(inputs)
    known = ~np.isnan(solved[:, 0])
    if not known.all():
        # Of independent points, those with an answer are independent points of the rest.
        inputs = inputs.iloc[np.flatnonzero(known)].reset_index(drop=True)
        unit, solved = unit[known], solved[known]
    if not len(inputs):
        raise _unanswered(f"all of {samples:,} random points")
    told, classes = truth.predict(inputs), bool(truth.system.output.classes)
    apart = (solved != told).astype(np.float64) if classes else np.abs(solved - told)
    errors, means = apart.max(axis=1), apart.mean(axis=1)
    return OffGrid(unit=unit, inputs=inputs, errors=errors, means=means, apart=apart, drawn=samples)


def _unanswered(where: str) -> InvalidInput:
    remedy = f"the solver fails on {where}: nothing is left to certify"
    return InvalidInput([Problem("on_failure", "leave-out", remedy)])


def sampled_errors(
    samples: OffGrid, settings: CertificateSettings, *, largest: float, classes: bool
) -> SampledErrors:
    """Return what random points say of the whole domain, whatever its errors' distribution.

    Args:
        samples: Independent random points.
        settings: Tolerance and confidence.
        largest: The largest error known, on which the bound of the mean is conditional.
        classes: Whether an error is a disagreement.
    """
    errors, confidence = samples.errors, settings.confidence
    above = None
    if settings.tolerance:
        limit = 0.5 if classes else settings.tolerance
        above = share_above(errors, limit, confidence=confidence)
    mean_most = mean_bound(samples.means, max(largest, 0.0), confidence=confidence)
    return SampledErrors(
        **_statistics(errors),
        mean=float(samples.means.mean()),
        mean_bound=mean_most,
        seed=settings.seed,
        confidence=confidence,
        quantiles=tuple(
            Quantile(
                quantile=quantile,
                observed=float(np.quantile(errors, quantile)),
                bound=quantile_bound(errors, quantile, confidence=confidence),
                samples_needed=samples_needed(quantile, confidence=confidence),
            )
            for quantile in QUANTILES
        ),
        covered_by_max=covered_share(len(errors), confidence=confidence),
        above_tolerance=Share(observed=above[0], bound=above[1]) if above else None,
    )


def _statistics(errors: Floats) -> dict[str, Any]:
    """Return count, maximum and 99.9th percentile (of the rows, rounded up)."""
    return {
        "rows": len(errors),
        "max": float(errors.max()),
        "p999": float(np.quantile(errors, 0.999, method="higher")),
    }
