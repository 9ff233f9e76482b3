"""Two models on the same rows: where they agree, and whether one really errs less."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kubestill.runtime.metrics.formulas import CALIBRATION_BINS, bin_of, confidences
from kubestill.runtime.metrics.outcome import Floats, Outcome


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """The exact test on the rows where exactly one of two classifiers is right."""

    only_first: int
    only_second: int
    p_value: float
    """Two-sided: the chance of a split this uneven if both erred equally often."""


def mcnemar(first: Outcome, second: Outcome) -> McNemar:
    """Test whether two classifiers err equally often on the same rows (McNemar 1947, exact)."""
    from scipy.stats import binomtest  # takes a second to import

    hit, other = first.labels == first.targets, second.labels == second.targets
    only_first, only_second = int((hit & ~other).sum()), int((~hit & other).sum())
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(only_first=only_first, only_second=only_second, p_value=p_value)


def agreement(first: Outcome, second: Outcome) -> float:
    """Return the share of rows with the same class, or the R² of one regression by the other."""
    if first.task != "regression":
        return float((first.labels == second.labels).mean())
    reference = second.predictions
    total = float(np.square(reference - reference.mean(axis=0)).sum())
    residual = float(np.square(first.predictions - reference).sum())
    return 1 - residual / total if total else float("nan")


def agreement_matrix(first: Outcome, second: Outcome) -> npt.NDArray[np.int64]:
    """Return [K, K] row counts: class given by `first` down, by `second` across."""
    classes = first.predictions.shape[1]
    pairs = first.labels * classes + second.labels
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True, kw_only=True)
class CalibrationCurve:
    """What was promised against what came true, in bins of stated probability."""

    stated: Floats
    """[B] mean probability of the bins that hold rows."""
    observed: Floats
    """[B] share of those rows where it came true."""
    rows: npt.NDArray[np.int64]
    """[B] rows of each."""


def calibration_curve(outcome: Outcome, least: int = 12) -> CalibrationCurve:
    """Return the reliability of a classifier's probabilities.

    Bins with fewer than `least` rows say nothing and are joined with their neighbour below. Rows
    whose answer is not finite are left out; at least one must be left.
    """
    known = outcome.take(outcome.finite)
    stated, hits = confidences(known)
    bins = _joined(np.bincount(bin_of(stated), minlength=CALIBRATION_BINS), least)[bin_of(stated)]
    held = np.bincount(bins, known.counts)
    return CalibrationCurve(
        stated=np.bincount(bins, known.counts * stated) / held,
        observed=np.bincount(bins, known.counts * hits) / held,
        rows=np.bincount(bins),
    )


def _joined(rows: npt.NDArray[np.int64], least: int) -> npt.NDArray[np.int64]:
    """Return the new number of each bin, joined from the fullest end until each holds `least`."""
    numbers = np.zeros(len(rows), dtype=np.int64)
    number = held = 0
    for index in reversed(range(len(rows))):
        numbers[index] = number
        held += int(rows[index])
        if held >= least:
            number, held = number + 1, 0
    if held < least and number:
        # What is left at the low end is too little to stand alone.
        numbers[numbers == number] = number - 1
    return numbers.max() - numbers
