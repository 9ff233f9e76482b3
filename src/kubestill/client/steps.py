"""The steps of a pipeline as a person knows them: named, in the order in which they run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from kubestill.client.api import Api
from kubestill.errors import ClusterError


@dataclass(frozen=True, kw_only=True)
class Step:
    """One task that does something: not the DAGs of loops, branches and exit handlers."""

    key: str
    """Its name in Kubeflow's list of tasks and in the URIs of its outputs."""
    name: str
    """Its name in the pipeline."""
    outputs: frozenset[str] = frozenset()
    """Names of its output artifacts."""
    parents: tuple[str, ...] = ()
    """Keys of the DAGs that it lies in, the outermost first."""
    loops: frozenset[str] = frozenset()
    """Those of its parents that are loops."""
    retried: bool = False
    """Whether the pipeline retries it; its pods have other names then."""

    @property
    def path(self) -> str:
        """Its key behind those of its parents: a nested pipeline that is used twice has two."""
        return "/".join((*self.parents, self.key))


def read_steps(spec: Mapping[str, Any]) -> list[Step]:
    """List the steps of a compiled pipeline; empty where it cannot be read.

    Args:
        spec: The pipeline, or a mapping that holds it as `pipeline_spec`.
    """
    spec = spec.get("pipeline_spec") or spec
    try:
        steps = list(_walk(spec, spec["root"]["dag"], (), frozenset()))
    except (KeyError, TypeError, AttributeError, CycleError, RecursionError):
        return []
    names, keys = Counter(step.name for step in steps), Counter(step.key for step in steps)
    return [
        replace(step, name=f"{step.name} ({step.path if keys[step.key] > 1 else step.key})")
        if names[step.name] > 1
        else step
        for step in steps
    ]


def fetch_spec(api: Api, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the compiled pipeline of a run; empty where it is not on the server any more."""
    if isinstance(run.get("pipeline_spec"), dict):
        spec = run["pipeline_spec"]
    else:
        reference = run.get("pipeline_version_reference") or {}
        pipeline, version = reference.get("pipeline_id"), reference.get("pipeline_version_id")
        if not pipeline or not version:
            return {}
        try:
            spec = api.get(f"pipelines/{pipeline}/versions/{version}").get("pipeline_spec") or {}
        except ClusterError as error:
            if error.status != 404:
                raise
            return {}
    return spec.get("pipeline_spec") or spec


def _walk(
    spec: Mapping[str, Any],
    dag: Mapping[str, Any],
    parents: tuple[str, ...],
    loops: frozenset[str],
) -> Iterator[Step]:
    tasks = dag["tasks"]
    order = TopologicalSorter({key: tasks[key].get("dependentTasks") or () for key in tasks})
    for key in order.static_order():
        task = tasks[key]
        component = spec["components"][task["componentRef"]["name"]]
        if inner := component.get("dag"):
            loop = "parameterIterator" in task or "artifactIterator" in task
            yield from _walk(spec, inner, (*parents, key), loops | ({key} if loop else set()))
            continue
        yield Step(
            key=key,
            name=(task.get("taskInfo") or {}).get("name") or key,
            outputs=frozenset((component.get("outputDefinitions") or {}).get("artifacts") or ()),
            parents=parents,
            loops=loops,
            retried=bool((task.get("retryPolicy") or {}).get("maxRetryCount")),
        )
