"""Read from Argo's workflow controller whether the cluster restarts a failed step.

Kubeflow leaves the policy open, so that the controller's defaults decide, whatever `retries` a
pipeline asks for. Since 2.17 the manifests that it ships set `OnError`: a pod that somebody deleted
is started again, one whose process failed, or was killed, is not.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from kubestill.assets.reading import read_yaml
from kubestill.client.kube import NotChecked, ask
from kubestill.errors import ClusterError

NAMESPACE, CONFIG_MAP = "kubeflow", "workflow-controller-configmap"

_ARGOS_DEFAULT = "OnFailure"
_RETRIED = {
    "Always": (True, True),
    "OnFailure": (True, False),
    "OnError": (False, True),
    "OnTransientError": (False, False),
}
"""Policy → whether it starts again what failed, and what vanished."""


class Advice(ClusterError):
    """It works, but not as well as it could."""


def check_retries() -> str:
    """Return which failures of a step the cluster repairs by restarting it.

    Raises:
        Advice: It does not mend all of them; says which, and what to change.
        NotChecked: The settings cannot be read from here.
    """
    found = ask(
        lambda core: core.read_namespaced_config_map,
        CONFIG_MAP,
        NAMESPACE,
        what=f"read the configmap {CONFIG_MAP} in namespace {NAMESPACE}",
    )
    return judge_retries(found.get("data") or {})


def judge_retries(settings: Mapping[str, str]) -> str:
    """Describe what the controller's settings mean for a step that fails.

    Args:
        settings: The configmap's data.

    Raises:
        Advice: As `check_retries` does.
        NotChecked: They cannot be parsed.
    """
    defaults = _defaults(settings)
    policy = _policy(defaults)
    failures, errors = _RETRIED.get(policy, (False, False))
    if failures and errors:
        return f"{policy}: a step that fails and one whose pod is deleted both start again"
    lost = " or ".join(
        words
        for words, retried in (
            ("fails, runs out of the memory of its pod or is killed there too often", failures),
            ("loses its pod or node", errors),
        )
        if not retried
    )
    raise Advice(
        f"the workflow controller's retryPolicy is {policy}: a step that {lost} is not started "
        f"again, whatever the pipeline's retries say, and the run fails. Training resumes when the "
        f"run is retried or submitted again. To have it done at once, for every pipeline of this "
        f"cluster:\n{_remedy(settings, defaults)}"
    )


def _defaults(settings: Mapping[str, str]) -> dict[str, Any]:
    """Read `workflowDefaults`, which has a key of its own or stands in the one key `config`."""
    try:
        whole = read_yaml(settings.get("config") or "") or {}
        text = settings.get("workflowDefaults")
        found = read_yaml(text) if text else whole.get("workflowDefaults")
        spec = (found or {}).get("spec") or {}
        for holder in (spec, spec.get("templateDefaults") or {}):
            (holder.get("retryStrategy") or {}).get("retryPolicy")
    except (yaml.YAMLError, AttributeError) as error:
        raise NotChecked(
            f"not checked: {CONFIG_MAP} in namespace {NAMESPACE} cannot be parsed"
        ) from error
    return found or {}


def _policy(defaults: Mapping[str, Any]) -> str:
    """Return the policy of a template that names none."""
    spec = defaults.get("spec") or {}
    for holder in (spec.get("templateDefaults") or {}, spec):
        strategy = holder.get("retryStrategy") or {}
        if policy := strategy.get("retryPolicy"):
            return str(policy)
    return _ARGOS_DEFAULT


def _remedy(settings: Mapping[str, str], defaults: Mapping[str, Any]) -> str:
    """Return the command that changes nothing but the policy."""
    where = f"-n {NAMESPACE} configmap {CONFIG_MAP}"
    text = settings.get("workflowDefaults", "")
    old = f"retryPolicy: {_policy(defaults)}"
    if "config" not in settings and text.count("retryPolicy:") == text.count(old) == 1:
        # In place, so that nothing of what else stands there is printed or lost.
        change = shlex.quote(f"s/{old}/retryPolicy: Always/")
        return f"  kubectl get {where} -o yaml | sed {change} | kubectl replace -f -"
    if not defaults:
        patch = shlex.quote(json.dumps({"data": {"workflowDefaults": yaml.safe_dump(_WANTED)}}))
        return f"  kubectl patch {where} --type merge -p {patch}"
    return f"  kubectl edit {where}  # under workflowDefaults: {json.dumps(_WANTED)}"


_WANTED = {"spec": {"templateDefaults": {"retryStrategy": {"limit": "2", "retryPolicy": "Always"}}}}
"""With a limit: one strategy without it never gives up."""
