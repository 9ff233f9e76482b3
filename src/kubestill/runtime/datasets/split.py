"""Cut rows into training, validation and hold-out: seeded, stratified, the same every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import Problems, counted
from kubestill.runtime.datasets.columns import label_strings

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


def entities(pieces: Sequence[pa.ChunkedArray]) -> NDArray[np.int64]:
    """Return a number from 0 for each row's entity; one without a value is an entity of its own."""
    names = pa.concat_arrays([label_strings(piece) for piece in pieces])
    found = names.dictionary_encode().indices.fill_null(-1).to_numpy().astype(np.int64)
    alone = found < 0
    found[alone] = found.max(initial=-1) + 1 + np.arange(alone.sum())
    return found


def split_rows(
    rows: int,
    *,
    validation: float,
    holdout: float,
    seed: int,
    classes: NDArray[np.integer[Any]] | None = None,
    groups: NDArray[np.integer[Any]] | None = None,
    times: NDArray[Any] | None = None,
) -> NDArray[np.int8]:
    """Assign every row to `TRAIN`, `VALIDATION` or `HOLDOUT`; returns [rows].

    Args:
        rows: How many rows there are.
        validation: Share of the rows, 0 to below 1.
        holdout: Share of the rows, 0 to below 1.
        seed: Of the shuffle; the same seed and rows give the same split on every machine.
        classes: [rows] class of each row: every class is spread over the three in proportion, to
            within one row, and has a row to train on.
        groups: [rows] entity of each row, from 0: its rows stay together, so that shares hold to
            within an entity.
        times: [rows] when each row is from: the earliest are trained on and the last held out, and
            rows of one instant, or entity, stay together. Classes are as the times have them.

    Raises:
        InvalidInput: Shares out of range, or so small that a part asked for gets no row.
    """
    problems = Problems()
    check_fractions(validation, holdout, problems)
    problems.raise_if_any()
    random = np.random.Generator(np.random.Philox(seed))
    if times is not None:
        parts = _in_order(times, groups, validation=validation, holdout=holdout)
    elif groups is not None:
        parts = _whole_groups(groups, classes, random, validation=validation, holdout=holdout)
    else:
        parts = _row_by_row(rows, classes, random, validation=validation, holdout=holdout)
    what = counted(rows, "row") if groups is None else counted(len(np.unique(groups)), "group")
    for field, share, part in (
        ("validation_fraction", validation, VALIDATION),
        ("holdout_fraction", holdout, HOLDOUT),
    ):
        if share and not np.any(parts == part):
            problems.add(field, share, f"of {what} is none; raise it, or set 0 to do without")
    if not np.any(parts == TRAIN):
        remedy = "leave no row to train on: too few entities, or their times overlap too much"
        problems.add("validation_fraction + holdout_fraction", validation + holdout, remedy)
    problems.raise_if_any()
    return parts


def _row_by_row(
    rows: int,
    classes: NDArray[np.integer[Any]] | None,
    random: np.random.Generator,
    *,
    validation: float,
    holdout: float,
) -> NDArray[np.int8]:
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
    return parts


def _in_order(
    times: NDArray[Any],
    groups: NDArray[np.integer[Any]] | None,
    *,
    validation: float,
    holdout: float,
) -> NDArray[np.int8]:
    """Cut at the instants between the parts; an entity belongs where its last row does."""
    if groups is not None:
        last = np.full(int(groups.max()) + 1, times.min(), times.dtype)
        np.maximum.at(last, groups, times)
        times = last[groups]
    ordered = np.sort(times)
    edges = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    parts = np.full(len(times), TRAIN, np.int8)
    for share, part in ((validation + holdout, VALIDATION), (holdout, HOLDOUT)):
        if share and len(edges):
            nearest = edges[np.abs(edges - len(times) * (1 - share)).argmin()]
            parts[times >= ordered[nearest]] = part
    return parts


def _whole_groups(
    groups: NDArray[np.integer[Any]],
    classes: NDArray[np.integer[Any]] | None,
    random: np.random.Generator,
    *,
    validation: float,
    holdout: float,
) -> NDArray[np.int8]:
    """Give each entity, in random order, to the part that lacks the most rows.

    With classes, entities that mostly have the same one follow each other: each part gets its share
    of them.
    """
    count = int(groups.max()) + 1
    sizes = np.bincount(groups, minlength=count)
    order = random.permutation(count)
    if classes is not None:
        pairs, held = np.unique(np.stack([groups, classes]), axis=1, return_counts=True)
        usual = np.zeros(count, np.int64)
        rising = np.argsort(held, kind="stable")
        usual[pairs[0][rising]] = pairs[1][rising]
        order = order[np.argsort(usual[order], kind="stable")]
    shares = np.array([1 - validation - holdout, validation, holdout])
    lacking = np.zeros(3)
    part_of = np.zeros(count, np.int8)
    for group in order:
        lacking += shares * sizes[group]
        part = int(lacking.argmax())
        lacking[part] -= sizes[group]
        part_of[group] = part
    if classes is not None:
        lost = np.setdiff1d(classes, classes[part_of[groups] == TRAIN])
        part_of[[groups[np.flatnonzero(classes == one)[0]] for one in lost]] = TRAIN
    return part_of[groups]


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
