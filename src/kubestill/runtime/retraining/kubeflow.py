"""The promoted model in the Kubeflow Model Registry, for those who look for models there.

Three objects of its REST API: a RegisteredModel for the line of champions, a ModelVersion for each
champion, a ModelArtifact with its URI. Its own Python client speaks one version of that API and
leaves a version without an artifact where it is interrupted; here every step finds what is there.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from kubestill.errors import Problems
from kubestill.runtime.base.kubernetes import pod_token
from kubestill.runtime.retraining.state import Champion

_APIS = ("v1", "v1alpha3")
"""Newest first; servers have one or the other."""
_SECONDS = 10.0
"""For one request."""


class NotRegistered(Exception):
    """The Model Registry did not take the model; the champion is champion all the same."""


def check_address(address: str, problems: Problems) -> None:
    """Note an address that cannot be one; empty is none."""
    if address and not address.startswith(("http://", "https://")):
        remedy = "give http://HOST:PORT or https://HOST, or leave it empty to register nowhere"
        problems.add("model_registry", address, remedy)


def register(address: str, name: str, champion: Champion, uri: str) -> str:
    """Register a champion, or find that it is.

    Args:
        address: Of the Model Registry's REST service, such as `http://model-registry:8080`.
        name: Of the registered model.
        champion: Its version becomes the ModelVersion's name.
        uri: Where its export lies.

    The pod's token is sent to private addresses alone, such as those of the cluster's services.

    Returns:
        What there is now, in a sentence.

    Raises:
        NotRegistered: It could not be reached, refused, or has another model of this version.
    """
    # Half a second to import, for those who register.
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    # Repeating is safe, also of what makes things: they have names, and are found by them.
    retry = Retry(
        total=3, backoff_factor=0.3, status_forcelist=(429, 502, 503, 504), allowed_methods=None
    )
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        if _is_private(address):
            session.headers.update(_credentials())
        try:
            return _Service(session, address).register(name, champion, uri)
        except (requests.RequestException, ValueError, KeyError) as error:
            raise NotRegistered(f"{address} gave no usable answer: {error}") from error


class _Service:
    """One version of the API at one address."""

    def __init__(self, session: Any, address: str):
        self._session = session
        for api in _APIS:
            self._root = f"{address.rstrip('/')}/api/model_registry/{api}"
            if self._get("registered_models", pageSize="1") is not None:
                return
        raise NotRegistered(f"{address} has no Model Registry ({', '.join(_APIS)})")

    def register(self, name: str, champion: Champion, uri: str) -> str:
        model = self._found_or_made(
            "registered_model",
            {"name": name},
            "registered_models",
            {"name": name, "description": "Kept fresh by kubestill's continuous-retraining."},
        )
        number = str(champion.version)
        version = self._found_or_made(
            "model_version",
            {"name": number, "parentResourceId": model["id"]},
            f"registered_models/{model['id']}/versions",
            {
                "name": number,
                "registeredModelId": model["id"],
                "description": champion.decision.reason,
                "author": "kubestill",
                "customProperties": _properties(champion),
            },
        )
        # One champion, one artifact: its name is its digest, so that another model shows.
        artifact = self._artifact(version["id"], champion, uri)
        if artifact["uri"] != uri or artifact["name"] != champion.model_digest:
            raise NotRegistered(
                f"version {number} of {name!r} is another model already, at {artifact['uri']}; "
                "give this registry a `model_name` of its own"
            )
        return f"version {number} of {name!r} (id {version['id']})"

    def _artifact(self, version: str, champion: Champion, uri: str) -> Mapping[str, Any]:
        path = f"model_versions/{version}/artifacts"
        listed = self._get(path, pageSize="100") or {}
        models = [one for one in listed.get("items", []) if one["artifactType"] == "model-artifact"]
        if models:
            return models[0]
        body = {
            "artifactType": "model-artifact",
            "name": champion.model_digest,
            "uri": uri,
            "state": "LIVE",
            "modelFormatName": "kubestill",
            "modelFormatVersion": "1",
            "modelSourceKind": "kfp",
            "modelSourceClass": "pipelinerun",
            "modelSourceId": champion.run_id,
        }
        return self._post(path, body) or body

    def _found_or_made(
        self, one: str, query: Mapping[str, str], many: str, body: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        # Refused as a duplicate: somebody else, or an answer that was lost, made it just now.
        found = self._get(one, **query) or self._post(many, body) or self._get(one, **query)
        if found is None:
            raise NotRegistered(f"{self._root}/{many} says that {query} exists, but lists none")
        return found

    def _get(self, path: str, **query: str) -> Mapping[str, Any] | None:
        """Return the answer; None for 404."""
        answer = self._session.get(f"{self._root}/{path}", params=query, timeout=_SECONDS)
        return None if answer.status_code == 404 else self._body(answer)

    def _post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the answer; None for 409."""
        answer = self._session.post(f"{self._root}/{path}", json=body, timeout=_SECONDS)
        return None if answer.status_code == 409 else self._body(answer)

    def _body(self, answer: Any) -> Mapping[str, Any]:
        if answer.ok:
            return answer.json()
        said = " ".join(answer.text.split())[:200]
        raise NotRegistered(f"{answer.url} answered {answer.status_code}: {said}")


def _properties(champion: Champion) -> dict[str, Any]:
    told = {"digest": champion.model_digest, "window": champion.window, "run_id": champion.run_id}
    texts = {
        name: {"metadataType": "MetadataStringValue", "string_value": value}
        for name, value in told.items()
    }
    scores = {
        name: {"metadataType": "MetadataDoubleValue", "double_value": score.value}
        for name, score in champion.decision.scores.items()
        if score.value is not None
    }
    return texts | scores


def _is_private(address: str) -> bool:
    """Return whether an address stays within the cluster's own networks.

    Whoever starts a run names the address: a host of their own is to learn no token.
    """
    try:
        found = socket.getaddrinfo(urlsplit(address).hostname, None)
        return not any(ipaddress.ip_address(one[4][0]).is_global for one in found)
    except (OSError, ValueError):
        return False


def _credentials() -> dict[str, str]:
    """Return the header that Kubeflow asks for: the pod's own token, where there is one."""
    token = pod_token()
    return {"Authorization": f"Bearer {token}"} if token else {}
