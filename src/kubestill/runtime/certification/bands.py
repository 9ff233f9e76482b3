"""Calibrate error bands on random points that nothing was learned from: split conformal prediction.

Half of the points tell where errors are large (a small tree), the other half by how much that has
to be widened. For an input drawn like these points, the k-th smallest of n scores, with
k = ceil((n + 1) c), is not exceeded with probability c at least (Papadopoulos et al. 2002; Lei et
al. 2018, theorem 2.2): over inputs and calibration together, not at every input.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.base.rounding import exact_percent
from kubestill.runtime.certification.errors import OffGrid
from kubestill.runtime.certification.truth import Truth
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.models.bands import Bands, Scale

LEAVES = 64
_SMALLEST = 30
"""Points of a leaf."""
_FLOOR = 0.05
"""Of the mean error, below which no band is narrowed: a leaf may have been lucky."""

Floats = NDArray[np.float64]


def calibrate(truth: Truth, found: OffGrid, coverages: tuple[float, ...], *, drawn: str) -> Bands:
    """Return bands for the surrogate's answers.

    Args:
        truth: Solver and surrogate.
        found: Independent random points of the domain, with their errors.
        coverages: How often a band has to hold.
        drawn: What the points are of, for people.

    Raises:
        InvalidInput: Too few points for a coverage.
    """
    check_enough(len(found.errors), coverages)
    raw = decode_features(found.inputs, truth.predictor.layout)
    half = len(raw) // 2
    scale = _scale(raw[:half], found.errors[:half])
    scores = np.sort(found.apart[half:] / scale(raw[half:])[:, None], axis=0)
    factors = [scores[rank(len(scores), coverage) - 1].tolist() for coverage in coverages]
    named = ", ".join(exact_percent(coverage) for coverage in coverages)
    return Bands(
        model=truth.predictor.digest,
        samples=len(scores),
        holds=(
            f"Each output of an input drawn at random from the domain{drawn} is in its band with a "
            f"probability of at least {named}, over inputs and calibration together: not at every "
            "input, and of inputs drawn otherwise nothing is said."
        ),
        coverages=coverages,
        factors=tuple(tuple(one) for one in factors),
        scale=scale,
    )


def check_enough(points: int, coverages: tuple[float, ...]) -> None:
    """Raise InvalidInput if so many random points are too few for a band."""
    for coverage in coverages:
        if rank(points - points // 2, coverage) > points - points // 2:
            needed = 2 * math.ceil(coverage / (1 - coverage) - 1e-9)
            remedy = f"takes {needed:,} random points, there are {points:,}; raise `samples`"
            raise InvalidInput([Problem("settings.bands", coverage, remedy)])


def rank(count: int, coverage: float) -> int:
    """Return which of the sorted scores is the bound; more than `count` where they are too few."""
    # What float64 adds to 10 * 0.7 must not make it 8.
    return math.ceil((count + 1) * coverage - 1e-9)


def _scale(raw: NDArray[np.float32], errors: Floats) -> Scale:
    """Fit the mean error by a tree over raw features [N, R]."""
    from sklearn.tree import DecisionTreeRegressor

    mean = float(errors.mean()) or 1.0
    least = min(_SMALLEST, max(len(raw) // 2, 1))
    fitted = DecisionTreeRegressor(max_leaf_nodes=LEAVES, min_samples_leaf=least, random_state=0)
    tree = fitted.fit(raw, errors).tree_
    inner = tree.children_left >= 0
    values = np.maximum(tree.value[:, 0, 0], _FLOOR * mean)
    return Scale(
        feature=tuple(int(f) for f in np.where(inner, tree.feature, -1)),
        threshold=tuple(float(t) for t in np.where(inner, tree.threshold, 0.0)),
        left=tuple(int(child) for child in tree.children_left),
        right=tuple(int(child) for child in tree.children_right),
        value=tuple(float(value) for value in values),
    )
