"""What Kubeflow's driver makes of a task for Kubernetes, and whether the double's node takes it."""

# Protobuf makes its classes at run time.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

_REFERENCE = r"\{\{\$\.inputs\.parameters\['(?:pipelinechannel--)?(\w+)'\]\}\}"
LABELS = {"kubernetes.io/os": "linux"}
"""Of the double's one node."""
_SECRETS = ("mlpipeline-minio-artifact",)
"""What the double's namespace has."""


def build_pod_spec(
    platform: Mapping[str, Any], spec: Any, component: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the part of a pod's spec that a pipeline decides on.

    Args:
        platform: The second document of the compiled pipeline; empty where there is none.
        spec: The pipeline.
        component: Name of the task's component.
        arguments: The run's parameters, defaults included.
    """
    label = spec.components[f"comp-{component}"].executor_label
    container = json_format.MessageToDict(spec.deployment_spec["executors"][label])["container"]
    executors = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {})
    chosen = executors.get("executors", {}).get(label, {})

    def filled(text: str) -> str:
        return re.sub(_REFERENCE, lambda found: str(arguments[found[1]]), text)

    def given(source: Mapping[str, Any]) -> Any:
        return arguments[source["componentInputParameter"].removeprefix("pipelinechannel--")]

    selector = chosen.get("nodeSelector", {})
    tolerations: list[Any] = []
    for one in chosen.get("tolerations", []):
        tolerations += given(one["tolerationJson"]) if "tolerationJson" in one else [one]
    mounts = chosen.get("emptyDirMounts", [])
    return {
        "nodeSelector": given(selector["nodeSelectorJson"])
        if "nodeSelectorJson" in selector
        else selector.get("labels", {}),
        "tolerations": tolerations,
        "volumes": [
            {
                "name": one["volumeName"],
                "emptyDir": {"medium": one["medium"], "sizeLimit": one["sizeLimit"]},
            }
            for one in mounts
        ],
        "containers": [
            {
                "name": "main",
                "image": filled(container["image"]),
                "env": [*container.get("env", []), *_from_secrets(chosen)],
                "resources": _resources(container.get("resources", {}), filled),
                "volumeMounts": [
                    {"name": one["volumeName"], "mountPath": one["mountPath"]} for one in mounts
                ],
            }
        ],
    }


def why_unschedulable(pod: Mapping[str, Any]) -> str:
    """Say it as the scheduler does; empty where the double's node takes the pod."""
    container = pod["containers"][0]
    for variable in container.get("env", []):
        secret = variable.get("valueFrom", {}).get("secretKeyRef", {}).get("name")
        if secret and secret not in _SECRETS:
            return f'secret "{secret}" not found'
    limits = container.get("resources", {}).get("limits", {})
    extended = [name for name in limits if "/" in name]
    if any(LABELS.get(name) != value for name, value in pod.get("nodeSelector", {}).items()):
        why = "1 node(s) didn't match Pod's node affinity/selector"
    elif extended:
        why = f"1 Insufficient {extended[0]}"
    else:
        return ""
    return (
        f"0/1 nodes are available: {why}. preemption: 0/1 nodes are available: 1 Preemption is not "
        "helpful for scheduling."
    )


def _from_secrets(chosen: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": key["envVar"],
            "valueFrom": {"secretKeyRef": {"name": one["secretName"], "key": key["secretKey"]}},
        }
        for one in chosen.get("secretAsEnv", [])
        for key in one["keyToEnv"]
    ]


def _resources(asked: Mapping[str, Any], filled: Any) -> dict[str, Any]:
    requests = {
        name: filled(asked[key])
        for name, key in (("cpu", "resourceCpuRequest"), ("memory", "resourceMemoryRequest"))
        if key in asked
    }
    limits = (
        {"memory": filled(asked["resourceMemoryLimit"])} if "resourceMemoryLimit" in asked else {}
    )
    accelerator = asked.get("accelerator", {})
    if count := filled(accelerator.get("resourceCount", "")):
        limits[filled(accelerator["resourceType"])] = count
    return {"requests": requests, "limits": limits}
