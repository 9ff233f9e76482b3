"""The tests of every window are scipy's."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kubestill.runtime.evaluation.significance import adjusted, independence


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_adjusted_p_values_are_scipys(count: int) -> None:
    p_values = np.random.default_rng(count).random(count).round(2) ** 3
    assert adjusted(list(p_values)) == pytest.approx(stats.false_discovery_control(p_values))


@pytest.mark.parametrize("shape", [(2, 2), (2, 9), (5, 3)])
def test_independence_is_scipys(shape: tuple[int, int]) -> None:
    for seed in range(5):
        table = np.random.default_rng(seed).integers(1, 40, shape).astype(float)
        known: Any = stats.chi2_contingency(table)
        assert independence(table) == pytest.approx(known.pvalue)


def test_judging_imports_no_library_that_it_seldom_needs() -> None:
    """A run that only judges is mostly imports."""
    code = (
        "import sys, kubestill.runtime.steps.continuous_eval; "
        "print([name for name in ('scipy.stats', 'sklearn', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
