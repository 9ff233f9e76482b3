"""Pipelines and their versions on a server: named by content, so that uploading twice is free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from kubestill.assets.packages import Package
from kubestill.client.api import Api
from kubestill.errors import ClusterError, Problems


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a pipeline on the server."""

    pipeline_id: str
    version_id: str
    name: str
    created: bool
    """Whether this call uploaded it."""


def ensure_version(api: Api, package: Package, *, pipeline: str = "", version: str = "") -> Version:
    """Have this very content on the server, whatever is there already.

    Args:
        api: The server.
        package: What to upload.
        pipeline: Name on the server; empty takes the pipeline's own.
        version: Name of the version; empty makes one of the pipeline's name and its content's
            digest, so that equal content has an equal name and another content another.

    Raises:
        InvalidInput: The version exists with other content.
        ClusterError: The server refused or failed.
    """
    pipeline = pipeline or package.name
    version = version or f"{pipeline}-{package.digest[:12]}"
    pipeline_id = ensure_pipeline(api, pipeline)
    found = _find_version(api, pipeline_id, version)
    if found is None:
        try:
            made = api.upload(
                "pipelines/upload_version",
                package.text.encode(),
                name=version,
                display_name=version,
                pipelineid=pipeline_id,
                description=f"sha256:{package.digest}",
            )
        except ClusterError as error:
            # Somebody uploaded it at the same moment, or our answer to an upload got lost.
            found = _find_version(api, pipeline_id, version) if error.status == 409 else None
            if found is None:
                raise
        else:
            return _version(made, version, created=True)
    _compare(api, found, package, version)
    return _version(found, version, created=False)


def ensure_pipeline(api: Api, name: str) -> str:
    """Find the pipeline of that name, or make it, without a version; returns its id.

    Uploading a first version makes the pipeline as well, but names the version after the pipeline
    (kubeflow/pipelines#13753), so the two are made apart.
    """
    found = find_pipeline(api, name)
    if found is None:
        namespace = api.connection.namespace
        body = {"name": name, "display_name": name}
        try:
            found = api.post("pipelines", body | ({"namespace": namespace} if namespace else {}))
        except ClusterError as error:
            found = find_pipeline(api, name) if error.status == 409 else None
            if found is None:
                raise
    return found["pipeline_id"]


def find_pipeline(api: Api, name: str) -> dict[str, Any] | None:
    """Return the pipeline of that name, None where there is none."""
    path = "pipelines/names/" + quote(name, safe="")
    try:
        return api.get(path, namespace=api.connection.namespace)
    except ClusterError as error:
        if error.status == 404:
            return None
        raise


def _find_version(api: Api, pipeline_id: str, name: str) -> dict[str, Any] | None:
    versions = api.pages(f"pipelines/{pipeline_id}/versions", "pipeline_versions")
    return next(
        (one for one in versions if name in (one.get("name"), one.get("display_name"))), None
    )


def _compare(api: Api, found: dict[str, Any], package: Package, name: str) -> None:
    """Refuse a version of that name that says something else."""
    path = f"pipelines/{found['pipeline_id']}/versions/{found['pipeline_version_id']}"
    there = api.get(path).get("pipeline_spec") or {}
    there = there if "pipeline_spec" in there else {"pipeline_spec": there}
    if there != package.documents:
        problems = Problems()
        problems.add(
            "version",
            name,
            "exists with other content, and Kubeflow's versions cannot change; choose another "
            "--version, or none: then it is named by its content",
        )
        problems.raise_if_any()


def _version(answer: dict[str, Any], name: str, *, created: bool) -> Version:
    return Version(
        pipeline_id=answer["pipeline_id"],
        version_id=answer["pipeline_version_id"],
        name=answer.get("name") or answer.get("display_name") or name,
        created=created,
    )
