"""Makes the small evaluations of the unit tests importable, and starts an MLflow server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "evaluation"))

_HERE = Path(sys.prefix) / "mlflow" / "bin" / "mlflow"
MLFLOW = shutil.which(os.environ.get("MLFLOW", str(_HERE)))
"""The server is no package of this environment: it needs an older Arrow than the runtime takes."""


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server on loopback, with a database of its own; gives its address."""
    if MLFLOW is None:
        pytest.skip(
            "no MLflow server in .venv/mlflow or $MLFLOW: "
            "uv venv .venv/mlflow && uv pip install --python .venv/mlflow/bin/python mlflow"
        )
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [MLFLOW, "server", *store, *where, "--default-artifact-root", str(folder)],
            stdout=log,
            stderr=log,
            env=environment,
            cwd=folder,
        )
    try:
        _wait(server, f"{address}/health", folder / "log")
        yield address
    finally:
        server.terminate()
        server.wait(20)


def _wait(server: subprocess.Popen[bytes], health: str, log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            if requests.get(health, timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.1)
    raise AssertionError(f"MLflow does not answer: {log.read_text()}")
