"""Record why a step failed, in its own words, for later steps and for people.

Kubeflow tells an exit handler that a step failed and never why, and its API says no more. So a step
that fails leaves a small record below the root of its run, and a step that goes well takes away
what an earlier attempt of it left:

<root of the run>/failures/<task>-<which>.json

The root is what the URIs of all the run's artifacts begin with. Read it top-down: `record_failure`
and `clear_failure` are the step's side, `find_run_root` and `read_failures` the reader's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kubestill.errors import CorruptData
from kubestill.runtime.base.redaction import redact
from kubestill.runtime.base.values import parse_json
from kubestill.runtime.stores import Store, open_store

RUN_ROOT_VARIABLE = "KUBESTILL_RUN_ROOT"
"""Environment variable: the root of this run, where a local runner lays folders out its own way."""

_FOLDER = "failures/"
_LONGEST = 4000
"""Characters of a message that are kept: two thirds from its beginning, the rest from its end."""
_LARGEST = 64 * 1024
"""Bytes of a record; whatever is larger was not written here."""
_MOST = 200
"""Records that are read: a loop may fail in every iteration."""
_DEADLINE = 10.0
"""Seconds for which a store that does not answer is asked again."""
_MOUNTS = {"/gcs/": "gs://", "/minio/": "minio://", "/s3/": "s3://"}
"""Where Kubeflow's launcher lays the stores out in a pod."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One step that failed."""

    task: str
    """As the run's folders are called, such as `train-teacher-2`."""
    component: str = ""
    """Such as `train_teacher`."""
    error: str = ""
    """Class of the error, such as `InvalidInput`."""
    message: str = ""
    """What the error says, without credentials."""
    attempt: int = 1
    """Which start of the step's process this was, from 1."""
    at: str = ""
    """When it failed; ISO 8601, UTC."""
    curable: bool = False
    """Whether another attempt may succeed."""

    def describe(self) -> str:
        """Return the step's name and what it said, on one line or, where it said more, several."""
        said = self.message or "without a message"
        return f"{self.task}: {f'{self.error}: ' if self.error else ''}{said}"


def record_failure(
    executor_input: Mapping[str, Any],
    *,
    error: str,
    message: str,
    component: str,
    attempt: int = 1,
    curable: bool = False,
) -> Failure | None:
    """Leave a record of a step that failed; never fails itself.

    Args:
        executor_input: As Kubeflow handed it to the step.
        error: Class of the error that ended it, or the name of the signal.
        message: What the error said.
        component: The component's name.
        attempt: Which start of the step's process this was, from 1.
        curable: Whether another try may end well.

    Returns:
        What was written; None where nothing could be, of which the log says why.
    """
    try:
        place = _Place.of(executor_input)
        if place is None:
            return None
        failure = Failure(
            task=place.task,
            component=component,
            error=error,
            message=_shorten(redact(message)),
            attempt=attempt,
            at=datetime.now(UTC).isoformat(timespec="microseconds"),
            curable=curable,
        )
        content = json.dumps(dataclasses.asdict(failure), indent=1).encode()
        _open(place.root).put(place.key, content)
        return failure
    except Exception as trouble:  # the step's own error is the one that counts
        print(f"its cause could not be recorded for later: {redact(str(trouble))}", flush=True)
        return None


def clear_failure(executor_input: Mapping[str, Any]) -> None:
    """Take away what an earlier attempt of a step left that has now gone well; never fails."""
    try:
        if (place := _Place.of(executor_input)) is not None:
            _open(place.root).delete(place.key)
    except Exception as trouble:  # the step has gone well
        print(f"what an earlier attempt left stays: {redact(str(trouble))}", flush=True)


def find_run_root(output_uri: str) -> str:
    """Return the root of the run that an output belongs to; empty if it is unknown.

    Args:
        output_uri: Of any output artifact: `<root of the run>/<task>/<uuid>/<name>`, or anything
            below the root that a local runner names.
    """
    uri, _, _ = output_uri.partition("?")
    local = os.environ.get(RUN_ROOT_VARIABLE, "").rstrip("/")
    if local and uri.startswith(f"{local}/"):
        return local
    parts = uri.split("/")
    if len(parts) < 4 or not _is_uuid(parts[-2]):
        return ""
    return "/".join(parts[:-3])


def read_failures(run_root: str) -> list[Failure]:
    """Return why steps of a run failed, in the order in which they did; empty where none says.

    Files that are no such record are skipped.

    Args:
        run_root: As `find_run_root` gives it.

    Raises:
        InvalidInput: The root is of a scheme that this machine cannot read.
        StoreError: The store did not answer, or refused.
    """
    store = _open(run_root)
    found: list[Failure] = []
    for entry in store.list(_FOLDER):
        if len(found) == _MOST:
            break
        if entry.size <= _LARGEST and (failure := _parse(store.get(entry.key))):
            found.append(failure)
    return sorted(found, key=lambda failure: failure.at)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where the record of one task lies."""

    root: str
    task: str
    key: str

    @classmethod
    def of(cls, executor_input: Mapping[str, Any]) -> _Place | None:
        """Find it by where the task's outputs go, which is the same for every attempt."""
        for uri in _outputs(executor_input):
            if root := find_run_root(uri):
                folder = uri.partition("?")[0].rpartition("/")[0]
                inner = folder.removeprefix(root).strip("/").split("/")
                task = inner[-2] if len(inner) > 1 and _is_uuid(inner[-1]) else inner[-1]
                which = hashlib.sha256("/".join(inner).encode()).hexdigest()[:12]
                return cls(root=root, task=task, key=f"{_FOLDER}{task}-{which}.json")
        return None


def _outputs(executor_input: Mapping[str, Any]) -> list[str]:
    outputs: Mapping[str, Any] = executor_input.get("outputs") or {}
    ports: Mapping[str, Any] = outputs.get("artifacts") or {}
    uris = [one.get("uri", "") for port in ports.values() for one in port.get("artifacts") or ()]
    file = str(outputs.get("outputFile", ""))
    for mount, scheme in _MOUNTS.items():
        if file.startswith(mount):
            file = scheme + file.removeprefix(mount)
    return [*uris, file]


def _open(root: str) -> Store:
    return open_store(root, deadline=_DEADLINE)


def _parse(content: bytes) -> Failure | None:
    try:
        form = parse_json(content, source="a failure", what="failure")
    except CorruptData:
        return None
    if not isinstance(form.get("task"), str):
        return None
    kinds = {"attempt": int, "curable": bool}
    fields = {
        field.name: form[field.name]
        for field in dataclasses.fields(Failure)
        if isinstance(form.get(field.name), kinds.get(field.name, str))
    }
    return Failure(**fields)


def _shorten(text: str) -> str:
    text = text.strip()
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST * 2 // 3]} […] {text[-_LONGEST // 3 :]}"


def _is_uuid(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name.lower()
    except ValueError:
        return False
