"""Whether labels are what they claim to be: the solver's, every time, and one for one input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.runtime.certification.certificate import Condition
from kubestill.runtime.certification.truth import Truth

ROUNDING = 4e-7
"""A few roundings to float32, which is what a dataset holds."""


def check_deterministic(truth: Truth, inputs: pd.DataFrame, once: NDArray[np.float64]) -> Condition:
    """Solve rows again whose solutions are `once` [n, T], in another order and other batches."""
    name = "the solver is deterministic"
    order = np.random.default_rng(0).permutation(len(inputs))
    again = np.empty_like(once)
    for part in np.array_split(order, 3):
        again[part] = truth.solve(inputs.iloc[part], fresh=True)
    apart = np.abs(once - again).max(1)
    lost = np.isnan(once[:, 0])
    # A failure has to repeat as an answer has.
    apart[lost] = 0.0
    apart[lost != np.isnan(again[:, 0])] = np.inf
    moved = int((apart > 0).sum())
    if not moved:
        said = f"{len(inputs):,} rows solved twice, in another order and batch: equal bits."
        return Condition(name=name, status="shown", said=said)
    size = float(np.abs(once[~lost]).max(initial=0.0)) or 1.0
    if apart.max() <= 1e-9 * size and truth.system.output.classes == ():
        said = (
            f"{len(inputs):,} rows solved twice: {moved:,} differ by roundings of at most "
            f"{apart.max():.1g}, by the batch they are in."
        )
        return Condition(name=name, status="shown", said=said)
    return Condition(
        name=name,
        status="failed",
        code="stochastic",
        said=f"Of {len(inputs):,} rows solved twice {moved:,} differ, by up to {apart.max():.3g}.",
        remedy="Fix its seed, or its tolerance: one input must have one answer.",
    )


def check_reproducible(
    truth: Truth, solved: NDArray[np.float64], labels: NDArray[np.float64]
) -> Condition:
    """Compare rows of the dataset, solved again in the types they were made in, with labels."""
    name = "labels can be reproduced"
    lost = np.isnan(solved[:, 0])
    apart = np.abs(solved - labels)
    allowed, output = np.zeros(()), truth.system.output
    if not output.classes:
        allowed = ROUNDING * np.maximum(np.abs(solved - output.offset), 1e-30)
    wrong = ~(apart <= np.maximum(allowed, 1e-37))
    rows = int(wrong.any(1).sum())
    if not rows:
        same = "every label is the same"
        if not output.classes:
            same = (
                f"every label is the solution to within {ROUNDING:g} of it, a few float32 roundings"
            )
        said = f"{len(solved):,} rows solved again: {same}."
        return Condition(name=name, status="shown", said=said)
    return Condition(
        name=name,
        status="failed",
        code="noisy",
        said=(
            f"Of {len(solved):,} rows solved again {rows:,} have another label, by up to "
            f"{float(apart[~lost].max(initial=0.0)):.3g}"
            + (f", or none: on {int(lost.sum()):,} the solver fails." if lost.any() else ".")
        ),
        remedy="Label them with this very system: noise cannot be distinguished from error.",
    )


def check_reference(
    truth: Truth, inputs: pd.DataFrame, solved: NDArray[np.float64], tolerance: float
) -> Condition:
    """Compare with an independent solver: only that shows labels free of the solver's own error."""
    name = "labels are free of noise"
    if truth.system.reference is None:
        said = (
            "The system has no independent reference solver: that its labels repeat is shown, that "
            "they are right is not."
        )
        return Condition(name=name, status="not shown", said=said)
    apart = np.abs(solved - truth.refer(inputs))
    known = ~np.isnan(apart[:, 0])
    if not known.any():
        said = f"One of both solvers fails on each of {len(inputs):,} rows: nothing was compared."
        return Condition(name=name, status="not shown", said=said)
    apart = apart[known]
    if truth.system.output.classes:
        apart = (apart > 0).astype(np.float64)
    worst, mean = float(apart.max()), float(apart.mean())
    seen = f"an independent solver differs by at most {worst:.2g} and {mean:.2g} on average"
    if tolerance and worst > tolerance / 2:
        return Condition(
            name=name,
            status="failed",
            code="inaccurate",
            said=f"On {len(apart):,} rows {seen}, with a tolerance of {tolerance:g}.",
            remedy="Make the solver more accurate, or the tolerance wider.",
        )
    said = f"On {len(apart):,} rows {seen}; nobody compared them elsewhere."
    return Condition(name=name, status="shown", said=said)


def check_conflicts(raw: NDArray[np.float32], labels: NDArray[Any]) -> Condition:
    """Find rows with equal inputs [N, R] and unlike labels [N, ...]."""
    name = "no input has two labels"
    order = np.argsort(row_hashes(raw), kind="stable")
    equal = (raw[order[1:]] == raw[order[:-1]]).all(1)
    labels = labels.reshape(len(labels), -1)
    unlike = (labels[order[1:]] != labels[order[:-1]]).any(1)
    conflicts = int((equal & unlike).sum())
    if conflicts:
        first = order[1:][equal & unlike][0]
        return Condition(
            name=name,
            status="failed",
            code="conflicts",
            said=f"{conflicts:,} rows repeat another's inputs with another label, such as row "
            f"{int(first):,}.",
            remedy="Remove one of each: no function can have both.",
        )
    repeated = int(equal.sum())
    said = f"{len(raw):,} rows, {repeated:,} of them repeat another's inputs with the same label."
    return Condition(name=name, status="shown", said=said if repeated else f"{len(raw):,} rows.")


def row_hashes(raw: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return one number a row [N]; equal rows have equal ones, unlike rows almost surely not."""
    # Adding zero turns -0 into 0.
    words = np.ascontiguousarray(raw + np.float32(0)).view(np.uint32).astype(np.uint64)
    odd = np.random.default_rng(7).integers(0, 2**63, words.shape[1], dtype=np.uint64) * np.uint64(
        2
    )
    mixed = np.zeros(len(words), np.uint64)
    for column in range(words.shape[1]):
        mixed = (mixed ^ words[:, column]) * (odd[column] + np.uint64(1))
        mixed ^= mixed >> np.uint64(29)
    return mixed
