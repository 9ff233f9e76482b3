"""Cutting rows into training, validation and hold-out: seeded, stratified, the same every time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import Problems

__all__ = ["HOLDOUT", "TRAIN", "VALIDATION", "check_fractions", "split_rows"]

TRAIN, VALIDATION, HOLDOUT = 0, 1, 2


def check_fractions(validation: float, holdout: float, problems: Problems) -> None:
    """Add a problem where the shares are not from 0 to below 1, or leave nothing to train on."""
    within = True
    for field, share in (("validation_fraction", validation), ("holdout_fraction", holdout)):
        if not 0 <= share < 1:
            problems.add(field, share, "must be a share of the rows, from 0 to below 1")
            within = False
    if within and validation + holdout >= 1:
        total = f"{validation} + {holdout}"
        remedy = "together must stay below 1, or no row is left to train on"
        problems.add("validation_fraction + holdout_fraction", total, remedy)


def split_rows(
    rows: int,
    *,
    validation: float,
    holdout: float,
    seed: int,
    classes: NDArray[np.integer[Any]] | None = None,
) -> NDArray[np.int8]:
    """Assign every row to `TRAIN`, `VALIDATION` or `HOLDOUT`; returns [rows].

    Args:
        rows: How many rows there are.
        validation: Share of the rows, 0 to below 1.
        holdout: Share of the rows, 0 to below 1.
        seed: Of the shuffle; the same seed and rows give the same split on every machine.
        classes: [rows] class of each row: every class is spread over the three in proportion, to
            within one row, and has a row to train on.

    Raises:
        InvalidInput: Shares out of range, or so small that a part asked for gets no row.
    """
    problems = Problems()
    check_fractions(validation, holdout, problems)
    problems.raise_if_any()
    random = np.random.Generator(np.random.Philox(seed))
    order = random.permutation(rows)
    if classes is not None:
        order = order[np.argsort(classes[order], kind="stable")]
    offset = random.random()
    parts = np.full(rows, TRAIN, np.int8)
    parts[_every(order, validation, offset)] = VALIDATION
    left = order[parts[order] == TRAIN]
    parts[_every(left, holdout / (1 - validation), offset)] = HOLDOUT
    if classes is not None:
        _give_each_class_a_row(parts, classes, order)
    for field, share, part in (
        ("validation_fraction", validation, VALIDATION),
        ("holdout_fraction", holdout, HOLDOUT),
    ):
        if share and not np.any(parts == part):
            problems.add(field, share, f"of {rows} rows is none; raise it, or set 0 to do without")
    problems.raise_if_any()
    return parts


def _every(order: NDArray[np.int64], share: float, offset: float) -> NDArray[np.int64]:
    """Take every (1 / share)-th of `order`: systematic sampling, so any run of it is hit evenly."""
    steps = np.floor(np.arange(len(order) + 1) * share + offset)
    return order[np.diff(steps) > 0]


def _give_each_class_a_row(
    parts: NDArray[np.int8], classes: NDArray[np.integer[Any]], order: NDArray[np.int64]
) -> None:
    lost = np.setdiff1d(classes, classes[parts == TRAIN])
    first = {int(classes[row]): int(row) for row in order[::-1] if classes[row] in lost}
    parts[list(first.values())] = TRAIN
