"""What Kubeflow's launcher does, inside of the container of a step; see `pods.py`.

After `backend/src/v2/component/launcher_v2.go` and `backend/src/v2/objectstore/object_store.go` of
kubeflow/pipelines at 7b70c7b95f: inputs are downloaded whole, the component's own command runs, and
only after its success are the outputs uploaded and what it wrote about them merged. What the
launcher would publish goes to the file `--publish`; after a failure there is none.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.cloud import storage


def main() -> int:
    """Run one task; returns the exit code of its command."""
    parser = argparse.ArgumentParser()
    for name in ("executor_input", "component_spec", "pipeline_root", "publish"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    task, component = json.loads(given.executor_input), json.loads(given.component_spec)
    inputs, outputs = task["inputs"], task["outputs"]
    store = _Store(given.pipeline_root)

    for artifact in _artifacts(inputs):
        store.download(artifact["uri"], local_path(artifact["uri"]))
    files = [parameter["outputFile"] for parameter in outputs["parameters"].values()]
    for file in [*files, *(local_path(artifact["uri"]) for artifact in _artifacts(outputs))]:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    code = subprocess.run(_command(task, component, given.command)).returncode
    if code:
        print(f"launcher: the component ended with code {code}", file=sys.stderr)
        return code

    written = Path(outputs["outputFile"])
    said = json.loads(written.read_text()) if written.exists() else {}
    parameters = said.get("parameterValues", {})
    for name, parameter in outputs["parameters"].items():
        if name not in parameters:
            text = Path(parameter["outputFile"]).read_text()
            kind = component["outputDefinitions"]["parameters"][name]["parameterType"]
            parameters[name] = text if kind == "STRING" else json.loads(text)
    for artifact in _artifacts(outputs):
        _merge(said.get("artifacts", {}).get(artifact["name"], {}), artifact)
        store.upload(local_path(artifact["uri"]), artifact["uri"])
    published = {"parameters": parameters, "artifacts": outputs["artifacts"]}
    Path(given.publish).write_text(json.dumps(published))
    return 0


def local_path(uri: str) -> str:
    """Return where the launcher keeps a `gs://` object: `/gcs/bucket/key`."""
    if not uri.startswith("gs://"):
        raise ValueError(f"failed to generate local path for URI {uri}: unsupported storage scheme")
    return "/gcs/" + uri.removeprefix("gs://")


class _Store:
    """Objects by their URIs; uploads go below the pipeline root and nowhere else."""

    def __init__(self, root: str):
        self._root = root
        self._client = storage.Client(project="test")

    def download(self, uri: str, path: str) -> None:
        """Copy an object, or all objects of a folder; siblings that share the prefix stay."""
        bucket, key = _split(uri)
        for blob in self._client.list_blobs(bucket, prefix=key):
            if blob.name == key or blob.name.startswith(key + "/"):
                to = Path(path + blob.name.removeprefix(key))
                to.parent.mkdir(parents=True, exist_ok=True)
                blob.download_to_filename(str(to))

    def upload(self, path: str, uri: str) -> None:
        """Copy a file or a folder; what the component has not written is left out."""
        if not uri.startswith(self._root):
            raise ValueError(f"URI {uri!r} does not have expected bucket prefix {self._root!r}")
        bucket, key = _split(uri)
        for file in [Path(path), *Path(path).rglob("*")]:
            if file.is_file():
                blob = self._client.bucket(bucket).blob(key + str(file).removeprefix(path))
                blob.upload_from_filename(str(file))


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("gs://").partition("/")
    return bucket, key


def _artifacts(ports: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for port in ports["artifacts"].values():
        yield from port["artifacts"]


def _command(task: dict[str, Any], component: dict[str, Any], command: list[str]) -> list[str]:
    """Fill in the one placeholder that our commands have: the executor input, with defaults."""
    known = component["inputDefinitions"].get("parameters", {})
    defaults = {name: one["defaultValue"] for name, one in known.items() if "defaultValue" in one}
    given = defaults | task["inputs"]["parameterValues"]
    filled = task | {"inputs": task["inputs"] | {"parameterValues": given}}
    return [part.replace("{{$}}", json.dumps(filled)) for part in command]


def _merge(said: dict[str, Any], artifact: dict[str, Any]) -> None:
    """Add what the component wrote about an output to what the driver knew of it."""
    for one in said.get("artifacts", [])[:1]:
        artifact["uri"] = one.get("uri") or artifact["uri"]
        artifact["metadata"] = artifact.get("metadata", {}) | one.get("metadata", {})


if __name__ == "__main__":
    sys.exit(main())
