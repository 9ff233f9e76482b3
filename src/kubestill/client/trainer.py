"""Find out whether the cluster can have several pods train, where a pipeline asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

from kubernetes import client

from kubestill.client.kube import NotChecked, ask
from kubestill.errors import ClusterError

_GROUP, _VERSION = "trainer.kubeflow.org", "v1alpha1"
_CLUSTERS_OWN = "ClusterTrainingRuntime"
_DEFAULT = "torch-distributed"


def find_runtimes(documents: Mapping[str, Any], arguments: Mapping[str, Any]) -> set[str]:
    """Return which training runtimes a run's steps name: those whose `nodes` is above 1.

    Args:
        documents: The compiled pipeline.
        arguments: Parameters of the run; those that are left out have their defaults.

    Returns:
        Names of runtimes of the whole cluster; empty for a runtime of a namespace, which the step
        itself looks for.
    """
    inputs = documents["pipeline_spec"].get("root", {}).get("inputDefinitions", {})
    defaults = {
        name: spec.get("defaultValue") for name, spec in inputs.get("parameters", {}).items()
    }
    found: set[str] = set()
    for settings in _settings([defaults | dict(arguments), documents["pipeline_spec"]]):
        nodes = settings.get("nodes", 1)
        if isinstance(nodes, int | float) and nodes > 1:
            told = settings.get("trainjob") or {}
            own = told.get("runtime_kind", _CLUSTERS_OWN) == _CLUSTERS_OWN
            found.add(str(told.get("runtime", _DEFAULT)) if own else "")
    return found


def _settings(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every dict of settings, among parameters and among the constants of tasks."""
    if isinstance(value, list):
        for one in value:
            yield from _settings(one)
    if isinstance(value, Mapping):
        for name, one in value.items():
            if str(name).endswith("settings") and isinstance(one, Mapping):
                # A constant of a task lies deeper than a parameter of the pipeline.
                yield one.get("runtimeValue", {}).get("constant") or one
            elif name != "defaultValue":
                yield from _settings(one)


def check_trainer(runtimes: Set[str]) -> str:
    """Return that Kubeflow Trainer has the runtimes, in a sentence.

    Raises:
        ClusterError: There is no Kubeflow Trainer, or no such runtime for torch.
        NotChecked: Kubernetes cannot be asked from here.
    """
    try:
        answer = ask(
            lambda core: client.CustomObjectsApi(core.api_client).list_cluster_custom_object,
            *(_GROUP, _VERSION, "clustertrainingruntimes"),
            what="list clustertrainingruntimes",
        )
    except NotChecked as error:
        if error.status != 404:
            raise
        raise ClusterError(
            f"a step has nodes above 1, and this cluster has no Kubeflow Trainer of version 2 (no "
            f"{_GROUP}/{_VERSION}): install it, or use nodes=1"
        ) from error
    policies = {
        one["metadata"]["name"]: (one.get("spec") or {}).get("mlPolicy") or {}
        for one in answer["items"]
    }
    for_torch = [name for name, policy in sorted(policies.items()) if "torch" in policy]
    told = ", ".join(for_torch) or "none"
    for name in sorted({*runtimes} - {"", *for_torch}):
        what = "is not one for torch" if name in policies else "is not in this cluster"
        raise ClusterError(
            f"trainjob.runtime: ClusterTrainingRuntime {name} {what}; name one whose mlPolicy is "
            f"torch, of which it has {told}"
        )
    return f"Kubeflow Trainer is there, with {', '.join(for_torch) or 'no runtime for torch'}"
