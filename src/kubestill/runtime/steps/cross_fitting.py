"""Fit the teachers of folds, beside the one that has learned from all rows."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import Problems, counted
from kubestill.runtime.base.artifacts import Artifact, LocalArtifact
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.datasets.manifest import Dataset, open_input
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.generation.generate import count_originals, rows_made_from
from kubestill.runtime.models.folds import assign_folds, fold_folder, seen_rows, write_folds
from kubestill.runtime.steps.train_model import Ports, train_model
from kubestill.runtime.training.job import Preset
from kubestill.runtime.training.run import Keeping

MOST = 20
"""Folds: each is a training run."""


@dataclass(frozen=True, kw_only=True)
class CrossFit:
    """Which fold each row of a dataset is in."""

    dataset: Dataset
    fold: NDArray[np.int64]
    """[N] from 0. A copy of a row is in the fold of the row that it was made from."""
    folds: int
    group: str

    def fit(
        self,
        preset: Preset,
        typed: Mapping[str, Any],
        settings: Mapping[str, Any],
        *,
        ports: Ports,
        keeping: Keeping,
    ) -> None:
        """Train a teacher for each fold on the rows of all others, as the whole one was trained.

        Args:
            preset: Of the training component.
            typed: Its typed parameters.
            settings: Its settings.
            ports: Of the whole teacher; its folder receives those of the folds.
            keeping: Where checkpoints are kept: each has a place of its own there, and resumes.
        """
        folder = ports.model.path
        shutil.rmtree(os.path.join(folder, "folds"), ignore_errors=True)
        for number in range(self.folds):
            print(f"cross-fitting: fold {number + 1} of {self.folds}", flush=True)
            with tempfile.TemporaryDirectory(prefix="kubestill-fold-") as place:
                names = ("metrics", "report", "summary")
                own: dict[str, Any] = {
                    name: LocalArtifact(os.path.join(place, name)) for name in names
                }
                ledger = os.path.join(place, "ledger")
                # Where nobody names a root, checkpoints lie beside the ledger's own address.
                own["ledger"] = LocalArtifact(ledger, f"{ports.ledger.uri}-folds/{number}/ledger")
                train_model(
                    preset,
                    typed,
                    {**settings, "serving": "none"},
                    ports=replace(
                        ports,
                        dataset=self._others(number, os.path.join(place, "rows")),
                        model=LocalArtifact(fold_folder(folder, number)),
                        **own,
                    ),
                    keeping=keeping,
                )
        write_folds(folder, self.folds, group=self.group, rows=seen_rows(self.dataset))

    def _others(self, number: int, folder: str) -> LocalArtifact:
        """Write the rows of all folds but one."""
        provenance = {
            "made_by": "train-teacher",
            "fold": number,
            "folds": self.folds,
            "rows_from": self.dataset.provenance,
        }
        start = 0
        with DatasetWriter(folder, self.dataset.schema, provenance=provenance) as writer:
            for block in self.dataset.iter_blocks():
                mine = self.fold[start : start + block.num_rows] != number
                start += block.num_rows
                writer.write(block.filter(pa.array(mine)))
        return LocalArtifact(folder, metadata={"kind": "dataset"})


def plan_folds(
    dataset: Artifact, folds: int, settings: Mapping[str, Any], problems: Problems
) -> CrossFit | None:
    """Cut a dataset into folds; None, with every problem noted, where that cannot be."""
    if folds == 1 or not 0 <= folds <= MOST:
        remedy = f"use 2 to {MOST} folds, such as 5, or 0 for none"
        problems.add("cross_fit", folds, remedy)
    if settings.get("nodes", 1) != 1:
        remedy = "cross-fitting trains on one node; use 1, or leave cross_fit out"
        problems.add("settings.nodes", settings["nodes"], remedy)
    rows = open_input(dataset, "dataset", problems)
    if problems or rows is None:
        return None
    group = rows.schema.group.name if rows.schema.group else ""
    fold = assign_folds(rows, RawLayout(rows.schema), folds, group)
    # A copy goes with the row that it was made from, and holds almost the same.
    fold = fold[rows_made_from(count_originals(rows), 0, rows.rows)]
    sizes = np.bincount(fold, minlength=folds)
    if sizes.min(initial=rows.rows) == 0:
        what = f"groups of {group!r}" if group else "different rows"
        remedy = f"there are too few {what} among {counted(rows.rows, 'row')}; use fewer folds"
        problems.add("cross_fit", folds, remedy)
        return None
    return CrossFit(dataset=rows, fold=fold, folds=folds, group=group)
