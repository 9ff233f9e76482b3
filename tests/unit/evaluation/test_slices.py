"""How columns are cut into parts, and cut again."""

import numpy as np
import pandas as pd
import pytest

from kubestill.runtime.evaluation.slices import Cut, cut_of, parts_of


def sizes(values: pd.Series, cut: Cut) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in parts_of(values, cut).items()}


def test_quarters_hold_later_rows_of_any_size():
    first = pd.Series(np.arange(1.0, 101.0))
    cut = cut_of(first)
    names = ["up to 25.8", "25.8 to 50.5", "50.5 to 75.2", "over 75.2"]
    assert sizes(first, cut) == dict.fromkeys(names, 25)
    later = pd.Series([-1e9, 50.5, 1e9, 2e9, np.nan])
    assert sizes(later, cut) == {names[0]: 1, names[1]: 1, names[3]: 2, "missing": 1}


def test_edges_that_lie_close_are_distinguished():
    cut = cut_of(pd.Series(1e6 + np.arange(100) / 10))
    assert len(set(cut.edges)) == 3
    assert len(sizes(pd.Series(1e6 + np.arange(100) / 10), cut)) == 4


@pytest.mark.parametrize("kind", [object, "category"])
def test_values_beyond_those_of_the_cut_are_pooled(kind):
    cut = cut_of(pd.Series(["a", "b", "a", None], dtype=kind))
    assert cut.values == ("a", "b")
    later = pd.Series(["b", "new", "newer", None, "other"], dtype=kind)
    assert sizes(later, cut) == {"b": 1, "other": 3, "missing": 1}
