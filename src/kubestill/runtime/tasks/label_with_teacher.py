"""Task of the component `label-with-teacher`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kubestill.errors import Problems
from kubestill.runtime.artifacts import Artifact, check_kind
from kubestill.runtime.data.manifest import Dataset
from kubestill.runtime.device import choose_device
from kubestill.runtime.labelling import label
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
        CorruptData: Model or dataset are damaged.
    """
    problems = Problems()
    with problems.collect():
        check_kind(model, "model")
    with problems.collect():
        check_kind(dataset, "dataset")
    for key, value in (settings or {}).items():
        problems.add(f"settings.{key}", value, "unknown; labelling has no further options")
    place = "cpu"
    with problems.collect():
        place = str(choose_device(device))
    problems.raise_if_any()
    log.info("labelling on %s", place)
    made = label(load_model(model.path, device=place), Dataset.open(dataset.path), labelled.path)
    labelled.metadata |= {"kind": "dataset", "fingerprint": made.fingerprint, "rows": made.rows}
    return (labelled.uri,)
