"""ONNX files, fed by onnxruntime alone with columns as they are, give what `load_model` gives."""

from __future__ import annotations

import json
import logging
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from model_samples import (  # pyright: ignore[reportMissingImports]
    CITIES,
    TARGETS,
    image_schema,
    images,
    make_model,
    mixed_frame,
    mixed_schema,
)

import kubestill
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.models.export import export_model
from kubestill.runtime.models.foreign.bring import bring
from kubestill.runtime.models.foreign.match import Options
from kubestill.runtime.models.networks import NETWORKS
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.models.serve import REQUEST_FILE, SIGNATURE_KEY, SPEC_KEY, add_serving_file

onnxruntime = pytest.importorskip("onnxruntime")

ROWS = 60
DRAW = np.random.default_rng(5)


def choose(values: list[Any]) -> list[Any]:
    return [values[place] for place in DRAW.integers(0, len(values), ROWS)]


def category(*labels: str) -> dict[str, Any]:
    return {"kind": "categorical", "categories": labels}


COLUMNS: dict[str, tuple[dict[str, Any], list[Any], Any]] = {
    "numeric": ({"kind": "numeric"}, list(DRAW.normal(1e3, 1e-2, ROWS)), 1e300),
    "integer": ({"kind": "numeric"}, list(DRAW.integers(-(1 << 40), 1 << 40, ROWS)), 1 << 60),
    "boolean": ({"kind": "boolean"}, choose([True, False]), None),
    "text": (category("", "green", "red ü"), choose(["", "green", "red ü"]), "violet"),
    "text, many": (category(*CITIES), choose(list(CITIES)), "Atlantis"),
    "looks like a number": (category("007", "01"), choose(["007", "01"]), "7"),
    "number": (category("-1", "0", "7"), choose([-1, 0, 7]), 8),
    "number, many": (category(*map(str, range(30))), choose(list(range(30))), 30),
    "fraction": (category("-0.5", "0.1", "3"), choose([-0.5, 0.1, 3.0]), 0.25),
    "beyond float64": (
        category("9007199254740993", "9007199254740995"),
        choose([9007199254740993, 9007199254740995]),
        1 << 62,
    ),
    "truth as labels": (category("false", "true"), choose([True, False]), "maybe"),
}
"""By name: the column, its values, and one that training never saw."""


def case(kind: str, *, missing: bool) -> tuple[Column, list[Any], Any]:
    settings, values, unseen = COLUMNS[kind]
    if missing:
        values = [None if row % 7 == 3 else value for row, value in enumerate(values)]
    return Column(name=f"{kind}.{missing}", **settings), values, unseen


def feed(session: Any, rows: dict[str, list[Any]]) -> dict[str, Any]:
    """Bring Python's values into what the session says that it takes."""
    found: dict[str, Any] = {}
    signature = json.loads(session.get_modelmeta().custom_metadata_map[SIGNATURE_KEY])
    told = {one["name"]: one.get("parameters", {}) for one in signature["inputs"]}
    for given in session.get_inputs():
        values = rows[given.name]
        if given.type == "tensor(string)":
            missing = told[given.name]["missing"]
            text = [
                missing if v is None else str(v).lower() if isinstance(v, bool) else str(v)
                for v in values
            ]
            found[given.name] = np.array(text, dtype=object)
        elif given.type == "tensor(double)":
            found[given.name] = np.array(values, dtype=np.float64)
        else:
            assert given.type == "tensor(float)"
            found[given.name] = np.array(values, dtype=np.float32)
    return found


def open_session(folder: Path) -> Any:
    path = str(folder / "model.onnx")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def check(folder: Path, schema: Schema, rows: dict[str, list[Any]], **options: Any) -> Any:
    """Export a model fitted on rows, and compare what its file and `load_model` say of them."""
    model = make_model(schema, pd.DataFrame(rows, dtype=object), **options)
    export_model(model, str(folder))
    add_serving_file(str(folder), "onnx", trust=("own_networks",))
    session = open_session(folder)
    compare(session, kubestill.load_model(str(folder), trust=("own_networks",)), rows)
    return session


