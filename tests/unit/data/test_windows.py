from __future__ import annotations

import numpy as np
import pytest

from kubestill.runtime.data.dataset import BLOCK_ROWS
from kubestill.runtime.data.windows import windows


@pytest.mark.parametrize("window", [1, 2 * BLOCK_ROWS, 10**9])
@pytest.mark.parametrize("rows", [1, BLOCK_ROWS, 5 * BLOCK_ROWS + 3])
def test_every_row_comes_once(rows: int, window: int) -> None:
    found = list(windows(rows, window_rows=window, seed=1, epoch=0))
    assert max(map(len, found)) <= max(window, BLOCK_ROWS)
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.arange(rows))


def test_seed_and_epoch_decide() -> None:
    def order(seed: int, epoch: int) -> np.ndarray:
        return np.concatenate(list(windows(100, window_rows=50, seed=seed, epoch=epoch)))

    np.testing.assert_array_equal(order(1, 2), order(1, 2))
    assert np.any(order(1, 2) != order(1, 3))
    assert np.any(order(1, 2) != order(2, 2))
