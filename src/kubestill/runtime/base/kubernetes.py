"""Kubernetes' API as a pod sees it: the few requests that a step makes of it.

| variable | |
|---|---|
| `KUBESTILL_KUBERNETES_API` | address of the API, such as that of `kubectl proxy`; where it is not set, the pod's own cluster |
| `KUBESTILL_SERVICE_ACCOUNT` | folder with `namespace`, `token` and `ca.crt`, where they lie elsewhere than in a pod |
"""  # noqa: E501

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubestill.errors import ClusterError

API_VARIABLE = "KUBESTILL_KUBERNETES_API"
ACCOUNT_VARIABLE = "KUBESTILL_SERVICE_ACCOUNT"

_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_TIMEOUT = (5.0, 30.0)
"""Seconds to connect, and between two pieces of an answer."""

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The cluster that this process runs in, as its service account may use it."""

    address: str
    namespace: str
    account: Path

    @classmethod
    def here(cls) -> Cluster | None:
        """Return the cluster of this pod; None where this is no pod."""
        account = Path(os.environ.get(ACCOUNT_VARIABLE) or _ACCOUNT)
        address = os.environ.get(API_VARIABLE, "").rstrip("/")
        if not address and (host := os.environ.get("KUBERNETES_SERVICE_HOST")):
            port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
            address = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        if not address or not (account / "namespace").is_file():
            return None
        namespace = (account / "namespace").read_text().strip()
        return cls(address=address, namespace=namespace, account=account)

    def get(self, path: str, **query: str) -> Json | None:
        """Return an object or a list; None where there is none of that name.

        Raises:
            ClusterError: Kubernetes refused, or could not be reached (status 503).
        """
        answer = self._send("GET", path, query)
        return None if answer is None else json.loads(answer)

    def text(self, path: str, **query: str) -> str:
        """Return what is no JSON, such as a log; empty where there is none."""
        return (self._send("GET", path, query) or b"").decode(errors="replace")

    def create(self, path: str, body: Mapping[str, Any]) -> Json | None:
        """Make an object, all of whose fields the API must know; None where the API has no such.

        Raises:
            ClusterError: Refused: 409 where the name is taken.
        """
        answer = self._send("POST", path, {"fieldValidation": "Strict"}, body)
        return None if answer is None else json.loads(answer)

    def delete(self, path: str, uid: str) -> None:
        """Remove the object that has this uid, and all that it owns; one that is gone is fine."""
        # In the foreground an owner stays until what it owns has gone. Kubeflow Trainer goes on to
        # make what such a TrainJob lacks: new pods, for as long as old ones are removed.
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            self._send("DELETE", path, {}, body)
        except ClusterError as error:
            if error.status != 409:  # the name is another object's by now
                raise

    def _send(
        self, method: str, path: str, query: Mapping[str, str], body: Any = None
    ) -> bytes | None:
        import requests  # a quarter of a second to import, for those who train on several pods

        token, trust = self.account / "token", self.account / "ca.crt"
        bearer = token.read_text().strip() if token.is_file() else ""
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        try:
            with requests.Session() as session:
                session.trust_env = False
                session.verify = str(trust) if trust.is_file() else True
                answer = session.request(
                    method,
                    f"{self.address}{path}",
                    params=query,
                    json=body,
                    headers=headers,
                    timeout=_TIMEOUT,
                    allow_redirects=False,
                )
        except requests.RequestException as error:
            raise ClusterError(f"Kubernetes does not answer: {error}", 503) from error
        if answer.status_code == 404:
            return None
        if not answer.ok:
            raise ClusterError(
                f"Kubernetes answers {answer.status_code} to {method} {path}: {_reason(answer)}",
                answer.status_code,
            )
        return answer.content


def pod_token() -> str:
    """Return the token by which this pod says who it is: Kubeflow's own, else its account's."""
    path = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH") or f"{_ACCOUNT}/token")
    return path.read_text().strip() if path.is_file() else ""


def _reason(answer: Any) -> str:
    try:
        return str(json.loads(answer.content)["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(answer.text.split())[:300]
