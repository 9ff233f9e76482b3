"""The keys of the store that Kubeflow brings along, read where its launcher reads them.

Kubeflow gives them to no container: its launcher asks Kubernetes for a secret, as the pod's own
service account. We run in the same pod, so that `minio://` needs nothing to be set up.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from kubestill.errors import PermissionDenied, StoreUnavailable

SECRET = "mlpipeline-minio-artifact"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes mounts the service account's token, namespace and certificates."""
_NEEDS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or let the service account read it"


def in_a_pod() -> bool:
    """Whether Kubernetes' API can be asked as this pod's service account."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and (ACCOUNT / "token").exists()


def read_secret() -> dict[str, str]:
    """Return `accesskey` and `secretkey` of the secret in this pod's namespace.

    Raises:
        PermissionDenied: There is no such secret, it lacks a key, or this account may not read it.
        StoreUnavailable: Kubernetes did not answer.
    """
    namespace = (ACCOUNT / "namespace").read_text().strip()
    what = f"the secret {SECRET} in namespace {namespace}"
    try:
        data = _get(f"/api/v1/namespaces/{namespace}/secrets/{SECRET}").get("data", {})
        return {
            name: base64.b64decode(data[name]).decode().strip()
            for name in ("accesskey", "secretkey")
        }
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise StoreUnavailable(f"{what}: Kubernetes answered {error.code}") from error
        raise PermissionDenied(f"{what}: Kubernetes answered {error.code}: {_NEEDS}") from error
    except KeyError as error:
        raise PermissionDenied(f"{what} has no {error}: {_NEEDS}") from error
    except OSError as error:
        raise StoreUnavailable(f"{what}: Kubernetes does not answer: {error}") from error


def _get(path: str) -> dict[str, Any]:
    host = os.environ["KUBERNETES_SERVICE_HOST"]
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    where = f"[{host}]" if ":" in host else host
    token = (ACCOUNT / "token").read_text().strip()
    request = urllib.request.Request(
        f"https://{where}:{port}{path}", headers={"Authorization": f"Bearer {token}"}
    )
    trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, timeout=10, context=trust) as response:
        return json.loads(response.read())
