"""Whether features say anything about the labels of rows never seen, and of which rows.

A batch can be memorised however its labels are mixed up, so this is asked of other rows, and of
another learner: extremely randomised trees (Geurts et al. 2006), which need no tuning and take a
second. Labels are moved by a few rows to see whether they belong there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kubestill.runtime.sanity.findings import Check, HeldOut

__all__ = ["Skill", "check_held_out", "held_out_skill"]

SURE = 4.0
"""Standard errors that a difference must be away from zero."""
LEAVES = (0.0, 0.02)
"""Least share of the rows in a leaf: small leaves follow sharp functions, large ones find a faint
signal under much noise."""
SHIFTS = (-1, 1, -2, 2, -3, 3)
MIN_ROWS = 200
_TREES = 25


@dataclass(frozen=True, kw_only=True)
class Skill:
    """How much better than a constant the labels of held-out rows are told."""

    gain: NDArray[np.float64]
    """By row: squared error of the constant minus that of the learner."""
    share: float
    """Of the constant's squared error that is explained."""
    leaf: float
    """The size of leaf that told most."""

    @property
    def sigmas(self) -> float:
        """The mean gain in standard errors."""
        return _sigmas(self.gain)


def check_held_out(
    features: NDArray[Any],
    labels: NDArray[Any],
    index: NDArray[np.int64],
    *,
    complete: bool,
    seed: int,
) -> tuple[Check, HeldOut | None]:
    """Ask whether labels can be told on rows never seen, as they lie and moved by a few rows.

    Args:
        features: Encoded features [n, F] of the rows `index`.
        labels: Of the whole dataset [N, ...]: classes, values, or a teacher's outputs.
        index: Row numbers, int64 [n].
        complete: The rows are all there are: there is nothing to generalise to.
        seed: Of the split and the trees.

    Returns:
        The check, and its figures; None where there are too few rows to ask.
    """
    name = "labels belong to their rows"
    if len(index) < MIN_ROWS:
        said = f"{len(index)} rows are too few to ask; {MIN_ROWS} are the least."
        return Check(name=name, status="skipped", said=said), None
    ranked = _as_targets(labels)
    here = held_out_skill(features, ranked[index], seed=seed)
    found = HeldOut(skill=here.share, sigmas=here.sigmas)
    known = here.sigmas > SURE
    leaves = (here.leaf,) if known else LEAVES
    for shift in SHIFTS[:2] if known else SHIFTS:
        there = ranked[(index + shift) % len(ranked)]
        moved = held_out_skill(features, there, seed=seed, leaves=leaves)
        if moved.sigmas > SURE and _sigmas(moved.gain - here.gain) > SURE:
            found = replace(found, shift=shift, skill_moved=moved.share)
            far = "1 row" if abs(shift) == 1 else f"{abs(shift)} rows"
            where = f"{far} further {'down' if shift > 0 else 'up'}"
            return Check(
                name=name,
                status="fail",
                code="misaligned",
                said=(
                    f"The labels that fit these features stand {where}: they explain "
                    f"{100 * moved.share:.0f}% of the labels there, {100 * here.share:.0f}% here."
                ),
                remedy="Look for a join, a sort or a roll that moved one column.",
            ), found
    if known:
        said = f"Rows never seen are told from their features: {100 * here.share:.0f}% explained."
        return Check(name=name, status="ok", said=said), found
    if complete:
        said = "Neighbours tell nothing about a row; all rows there are will be learned by heart."
        return Check(name=name, status="note", said=said), found
    return Check(
        name=name,
        status="undetermined",
        code="undetermined",
        said=(
            f"On {len(index) * 3 // 10:,} rows held out, nothing tells labels better than a "
            f"constant ({here.sigmas:.1f} standard errors): noise, or labels of other rows."
        ),
        remedy="Check the join of features and labels; where it is right, say "
        "gate.undetermined = 'accept'.",
    ), found


def held_out_skill(
    features: NDArray[Any],
    targets: NDArray[Any],
    *,
    seed: int,
    leaves: Sequence[float] = LEAVES,
) -> Skill:
    """Learn from 70% of the rows; return how well the other 30% are told, by the best leaves."""
    order = np.random.default_rng(seed).permutation(len(features))
    train, test = order[: len(order) * 7 // 10], order[len(order) * 7 // 10 :]
    constant = targets[train].mean(0)
    apart = np.square(targets[test] - constant).sum(1)
    best: Skill | None = None
    for leaf in leaves:
        told = _told(features, targets, train, test, max(2, int(leaf * len(train))), seed)
        error = np.square(targets[test] - told).sum(1)
        explained = float(1 - error.sum() / max(apart.sum(), 1e-300))
        found = Skill(gain=apart - error, share=explained, leaf=leaf)
        if best is None or found.sigmas > best.sigmas:
            best = found
    assert best is not None
    return best


def _told(
    features: NDArray[Any],
    targets: NDArray[Any],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    leaf: int,
    seed: int,
) -> NDArray[np.float64]:
    """Return predictions [n, k]: chances where the targets are one column a class."""
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

    options: dict[str, Any] = {
        "n_estimators": _TREES,
        "min_samples_leaf": leaf,
        "max_features": _tried(features),
        "random_state": seed,
    }
    if targets.shape[1] > 1 and (targets.sum(1) == 1).all() and targets.max() == 1:
        chosen = ExtraTreesClassifier(**options).fit(features[train], targets[train].argmax(1))
        chances = np.zeros((len(test), targets.shape[1]))
        chances[:, chosen.classes_] = chosen.predict_proba(features[test])
        return chances
    wanted = targets[:, 0] if targets.shape[1] == 1 else targets
    trees = ExtraTreesRegressor(**options).fit(features[train], wanted[train])
    return trees.predict(features[test]).reshape(len(test), -1)


def _as_targets(labels: NDArray[Any]) -> NDArray[np.float64]:
    """Return bounded targets [N, k]: one column a class, or the ranks of the liveliest values."""
    if labels.ndim == 1:
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) <= 50:
            return np.eye(len(classes))[codes]
        labels = codes[:, None].astype(np.float64)
    values = np.nan_to_num(labels.reshape(len(labels), -1).astype(np.float64))
    lively = np.argsort(-values.std(0), kind="stable")[:12]
    return np.stack([_ranks(values[:, column]) for column in lively], 1)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks within 0 and 1, equal ones for equal values: no outlier outweighs the rest."""
    from scipy.stats import rankdata

    return rankdata(values) / len(values)


def _tried(features: NDArray[Any]) -> float:
    return 1.0 if features.shape[1] <= 16 else max(0.1, 16 / features.shape[1])


def _sigmas(gain: NDArray[np.float64]) -> float:
    error = gain.std() / np.sqrt(len(gain))
    return float(gain.mean() / error) if error > 0 else 0.0
