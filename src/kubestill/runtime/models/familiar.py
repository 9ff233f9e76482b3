"""Count, or refuse, values that a model has never seen, where rows are read for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import Problems, counted
from kubestill.runtime.models.encoder import ColumnEncoding


class Familiar:
    """What rows held that training would have refused, or never saw.

    An infinite number is taken for a missing one; a label that no training row had counts as
    missing, too; a gap in a column that had none is filled with the column's mean.

    Args:
        columns: Of the model's encoder.
        strict: Refuse rows with such values.
    """

    def __init__(self, columns: Sequence[ColumnEncoding], *, strict: bool = False):
        self.strict = strict
        self.rows = 0
        """Rows that were looked at."""
        self.counts: Counter[tuple[str, str]] = Counter()
        """(column, `unseen label`, `infinite` or `missing`) → rows."""
        starts = np.cumsum([0, *(column.width for column in columns)]).tolist()
        self._columns = [
            (column, slice(start, start + column.width))
            for column, start in zip(columns, starts, strict=False)
        ]
        self._codes = np.array([p.start for c, p in self._columns if c.kind == "categorical"], int)

    def look(self, raw: NDArray[np.float32]) -> None:
        """Take in raw rows [N, R].

        Raises:
            InvalidInput: They hold such values, and `strict` refuses them.
        """
        self.rows += len(raw)
        # Nearly all rows end here.
        if np.isfinite(raw).all() and not (raw.take(self._codes, axis=1) < 0).any():
            return
        problems = Problems()
        for column, place in self._columns:
            for what, found in _strange(column, raw[:, place]):
                rows = np.flatnonzero(found)
                if not len(rows):
                    continue
                self.counts[column.name, what] += len(rows)
                problems.add(f"column {column.name!r}", what, _remedy(what, rows, len(raw)))
        if self.strict:
            problems.raise_if_any()


def _strange(
    column: ColumnEncoding, raw: NDArray[np.float32]
) -> list[tuple[str, NDArray[np.bool_]]]:
    if column.kind == "categorical":
        return [("unseen label", raw[:, 0] < 0)]
    if column.kind == "text":
        return []  # no n-gram is unseen, and a text that is missing is one without any
    infinite, missing = (np.asarray(test(raw).any(axis=1)) for test in (np.isinf, np.isnan))
    return [("infinite", infinite), ("missing", missing & (not column.indicator))]


def _remedy(what: str, rows: NDArray[np.int64], count: int) -> str:
    where = f"in {counted(len(rows), 'row')} of {count:,}, first in row {rows[0]}"
    meant = {
        "unseen label": "no training row had it; train on such rows, or send it as missing",
        "infinite": "training refuses such numbers; send them as missing, or clip them",
        "missing": "no training row lacked it; train on such rows, or fill it",
    }
    return f"{where}: {meant[what]}"
