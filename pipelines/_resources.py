"""Read and check `resources.yaml`: what must be known when a pipeline is compiled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from kubestill.errors import Problems, nearest

_QUANTITY = r"\d+(\.\d+)?([munkMGTPE]|[KMGTPE]i)?"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_DURATION = r"(\d+)([smhd])"
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
        match = re.fullmatch(_DURATION, self.timeout)
        return int(match[1]) * _SECONDS[match[2]] if match else 0


_CHECKS = {
    "retries": (int, "", "give a whole number, 0 or more"),
    "backoff": (str, _DURATION, "give a duration such as 30s"),
    "backoff_factor": ((int, float), "", "give a number above 0"),
    "backoff_max": (str, _DURATION, "give a duration such as 48h"),
    "timeout": (str, f"({_DURATION})?", "give a duration such as 12h, or '' for none"),
    "cpu": (str, _QUANTITY, "give a quantity as a string, such as '2' or '500m'"),
    "memory": (str, _QUANTITY, "give a quantity such as 4Gi"),
    "shared_memory": (str, f"({_QUANTITY})?", "give a quantity such as 2Gi, or '' for none"),
    "parallelism": (int, "", "give a whole number, 0 for all"),
    "env": (dict, "", "map the names of variables to strings, such as {AWS_REGION: eu-west-1}"),
    "secrets": (
        dict,
        r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9._-]+",
        "map the names of variables to secret/key, such as {AWS_SECRET_ACCESS_KEY: my-store/key}",
    ),
}


def read_resources(path: str) -> Resources:
    """Read a `resources.yaml`; what it leaves out keeps its default.

    Raises:
        InvalidInput: With every unknown name and every value that cannot work.
    """
    problems = Problems()
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.add("--resources", path, f"cannot be read as YAML ({error})")
        content = {}
    if not isinstance(content, dict):
        problems.add("--resources", path, "write lines such as `retries: 3`")
        content = {}
    steps = content.get("steps") or {}
    _check({name: value for name, value in content.items() if name != "steps"}, "", problems)
    if not isinstance(steps, dict):
        problems.add("steps", steps, "map a component's name to its own settings")
        steps = {}
    import kubestill.components

    known = [name.replace("_", "-") for name in kubestill.components.__all__]
    for step, own in steps.items():
        if step not in known:
            problems.add("steps", step, f"no such component; {nearest(str(step), known)}")
        elif not isinstance(own, dict):
            problems.add(f"steps.{step}", own, "write lines such as `retries: 3`")
        else:
            _check(own, f"steps.{step}.", problems)
    problems.raise_if_any()
    return Resources(**content)


def _check(values: dict[str, Any], prefix: str, problems: Problems) -> None:
    for name, value in values.items():
        if name not in _CHECKS or (prefix and name == "parallelism"):
            problems.add(
                prefix + str(name), value, f"no such setting; {nearest(str(name), _CHECKS)}"
            )
            continue
        kind, pattern, remedy = _CHECKS[name]
        if kind is dict and isinstance(value, dict):
            wrong = {
                f"{name}.{variable}": given
                for variable, given in value.items()
                if not re.fullmatch(_VARIABLE, str(variable)) or not _fits(given, str, pattern)
            }
        else:
            wrong = {} if _fits(value, kind, pattern) else {name: value}
        for place, given in wrong.items():
            problems.add(prefix + place, given, remedy)
    env, secrets = values.get("env"), values.get("secrets")
    if isinstance(env, dict) and isinstance(secrets, dict):
        for name in sorted(env.keys() & secrets.keys(), key=str):
            problems.add(f"{prefix}env.{name}", env[name], "is a secret, too; keep one of the two")


def _fits(value: Any, kind: Any, pattern: str) -> bool:
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    if isinstance(value, str):
        return not pattern or re.fullmatch(pattern, value) is not None
    return value >= 0 if kind is int else value > 0


DEFAULT = Resources()
