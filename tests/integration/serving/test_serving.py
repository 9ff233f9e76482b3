"""A model over HTTP, on loopback, asked by real clients."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import requests
from click.testing import CliRunner
from model_samples import (  # pyright: ignore[reportMissingImports]
    image_schema,
    images,
    make_model,
    mixed_frame,
    mixed_schema,
)

import kubestill
from kubestill.cli import main
from kubestill.errors import InvalidInput
from kubestill.runtime.models.export import export_model
from kubestill.runtime.retraining import Champion, open_registry
from kubestill.runtime.retraining.decision import DecisionRecord
from kubestill.runtime.serving.server import claim_port
from served import serving

NUMBERS, TEXTS = ("area", "age", "garden"), ("colour", "city")


def tensors(frame: pd.DataFrame) -> dict[str, Any]:
    def values(name: str) -> list[Any]:
        return [None if pd.isna(value) else value for value in frame[name].tolist()]

    rows = [len(frame)]
    numbers = [
        {
            "name": n,
            "datatype": "FP64",
            "shape": rows,
            "data": [v if v is None else float(v) for v in values(n)],
        }
        for n in NUMBERS
    ]
    texts = [
        {"name": n, "datatype": "BYTES", "shape": [*rows, 1], "data": values(n)} for n in TEXTS
    ]
    return {"id": "q", "inputs": numbers + texts}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    for task in ("multiclass", "binary", "regression", "vector"):
        export_model(make_model(mixed_schema(task), mixed_frame()), str(folder / task))
    export_model(make_model(image_schema(8, 8), images(8, 8)), str(folder / "image"))
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Generator[str]:
    with serving(folder / "multiclass", most_bytes=100_000) as address:
        yield address


@pytest.mark.parametrize("task", ["multiclass", "binary", "regression", "vector"])
def test_a_server_answers_what_load_model_does(folder: Path, task: str) -> None:
    frame = mixed_frame().iloc[15:60]
    model = kubestill.load_model(str(folder / task))
    with serving(folder / task) as address:
        about = requests.get(address, timeout=9).json()
        answer = requests.post(f"{address}/infer", json=tensors(frame), timeout=9).json()
    assert [one["name"] for one in about["inputs"]] == list(model.columns)
    assert answer["model_version"] == about["versions"][0] == model.digest[:12]
    assert answer["id"] == "q"
    found = {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in answer["outputs"]}
    expected = model(frame)
    for told, given in zip(about["outputs"], answer["outputs"], strict=True):
        assert told["datatype"] == given["datatype"]
        assert given["shape"] == [45, *told["shape"][1:]]
    if task in ("regression", "vector"):
        np.testing.assert_allclose(found["prediction"].squeeze(), expected.to_numpy().squeeze())
        return
    assert about["outputs"][1]["parameters"]["names"] == list(model.spec.outputs)
    assert found["prediction"].tolist() == expected["prediction"].tolist()
    np.testing.assert_allclose(found["probabilities"], expected.iloc[:, 1:])


def test_tensors_go_in_flat_or_nested(folder: Path) -> None:
    frame = images(8, 8, rows=3)
    expected = kubestill.load_model(str(folder / "image"))(frame)
    cells = frame["image"].to_list()
    with serving(folder / "image") as address:
        for data in (cells, np.array(cells).reshape(-1).tolist()):
            body = {"name": "image", "datatype": "FP32", "shape": [3, 8, 8], "data": data}
            answer = requests.post(f"{address}/infer", json={"inputs": [body]}, timeout=9).json()
            found = np.array(answer["outputs"][1]["data"]).reshape(3, -1)
            np.testing.assert_allclose(found, expected.iloc[:, 1:], rtol=1e-6)


def test_the_protocol_s_other_addresses(address: str) -> None:
    root = address.removesuffix("/models/m")

    def get(url: str) -> Any:
        found = requests.get(url, timeout=9)
        assert found.status_code == 200
        return found.json()

    assert get(root)["name"] == "kubestill"
    assert get(f"{root}/health/live") == {"live": True}
    assert get(f"{root}/health/ready") == {"ready": True}
    assert get(f"{address}/ready") == {"name": "m", "ready": True}
    version = get(address)["versions"][0]
    assert get(f"{address}/versions/{version}")["name"] == "m"
    sample = tensors(mixed_frame().head(1)) | {"outputs": [{"name": "probabilities"}]}
    answer = requests.post(f"{address}/versions/{version}/infer", json=sample, timeout=9).json()
    assert [one["name"] for one in answer["outputs"]] == ["probabilities"]
    for wrong in (f"{address}/versions/7", f"{root}/models/n", f"{root}/models/n/ready"):
        refused = requests.get(wrong, timeout=9)
        assert refused.status_code == 404
        assert "there is no" in refused.json()["error"]


def stream(table: pa.Table, **options: Any) -> bytes:
    """Write a table in Arrow's stream format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as out:
        out.write_table(table)
    return sink.getvalue().to_pybytes()


