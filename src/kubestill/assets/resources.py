"""Read and check `resources.yaml`, the settings of a pipeline's tasks."""

from __future__ import annotations

import re
from typing import Any

import yaml

import kubestill.components
from kubestill.assets.reading import read_yaml
from kubestill.errors import Problems, nearest
from kubestill.pipelines._resources import DURATION, Resources

_QUANTITY = r"\d+(\.\d+)?([munkMGTPE]|[KMGTPE]i)?"
_MOST = 1 << 31
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"

_CHECKS = {
    "retries": (int, "", "give a whole number, 0 or more"),
    "backoff": (str, DURATION, "give a duration such as 30s"),
    "backoff_factor": ((int, float), "", "give a number above 0"),
    "backoff_max": (str, DURATION, "give a duration such as 48h"),
    "timeout": (str, f"({DURATION})?", "give a duration such as 12h, or '' for none"),
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
            content = read_yaml(file) or {}
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
    known = [name.replace("_", "-") for name in kubestill.components.__all__]
    for step, own in steps.items():
        if step not in known:
            problems.add("steps", step, f"no such component; {nearest(str(step), known)}")
        elif not isinstance(own, dict):
            problems.add(f"steps.{step}", own, "write lines such as `retries: 3`")
        else:
            _check(own, f"steps.{step}.", problems)
    problems.raise_if_any()
    return Resources(**{**content, "steps": steps})


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
    # Kubeflow keeps these as numbers of 32 bits.
    return (0 <= value if kind is int else 0 < value) and value < _MOST
