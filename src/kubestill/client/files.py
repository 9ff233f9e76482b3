"""Read what a run left in its store, with this machine's credentials or through Kubeflow's UI.

Outputs lie at `<root of the run>/<step>/<uuid>/<port>`, where the uuid is made by the step's driver
and told by nobody. A store lists it. The UI has an endpoint for one artifact, which packs a folder
as tar.gz (from 2.17 on; for `gs://` it takes wildcards instead), so that a folder's names can be
read from the beginning of what it sends.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

import requests
import urllib3

from kubestill.client.api import Api
from kubestill.errors import ClusterError, CorruptData, KubestillError, NotFound, counted

DEFAULT_ROOT = "minio://mlpipeline/v2/artifacts"
"""The default of Kubeflow's manifests, unless the run or the namespace names another."""
LARGEST = 64 * 2**20
"""Bytes of one file that are read, or of one folder's archive through the UI."""
_SOURCES = {"minio": "minio", "s3": "s3", "gs": "gcs"}
_DEADLINE_S = 15.0


class NotReadable(ClusterError):
    """Neither this machine's credentials nor the UI lets us read."""


class _Place(Protocol):
    """Somewhere that the files of a run can be read from."""

    how: str
    """In words."""

    def children(self, folder: str) -> list[str]:
        """List paths below a folder of the run; it may be only the first ones."""
        ...

    def is_small(self, folder: str) -> bool:
        """Return whether a folder holds no more than `LARGEST` bytes."""
        ...

    def get(self, path: str) -> bytes | None:
        """Return a file; None where there is none, or a larger one than `LARGEST`."""
        ...


class RunFiles:
    """The files of one run, by the first way that works."""

    def __init__(self, api: Api, run: Mapping[str, Any], pipeline: str, *, default_root: str = ""):
        """Remember where they lie; nothing is read yet.

        Args:
            api: The server; its UI is asked where the store does not let this machine in.
            run: As Kubeflow has it.
            pipeline: Its pipeline's own name, which is part of each artifact's URI.
            default_root: Where runs write that name no root; empty: `DEFAULT_ROOT`.
        """
        given = str((run.get("runtime_config") or {}).get("pipeline_root") or "")
        root = (given or default_root or DEFAULT_ROOT).partition("?")[0].rstrip("/")
        self.root = f"{root}/{pipeline}/{run['run_id']}"
        self._api = api

    @property
    def how(self) -> str:
        """How they are read, in words.

        Raises:
            NotReadable: In no way.
        """
        return self._place.how

    def uri(self, path: str) -> str:
        """Return the URI of a file or folder of the run."""
        return f"{self.root}/{path}"

    def find(self, step: str, port: str) -> str:
        """Return the path of an output of a step; empty where there is none.

        Of several, as a loop or a driver that ran twice leaves them, the first that is there.

        Raises:
            NotReadable: In no way.
        """
        for path in self._place.children(step):
            parts = path.split("/")
            if len(parts) > 2 and parts[2].startswith(port):
                return "/".join(parts[:3])
        # The UI may not have come that far.
        for folder in dict.fromkeys(path.split("/")[1] for path in self._place.children(step)):
            if self._place.get(f"{step}/{folder}/{port}") is not None:
                return f"{step}/{folder}/{port}"
        return ""

    def read(self, step: str, port: str) -> bytes | None:
        """Return an output of a step that is a file; None where there is none.

        Raises:
            NotReadable: In no way.
        """
        if isinstance(self._place, _Ui) and self._place.source == "gcs":
            return self._place.get(f"{step}/*/{port}*") or None
        path = self.find(step, port)
        return self._place.get(path) if path else None

    def read_folder(self, folder: str) -> dict[str, bytes]:
        """Return the files below a folder of the run, by their paths in it.

        Empty where there are none, or more than `LARGEST` bytes of them.

        Raises:
            NotReadable: In no way.
        """
        found: dict[str, bytes] = {}
        if not self._place.is_small(folder):
            return found
        for path in self._place.children(folder):
            content = self._place.get(path)
            if content is not None:
                found[path.removeprefix(f"{folder}/")] = content
        return found

    @cached_property
    def _place(self) -> _Place:
        reasons: list[str] = []
        for kind in (_Here, _Ui):
            try:
                place = kind(self._api, self.root)
                place.children("failures")
            except (KubestillError, ImportError, OSError) as error:
                reasons.append(str(error).partition("\n")[0])
            else:
                return place
        raise NotReadable("; ".join(reasons))