AS_ARROW = {"Content-Type": "application/vnd.apache.arrow.stream"}


@pytest.mark.parametrize("task", ["multiclass", "vector"])
def test_a_table_of_arrow_goes_in_and_comes_out(folder: Path, task: str) -> None:
    frame = mixed_frame().iloc[15:60]
    table = pa.Table.from_pandas(frame, preserve_index=False)
    # Labels in a dictionary are what pandas and polars write of categories.
    place = table.column_names.index("city")
    table = table.set_column(place, "city", table["city"].dictionary_encode())
    model = kubestill.load_model(str(folder / task))
    body = stream(table)
    with serving(folder / task) as address:
        told = requests.post(f"{address}/infer", data=body, headers=AS_ARROW, timeout=9).json()
        both = AS_ARROW | {"Accept": AS_ARROW["Content-Type"]}
        found = requests.post(f"{address}/infer", data=body, headers=both, timeout=9)
    assert found.headers["content-type"] == AS_ARROW["Content-Type"]
    answers = pa.ipc.open_stream(found.content).read_all()
    assert answers.equals(model(table))
    assert [one["shape"][0] for one in told["outputs"]] == [45] * len(told["outputs"])
    assert told["outputs"][0]["name"] == "prediction"


ROW = mixed_frame().head(3)
TABLE = pa.Table.from_pandas(ROW, preserve_index=False)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "is no stream of Arrow"),
        (b"[1]", "is no stream of Arrow"),
        (stream(TABLE)[:200], "is no stream of Arrow"),
        (stream(TABLE, compression="zstd"), "is compressed; send the stream uncompressed"),
        (
            stream(
                TABLE.select(["area"]).append_column("city", TABLE["city"].dictionary_encode()),
                compression="lz4",
            ),
            "is compressed",
        ),
        (stream(TABLE.drop_columns(["city"])), "'city': feature is missing"),
        (stream(pa.table({"area": pa.nulls(10**9)})), "claims 1,000,000,000 rows"),
    ],
    ids=["empty", "json", "cut", "packed", "packed-labels", "column", "nulls"],
)
def test_a_table_that_is_none_is_refused(address: str, body: bytes, told: str) -> None:
    answer = requests.post(f"{address}/infer", data=body, headers=AS_ARROW, timeout=9)
    assert answer.status_code == 400, answer.text
    assert told in answer.json()["error"]


def test_damaged_tables_end_in_answers(address: str) -> None:
    whole, chance = stream(TABLE), np.random.default_rng(0)
    with requests.Session() as session:
        for _ in range(150):
            body = bytearray(whole)
            for place in chance.integers(0, len(body), chance.integers(1, 5)):
                body[place] = chance.integers(256)
            answer = session.post(f"{address}/infer", data=bytes(body), headers=AS_ARROW, timeout=9)
            assert answer.status_code in (200, 400), answer.text


def test_what_training_never_saw_is_counted_and_refused_where_asked(folder: Path) -> None:
    frame = mixed_frame().head(4).assign(city=["Nowhere", "Nowhere", None, "Nowhere"])
    body = tensors(frame)

    def metric(address: str, name: str) -> dict[str, float]:
        text = requests.get(address.partition("/v2")[0] + "/metrics", timeout=9).text
        found = re.findall(rf"^{name}\{{(.*)\}} (\S+)$", text, re.M)
        return {labels: float(value) for labels, value in found}

    with serving(folder / "binary") as address:
        assert requests.post(f"{address}/infer", json=body, timeout=9).ok
        assert metric(address, "kubestill_rows_total") == {'model="m"': 4.0}
        (counted,) = metric(address, "kubestill_unfamiliar_rows_total").items()
    assert counted == ('column="city",model="m",what="unseen label"', 3.0)
    with serving(folder / "binary", strict=True) as address:
        refused = requests.post(f"{address}/infer", json=body, timeout=9)
        assert refused.status_code == 400
        assert "unseen label" in refused.json()["error"]
        assert requests.post(f"{address}/infer", json=tensors(frame.iloc[2:3]), timeout=9).ok


