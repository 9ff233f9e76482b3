"""How the pods of a TrainJob are made and placed."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from kubestill.runtime.base.settings import Settings
from kubestill.runtime.training.nodes import RESERVED


class TrainJobSettings(Settings):
    """Placement of the pods: none of it changes the result of a training run."""

    runtime: str = "torch-distributed"
    """The training runtime, whose policy must be torch."""
    runtime_kind: Literal["ClusterTrainingRuntime", "TrainingRuntime"] = "ClusterTrainingRuntime"
    """Whether the cluster has it, or this namespace."""
    cpu: str = ""
    """Processors of a pod, such as `8` or `500m`; empty: those of the step."""
    memory: str = ""
    """Memory of a pod, such as `32Gi`; empty: that of the step."""
    accelerator: str = "nvidia.com/gpu"
    """Kubernetes' name of the accelerator."""
    accelerators: int = Field(default=0, ge=0)
    """How many of them a pod gets; 0: as many as the step, which then holds its own idle."""
    node_selector: dict[str, str] = {}
    """Labels that nodes must have, besides those that the step asks for."""
    tolerations: list[dict[str, Any]] = []
    """Taints that pods tolerate, besides those that the step does; as in a pod's specification."""
    queue: str = ""
    """Kueue's LocalQueue, which admits the job when there is room."""
    priority: str = ""
    """Kueue's WorkloadPriorityClass."""
    labels: dict[str, str] = {}
    """Further labels of the TrainJob."""
    env: dict[str, str] = {}
    """Environment variables, besides those of the step."""
    secrets: dict[str, str] = {}
    """Environment variables from secrets, `{"VARIABLE": "secret/key"}`, besides those of the step.
    """
    wait_seconds: float = Field(default=0.0, ge=0)
    """Seconds that the job may wait for admission and nodes before it is ended; 0: any time."""
    timeout_seconds: int = Field(default=0, ge=0)
    """Seconds that the job may run; 0: any time."""

    @field_validator("env", "secrets")
    @classmethod
    def _not_reserved(cls, given: dict[str, str]) -> dict[str, str]:
        if taken := sorted(set(given) & set(RESERVED)):
            raise ValueError(f"{', '.join(taken)} is set by Kubeflow Trainer; leave it out")
        if wrong := [name for name in given if not re.fullmatch(r"[A-Za-z_]\w*", name)]:
            raise ValueError(f"{wrong[0]!r} is no name of a variable")
        return given

    @field_validator("secrets")
    @classmethod
    def _of_a_secret(cls, given: dict[str, str]) -> dict[str, str]:
        if wrong := [name for name, place in given.items() if place.count("/") != 1]:
            raise ValueError(f"{wrong[0]} comes from {given[wrong[0]]!r}; give 'secret/key'")
        return given
