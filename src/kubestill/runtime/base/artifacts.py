"""The artifacts that tasks read and write, as far as the runtime needs to know them.

Kubeflow's classes (`dsl.Dataset`, `dsl.Model`, ...) satisfy `Artifact` by shape, so the runtime
never imports kfp. Kubeflow passes a Model where a generic Artifact is asked for without a word, and
all of our own types are generic to it: `kind` in the metadata is what tells them apart.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from kubestill.errors import CorruptData, Problems
from kubestill.runtime.base.values import parse_json, read_file

Kind = Literal[
    "dataset",
    "model",
    "no-model",
    "ledger",
    "checkpoint",
    "certificate",
    "decision",
    "findings",
    "frontier",
    "metrics",
    "report",
    "summary",
]


class Artifact(Protocol):
    """What a task sees of any Kubeflow artifact."""

    uri: str
    """Where the content lives for everybody: `gs://...`, or a path under the local runner."""
    metadata: dict[str, Any]
    """Strings and numbers that travel with the artifact; `kind` says what it is.

    Never more: Kubeflow wraps dicts and lists on the way (`read_metadata`), shows them as raw
    protobuf, and keeps several copies. A record is the file of an artifact of its own.
    """

    @property
    def path(self) -> str:
        """The local file or folder: read an input there, write an output there."""
        ...


class MetricsArtifact(Artifact, Protocol):
    """An artifact that also takes scalars, which Kubeflow plots."""

    def log_metric(self, metric: str, value: float) -> None:
        """Record one finite scalar: NaN or infinity would fail the finished task."""
        ...


@dataclass
class LocalArtifact:
    """A plain artifact at a local path: how to call a task function without Kubeflow."""

    path: str
    uri: str = ""
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        self.uri = self.uri or self.path

    def log_metric(self, metric: str, value: float) -> None:
        """Record one scalar in the metadata, as Kubeflow's Metrics does."""
        self.metadata[metric] = value


def check_kind(artifact: Artifact | None, kind: Kind, field: str | None = None) -> None:
    """Check that an input artifact is what its port says; an absent optional one is fine.

    Args:
        artifact: The input, or None where an optional input was not connected.
        kind: What the port takes.
        field: The port's name for the message; the kind where the two are the same.

    Raises:
        InvalidInput: The artifact is of another kind, or was not made by a kubestill component.
    """
    if artifact is None or (found := artifact.metadata.get("kind")) == kind:
        return
    problems = Problems()
    if found is None:
        remedy = f"connect a {kind} made by a kubestill component (its metadata has no 'kind')"
    else:
        remedy = f"this is a {found}; connect a {kind}"
    problems.add(field or kind, artifact.uri, remedy)
    problems.raise_if_any()


def is_no_model(artifact: Artifact | None) -> bool:
    """Say whether an artifact stands for a model that nobody had to train.

    train-teacher hands one on where the rows carry a teacher's answers already.
    """
    return artifact is not None and artifact.metadata.get("kind") == "no-model"


def write_summary(markdown: str, summary: Artifact) -> None:
    """Write the Markdown of a task that has no page."""
    _write_text(summary, markdown, "summary")


def _write_text(artifact: Artifact, content: str, kind: Kind) -> None:
    os.makedirs(os.path.dirname(artifact.path) or ".", exist_ok=True)
    with open(artifact.path, "w", encoding="utf-8") as file:
        file.write(content)
    artifact.metadata["kind"] = kind


def write_record(artifact: Artifact, kind: Kind, body: Mapping[str, Any]) -> None:
    """Write a record as the JSON file of its own artifact; what is not finite becomes null."""
    _write_text(artifact, json.dumps(clean(body), indent=1, allow_nan=False) + "\n", kind)


def read_record(artifact: Artifact) -> dict[str, Any]:
    """Read what `write_record` wrote.

    Raises:
        CorruptData: The file is missing or holds no JSON object; see `values.parse_json`.
    """
    try:
        content = read_file(artifact.path, what="record")
    except FileNotFoundError as error:
        raise CorruptData(f"{artifact.uri} cannot be read: {error}") from error
    return parse_json(content, source=artifact.uri, what="record")


def read_metadata(artifact: Artifact, name: str) -> Any:
    """Return a value of an input's metadata as it was written, None where there is none.

    Kubeflow hands a dict on as `{"struct": {...}}` and a list as `{"list": [...]}`; what lies
    inside of them stays as it is.
    """
    value = artifact.metadata.get(name)
    if isinstance(value, Mapping) and len(value) == 1:  # pyright: ignore[reportUnknownArgumentType]
        for wrapper, kind in (("struct", Mapping), ("list", list)):
            if isinstance(value.get(wrapper), kind):
                return value[wrapper]
    return value


def clean(value: Any) -> Any:
    """Return plain JSON; NaN and infinities, over which Kubeflow fails a task, become None."""
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}  # pyright: ignore
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]  # pyright: ignore
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
