"""Read what only Kubernetes knows of a run, if the kube config allows it.

Kubeflow says nothing of a pod that no node can take, or whose image cannot be pulled: the reasons
stand in the pod's own state, and in Kubernetes' events. Nor does it tell where runs write that name
no root.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kubestill.client.kube import NotChecked, ask
from kubestill.client.nodes import key_of

_NODE_NAME = "workflows.argoproj.io/node-name"
_HARMLESS = {"ContainerCreating", "PodInitializing"}
_NAMESPACE = "kubeflow"
"""Namespace of the runs, on an installation for one user."""
_UNABLE = (NotChecked, OSError, ValueError, KeyError)


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A pod that has not started."""

    pod: str
    key: str
    """Name of the step that it belongs to, as its driver or its executor."""
    reason: str
    """Empty where Kubernetes has not said any yet."""


def find_waiting(run_id: str, namespace: str) -> list[Waiting] | None:
    """List the pods of a run that wait, and why.

    Args:
        run_id: Kubeflow's.
        namespace: Where its pods are; empty: that of an installation for one user.

    Returns:
        None where Kubernetes cannot be asked from here.
    """
    namespace = namespace or _NAMESPACE
    try:
        pods = ask(
            lambda core: core.list_namespaced_pod,
            namespace,
            what="list pods",
            label_selector=f"pipeline/runid={run_id}",
        )
        return [
            Waiting(
                pod=pod["metadata"]["name"],
                key=_key(pod),
                reason=_of_pod(pod) or _of_events(pod, namespace),
            )
            for pod in pods.get("items") or ()
            if (pod.get("status") or {}).get("phase") == "Pending"
        ]
    except _UNABLE:
        return None


def find_pipeline_root(namespace: str) -> str:
    """Return where the runs of a namespace write by default; empty where that is unknown."""
    try:
        answer = ask(
            lambda core: core.read_namespaced_config_map,
            "kfp-launcher",
            namespace or _NAMESPACE,
            what="read config maps",
        )
        return str((answer.get("data") or {}).get("defaultPipelineRoot") or "")
    except _UNABLE:
        return ""


def _key(pod: dict[str, Any]) -> str:
    """Return the key of a pod's step from Argo's name of its node: `w(0).root(0).train(0)…`."""
    name = str((pod["metadata"].get("annotations") or {}).get(_NODE_NAME) or "")
    key = key_of(name)
    while key == "executor":
        name = name.rpartition(".")[0]
        key = key_of(name)
    return key.removesuffix("-driver")


def _of_pod(pod: dict[str, Any]) -> str:
    """Return what the pod's own state says, such as that no node fits or an image is missing."""
    status = pod["status"]
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("message") or condition.get("reason") or "")
    containers = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") and waiting["reason"] not in _HARMLESS:
            said = str(waiting.get("message") or "")
            return f"{waiting['reason']}: {said}" if said else str(waiting["reason"])
    return ""


def _of_events(pod: dict[str, Any], namespace: str) -> str:
    """Return the newest warning about a pod, such as of a volume that cannot be mounted."""
    name = pod["metadata"]["name"]
    answer = ask(
        lambda core: core.list_namespaced_event,
        namespace,
        what="list events",
        field_selector=f"involvedObject.name={name},type=Warning",
    )
    newest = max(answer.get("items") or (), key=_time_of, default={})
    return str(newest.get("message") or newest.get("reason") or "")


def _time_of(event: dict[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