ONE = tensors(mixed_frame().head(1))


def changed(place: int, **fields: Any) -> dict[str, Any]:
    inputs = [dict(one) for one in ONE["inputs"]]
    inputs[place] |= fields
    return {"inputs": inputs}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "cannot be read as JSON"),
        (b"[]", "holds no JSON object"),
        (b'{"inputs": NaN}', "not finite"),
        (b"[" * 50_000, "nested deeper"),
        (b"\xff", "cannot be read"),
        ({}, "inputs = 'NoneType': must be a list"),
        ({"inputs": []}, "5 problems.*'area': feature is missing"),
        ({"inputs": [3]}, r"inputs\[0\]\.name = None"),
        ({"inputs": [*ONE["inputs"], ONE["inputs"][0]]}, "is there twice"),
        (changed(0, shape=[2]), "1 value.*must be as many as"),
        (changed(0, shape=[-1]), r"area\.shape = \[-1\]: must be \[rows\]"),
        (changed(0, shape=[1, 2], data=[1, 2]), "must be"),
        (changed(0, shape=[2], data=[1, 2]), "different lengths"),
        (changed(0, shape=[10**15], data=[1]), "must be as many as"),
        (changed(0, data="AAAA"), r"area\.data = 'str': must be a list; binary data is not read"),
        (changed(0, datatype="fp64"), r"area\.datatype = 'fp64': must be one of BOOL"),
        (changed(0, data=["wide"]), "column 'area' = 'wide': holds str, not numbers"),
        (changed(2, data=[2]), "column 'garden' = 2: holds int, not truth values"),
        (ONE | {"outputs": [{"name": "probability"}]}, "did you mean 'probabilities'"),
    ],
)
def test_a_request_that_does_not_fit_is_told_why(address: str, body: Any, told: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    refused = requests.post(f"{address}/infer", data=content, timeout=9)
    assert refused.status_code == 400
    assert re.search(told, refused.json()["error"], re.DOTALL), refused.json()
    assert requests.post(f"{address}/infer", json=ONE, timeout=9).status_code == 200


def test_a_request_that_is_too_large_is_refused_unread(address: str) -> None:
    for body in (b"x" * 100_001, iter([b"x" * 60_000] * 2)):
        refused = requests.post(f"{address}/infer", data=body, timeout=9)
        assert refused.status_code == 413
        assert "100,000 bytes" in refused.json()["error"]


MOODY = """
import time
from torch import nn

class Moody(nn.Module):
    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.layer = nn.Linear(in_features, out_features)

    def forward(self, features):
        time.sleep(0.02)
        if features.max() > 1e6:
            raise RuntimeError("not today")
        return self.layer(features)
"""


@pytest.mark.parametrize("network", ["mlp", "moody:Moody"], ids=["here", "in a thread"])
def test_concurrent_callers_get_their_own_answers_out_of_common_batches(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moody.py").write_text(MOODY)
    monkeypatch.syspath_prepend(str(tmp_path))
    export_model(
        make_model(mixed_schema("regression"), mixed_frame(), network=network), str(tmp_path / "m")
    )
    frame = mixed_frame().head(64)
    expected = kubestill.load_model(str(tmp_path / "m"), trust=("moody",))(frame)["prediction"]
    poison = tensors(frame.head(1))
    poison["inputs"][0]["data"] = [1e30]

    def ask(place: int) -> Any:
        body = tensors(frame.iloc[[place]]) if place >= 0 else poison
        return requests.post(f"{address}/infer", json=body, timeout=30)

    places = [*range(64), -1, -1]
    with serving(tmp_path / "m") as address, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, places))
        metrics = requests.get(f"{address.partition('/v2')[0]}/metrics", timeout=9).text
    for place, answer in zip(places, answers, strict=True):
        if place >= 0:
            (found,) = answer.json()["outputs"][0]["data"]
            assert abs(found / expected[place] - 1) < 1e-6
        else:
            assert answer.status_code == (500 if network != "mlp" else 200)
    counts = dict(re.findall(r'^(kubestill_batch_rows_\w+)\{model="m"\} (\S+)', metrics, re.M))
    assert float(counts["kubestill_batch_rows_sum"]) == len(places)
    if network != "mlp":
        assert float(counts["kubestill_batch_rows_count"]) < len(places) / 2
        assert 'kubestill_requests_total{code="500",model="m"} 2.0' in metrics


