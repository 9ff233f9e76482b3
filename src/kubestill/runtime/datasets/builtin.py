"""Built-in tables: real data that needs no download."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def digits() -> pa.Table:
    """Return 1,797 handwritten digits: `image` [8, 8] from 0 to 1, and `digit`, "0" to "9".

    Source: scikit-learn's `load_digits`, the test part of UCI's optical recognition of handwritten
    digits (Alpaydin and Kaynak, 1998).
    """
    from sklearn.datasets import load_digits

    pixels, numbers = load_digits(return_X_y=True)
    images = np.asarray(pixels, np.float32) / np.float32(16)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 8)
    column = pa.FixedSizeListArray.from_arrays(flat, 8)
    labels = pa.array([str(number) for number in numbers])
    return pa.table({"image": column, "digit": labels})


BUILTIN = {"digits": (digits, "digit")}
"""Name to (the table, the column to predict unless told otherwise)."""
