"""Task of the component `label-with-teacher`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kubestill.errors import Problems
from kubestill.runtime.artifacts import Artifact, check_kind
from kubestill.runtime.data.manifest import Dataset
from kubestill.runtime.device import choose_device
from kubestill.runtime.labelling import check_fit, label
from kubestill.runtime.models.export import load_model

log = logging.getLogger(__name__)


def label_with_teacher(
    *,
    model: Artifact,
    dataset: Artifact,
    labelled: Artifact,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
) -> tuple[str]:
    """Write `dataset` with the outputs of `model` beside its rows to `labelled`.

    Args:
        model: The teacher.
        dataset: Rows to label, usually one shard.
        labelled: Output.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        settings: There are none yet; any key is refused.

    Returns:
        The URI of the labelled rows.

    Raises:
        InvalidInput: With everything that is wrong, before anything is written.
        CorruptData: Rows of the dataset are damaged.
    """
    problems = Problems()
    place = "cpu"
    with problems.collect():
        place = str(choose_device(device))
    teacher = rows = None
    with problems.collect("model", model.uri):
        check_kind(model, "model")
        teacher = load_model(model.path, device=place)
    with problems.collect("dataset", dataset.uri):
        check_kind(dataset, "dataset")
        rows = Dataset.open(dataset.path)
    if teacher and rows:
        with problems.collect():
            check_fit(teacher.spec, rows.schema)
    for key, value in (settings or {}).items():
        problems.add(f"settings.{key}", value, "unknown; labelling has no further options")
    problems.raise_if_any()
    assert teacher
    assert rows
    log.info("labelling on %s", place)
    made = label(teacher, rows, labelled.path)
    labelled.metadata |= {"kind": "dataset", "fingerprint": made.fingerprint, "rows": made.rows}
    return (labelled.uri,)
