"""The tests that every window is put to. `scipy.stats` has them, and takes a second to import."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import chdtrc

from kubestill.runtime.metrics.outcome import Floats


def adjusted(p_values: Sequence[float]) -> Floats:
    """Return p-values [n] adjusted for their number (Benjamini & Hochberg 1995)."""
    found = np.asarray(p_values, np.float64)
    order = np.argsort(found)
    scaled = found[order] * len(found) / np.arange(1, len(found) + 1)
    result = np.empty_like(found)
    result[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return result


def independence(table: Floats) -> float:
    """Return the p-value of Pearson's test of a table of counts [R, C], with Yates' correction.

    Args:
        table: No row and no column of it is empty.
    """
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    apart = np.abs(table - expected)
    if freedom == 1:
        apart -= np.minimum(0.5, apart)
    return float(chdtrc(freedom, (apart**2 / expected).sum()))