def promote(registry: Path, version: int, *, weights: bytes | None = None) -> bytes:
    """Make a model champion as promote-model does, and return its weights: model first, then state.

    Args:
        registry: Its folder.
        version: Of the champion.
        weights: What lies there in place of its weights.
    """
    model = make_model(mixed_schema("regression"), mixed_frame(), seed=version)
    folder = registry / "champions" / str(version) / "model"
    written = export_model(model, str(folder))
    sound = (folder / "model.safetensors").read_bytes()
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    champion = Champion(
        version=version,
        run_id=f"run-{version}",
        window="w",
        promoted_at="2026-01-01T00:00:00+00:00",
        folder=f"champions/{version}",
        model_digest=written.digest,
        decision=DecisionRecord(
            decision="promote",
            reason="It is better.",
            model=written.digest,
            baseline="",
            dataset="d",
        ),
    )
    open_registry(str(registry)).change(
        lambda state: state.model_copy(update={"champion": champion})
    )
    return sound


def until(true: Callable[[], object]) -> None:
    for _ in range(400):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("nothing happened")


def test_a_new_champion_is_served_as_soon_as_it_can_be_and_no_request_is_lost(
    tmp_path: Path,
) -> None:
    promote(tmp_path, 1)
    seen: list[tuple[str, float]] = []
    failed: list[str] = []
    ended = threading.Event()

    def ask(address: str) -> None:
        with requests.Session() as session:
            while not ended.is_set():
                answer = session.post(f"{address}/infer", json=ONE, timeout=9)
                if answer.status_code == 200:
                    (output,) = answer.json()["outputs"]
                    seen.append((answer.json()["model_version"], output["data"][0]))
                else:
                    failed.append(answer.text)

    with serving(tmp_path, poll_seconds=0.05) as address:
        root = address.partition("/v2")[0]

        def metrics() -> str:
            return requests.get(f"{root}/metrics", timeout=9).text

        client = threading.Thread(target=ask, args=[address])
        client.start()
        try:
            promote(tmp_path, 2)
            until(lambda: seen and seen[-1][0] == "2")
            # One whose files are not all there: the champion before stays, and the metrics say so.
            sound = promote(tmp_path, 3, weights=b"torn")
            until(lambda: 'kubestill_model_loads_total{model="m",outcome="failed"}' in metrics())
            assert seen[-1][0] == "2"
            assert requests.get(f"{address}/ready", timeout=9).status_code == 200
            (tmp_path / "champions/3/model/model.safetensors").write_bytes(sound)
            until(lambda: seen[-1][0] == "3")
            promote(tmp_path, 2)  # a rollback
            until(lambda: seen[-1][0] == "2")
        finally:
            ended.set()
            client.join()
        assert re.findall(r'^kubestill_model_info\{.*version="(.*)"', metrics(), re.M) == ["2"]
    assert failed == []
    answers = {version: {value for one, value in seen if one == version} for version, _ in seen}
    assert all(len(values) == 1 for values in answers.values()), "a version has one answer"
    assert len(set().union(*answers.values())) == len(answers) >= 2


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("absent", "holds neither model.json nor a registry with a champion"),
        ("torn", "model.safetensors"),
        ("stranger", "trust"),
        ("", "is empty|a folder|source"),
        ("ftp://x/y", "ftp"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anybody_is_answered(
    source: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere.py").write_text(MOODY)
    monkeypatch.syspath_prepend(str(tmp_path))
    if source in ("torn", "stranger"):
        network = "elsewhere:Moody" if source == "stranger" else "mlp"
        model = make_model(mixed_schema("regression"), mixed_frame(), network=network)
        export_model(model, source)
    if source == "torn":
        (tmp_path / source / "model.safetensors").unlink()
    done = CliRunner().invoke(main, ["serve", source, "--port", "0"])
    assert done.exit_code == 1
    assert re.search(told, done.output), done.output
    assert "Traceback" not in done.output


def test_a_port_that_cannot_be_taken_is_said_at_once() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = CliRunner().invoke(main, ["serve", "nowhere", "--port", str(port)])
    assert done.exit_code == 1
    assert f"port = '127.0.0.1:{port}': is in use" in done.output
    for host, number in (("192.0.2.1", 0), ("127.0.0.1", 1 << 20), ("no.such.host.invalid", 0)):
        with pytest.raises(InvalidInput, match="cannot be taken"):
            claim_port(host, number)
