"""Find out whether Kubeflow answers at the address, and which version."""

from __future__ import annotations

import re

from kubestill.client.api import Api
from kubestill.errors import ClusterError

OLDEST = (2, 15)
"""Of Kubeflow Pipelines."""
_TELLS = {"tag_name", "commit_sha", "multi_user", "pipeline_store"}


def check_server(api: Api) -> str:
    """Check that Kubeflow answers, before anything is sent to it.

    Returns:
        What will not work with this version; empty where everything does.

    Raises:
        ClusterError: It is no Kubeflow, or does not let us in.
    """
    host = api.connection.host
    try:
        health = api.get("healthz")
    except ClusterError as error:
        if error.status != 404:
            raise
        raise ClusterError(
            f"{host} is no Kubeflow Pipelines of version 2: it has no /apis/v2beta1/healthz; "
            "give the address of its API or UI, such as https://kubeflow.example/pipeline",
            404,
        ) from error
    if not _TELLS & health.keys():
        raise ClusterError(
            f"{host} answers, but not as Kubeflow Pipelines does; give the address of its API or "
            "UI, such as https://kubeflow.example/pipeline"
        )
    version = str(health.get("tag_name") or "")
    found = re.match(r"v?(\d+)\.(\d+)", version)
    if not found or (int(found[1]), int(found[2])) >= OLDEST:
        return ""
    return (
        f"Kubeflow Pipelines {version} is older than {OLDEST[0]}.{OLDEST[1]}: image, cpu, memory, "
        "accelerators, node_selector and tolerations may not reach the pods when they are given as "
        "parameters, and optional artifacts may fail a step; upgrade it, or expect that"
    )
