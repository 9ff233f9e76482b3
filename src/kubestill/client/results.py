"""The results of a run: scores, reports and the model, or the message with which it failed."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubestill.client.api import Api
from kubestill.client.files import RunFiles, read_log
from kubestill.client.progress import Progress, Status
from kubestill.errors import ClusterError, KubestillError

_TEMPLATES = ("system-container-impl", "retry-system-container-impl")
"""What Argo puts into the names of pods: for steps that are not retried, and for those that are."""
_LOGS = 3
"""Failed pods of one step whose logs are asked for."""
_NOISE = re.compile(r"[IWEF]\d{4} |time=\"|\[KFP Executor ")
"""Of Kubeflow's launcher, Argo's executor and kfp's."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of a run that succeeded."""

    summary: str
    """Markdown of the last step that wrote one."""
    summary_file: str
    """Its path here."""
    reports: tuple[str, ...]
    """Paths here, in the order of the steps."""
    model_uri: str
    """Of the last model that the run made; empty where it made none."""
    model_step: str
    """Name of the step that made it: a challenger that lost is a model, too."""
    model: str
    """The same as a folder here; empty where it was not copied."""
    how: str
    """Whose credentials they were read with, in words."""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Why a step failed."""

    name: str
    """Of the step."""
    message: str
    """Its own last words; empty where it left none."""
    log: str
    """Where its whole output is: a local path, or else a sentence."""


def fetch_results(files: RunFiles, progress: Progress, folder: str) -> Results:
    """Copy what a person looks at after a run into a folder here.

    Args:
        files: Of the run.
        progress: At its end.
        folder: Is made where there is anything to put there.

    Raises:
        NotReadable: This machine cannot read them.
    """
    summary, reports, model_uri, model_step, model = b"", list[str](), "", "", ""
    over = [one for one in progress.steps if one.state == "succeeded" or progress.stands_still]
    for one in over:
        key, outputs = one.step.key, one.step.outputs
        if "summary" in outputs and (found := files.read(key, "summary")):
            summary = found
        if "report" in outputs and (found := files.read(key, "report")):
            reports.append(_write(folder, f"reports/{_plain(one.step.name)}.html", found))
    for one in reversed(over):
        if "model" in one.step.outputs and (path := files.find(one.step.key, "model")):
            model_uri, model_step = files.uri(path), one.step.name
            model = _copy(files, path, os.path.join(folder, "model"))
            break
    return Results(
        summary=summary.decode("utf-8", "replace").strip(),
        summary_file=_write(folder, "summary.md", summary) if summary else "",
        reports=tuple(reports),
        model_uri=model_uri,
        model_step=model_step,
        model=model,
        how=files.how,
    )


def places_of(files: RunFiles, progress: Progress) -> list[str]:
    """Describe where the results lie, for those who may read them."""
    with_model = [one.step.key for one in progress.steps if "model" in one.step.outputs]
    lines = [f"everything of this run: {files.root}/"]
    if with_model:
        lines.append(f"its model: {files.uri(with_model[-1])}/…/model")
    return lines


def explain_failure(
    api: Api, run: Mapping[str, Any], files: RunFiles, progress: Progress, folder: str
) -> list[Cause]:
    """Find out why steps failed: from their own records, else from their logs.

    Args:
        api: The server.
        run: As Kubeflow has it.
        files: Of the run.
        progress: At its end; its list may have stood still before a step failed.
        folder: Gets the logs.

    Returns:
        In the order of the steps; empty where nothing tells of a step that failed.
    """
    said = _read_records(files)
    names = {one.step.key: one.step.name for one in progress.steps}
    failed = [one for one in progress.steps if _has_failed(one, said)]
    causes = [
        _explain(api, str(run["run_id"]), files, progress.workflow, one, said, folder)
        for one in failed
    ]
    return causes + [
        Cause(name=key, message=message, log=_where(files, key))
        for key, message in said.items()
        if key not in names
    ]


def _explain(
    api: Api,
    run_id: str,
    files: RunFiles,
    workflow: str,
    one: Status,
    said: Mapping[str, str],
    folder: str,
) -> Cause:
    key = one.step.key
    log = _log_of_pods(api, run_id, workflow, one) or _log_of_store(files, key)
    path = _write(folder, f"logs/{_plain(one.step.name)}.log", log) if log else ""
    return Cause(
        name=one.step.name,
        message=said.get(key) or last_words(log or b""),
        log=path or _where(files, key),
    )


def _has_failed(one: Status, said: Mapping[str, str]) -> bool:
    """Return whether a step has failed; a record may be of an attempt before a successful one."""
    return one.state == "failed" or (one.step.key in said and one.state != "succeeded")


def _where(files: RunFiles, key: str) -> str:
    return f"gone with its pod, unless Kubeflow kept {files.uri(key)}/…/executor-logs-0"


def last_words(log: bytes) -> str:
    """Return the message of a log's last traceback, or its last lines where there is none."""
    from kubestill.steplog import last_error

    lines = log.decode("utf-8", "replace").splitlines()
    told = [line for line in lines if line.strip() and not _NOISE.match(line)]
    return last_error(lines) or "\n".join(told[-3:])


def _read_records(files: RunFiles) -> dict[str, str]:
    """Return what steps have written of their failures, by the steps' keys."""
    try:
        records = files.read_folder("failures")
        if not records:
            return {}
        from kubestill.runtime.steps.failures import read_failures

        with tempfile.TemporaryDirectory() as folder:
            for number, content in enumerate(records.values()):
                _write(folder, f"failures/{number}.json", content)
            return {
                failure.task: f"{failure.error}: {failure.message}".removeprefix(": ").strip()
                for failure in read_failures(folder)
            }
    except (KubestillError, ImportError):
        return {}


def _log_of_pods(api: Api, run_id: str, workflow: str, one: Status) -> bytes:
    """Return the log of the newest of a step's failed pods that is still there."""
    templates = _TEMPLATES[::-1] if one.step.retried else _TEMPLATES
    for node in reversed(one.pods[-_LOGS:]):
        number = node.removeprefix(f"{workflow}-")
        for pod in (*(f"{workflow}-{template}-{number}" for template in templates), node):
            try:
                if log := read_log(api, run_id, pod):
                    return log
            except ClusterError:
                return b""
    return b""


def _log_of_store(files: RunFiles, key: str) -> bytes:
    """Return what Kubeflow's launcher has stored of a step's output."""
    try:
        return files.read(key, "executor-logs") or b""
    except (KubestillError, OSError):
        return b""


def _copy(files: RunFiles, path: str, folder: str) -> str:
    """Copy a folder of the run here; returns where, or nothing where it could not be whole."""
    try:
        content = files.read_folder(path)
    except (KubestillError, OSError):
        return ""
    for name, data in content.items():
        _write(folder, name, data)
    return folder if content else ""


def _write(folder: str, name: str, content: bytes) -> str:
    """Write a file below a folder; its name may come from elsewhere."""
    parts = (_plain(part) for part in name.split("/") if part not in ("", ".", ".."))
    path = os.path.join(folder, *parts)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
    return path


def _plain(name: str) -> str:
    """Return a name that a file can have."""
    return re.sub(r"[^\w.,=+@()\[\] -]", "_", name)[:200]
