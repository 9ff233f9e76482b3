"""A small Kubeflow Model Registry over real HTTP: what `promote-model` tells, it must accept.

It follows kubeflow/model-registry's `api/openapi/model-registry.yaml` (v1alpha3, later v1): which
fields each object may and must have, the types of custom properties, ids that are numbers, 404 for
what is not there and 409 for a name that is taken below the same parent.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_RESOURCE = {"customProperties", "description", "externalId", "name", "state"}
_MODEL = _RESOURCE | {"owner", "readme", "maturity", "language", "tasks", "provider", "logo"}
_VERSION = _RESOURCE | {"author", "registeredModelId"}
_ARTIFACT = _RESOURCE | {
    *("artifactType", "uri", "modelFormatName", "modelFormatVersion", "storageKey", "storagePath"),
    *("serviceAccountName", "modelSourceKind", "modelSourceClass", "modelSourceGroup"),
    *("modelSourceId", "modelSourceName"),
}
_VALUES = {
    "MetadataStringValue": ("string_value", str),
    "MetadataDoubleValue": ("double_value", float),
}
_ID = "([1-9][0-9]{0,8})"


class Refused(Exception):
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class ModelRegistry:
    """Its state, and what each operation does with it."""

    def __init__(self, api: str) -> None:
        self.api = api
        self.host = ""
        self.token = ""
        """What `Authorization: Bearer` must hold; empty lets everybody in."""
        self.models: list[dict[str, Any]] = []
        self.versions: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.failing = ""
        """POSTs to paths that end so are answered with 500."""

    def answer(self, verb: str, path: str, query: dict[str, str], body: Any) -> dict[str, Any]:
        if verb == "POST" and self.failing and path.endswith(self.failing):
            raise Refused(500, "the database is gone")
        if (verb, path) == ("GET", "registered_model"):
            return self._one(self.models, name=query["name"])
        if (verb, path) == ("GET", "registered_models"):
            return _listed(self.models[: int(query["pageSize"])])
        if (verb, path) == ("POST", "registered_models"):
            return self._make(self.models, body, _MODEL, {"name"})
        if (verb, path) == ("GET", "model_version"):
            parent = query["parentResourceId"]
            return self._one(self.versions, name=query["name"], registeredModelId=parent)
        if verb == "POST" and (found := re.fullmatch(f"registered_models/{_ID}/versions", path)):
            self._one(self.models, id=found[1])
            if body.get("registeredModelId") != found[1]:
                raise Refused(400, "registeredModelId is not the path's")
            return self._make(self.versions, body, _VERSION, {"name", "registeredModelId"})
        if found := re.fullmatch(f"model_versions/{_ID}/artifacts", path):
            self._one(self.versions, id=found[1])
            if verb == "GET":
                return _listed([one for one in self.artifacts if one["version"] == found[1]])
            made = self._make(self.artifacts, body, _ARTIFACT, {"artifactType"}, version=found[1])
            return made
        raise Refused(404, f"no such operation: {verb} {path}")

    def _one(self, table: list[dict[str, Any]], **wanted: str) -> dict[str, Any]:
        found = [one for one in table if wanted.items() <= one.items()]
        if not found:
            raise Refused(404, f"nothing has {wanted}")
        return found[0]

    def _make(
        self,
        table: list[dict[str, Any]],
        body: dict[str, Any],
        allowed: set[str],
        required: set[str],
        **parent: str,
    ) -> dict[str, Any]:
        if body.keys() - allowed or required - body.keys():
            raise Refused(400, f"unknown {body.keys() - allowed}, missing {required - body.keys()}")
        for value in body.get("customProperties", {}).values():
            key, kind = _VALUES[value["metadataType"]]
            if value.keys() != {"metadataType", key} or not isinstance(value[key], kind):
                raise Refused(400, f"no {value['metadataType']}: {value}")
        keys = {"name": body["name"], **parent}
        keys |= {key: body[key] for key in ("registeredModelId",) if key in body}
        if any(keys.items() <= one.items() for one in table):
            raise Refused(409, f"{keys} exists")
        made = {**body, **parent, "id": str(len(table) + 1)}
        table.append(made)
        return made


def _listed(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"items": items, "nextPageToken": "", "pageSize": len(items), "size": len(items)}


@contextmanager
def model_registry(api: str = "v1") -> Generator[ModelRegistry]:
    """Serve one on a free port."""
    served = ModelRegistry(api)

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            url = urlsplit(self.path)
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            try:
                if served.token and self.headers["Authorization"] != f"Bearer {served.token}":
                    raise Refused(401, "who are you?")
                root = f"/api/model_registry/{served.api}/"
                if not url.path.startswith(root):
                    raise Refused(404, "no such API")
                query = dict(parse_qsl(url.query))
                path = url.path.removeprefix(root)
                found, status = served.answer(self.command, path, query, body), 200
            except Refused as refused:
                found, status = (
                    {"code": str(refused.status), "message": str(refused)},
                    refused.status,
                )
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _do  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.host = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