class _Here:
    """The store itself."""

    def __init__(self, api: Api, root: str):
        from kubestill.runtime.stores import open_store

        self._store = open_store(root, deadline=_DEADLINE_S)
        self.how = "with this machine's credentials"

    def children(self, folder: str) -> list[str]:
        return [entry.key for entry in self._store.list(f"{folder}/") if entry.size <= LARGEST]

    def is_small(self, folder: str) -> bool:
        return sum(entry.size for entry in self._store.list(f"{folder}/")) <= LARGEST

    def get(self, path: str) -> bytes | None:
        try:
            return self._store.get(path, most=LARGEST)
        except (NotFound, CorruptData):  # the latter where it is larger
            return None


class _Ui:
    """The endpoint of Kubeflow's UI that its own pages show artifacts by."""

    def __init__(self, api: Api, root: str):
        scheme, _, rest = root.partition("://")
        if scheme not in _SOURCES:
            raise ClusterError(f"Kubeflow's UI reads no {scheme or 'local'} paths")
        self.how = "through Kubeflow's UI"
        self.source = _SOURCES[scheme]
        self._api = api
        self._bucket, _, self._prefix = rest.partition("/")
        self._listed: dict[str, list[str]] = {}
        self._cut: set[str] = set()

    def is_small(self, folder: str) -> bool:
        self.children(folder)
        return folder not in self._cut

    def children(self, folder: str) -> list[str]:
        if self.source == "gcs":
            # It sends nothing, with 200, where it finds nothing: whether it may, this tells.
            self.get(f"{folder}/*")
            return []
        if folder not in self._listed:
            self._listed[folder] = self._list(folder)
        return self._listed[folder]

    def get(self, path: str) -> bytes | None:
        try:
            with self._open(path) as response:
                content = _read(response)
        except ClusterError as error:
            if _says_missing(error):
                return None
            raise
        return content if len(content) <= LARGEST else None

    def _list(self, folder: str) -> list[str]:
        """Read names from a folder's archive, and of the files no more than comes before them."""
        found: list[str] = []
        try:
            with self._open(folder) as response:
                limited = _Limited(response.raw, LARGEST)
                with tarfile.open(fileobj=limited, mode="r|gz") as archive:  # pyright: ignore[reportArgumentType, reportCallIssue]
                    for member in archive:
                        found.append(f"{folder}/{member.name}")
        except ClusterError as error:
            if not _says_missing(error):
                raise
        except (tarfile.TarError, EOFError, OSError, urllib3.exceptions.HTTPError):
            # The limit, or a UI that packs no folders: what was read counts.
            self._cut.add(folder)
        return found

    def _open(self, path: str) -> requests.Response:
        return self._api.open(
            "/artifacts/get",
            source=self.source,
            bucket=self._bucket,
            key=f"{self._prefix}/{path}",
            namespace=self._api.connection.namespace,
        )


def _says_missing(error: ClusterError) -> bool:
    """Return whether the UI looked and found nothing; without a UI, everything is a 404."""
    return error.status == 404 and "No objects found" in str(error)


class _Limited:
    """A stream that ends after so many bytes."""

    def __init__(self, stream: Any, left: int):
        self._stream = stream
        self._left = left

    def read(self, size: int) -> bytes:
        content = self._stream.read(min(size, self._left))
        self._left -= len(content)
        return content


def read_log(api: Api, run_id: str, pod: str) -> bytes | None:
    """Return the log of a pod; None where it is gone, and so is its log.

    Raises:
        ClusterError: The server refused or failed otherwise.
    """
    path = f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log"
    try:
        with api.open(path, follow="false") as response:
            content = _read(response)
    except ClusterError as error:
        if error.status in (400, 404, 500):
            return None
        raise
    # Kubeflow has sent its 200 before it looks for the pod; the error comes as the text.
    return None if content.startswith(b'{"error_message"') else content


def _read(response: requests.Response) -> bytes:
    """Read an answer, up to a little more than is taken."""
    parts: list[bytes] = []
    size = 0
    try:
        for part in response.iter_content(65536):
            parts.append(part)
            size += len(part)
            if size > LARGEST:
                break
    except requests.RequestException as error:
        raise ClusterError(
            f"the answer broke off after {counted(size, 'byte')}: {error}"
        ) from error
    return b"".join(parts)