def compare(session: Any, loaded: Predictor, rows: dict[str, list[Any]]) -> None:
    names = [one.name for one in session.get_outputs()]
    for size in (1, 2, len(next(iter(rows.values())))):
        some = {name: values[:size] for name, values in rows.items()}
        found = dict(zip(names, session.run(None, feed(session, some)), strict=True))
        if loaded.spec.task == "regression":
            wanted = loaded.fields(some)
            np.testing.assert_allclose(found["prediction"], wanted, rtol=1e-5, atol=1e-5)
            continue
        expected = loaded(some)
        wanted = np.array([expected[f"p_{name}"] for name in loaded.spec.outputs]).T
        np.testing.assert_allclose(found["probabilities"], wanted, rtol=0, atol=1e-5)
        first, second = np.sort(wanted, axis=1)[:, :-3:-1].T
        sure = first - second > 1e-4
        labels = np.array(expected["prediction"], dtype=object)
        assert (found["prediction"][sure] == labels[sure]).all()


CASES = list(product(COLUMNS, [False, True]))
AS_TEXT = {"text", "text, many", "looks like a number", "beyond float64", "truth as labels"}


# What `tabm` says of one number far beyond training is a difference of large ones, which rounds.
TASKS = [*((task, "mlp") for task in TARGETS), ("binary", "tabm"), ("multiclass", "tabm")]


@pytest.mark.parametrize(("task", "network"), TASKS)
def test_every_kind_of_column_goes_in_as_it_is(task: str, network: str, tmp_path: Path) -> None:
    columns = [case(kind, missing=missing) for kind, missing in CASES]
    target = TARGETS[task]
    form = Schema(
        columns=(*(column for column, _, _ in columns), target),
        task="regression" if task == "vector" else task,  # pyright: ignore[reportArgumentType]
    )
    rows = {column.name: values for column, values, _ in columns}
    session = check(tmp_path, form, rows, network=network)
    assert [one.type for one in session.get_inputs()] == [
        "tensor(string)" if kind in AS_TEXT else "tensor(double)" for kind, _ in CASES
    ]
    # A row for each value that training never saw; and one missing, where it never saw that, too.
    odd = {name: list(values[:1]) for name, values in rows.items()}
    for column, _, unseen in columns:
        for value in (unseen, None):
            for name, values in rows.items():
                odd[name].append(value if name == column.name else values[len(odd[name]) % ROWS])
    ours = kubestill.load_model(str(tmp_path))
    compare(session, ours, odd)
    if network == "mlp":
        comes_back(tmp_path, form, rows, ours)


def comes_back(folder: Path, schema: Schema, rows: dict[str, list[Any]], ours: Predictor) -> None:
    """Bring the file in as a foreign model, which has to answer like the model that it is of."""
    target = schema.target
    assert target is not None
    labels = [target.categories[row % 2] if target.categories else 1.0 for row in range(ROWS)]
    values = [[1.0] * target.width] * ROWS if target.shape else labels
    with DatasetWriter(str(folder / "rows"), schema) as writer:
        writer.write(pd.DataFrame({**rows, target.name: values}, dtype=object))
    options = Options(output_name="prediction") if schema.task == "regression" else Options()
    found = bring(str(folder / "model.onnx"), Dataset.open(str(folder / "rows")), options)
    assert found is not None
    found.write(str(folder / "back"))
    theirs = kubestill.load_model(str(folder / "back"))
    assert theirs.spec.schema.classes == ours.spec.schema.classes
    told, wanted = theirs(rows), ours(rows)
    for name in wanted:
        if name != "prediction" or schema.task == "regression":
            np.testing.assert_allclose(told[name], wanted[name], rtol=1e-4, atol=1e-5)


@cache
def fields() -> tuple[Schema, dict[str, list[Any]]]:
    rows = np.random.default_rng(3).random((6, 16)).astype(np.float32)
    columns = (
        Column(name="before", kind="tensor", shape=(16,)),
        Column(name="after", kind="tensor", role="target", shape=(16,)),
    )
    return Schema(columns=columns, task="regression"), {"before": rows.tolist()}


@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "transformer"])
def test_every_network_that_reads_numbers_can_be_exported(network: str, tmp_path: Path) -> None:
    smaller = {"fno": {"modes": 4, "channels": 8, "layers": 2}}
    form, rows = fields()
    session = check(tmp_path, form, rows, network=network, network_args=smaller.get(network, {}))
    assert session.get_inputs()[0].shape == ["rows", 16]


