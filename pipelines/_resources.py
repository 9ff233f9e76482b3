"""What must be known of every task when a pipeline is compiled; `resources.yaml` holds it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

DURATION = r"(\d+)([smhd])"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Retries, deadlines and sizes, none of which Kubeflow accepts as parameters of a run."""

    retries: int = 3
    """Number of times a task is started again after a failure."""
    backoff: str = "30s"
    """Pause before the first retry."""
    backoff_factor: float = 2.0
    """Factor by which each further pause is longer."""
    backoff_max: str = "48h"
    """Time for all attempts, from the start of the first: longer than any training run takes."""
    timeout: str = ""
    """Time after which an attempt is killed; empty for never."""
    cpu: str = "1"
    """CPUs that a task without a device requests."""
    memory: str = "2Gi"
    """Memory that a task without a device requests, which is also its limit."""
    shared_memory: str = "2Gi"
    """Size of /dev/shm of a task with a device; empty leaves the node's default."""
    parallelism: int = 0
    """Iterations of a fan-out that run at a time; 0 for all."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Environment variables of every task, such as the address of an S3 server."""
    secrets: Mapping[str, str] = field(default_factory=dict[str, str])
    """Variables from secrets of the namespace: variable name to `secret/key`."""
    steps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """Settings of single components, by name, such as `train-teacher`."""

    def of(self, component: str) -> Resources:
        """Return the settings of one component; its variables are added to the common ones."""
        own = self.steps.get(component, {})
        own_env, own_secrets = own.get("env", {}), own.get("secrets", {})
        env = {name: value for name, value in self.env.items() if name not in own_secrets}
        secrets = {name: value for name, value in self.secrets.items() if name not in own_env}
        variables = {"env": {**env, **own_env}, "secrets": {**secrets, **own_secrets}}
        return replace(self, **{**own, **variables})

    @property
    def timeout_s(self) -> int:
        """The timeout in seconds, 0 for none."""
        match = re.fullmatch(DURATION, self.timeout)
        return int(match[1]) * _SECONDS[match[2]] if match else 0


DEFAULT = Resources()
