"""Bounds on the error of unseen points that hold whatever its distribution."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def quantile_bound(
    errors: NDArray[np.float64], quantile: float, *, confidence: float
) -> float | None:
    """Return an upper confidence bound on a quantile of the distribution that `errors` [N] are of.

    The k-th smallest of N independent samples exceeds the quantile with probability
    P(Binomial(N, quantile) <= k - 1), whatever the distribution (Wilks 1941; David & Nagaraja 2003,
    section 7.1); k is the least that reaches the confidence. None where even the largest does not.
    """
    from scipy.stats import binom

    rank = int(binom.ppf(confidence, len(errors), quantile)) + 1
    return float(np.partition(errors, rank - 1)[rank - 1]) if rank <= len(errors) else None


def samples_needed(quantile: float, *, confidence: float) -> int:
    """Return how many samples it takes until the largest bounds a quantile (Wilks 1941)."""
    return math.ceil(math.log(1 - confidence) / math.log(quantile))


def covered_share(samples: int, *, confidence: float) -> float:
    """Return the share of the domain that errs no more than the largest of the samples did."""
    return (1 - confidence) ** (1 / samples)


def share_above(
    errors: NDArray[np.float64], tolerance: float, *, confidence: float
) -> tuple[float, float]:
    """Return the share of samples above a tolerance, and its bound (Clopper & Pearson 1934)."""
    from scipy.stats import beta

    above, count = int((errors > tolerance).sum()), len(errors)
    bound = 1.0 if above == count else float(beta.ppf(confidence, above + 1, count - above))
    return above / count, bound


def mean_bound(errors: NDArray[np.float64], largest: float, *, confidence: float) -> float:
    """Return an upper confidence bound on the mean of errors that none exceeds `largest`.

    The empirical Bernstein bound (Maurer & Pontil 2009, theorem 4). Without a largest error there
    is no bound on a mean: one point in a million may err without limit, and no sample need show it
    (Bahadur & Savage 1956).
    """
    count, log = len(errors), math.log(2 / (1 - confidence))
    if count < 2:
        return largest
    spread = math.sqrt(2 * float(errors.var(ddof=1)) * log / count)
    bound = float(errors.mean()) + spread + 7 * largest * log / (3 * (count - 1))
    return min(bound, largest)
