"""What a run on this machine leaves for a person: models, reports, scores, or why it failed."""

from __future__ import annotations

import os
import re
import shutil
from typing import Any

from kubestill.errors import CorruptData
from kubestill.local.tasks import LocalRun
from kubestill.runtime.base.values import parse_json, read_file

_SCORES = "kubestill/scores/1"
_ROLES = ("model", "baseline", "teacher")
"""In the scores of an evaluation, the judged one first."""


def name_models(run: LocalRun) -> dict[str, str]:
    """Name the models of the last step that had any, and put a link to each into the run's folder.

    Returns:
        Paths, or URIs of models elsewhere, by names such as `student`, `control` and `teacher`; the
        one that the run is about comes first. A model without a name of its own is called `model`.
    """
    told = (scores_of_models(run) or {"models": {}})["models"]
    named: dict[str, str] = {}
    for role in sorted(run.models, key=lambda one: (*_ROLES, one).index(one)):
        name = told[role]["name"] if role in told else role
        name = re.sub(r"[^\w.-]+", "-", name)
        named.setdefault(name, _link(run.models[role], os.path.join(run.folder, name)))
    return named


def collect_reports(run: LocalRun) -> dict[str, str]:
    """Copy the reports to files that a browser opens as HTML; return their paths by task."""
    folder = os.path.join(run.folder, "reports")
    paths: dict[str, str] = {}
    for task in run.tasks:
        report = os.path.join(task.folder, "report")
        if os.path.isfile(report):
            os.makedirs(folder, exist_ok=True)
            paths[task.name] = os.path.join(folder, f"{task.name}.html")
            shutil.copyfile(report, paths[task.name])
    return paths


def find_output(run: LocalRun, port: str) -> str:
    """Return the path of an output of the last task that wrote one so called; empty without one."""
    paths = (os.path.join(task.folder, port) for task in reversed(run.tasks))
    return next((path for path in paths if os.path.isfile(path)), "")


def read_scores(run: LocalRun) -> dict[str, Any] | None:
    """Return the scores of the last evaluation, as its record holds them; None without one."""
    found = (_scores_in(task.folder) for task in reversed(run.tasks))
    return next((scores for scores in found if scores), None)


def scores_of_models(run: LocalRun) -> dict[str, Any] | None:
    """Return the scores of the models that a run names; None where that step scored none.

    An earlier evaluation may have called others so, such as a model whose refit was promoted.
    """
    return _scores_in(run.judged)


def explain_failure(run: LocalRun) -> str:
    """Return why a run failed and where the whole output of that step is; empty if it did not."""
    if run.failed is None:
        return run.error
    return f"{name_cause(run)}\n\nIts whole output: {os.path.relpath(run.failed.log)}"


def name_cause(run: LocalRun) -> str:
    """Return the step that failed and what it said; empty if the run went well."""
    return f"{run.failed.name} failed: {run.failed.error}" if run.failed else run.error


def _scores_in(folder: str) -> dict[str, Any] | None:
    """Return the scores in the record of one step; a stranger's output of that name has none."""
    try:
        content = read_file(os.path.join(folder, "record"), what="record")
        scores: Any = parse_json(content, source="record", what="record").get("scores")
    except (OSError, CorruptData):
        return None
    ours = isinstance(scores, dict) and scores.get("format") == _SCORES
    return scores if ours else None


def _link(model: str, path: str) -> str:
    """Return the short path of a model's folder, where there can be one."""
    if "://" in model or os.path.lexists(path):
        return model
    try:
        os.symlink(os.path.relpath(model, os.path.dirname(path)), path)
    except OSError:  # not every disk has links
        return model
    return path
