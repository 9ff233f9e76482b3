"""Write the TrainJob whose pods run what this step's pod runs, with what this pod was given.

Image, environment, secrets, volumes, service account and placement are those of the step's own pod
as Kubernetes has it; `TrainJobSettings` adds to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kubestill.runtime.base.kubernetes import Json
from kubestill.runtime.checkpoints.place import OWNER_VARIABLE
from kubestill.runtime.training.nodes import RESERVED
from kubestill.runtime.training.settings import TrainingSettings
from kubestill.runtime.training.trainjob_settings import TrainJobSettings
from kubestill.supervision import TRAINJOB_VARIABLE

GROUP = "trainer.kubeflow.org/v1alpha1"
CONTAINER = "node"
"""Kubeflow Trainer's name for the job and the container that train."""
QUEUE_LABEL, PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"

Shape = Literal["runtimePatches", "podTemplateOverrides"]
"""Where a TrainJob says how its pods are placed: since version 2.2, and in 2.1."""

_MANAGER = "kubestill/step"
_ANOTHER_PODS = ("KFP_", "ARGO_", *RESERVED)
"""Beginnings of variables that tell of the step's own pod."""
_LAUNCHERS = ("kube-api-access", "var-run-argo", "tmp-dir-argo", "kfp-launcher")
"""Beginnings of volumes that belong to what started the step, or that every pod gets anyway."""
_OF_EVERY_POD = "node.kubernetes.io/"
"""Beginning of the taints that Kubernetes lets every pod tolerate for a while."""


def trainjob(
    name: str,
    settings: TrainingSettings,
    *,
    pod: Json,
    command: Sequence[str],
    owner: str,
    annotations: Mapping[str, str],
    shape: Shape,
) -> Json:
    """Return the TrainJob.

    Args:
        name: Its name.
        settings: Of the training run.
        pod: The step's own, as Kubernetes has it.
        command: What each pod runs.
        owner: Which task trains: the pods take over what an earlier attempt of it saved.
        annotations: What tells it from another of this name.
        shape: Where it says how pods are placed.
    """
    told, main, spec = settings.trainjob, _main(pod), pod["spec"]
    volumes, mounts = _volumes(spec, main)
    placement: Json = {
        "serviceAccountName": spec.get("serviceAccountName"),
        "nodeSelector": {**(spec.get("nodeSelector") or {}), **told.node_selector},
        "affinity": spec.get("affinity"),
        "tolerations": [*_tolerations(spec), *told.tolerations],
        "imagePullSecrets": spec.get("imagePullSecrets"),
        "volumes": volumes,
        "containers": [{"name": CONTAINER, "volumeMounts": mounts}] if mounts else [],
    }
    # A sidecar that goes on after the training run would keep the pod from ending.
    alone = {"sidecar.istio.io/inject": "false"}
    template = {
        "metadata": {"labels": alone, "annotations": alone},
        "spec": {key: value for key, value in placement.items() if value},
    }
    variables = {TRAINJOB_VARIABLE: name, OWNER_VARIABLE: owner, "PYTHONUNBUFFERED": "1"}
    labels = {QUEUE_LABEL: told.queue, PRIORITY_LABEL: told.priority}
    job: Json = {
        "apiVersion": GROUP,
        "kind": "TrainJob",
        "metadata": {
            "name": name,
            "labels": {key: value for key, value in labels.items() if value} | told.labels,
            "annotations": dict(annotations),
        },
        "spec": {
            "runtimeRef": {"name": told.runtime, "kind": told.runtime_kind},
            "trainer": {
                "image": main["image"],
                "command": list(command),
                "numNodes": settings.nodes,
                "numProcPerNode": processes_of(settings, pod),
                "resourcesPerNode": _resources(told, main),
                "env": _environment(told, main, variables),
            },
            **_placed(shape, template),
        },
    }
    if told.timeout_seconds:
        # Older versions refuse this field, rather than to run on.
        job["spec"]["activeDeadlineSeconds"] = told.timeout_seconds
    return job


def processes_of(settings: TrainingSettings, pod: Json) -> int:
    """Return how many processes a pod runs: one for each accelerator, unless told."""
    if settings.processes:
        return settings.processes // settings.nodes
    limits = _resources(settings.trainjob, _main(pod))["limits"]
    accelerators = int(limits.get(settings.trainjob.accelerator, 0))
    return max(1, min(accelerators, settings.virtual_workers // settings.nodes))


def _placed(shape: Shape, template: Json) -> Json:
    if shape == "podTemplateOverrides":
        return {shape: [{"targetJobs": [{"name": CONTAINER}], **template}]}
    jobs = [{"name": CONTAINER, "template": {"spec": {"template": template}}}]
    patch = {"template": {"spec": {"replicatedJobs": jobs}}}
    return {shape: [{"manager": _MANAGER, "trainingRuntimeSpec": patch}]}


def _main(pod: Json) -> Json:
    """Return the container of a step's pod that works: Argo calls it `main`."""
    containers = pod["spec"]["containers"]
    return next((one for one in containers if one["name"] == "main"), containers[0])


def _resources(told: TrainJobSettings, main: Json) -> Json:
    given = main.get("resources") or {}
    limits, requests = (dict(given.get(one) or {}) for one in ("limits", "requests"))
    if told.cpu:
        limits.pop("cpu", None)
        requests["cpu"] = told.cpu
    if told.memory:
        limits["memory"] = requests["memory"] = told.memory
    if told.accelerators:
        limits[told.accelerator] = requests[told.accelerator] = str(told.accelerators)
    return {"limits": limits, "requests": requests}


def _environment(
    told: TrainJobSettings, main: Json, variables: dict[str, str]
) -> list[dict[str, Any]]:
    own = {
        one["name"]: one
        for one in main.get("env") or ()
        if not one["name"].startswith(_ANOTHER_PODS)
    }
    plain = {name: {"name": name, "value": value} for name, value in (told.env | variables).items()}
    secret: Json = {}
    for name, place in told.secrets.items():
        reference, key = place.split("/")
        secret[name] = {
            "name": name,
            "valueFrom": {"secretKeyRef": {"name": reference, "key": key}},
        }
    return [*(own | secret | plain).values()]


def _volumes(spec: Json, main: Json) -> tuple[list[Json], list[Json]]:
    """Return the volumes that the step has, and where it mounts them."""
    mounts = [one for one in main.get("volumeMounts") or () if _is_ours(one["name"])]
    mounted = {one["name"] for one in mounts}
    return [one for one in spec.get("volumes") or () if one["name"] in mounted], mounts


def _is_ours(volume: str) -> bool:
    return not volume.startswith(_LAUNCHERS)


def _tolerations(spec: Json) -> list[Json]:
    given = spec.get("tolerations") or ()
    return [one for one in given if not one.get("key", "").startswith(_OF_EVERY_POD)]
