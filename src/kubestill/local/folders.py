"""The folder of one task, and what the backend would keep apart in it.

On a cluster a step works on copies: inputs are downloaded, outputs uploaded only if it went well.
Here all steps share the files; so outputs of a failed try are moved aside, and whoever changes an
input is found out.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from kubestill.local.backend import LOGS

Stamp = dict[str, tuple[int, int]]
"""Size and time of change of every file of an input, by its path."""


def choose_folder(run: str, task: str) -> str:
    """Return a new folder below the run's for a task, named as on a cluster."""
    return os.path.join(run, task, str(uuid.uuid4()))


def set_aside(executor_input: Mapping[str, Any], attempt: int) -> str:
    """Move what a failed try wrote out of the way of later ones; return where it lies now.

    Kubeflow uploads nothing of it; a person may want to see the report of a step that refused. What
    the step put into a store by itself, such as checkpoints beside an output, stays.
    """
    outputs = executor_input["outputs"]
    folder = os.path.dirname(outputs["outputFile"])
    aside = os.path.join(folder, f"failed-{attempt}")
    for name, path in _outputs(outputs):
        if name != LOGS and os.path.lexists(path):
            os.makedirs(aside, exist_ok=True)
            os.rename(path, os.path.join(aside, os.path.basename(path)))
    return aside if os.path.isdir(aside) else folder


def find_unwritten(executor_input: Mapping[str, Any]) -> list[str]:
    """Return the output artifacts that no file was written for."""
    outputs = executor_input["outputs"]["artifacts"]
    uris = {name: listed["artifacts"][0]["uri"] for name, listed in outputs.items() if name != LOGS}
    return [name for name, uri in uris.items() if not os.path.lexists(uri)]


def stamp_inputs(executor_input: Mapping[str, Any]) -> dict[str, Stamp]:
    """Return what tells whether input artifacts that lie here have been changed, by name."""
    artifacts: Mapping[str, Any] = executor_input["inputs"].get("artifacts", {})
    return {
        name: {path: stamp for one in listed["artifacts"] for path, stamp in _stamps(one["uri"])}
        for name, listed in artifacts.items()
    }


def find_changed(before: Mapping[str, Stamp], after: Mapping[str, Stamp]) -> list[str]:
    """Return what a step did to its inputs, one file of each, for its error message."""
    found: list[str] = []
    for name, files in before.items():
        changed = dict(set(files.items()) ^ set(after[name].items()))
        if changed:
            found.append(
                f"it changed its input `{name}` ({min(changed)}); on a cluster each step works on "
                "a copy that no other sees: copy it first, or write to an output"
            )
    return found


def _outputs(outputs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "", outputs["outputFile"]
    for name, place in outputs.get("parameters", {}).items():
        yield name, place["outputFile"]
    for name, listed in outputs["artifacts"].items():
        for artifact in listed["artifacts"]:
            yield name, artifact["uri"]


def _stamps(uri: str) -> Iterator[tuple[str, tuple[int, int]]]:
    if os.path.isfile(uri):
        yield uri, _stamp(uri)
    for folder, _, files in os.walk(uri):
        for file in files:
            yield (path := os.path.join(folder, file)), _stamp(path)


def _stamp(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_size, status.st_mtime_ns