def test_images_and_planes_keep_their_shapes(tmp_path: Path) -> None:
    pictures = {"image": images(3, 8, 8, rows=6)["image"].to_list()}
    conv = {"network": "conv", "network_args": {"channels": [4, 8], "dropout": 0.1}}
    check(tmp_path / "a", image_schema(3, 8, 8), pictures, **conv)
    columns = (
        Column(name="before", kind="tensor", shape=(2, 6, 8)),
        Column(name="after", kind="tensor", role="target", shape=(3, 6, 8)),
    )
    planes = {"before": np.random.default_rng(4).random((5, 2, 6, 8)).tolist()}
    options = {"network": "own_networks:Planes"}
    form = Schema(columns=columns, task="regression")
    session = check(tmp_path / "b", form, planes, **options)
    assert session.get_outputs()[0].shape == ["rows", 3, 6, 8]


@pytest.mark.parametrize("shape", [(), (3,), (2, 4)], ids=["number", "list", "field"])
def test_numbers_far_from_zero_go_in_and_out_as_they_are(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    kind: Any = "tensor" if shape else "numeric"
    far: dict[str, Any] = {"kind": kind, "shape": shape, "exact": True, "offset": 1.7e9}
    columns = (Column(name="x", **far), Column(name="y", role="target", **far))
    rows = {"x": (1.7e9 + DRAW.normal(0, 1, (ROWS, *shape))).tolist()}
    session = check(tmp_path, Schema(columns=columns, task="regression"), rows)
    (told,) = session.run(None, feed(session, rows))
    assert told.dtype == np.float64
    wanted = kubestill.load_model(str(tmp_path)).fields(rows)
    np.testing.assert_allclose(told - 1.7e9, wanted - 1.7e9, atol=1e-5)
    assert np.ptp(told) > 0.01
    request = json.loads((tmp_path / REQUEST_FILE).read_text())
    assert np.abs(np.array(request["inputs"][0]["data"]) - 1.7e9).max() < 1


def test_names_of_columns_get_in_nobodys_way(tmp_path: Path) -> None:
    names = ["prediction", "probabilities", "raw", "outputs", "rows", "kubestill:raw", "a b/ü", "1"]
    columns = tuple(Column(name=name, kind="numeric") for name in names)
    form = Schema(columns=(*columns, TARGETS["binary"]), task="binary")
    rows = {name: list(DRAW.normal(size=5)) for name in names}
    model = make_model(form, pd.DataFrame(rows))
    export_model(model, str(tmp_path))
    add_serving_file(str(tmp_path), "onnx")
    session = open_session(tmp_path)
    assert [one.name for one in session.get_inputs()] == names
    assert [one.name for one in session.get_outputs()] == ["prediction_", "probabilities_"]
    (chances,) = session.run(["probabilities_"], {n: np.array(v) for n, v in rows.items()})
    expected = kubestill.load_model(str(tmp_path))(pd.DataFrame(rows))
    np.testing.assert_allclose(chances, expected[["p_no", "p_yes"]], rtol=0, atol=1e-5)


def test_the_file_says_what_it_takes_and_one_file_is_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = mixed_frame()
    model = make_model(mixed_schema("multiclass"), frame)
    export_model(model, str(tmp_path))
    torch_says = logging.getLogger("torch.onnx")
    torch_says.addHandler(caplog.handler)
    add_serving_file(str(tmp_path), "onnx")
    torch_says.removeHandler(caplog.handler)
    # A step's last line is its result: what the exporter says about itself would take its place.
    assert not [one.message for one in caplog.records if one.name.startswith("torch.onnx")]
    session = open_session(tmp_path)
    kept = session.get_modelmeta().custom_metadata_map
    spec = json.loads((tmp_path / "model.json").read_text())
    assert json.loads(kept[SPEC_KEY]) == spec
    signature = json.loads(kept[SIGNATURE_KEY])
    assert signature["outputs"][1] == {
        "name": "probabilities",
        "datatype": "FP32",
        "shape": [-1, 4],
        "parameters": {"names": ["a", "b", "c", "d"]},
    }
    assert signature["inputs"][3] == {
        "name": "colour",
        "datatype": "BYTES",
        "shape": [-1],
        "parameters": {"missing": "", "labels": ["blue", "green", "red"]},
    }
    request = json.loads((tmp_path / REQUEST_FILE).read_text())
    row = {one["name"]: one["data"] for one in request["inputs"]}
    assert abs(row["area"][0] - frame["area"].mean()) < 1e-3
    given = {
        name: np.array(v, object if name in ("colour", "city") else None) for name, v in row.items()
    }
    labels, chances = session.run(None, given)
    expected = kubestill.load_model(str(tmp_path))(
        {name: values[0] for name, values in row.items()}
    )
    assert labels[0] == expected["prediction"]
    np.testing.assert_allclose(chances[0], list(expected.values())[1:], rtol=0, atol=1e-5)
