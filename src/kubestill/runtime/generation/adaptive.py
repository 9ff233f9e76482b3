"""Refine a dataset: add exact labels where a surrogate's error is largest.

Each block of rows is chosen among its own stretch of a Sobol sequence, so that blocks can be made
anywhere and in any order. Give every further round of refinement a seed of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.datasets.canonical import BLOCK_ROWS
from kubestill.runtime.datasets.decode import RawLayout, decode, decode_features
from kubestill.runtime.generation.covering import Covering
from kubestill.runtime.generation.systems.solving import OnFailure
from kubestill.runtime.generation.systems.system import System
from kubestill.runtime.models.predict import Predictor, probabilities


class Adaptive:
    """The rows of a system on which a surrogate's error is largest.

    Args:
        system: What labels them.
        predictor: The surrogate.
        oversample: Candidates for each row kept.
        rows: How many are kept in all.
        seed: Of the candidates.
        on_failure: Whether a candidate on which the solver fails ends the work, or is left out.

    Raises:
        InvalidInput: The surrogate is of another system.
    """

    def __init__(
        self,
        system: System,
        predictor: Predictor,
        *,
        oversample: int,
        rows: int,
        seed: int,
        on_failure: OnFailure = "stop",
    ):
        trained = predictor.spec.schema
        if (trained.features, trained.target) != (system.schema.features, system.schema.target):
            remedy = f"it was trained on other columns than those of {system.name}"
            raise InvalidInput([Problem("model", list(trained.names), remedy)])
        self.schema = system.schema
        candidates = rows * oversample
        self._sobol = Covering(
            system, "sobol", {"scramble": True}, rows=candidates, seed=seed, on_failure=on_failure
        )
        self.solving = self._sobol.solving
        """What solves them, and knows which candidates were left out."""
        self.width = self._sobol.width * oversample
        self._system, self._predictor, self._oversample = system, predictor, oversample
        self._rows = rows
        self._layout = RawLayout(trained)
        self._block: tuple[int, pd.DataFrame] | None = None

    def make(self, start: int, stop: int) -> pd.DataFrame:
        """Return rows `start` to `stop`, which lie within few blocks."""
        pieces: list[pd.DataFrame] = []
        for number in range(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS)):
            first = number * BLOCK_ROWS
            kept = self._kept(number)
            pieces.append(kept.iloc[max(start - first, 0) : max(stop - first, 0)])
        return pd.concat(pieces, ignore_index=True)

    def _kept(self, number: int) -> pd.DataFrame:
        """Return the rows of one block, in the order of their candidates."""
        if self._block is None or self._block[0] != number:
            first = number * BLOCK_ROWS
            count = min(BLOCK_ROWS, self._rows - first)
            stretch = range(first * self._oversample, (first + count) * self._oversample)
            found = [
                self._solved(at, min(at + BLOCK_ROWS, stretch.stop))
                for at in range(stretch.start, stretch.stop, BLOCK_ROWS)
            ]
            rows = pd.concat([frame for frame, _ in found], ignore_index=True)
            errors = np.concatenate([error for _, error in found])
            # A stable sort: of equal errors the earlier candidate is kept.
            worst = np.sort(np.argsort(-errors, kind="stable")[:count])
            self._block = number, rows.iloc[worst].reset_index(drop=True)
        return self._block[1]

    def _solved(self, start: int, stop: int) -> tuple[pd.DataFrame, NDArray[np.floating[Any]]]:
        rows = self._sobol.make(start, stop)
        outputs = self._predictor.logits(decode_features(rows, self._layout))
        target = decode(rows, self._layout, ("target",)).target
        assert target is not None
        if self._system.output.classes:
            chances = probabilities(outputs)
            return rows, 1.0 - chances[np.arange(len(rows)), target]
        decoder = self._predictor.model.decoder
        scale = decoder.std.cpu().numpy()
        return rows, np.abs((outputs - target) / scale).max(axis=1).astype(np.float64)
