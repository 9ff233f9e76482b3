"""Whether features say anything about the labels of rows never seen, and of which rows.

A batch can be memorised however its labels are mixed up, so this is asked of other rows, and of
other learners, each strong where the others are weak: a scan of single columns (few of many tell
something), ridge regression (all tell a little) and extremely randomised trees (Geurts et al. 2006;
they tell something together). Labels are moved by a few rows to see whether they belong there.

That nothing is found means something only where a faint signal would have been. So labels with such
a signal are made for these very features, and looked for in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import counted
from kubestill.runtime.sanity.findings import Check, HeldOut

Floats = NDArray[np.float64]

KNOWN = 0.01
"""Chance that labels without meaning are taken for known."""
ELSEWHERE = 1e-4
"""The same for labels that are moved: several moves are tried."""
FAINT = 0.1
"""Share of a label's variance that a signal explains which must not be overlooked."""
SURELY = 1e-3
"""p-value that each of the labels made with a faint signal must have, for another one to be found
nearly always."""
SHIFTS = (-1, 1, -2, 2, -3, 3)
MIN_ROWS = 200
_PLANTED = 6
_TREES = 40
_FOLDS = 3
_MOST_WORK = 2e10
"""Multiplications for the products of features: about a second."""
_BINS = 8
_CATEGORIES = 63
"""Of a large category, the most frequent, that are looked at one by one."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """How well the labels of held-out rows are predicted."""

    share: float
    """Of their variance, by the trees: the squared correlation of answers and labels."""
    p_value: float
    """Of the surest of the learners, times their number."""

    @property
    def sigmas(self) -> float:
        """The same in standard errors."""
        from scipy.stats import norm

        return float(norm.isf(max(self.p_value, 1e-300)))


def check_held_out(
    features: NDArray[Any],
    labels: NDArray[Any],
    index: NDArray[np.int64],
    *,
    codes: int,
    complete: bool,
    seed: int,
    deadline: float,
) -> tuple[Check, HeldOut | None]:
    """Test whether labels can be predicted on rows never seen, in place and moved by a few rows.

    Args:
        features: Encoded features [n, F] of the rows `index`.
        labels: Of the whole dataset [N, ...]: classes, values, or a teacher's outputs.
        index: Row numbers, int64 [n].
        codes: How many of the features, the last ones, are numbers of categories.
        complete: The rows are all there are: there is nothing to generalise to.
        seed: Of folds, trees and the signals that are made.
        deadline: Of `time.thread_time`: from then on no learner is asked that takes long.

    Returns:
        The check, and its figures; None where there are too few rows to ask.
    """
    name = "labels belong to their rows"
    if len(index) < MIN_ROWS:
        said = f"{len(index)} rows are too few to ask; {MIN_ROWS} are the least."
        return Check(name=name, status="skipped", said=said), None
    ranked = as_targets(labels)
    question = Question(features, codes=codes, seed=seed, deadline=deadline)
    here = question.ask(ranked[index])
    found = HeldOut(skill=here.share, sigmas=here.sigmas)
    known = here.p_value <= KNOWN
    for shift in SHIFTS[:2] if known else SHIFTS:
        labels_there = ranked[(index + shift) % len(ranked)]
        there = question.ask(labels_there)
        if there.p_value > ELSEWHERE:
            continue
        # Neighbours may be alike, and rows in order of time may hold their own past.
        if known and (1 - there.share > (1 - here.share) / 2 or question.copies(labels_there)):
            continue
        found = replace(found, shift=shift, skill_moved=there.share)
        where = f"{counted(abs(shift), 'row')} further {'down' if shift > 0 else 'up'}"
        return Check(
            name=name,
            status="fail",
            code="misaligned",
            said=(
                f"The labels that fit these features stand {where}: they explain "
                f"{100 * there.share:.0f}% of the labels there, {100 * here.share:.0f}% here."
            ),
            remedy="Look for a join, a sort or a roll that moved one column.",
        ), found
    if known:
        said = f"On rows never seen, the features explain {100 * here.share:.0f}%."
        return Check(name=name, status="ok", said=said), found
    if complete:
        said = "Neighbours tell nothing about a row; all rows there are will be learned by heart."
        return Check(name=name, status="note", said=said), found
    if not question.would_tell(ranked[index]):
        said = (
            f"{counted(len(index), 'row')} cannot tell: a signal that explains a tenth of the "
            "labels would not show in them either."
        )
        return Check(name=name, status="note", said=said), found
    return Check(
        name=name,
        status="undetermined",
        code="undetermined",
        said=(
            f"On {counted(len(index), 'row')} held out in turn, nothing tells labels better than a "
            f"constant ({here.sigmas:.1f} standard errors): noise, or labels of other rows. A "
            "signal that explains a tenth of the labels would show."
        ),
        remedy="Check the join of features and labels; where it is right, say "
        "gate.undetermined = 'accept'.",
    ), found


class Question:
    """Features [n, F] of rows, of which several kinds of labels are asked."""

    def __init__(
        self, features: NDArray[Any], *, codes: int = 0, seed: int = 0, deadline: float = np.inf
    ):
        self._features = features
        self._plain = features.shape[1] - codes
        self._seed, self._deadline = seed, deadline
        self._longest = 0.0
        """Seconds that trees took at most."""

    def ask(self, targets: Floats) -> Predicted:
        """Return how well targets [n, k] are predicted on rows held out."""
        p_values = [self._scan(targets), self._ridge(targets)]
        share = 0.0
        # The trees take longest.
        if time.thread_time() + self._longest < self._deadline:
            told, share = self._forest(targets)
            p_values.append(told)
        return Predicted(share=share, p_value=min(1.0, 3 * min(p_values)))

    def would_tell(self, targets: Floats) -> bool:
        """Return whether labels with a faint signal, otherwise like these, are predicted."""
        for planted in self._planted(targets):
            if 3 * min(self._scan(planted), self._ridge(planted)) > SURELY:
                return False
        return True

    def copies(self, targets: Floats) -> bool:
        """Return whether one column alone tells the targets about as well as any: their past."""
        from scipy.stats import rankdata

        told = rankdata(self._features, axis=0) - (len(targets) + 1) / 2
        wanted = rankdata(targets, axis=0) - (len(targets) + 1) / 2
        size = np.linalg.norm(told, axis=0)[:, None] * np.linalg.norm(wanted, axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            alike = np.abs(told.T @ wanted) / size
        return bool(np.nanmax(alike, initial=0.0) > 0.8)

    def _planted(self, targets: Floats) -> Iterator[Floats]:
        """Yield these labels in another order, that of a signal in the features and noise."""
        random = np.random.default_rng(self._seed)
        order = np.lexsort(targets.T)
        for number in range(_PLANTED):
            if number % 2 and self._plain:
                signal = self._standard @ random.normal(size=self._plain)
            else:
                bins, count = self._bins[0][:, random.choice(self._varying)], _CATEGORIES + 1
                signal = random.normal(size=count)[bins]
            signal = (signal - signal.mean()) / max(float(signal.std()), 1e-9)
            noise = random.normal(size=len(signal))
            placed = np.argsort(np.sqrt(FAINT) * signal + np.sqrt(1 - FAINT) * noise)
            planted = np.empty_like(targets)
            planted[placed] = targets[order]
            yield planted

    def _scan(self, targets: Floats) -> float:
        """Return the p-value of the column that tells most by itself, over all of them."""
        from scipy.special import chdtrc

        bins, counts = self._bins
        if not len(self._varying):
            return 1.0
        classes = _is_classes(targets)
        if classes:
            targets, often = _pooled(targets)
            wanted = targets / np.sqrt(often)
            freedom = (counts - 1) * (targets.shape[1] - 1)
        else:
            # How far from the middle as well: a column may tell the spread alone.
            wanted = np.concatenate([targets, np.abs(targets - np.median(targets, axis=0))], 1)
            wanted = (wanted - wanted.mean(0)) / np.maximum(wanted.std(0), 1e-9)
            freedom = counts - 1
        statistic: Any = 0.0
        for number in range(int(counts.max())):
            inside = (bins == number).astype(np.float32)
            rows = inside.sum(0)[:, None]
            sums = inside.T @ wanted.astype(np.float32)
            expected = rows * wanted.mean(0)
            statistic = statistic + (sums - expected) ** 2 / np.maximum(rows, 1)
        statistic = np.asarray(statistic, np.float64)[self._varying]
        freedom = freedom[self._varying]
        if classes:
            p_values = chdtrc(np.maximum(freedom, 1), statistic.sum(1))
        else:
            p_values = chdtrc(np.maximum(freedom, 1)[:, None], statistic)
        return float(min(1.0, p_values.min() * p_values.size))

    def _ridge(self, targets: Floats) -> float:
        """Return the p-value of a linear model's answers for the rows that it was not fitted to."""
        if not self._plain:
            return 1.0
        rows = len(self._fold)
        wanted = targets[:rows]
        told = np.zeros_like(wanted)
        for fold, answer in enumerate(self._answers):
            train = self._fold != fold
            mean = wanted[train].mean(0)
            told[~train] = answer(wanted[train] - mean)
        return _p_value(told, wanted - wanted.mean(0))

    def _forest(self, targets: Floats) -> tuple[float, float]:
        """Return p-value and share explained, of each row by the trees that have not seen it."""
        from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

        begun = time.thread_time()
        width = self._features.shape[1]
        options: dict[str, Any] = {
            "n_estimators": _TREES,
            "min_samples_leaf": 3,
            "max_features": 1.0 if width <= 16 else max(16, int(width**0.5)) / width,
            "bootstrap": True,
            "oob_score": True,
            "random_state": self._seed,
        }
        if _is_classes(targets):
            chosen = ExtraTreesClassifier(**options).fit(self._features, targets.argmax(1))
            told = np.zeros_like(targets)
            told[:, chosen.classes_] = np.nan_to_num(chosen.oob_decision_function_)
        else:
            wanted = targets[:, 0] if targets.shape[1] == 1 else targets
            trees = ExtraTreesRegressor(**options).fit(self._features, wanted)
            told = trees.oob_prediction_.reshape(targets.shape)
        self._longest = max(self._longest, time.thread_time() - begun)
        told, apart = told - told.mean(0), targets - targets.mean(0)
        together = max(0.0, float((told * apart).sum()))
        sizes = float(np.square(told).sum() * np.square(apart).sum())
        return _p_value(told, apart), together**2 / sizes if sizes else 0.0

    @cached_property
    def _bins(self) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
        """Bin of each value, int8 [n, F], and the number of bins of each column."""
        found = np.zeros(self._features.shape, np.int8)
        counts = np.ones(self._features.shape[1], np.int64)
        bins = int(np.clip(len(found) // 100, 2, _BINS))
        for place, column in enumerate(self._features.T):
            values, codes, rows = np.unique(column, return_inverse=True, return_counts=True)
            if place >= self._plain and len(values) > bins:
                often = np.argsort(-rows, kind="stable")[:_CATEGORIES]
                often = often[rows[often] >= 5]
                renamed = np.full(len(values), len(often))
                renamed[often] = np.arange(len(often))
                codes = renamed[codes]
            elif len(values) > bins:
                edges = np.quantile(column, np.linspace(0, 1, bins + 1)[1:-1])
                codes = np.searchsorted(np.unique(edges), column)
            _, codes = np.unique(codes, return_inverse=True)
            found[:, place], counts[place] = codes, codes.max() + 1
        return found, counts

    @cached_property
    def _varying(self) -> NDArray[np.int64]:
        return np.flatnonzero(self._bins[1] > 1)

    @cached_property
    def _standard(self) -> NDArray[np.float32]:
        plain = self._features[:, : self._plain].astype(np.float32)
        spread = plain.std(0)
        return (plain - plain.mean(0)) / np.where(spread > 0, spread, 1)

    @cached_property
    def _fold(self) -> NDArray[np.int64]:
        """Fold of the rows that are worth it: the products of features take time."""
        count, width = self._standard.shape
        most = max(MIN_ROWS, int(_MOST_WORK / width / min(width, count)))
        return np.random.default_rng(self._seed).integers(0, _FOLDS, min(count, most))

    @cached_property
    def _answers(self) -> list[Any]:
        """For each fold, what gives its answers [rows, k] from the targets of the other rows."""
        from scipy.linalg import cho_factor, cho_solve

        rows = self._standard[: len(self._fold)]
        width = rows.shape[1]
        penalty = np.float32(width * (1 - FAINT) / FAINT)
        found: list[Any] = []
        for fold in range(_FOLDS):
            train, test = rows[self._fold != fold], rows[self._fold == fold]
            if width <= len(train):
                gram = train.T @ train
                gram[np.diag_indices(width)] += penalty
                factor = cho_factor(gram, overwrite_a=True)

                def answer(
                    wanted: Floats, train: Any = train, test: Any = test, factor: Any = factor
                ) -> Floats:
                    return test @ cho_solve(factor, train.T @ wanted.astype(np.float32))
            else:
                gram = train @ train.T
                gram[np.diag_indices(len(train))] += penalty
                factor = cho_factor(gram, overwrite_a=True)
                between = test @ train.T

                def answer(
                    wanted: Floats, train: Any = between, test: Any = None, factor: Any = factor
                ) -> Floats:
                    return train @ cho_solve(factor, wanted.astype(np.float32))

            found.append(answer)
        return found


def _p_value(told: Floats, wanted: Floats) -> float:
    """Return the one-sided p-value of the covariance of answers and labels [n, k], both centred.

    A covariance, and not an error: how faint an answer is, or how noisy, does not count against it.
    """
    from scipy.stats import norm

    each = (told * wanted).sum(1)
    error = each.std() / np.sqrt(len(each))
    return float(norm.sf(min(each.mean() / error, 37.0))) if error > 0 else 1.0


def as_targets(labels: NDArray[Any]) -> Floats:
    """Return bounded targets [N, k]: one column a class, or the ranks of the most varied values."""
    if labels.ndim == 1:
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) <= 50:
            return np.eye(len(classes))[codes]
        labels = codes[:, None].astype(np.float64)
    values = np.nan_to_num(labels.reshape(len(labels), -1).astype(np.float64))
    varied = np.argsort(-values.std(0), kind="stable")[:12]
    return np.stack([_ranks(values[:, column]) for column in varied], 1)


def _is_classes(targets: Floats) -> bool:
    return targets.shape[1] > 1 and targets.max() == 1 and bool((targets.sum(1) == 1).all())


def _pooled(targets: Floats) -> tuple[Floats, Floats]:
    """Return one column a class and the share of each, the rarest together."""
    often = targets.sum(0)
    rare = often < 20
    kept = targets[:, ~rare]
    if rare.any():
        kept = np.concatenate([kept, targets[:, rare].sum(1, keepdims=True)], 1)
    share = kept.mean(0)
    return kept[:, share > 0], share[share > 0]


def _ranks(values: Floats) -> Floats:
    """Return ranks within 0 and 1, equal ones for equal values: no outlier outweighs the rest."""
    from scipy.stats import rankdata

    return rankdata(values) / len(values)
