"""Write what a driver outputs: its executor's pod, with the whole input of the component.

Modelled on `initPodSpecPatch` and `provisionOutputs` in the driver's source, with artifacts as
large as those of our own components.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

_SESSION = {
    "Provider": "minio",
    "Params": {
        "accessKeyKey": "accesskey",
        "disableSSL": "true",
        "endpoint": "seaweedfs.kubeflow:9000",
        "fromEnv": "false",
        "maxRetries": "5",
        "region": "minio",
        "secretKeyKey": "secretkey",
        "secretName": "mlpipeline-minio-artifact",
    },
}
"""How to reach the store of an artifact; every step that reads the artifact gets this."""


def to_json(value: Any) -> str:
    """Return JSON as compact as Kubeflow and Argo write it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The values behind the inputs of a DAG or a task."""

    place: str = ""
    """Prefix that distinguishes the iterations of a loop."""
    parameters: Json = field(default_factory=dict[str, Any])
    artifacts: Json = field(default_factory=dict[str, Any])

    def place_of(self, pipeline: str, task: str, index: int = 0) -> str:
        """Return a made-up location for the outputs of one of its tasks."""
        root = f"minio://mlpipeline/v2/artifacts/{pipeline}/{_unique(pipeline)}"
        return f"{root}/{task}/{_unique(f'{self.place}{index}/{task}')}"


def artifact(key: str, place: str) -> Json:
    """Return a made-up artifact of a task at a place, as the next task gets it."""
    return {
        "name": "424",
        "type": {"instanceSchema": ""},
        "uri": f"{place}/{key}",
        "metadata": {
            "display_name": key,
            "fingerprint": (_unique(place) + _unique(key)).replace("-", ""),
            "kind": key,
            "rows": 4096,
            "store_session_info": to_json(_SESSION),
            "task": "multiclass",
        },
    }


def pod_spec_patch(
    pipeline: str,
    component: Json,
    container: Json,
    kubernetes: Json,
    scope: Scope,
    *,
    outputs: str,
) -> Json:
    """Return the pod of one executor.

    Args:
        pipeline: The pipeline's name.
        component: The specification of its component.
        container: The specification of its container.
        kubernetes: The Kubernetes settings of the executor.
        scope: Its inputs.
        outputs: Where its outputs go.
    """
    values = _resolve(scope.parameters, scope.parameters)
    defined = component.get("outputDefinitions", {})
    logs = {"artifactType": {"schemaTitle": "system.Artifact"}}
    artifacts = {**defined.get("artifacts", {}), "executor-logs": logs}
    executor_input = {
        "inputs": {"parameterValues": values, "artifacts": scope.artifacts},
        "outputs": {
            "parameters": {
                name: {"outputFile": f"/tmp/kfp/outputs/{name}"}
                for name in defined.get("parameters", {})
            },
            "artifacts": {
                name: {
                    "artifacts": [
                        {"name": name, "type": spec["artifactType"], "uri": f"{outputs}/{name}"}
                    ]
                }
                for name, spec in artifacts.items()
            },
            "outputFile": f"{outputs.replace('minio://', '/minio/')}/output_metadata.json",
        },
    }
    main: Json = {
        "name": "main",
        "image": container["image"],
        "command": [],  # without placeholders: below
        "args": [*container.get("command", []), *container.get("args", [])],
        "env": container.get("env", []),
        "resources": container.get("resources", {}),
    }
    patch = _resolve({"containers": [main], **kubernetes}, values)
    patch["containers"][0]["command"] = [
        *("/kfp-launcher/launch", "--executor_type", "container", "--pipeline_name", pipeline),
        *("--run_id", _unique(pipeline), "--execution_id", "4242"),
        *("--executor_input", to_json(executor_input), "--component_spec", to_json(component)),
        *("--pod_name", "$(KFP_POD_NAME)", "--pod_uid", "$(KFP_POD_UID)"),
        *("--ml_pipeline_server_address", "ml-pipeline.kubeflow"),
        *("--ml_pipeline_server_port", "8887"),
        *("--mlmd_server_address", "metadata-grpc-service.kubeflow"),
        *("--mlmd_server_port", "8080", "--publish_logs", "true"),
        *("--ml_pipeline_tls_enabled=false", "--metadata_tls_enabled=false"),
        *("--ca_cert_path", "", "--cache_disabled=false", "--log_level", "1", "--"),
    ]
    return patch


def _unique(text: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, text))


def _resolve(value: Any, parameters: Json) -> Any:
    """Replace placeholders by the parameters that they name."""
    if isinstance(value, Mapping):
        return {key: _resolve(one, parameters) for key, one in value.items()}
    if isinstance(value, list):
        return [_resolve(one, parameters) for one in value]
    if not isinstance(value, str) or "{{$.inputs.parameters" not in value:
        return value
    pattern = r"\{\{\$\.inputs\.parameters\[['\"](.+?)['\"]\]\}\}"
    return re.sub(pattern, lambda found: str(parameters.get(found[1], "")), value)
