"""A pod that Kubeflow's launcher did not start brings its inputs itself."""

from pathlib import Path
from typing import Any

import pytest

from kubestill.runtime.steps import inputs
from kubestill.runtime.stores import open_store
from kubestill.supervision import local_path


def test_files_and_folders_lie_where_the_launcher_puts_them(
    gcs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "local_path", lambda uri: f"{tmp_path}{local_path(uri)}")
    store = open_store(gcs.uri)
    held = {"rows/dataset.json": b"{}", "rows/part/0.parquet": b"rows", "rows2/x": b"another's"}
    for key, content in {**held, "weights": b"one file"}.items():
        store.put(key, content)
    artifacts = {
        name: {"artifacts": [{"uri": f"{gcs.uri}/{name}"}]} for name in ("rows", "weights")
    }
    executor_input = {"inputs": {"artifacts": artifacts}}
    there = Path(f"{tmp_path}{local_path(gcs.uri)}")

    inputs.fetch_inputs(executor_input)
    found = {
        str(path.relative_to(there)): path.read_bytes()
        for path in there.rglob("*")
        if path.is_file()
    }
    assert found == {
        "rows/dataset.json": b"{}",
        "rows/part/0.parquet": b"rows",
        "weights": b"one file",
    }

    (there / "weights").write_bytes(b"brought by another process")
    inputs.fetch_inputs(executor_input)
    assert (there / "weights").read_bytes() == b"brought by another process"
