"""Task of the component `label-with-teacher`: put the teacher's outputs beside rows."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import Problems, counted, renaming
from kubestill.runtime.base.artifacts import Artifact, check_kind, is_no_model
from kubestill.runtime.base.device import choose_devices
from kubestill.runtime.datasets.manifest import BLOCK_ROWS, Dataset, open_input
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.generation.generate import (
    count_originals,
    generate,
    rows_made_from,
    shard_rows,
)
from kubestill.runtime.generation.labelling import TeacherCopy, check_fit, check_weights, label
from kubestill.runtime.generation.request import Request, parse_request
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.folds import Folds, load_folds

log = logging.getLogger(__name__)


def label_with_teacher(
    *,
    model: Artifact,
    dataset: Artifact,
    labelled: Artifact,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    method: str = "",
    rows: int = 32_768,
    shard: int = 0,
    shards: int = 1,
    seed: int = 0,
    synthetic_settings: Mapping[str, Any] | None = None,
) -> tuple[str]:
    """Write rows with the outputs of `model` beside them; the component documents the parameters.

    Returns:
        The URI of the labelled rows.

    Raises:
        InvalidInput: Everything that is wrong, before anything is written.
        Refused: The teacher answers over HTTP, and that costs more than its budget.
        CorruptData: Rows of the dataset are damaged.
    """
    problems = Problems()
    places = ["cpu"]
    with problems.collect():
        places = [str(one) for one in choose_devices(device)]
    if is_no_model(model):
        return _pass_on(dataset, labelled, shard, shards, problems)
    teachers: list[TeacherCopy] = []
    with problems.collect("model", model.uri):
        check_kind(model, "model")
        teachers.append(_load(model.path, places[0]))
        if teachers[0].predictor.model.device.type != "cpu":  # as one behind an address is
            teachers += (_load(model.path, place) for place in places[1:])
    given = open_input(dataset, "dataset", problems)
    if teachers and given:
        with problems.collect():
            check_fit(teachers[0].predictor.spec, given.schema)
        with problems.collect():
            check_weights(teachers[0].predictor, given.schema)
    for key, value in (settings or {}).items():
        problems.add(f"settings.{key}", value, "unknown; labelling has no further options")
    request = None
    if method:
        asked = {"method": method, "rows": rows, "shard": shard, "shards": shards, "seed": seed}
        with problems.collect(), renaming(_own_name):
            request, _ = parse_request(
                {**asked, "settings": synthetic_settings or {}}, has_original=True
            )
    problems.raise_if_any()
    assert given
    spec, folds = teachers[0].predictor.spec, teachers[0].folds
    log.info("labelling on %s", ", ".join(places[: len(teachers)]))
    beside = os.path.dirname(labelled.path) or "."
    os.makedirs(beside, exist_ok=True)
    # Generated rows stay here: Kubeflow stores what lies at an output's path and nothing beside it.
    with tempfile.TemporaryDirectory(dir=beside) as folder:
        unlabelled = given
        if request:
            with renaming(_own_name):
                unlabelled = generate(folder, request, given)
            check_fit(spec, unlabelled.schema)
        seen = given.fingerprint in str(model.metadata.get("fitted_on", "")).split()
        fold = _find_unseen(folds, given, unlabelled, request) if folds else None
        if seen and not folds and not shard:
            print(
                f"the teacher has learned from these {counted(given.rows, 'row')}: its answers for "
                "them are surer than for others. cross_fit=5 of train-teacher has each answered by "
                "one that has not seen it",
                flush=True,
            )
        made = label(teachers, unlabelled, labelled.path, fold)
    labelled.metadata |= {"kind": "dataset", "fingerprint": made.fingerprint, "rows": made.rows}
    return (labelled.uri,)


def _load(model: str, device: str) -> TeacherCopy:
    return TeacherCopy(load_model(model, device=device), load_folds(model, device=device))


def _own_name(field: str) -> str:
    """Return what this step calls a parameter of generating rows: its own settings are others."""
    return f"synthetic_{field}" if field.startswith("settings") else field


def _find_unseen(
    folds: Folds, given: Dataset, rows: Dataset, request: Request | None
) -> NDArray[np.int64]:
    """Return the fold of each of the rows that are to be labelled; -1 where there is none.

    Only rows with a label are what a teacher learned from, or copies of that: what is generated
    without one is new to all, and the whole teacher knows most about it.
    """
    fold = folds.assign(given)[rows_made_from(count_originals(given), 0, given.rows)]
    if request:
        made = int(rows.provenance["rows"])  # files may hold fewer than were asked for
        start, stop = shard_rows(given.rows + made, request.shard, request.shards)
        fold = fold[rows_made_from(given.rows, start, stop)]
    target = rows.schema.target
    if target is not None:
        column = rows.to_table([target.name]).column(target.name)
        # A missing number is NaN.
        fold = np.where(column.is_null(nan_is_null=True).to_numpy(), -1, fold)
    answered = int((fold >= 0).sum())
    said = (
        f"{counted(answered, 'row')} of {rows.rows:,} answered by teachers that have not seen them"
    )
    print(f"cross-fitted: {said}", flush=True)
    return fold


def _pass_on(
    dataset: Artifact, labelled: Artifact, shard: int, shards: int, problems: Problems
) -> tuple[str]:
    """Write the rows of one shard, which carry the answers of a teacher that is not here."""
    given = open_input(dataset, "dataset", problems)
    if given and given.schema.soft is None:
        remedy = "there is no teacher, and these rows carry no answers of one"
        problems.add("dataset", dataset.uri, remedy)
    if not 0 <= shard < shards:
        problems.add("shard", shard, f"must be below {shards}: shards are counted from 0")
    problems.raise_if_any()
    assert given
    start, stop = shard_rows(given.rows, shard, shards)
    provenance = {
        "made_by": "label-with-teacher",
        "teacher": None,
        "shard": shard,
        "shards": shards,
        "rows_from": given.provenance,
    }
    with DatasetWriter(labelled.path, given.schema, provenance=provenance) as writer:
        for number, block in enumerate(given.iter_blocks()):
            if start <= number * BLOCK_ROWS < stop:
                writer.write(block)
    made = writer.dataset
    labelled.metadata |= {"kind": "dataset", "fingerprint": made.fingerprint, "rows": made.rows}
    print(f"{counted(made.rows, 'row')} carry answers; no rows are generated", flush=True)
    return (labelled.uri,)
