"""Find the nearest different row of every row, exactly; ties go to the lower row.

Squared distance = Euclidean over standardised numbers (each tensor element is one) + 1 for each
category, boolean or missingness that differs. Fast searches only propose candidates; a fixed-order
sum in float64 judges them, so that neither the search used nor the batch a row was asked in can
change the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.generation.frame import Codes, Floats, Originals, RowNumbers

TREE_DIMENSIONS = 12
"""Dimensions up to which a k-d tree is faster than brute force."""
QUERY_ROWS = 256
"""Rows that brute force compares with the pool at a time."""
PAIRS = 1 << 20
"""Candidate pairs checked, and tree queries made, at a time."""
UNKNOWN = -1
"""Marks a point whose neighbour has not been searched for yet."""
SLACK = 1e-5
"""Candidates within this share of the squared norms are checked exactly; float32 errs less."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Rows as points of the metric space, duplicates folded into the lowest row."""

    numbers: Floats
    """[U, D] standardised, missing as the mean."""
    codes: Codes
    """[U, C] categories, booleans and whether each number is missing."""
    row: RowNumbers
    """[U] the lowest original row at each point, ascending."""
    of_row: RowNumbers
    """[N] the point of each original row."""


class Neighbours:
    """Finds the original that is nearest to an original."""

    def __init__(self, originals: Originals, *, pool: int):
        """Prepare the search.

        Args:
            originals: The rows.
            pool: Look among at most this many different rows, spread evenly; 0 means all of them.

        Raises:
            InvalidInput: All originals are the same, so that no row has a different one.
        """
        points = fold(originals)
        count = len(points.row)
        if count < 2:
            remedy = "MUNGE moves between different rows and needs at least 2"
            raise InvalidInput([Problem("original", f"{count} different row", remedy)])
        size = min(pool, count) if pool else count
        candidates = np.arange(size) * count // size
        by_tree = points.numbers.shape[1] <= TREE_DIMENSIONS and not _varied(points.codes).any()
        self._points = points
        self._known = np.full(count, UNKNOWN)
        self._search = (_TreeSearch if by_tree else _BruteSearch)(points, candidates)

    def nearest(self, rows: RowNumbers) -> RowNumbers:
        """Return the nearest different original [N] of each of these originals [N]."""
        points = self._points.of_row[rows]
        wanted = np.unique(points[self._known[points] == UNKNOWN])
        for pairs in self._search(wanted):
            query, best = self._judge(*pairs)
            self._known[query] = best
        return self._points.row[self._known[points]]

    def _judge(self, query: RowNumbers, candidate: RowNumbers) -> tuple[RowNumbers, RowNumbers]:
        """Return each different query and its best candidate."""
        distance = np.empty(len(query))
        for at in range(0, len(query), PAIRS):
            part = slice(at, at + PAIRS)
            distance[part] = _distance(self._points, query[part], candidate[part])
        order = np.lexsort((candidate, distance, query))
        first = np.diff(query[order], prepend=-1) != 0
        return query[order][first], candidate[order][first]


def fold(originals: Originals) -> Points:
    """Place every original in the metric space."""
    spread = originals.numeric_spread
    missing: list[NDArray[np.bool_]] = [np.isnan(originals.numeric)]
    numbers = [(originals.numeric - spread.mean) / spread.std]
    for tensor, of in zip(originals.tensors, originals.tensor_spreads, strict=True):
        missing.append(np.any(np.isnan(tensor.values), axis=1, keepdims=True))
        numbers.append((tensor.values - of.mean) / of.std)
    # Adding 0.0 turns -0.0 into 0.0, which has other bytes and would not fold.
    number = np.nan_to_num(np.hstack(numbers), nan=0.0) + 0.0
    codes = np.hstack([originals.codes, *missing]).astype(np.int64)
    row, of_row = _first_of_each(number, codes)
    return Points(numbers=number[row], codes=codes[row], row=row, of_row=of_row)


def _first_of_each(numbers: Floats, codes: Codes) -> tuple[RowNumbers, RowNumbers]:
    """Return the first row [U] of each point, ascending, and the point [N] of each row."""
    packed = np.ascontiguousarray(np.hstack([numbers.view(np.int64), codes]))
    keys = packed.view(np.dtype((np.void, packed.itemsize * packed.shape[1]))).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse]


def _varied(codes: Codes) -> NDArray[np.bool_]:
    """Return which columns [C] hold more than one code."""
    return np.any(codes != codes[:1], axis=0)


def _distance(points: Points, left: RowNumbers, right: RowNumbers) -> Floats:
    """Return the squared distance [P] of each pair, summed column by column."""
    total = np.zeros(len(left))
    for column in points.numbers.T:
        total += (column[left] - column[right]) ** 2
    for column in points.codes.T:
        total += column[left] != column[right]
    return total


Pairs = Iterator[tuple[RowNumbers, RowNumbers]]
"""(query point, candidate point) [P] each; all candidates of a query come together."""


class _BruteSearch:
    """Compares every query with the whole pool, by a matrix product."""

    def __init__(self, points: Points, pool: RowNumbers):
        varied = _varied(points.codes)
        self._points = points
        self._pool = pool
        self._numbers = points.numbers[pool].T.astype(np.float32)
        self._square = (self._numbers**2).sum(axis=0)
        self._codes = points.codes[:, varied].T
        self._pooled_codes = np.ascontiguousarray(self._codes[:, pool])

    def __call__(self, queries: RowNumbers) -> Pairs:
        for at in range(0, len(queries), QUERY_ROWS):
            query = queries[at : at + QUERY_ROWS]
            numbers = self._points.numbers[query].astype(np.float32)
            near = (-2.0 * numbers) @ self._numbers
            near += self._square
            for codes, pooled in zip(self._codes, self._pooled_codes, strict=True):
                near += codes[query, None] != pooled
            place = np.minimum(self._pool.searchsorted(query), len(self._pool) - 1)
            itself = np.flatnonzero(self._pool[place] == query)
            near[itself, place[itself]] = np.inf
            # `near` lacks the query's own square, the same for all of its candidates.
            own, best = (numbers**2).sum(axis=1), near.min(axis=1)
            bound = best + SLACK * (3 * own + 2 * np.maximum(best + own, 0.0) + 1.0)
            which, candidate = np.nonzero(near <= bound[:, None])
            yield query[which], self._pool[candidate]


class _TreeSearch:
    """Walks a k-d tree: for few dimensions and many rows."""

    def __init__(self, points: Points, pool: RowNumbers):
        self._numbers = points.numbers
        self._tree = KDTree(points.numbers[pool])
        self._pool = pool

    def __call__(self, queries: RowNumbers) -> Pairs:
        for at in range(0, len(queries), PAIRS):
            query = queries[at : at + PAIRS]
            # A query in the pool finds itself first; the third tells whether there is a tie.
            near: Any = self._tree.query(self._numbers[query], k=3, workers=-1)
            distance: Floats = near[0]
            found: RowNumbers = near[1]
            reach = distance[:, 1] * (1 + SLACK)
            tied = distance[:, 2] <= reach
            hits: list[list[int]] = list(
                self._tree.query_ball_point(self._numbers[query[tied]], reach[tied])
            )
            left = [np.repeat(query[~tied], 2), np.repeat(query[tied], [len(hit) for hit in hits])]
            right = [found[~tied, :2].ravel(), np.fromiter(chain.from_iterable(hits), np.int64)]
            pair, candidate = np.concatenate(left), self._pool[np.concatenate(right)]
            other = pair != candidate
            yield pair[other], candidate[other]
