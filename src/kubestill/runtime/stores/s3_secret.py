"""The keys of the store that Kubeflow brings along, read where its launcher reads them.

Kubeflow gives them to no container: its launcher asks Kubernetes for a secret, as the pod's own
service account. We run in the same pod, so that `minio://` needs nothing to be set up.
"""

from __future__ import annotations

import base64

from kubestill.errors import ClusterError, PermissionDenied, StoreUnavailable
from kubestill.runtime.base.kubernetes import Cluster

SECRET = "mlpipeline-minio-artifact"
_NEEDS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or let the service account read it"


def read_secret(cluster: Cluster) -> dict[str, str]:
    """Return `accesskey` and `secretkey` of the secret in this pod's namespace.

    Raises:
        PermissionDenied: There is no such secret, it lacks a key, or this account may not read it.
        StoreUnavailable: Kubernetes did not answer.
    """
    what = f"the secret {SECRET} in namespace {cluster.namespace}"
    try:
        found = cluster.get(f"/api/v1/namespaces/{cluster.namespace}/secrets/{SECRET}")
    except ClusterError as error:
        if error.status >= 500:
            raise StoreUnavailable(f"{what}: {error}") from error
        raise PermissionDenied(f"{what}: {error}: {_NEEDS}") from error
    if found is None:
        raise PermissionDenied(f"{what} does not exist: {_NEEDS}")
    data = found.get("data", {})
    try:
        return {
            name: base64.b64decode(data[name]).decode().strip()
            for name in ("accesskey", "secretkey")
        }
    except KeyError as error:
        raise PermissionDenied(f"{what} has no {error}: {_NEEDS}") from error
