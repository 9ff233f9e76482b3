"""Ask an image registry whether an image is there (OCI distribution API, version 2)."""

from __future__ import annotations

import re

import requests

from kubestill.errors import ClusterError

_KINDS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)


def find_image(reference: str) -> str:
    """Find an image, without credentials, and return what to say about it.

    Raises:
        ClusterError: It is not there, or its registry cannot be asked from here.
    """
    host, name, tag = _split(reference)
    scheme = "http" if host.partition(":")[0] in ("127.0.0.1", "localhost") else "https"
    url = f"{scheme}://{host}/v2/{name}/manifests/{tag}"
    try:
        answer = _ask(url)
    except (requests.RequestException, AttributeError, KeyError) as error:
        raise ClusterError(
            f"cannot reach the registry {host} from here; a cluster may still"
        ) from error
    if answer.status_code == 404:
        raise ClusterError(
            f"{host} has no {name} of {tag}; push it: make push IMAGE_REGISTRY=...", 404
        )
    if answer.status_code in (401, 403):
        raise ClusterError(
            f"{host} does not show {name} without credentials; see that the nodes have them",
            answer.status_code,
        )
    if not answer.ok:
        raise ClusterError(f"{host} answers {answer.status_code}", answer.status_code)
    digest = answer.headers.get("Docker-Content-Digest", "")
    if tag.startswith("sha256:"):
        return "is there"
    return f"is there, but a tag can move: pin it as {host}/{name}@{digest}"


def _split(reference: str) -> tuple[str, str, str]:
    """Registry, repository, and tag or digest."""
    first, slash, rest = reference.partition("/")
    if not slash or not re.search(r"[.:]|^localhost$", first):
        raise ClusterError(f"{reference} names no registry: write it as HOST/NAME@sha256:...")
    if "@" in rest:
        name, _, tag = rest.partition("@")
        return first, name.partition(":")[0], tag
    name, _, tag = rest.partition(":")
    return first, name, tag or "latest"


def _ask(url: str) -> requests.Response:
    headers = {"Accept": _KINDS}
    answer = requests.head(url, headers=headers, timeout=10)
    challenge = answer.headers.get("WWW-Authenticate", "")
    if answer.status_code == 401 and challenge.startswith("Bearer "):
        # Public images too are read with a token, which anybody gets.
        wanted = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        token = requests.get(wanted.pop("realm"), params=wanted, timeout=10).json().get("token", "")
        answer = requests.head(
            url, headers=headers | {"Authorization": f"Bearer {token}"}, timeout=10
        )
    return answer
