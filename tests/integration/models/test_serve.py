from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from model_samples import (  # pyright: ignore[reportMissingImports]
    image_schema,
    images,
    make_model,
    mixed_frame,
    mixed_schema,
)

from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.models.export import export_model
from kubestill.runtime.models.foreign.pt2_file import ExportedProgram
from kubestill.runtime.models.foreign.runtime import Block
from kubestill.runtime.models.foreign.spec import Input
from kubestill.runtime.models.networks import NETWORKS
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.models.serve import (
    REQUEST_FILE,
    Serving,
    add_serving_file,
    export_torch,
)

# What every built-in network for numbers takes: a field, and another on its grid.
FIELDS = Schema(
    columns=(
        Column(name="before", kind="tensor", shape=(16,)),
        Column(name="after", kind="tensor", role="target", shape=(16,)),
    ),
    task="regression",
)
SMALLER = {"fno": {"modes": 4, "channels": 8, "layers": 2}}

MODELS: dict[str, tuple[Any, ...]] = {
    "mixed, regression": (mixed_schema("regression"), mixed_frame(), {}),
    "mixed, norm and skip": (
        mixed_schema("multiclass"),
        mixed_frame(),
        {"network_args": {"hidden": [9, 9], "norm": "batch", "dropout": 0.1, "residual": True}},
    ),
    "mixed, tabm": (mixed_schema("multiclass"), mixed_frame(), {"network": "tabm"}),
    "image, mlp": (image_schema(8, 8), images(8, 8), {}),
    "colours, conv": (image_schema(3, 8, 8), images(3, 8, 8), {"network": "own_networks:TinyConv"}),
}


def fields() -> pd.DataFrame:
    rows = np.random.default_rng(3).random((30, 16)).astype(np.float32)
    return pd.DataFrame({"before": [row.tolist() for row in rows]})


MODELS |= {
    f"field, {name}": (FIELDS, fields(), {"network": name, "network_args": SMALLER.get(name, {})})
    for name in NETWORKS
    if name != "transformer"
}
PLANES = Schema(
    columns=(
        Column(name="before", kind="tensor", shape=(2, 6, 8)),
        Column(name="after", kind="tensor", role="target", shape=(3, 6, 8)),
    ),
    task="regression",
)
MODELS["planes, fno"] = (
    PLANES,
    pd.DataFrame({"before": list(np.random.default_rng(4).random((30, 2, 6, 8)))}),
    {
        "network": "fno",
        "network_args": {"modes": [2, 3], "channels": 4, "layers": 1, "padding": 0.25},
    },
)
MODELS["planes, own"] = (*MODELS["planes, fno"][:2], {"network": "own_networks:Planes"})


@pytest.fixture(params=MODELS)
def served(request: pytest.FixtureRequest) -> tuple[Predictor, np.ndarray]:
    schema, frame, options = MODELS[request.param]
    model = make_model(schema, frame, **options)
    return Predictor(model), decode_features(frame, RawLayout(schema))


def test_torch_export_gives_what_the_predictor_gives(
    served: tuple[Predictor, np.ndarray], tmp_path: Path
) -> None:
    predictor, raw = served
    path = str(tmp_path / "model.pt2")
    export_torch(predictor.model, path)
    extra = {"model.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    for rows in (1, 2, len(raw)):
        found = program(torch.from_numpy(raw[:rows])).detach().numpy()
        np.testing.assert_allclose(found, predictor.logits(raw[:rows]), rtol=1e-6, atol=1e-6)
    assert json.loads(extra["model.json"])["task"] == predictor.spec.task
    # The file comes back as a teacher, without torch's loader.
    inputs = tuple(Input(name=column.name) for column in predictor.spec.schema.features)
    back = ExportedProgram(Path(path).read_bytes())
    found = back.predict(Block(raw, predictor.layout, inputs))
    np.testing.assert_allclose(found, predictor.logits(raw), rtol=1e-6, atol=1e-6)


def test_complex_weights_are_served_by_torch_and_refused_by_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBESTILL_TRUST", "own_networks")
    schema, frame, _ = MODELS["planes, fno"]
    model = make_model(schema, frame, network="own_networks:Library")
    export_model(model, str(tmp_path))
    for serving in ("torch", "onnx"):
        add_serving_file(str(tmp_path), serving)
    program = torch.export.load(str(tmp_path / "model.pt2")).module()
    raw = decode_features(frame, RawLayout(schema))
    found = program(torch.from_numpy(raw)).detach().numpy()
    np.testing.assert_allclose(found, Predictor(model).logits(raw), rtol=1e-6, atol=1e-6)
    assert not (tmp_path / "model.onnx").exists()
    warnings = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    (warning,) = warnings
    assert "no model.onnx" in warning
    assert "complex" in warning


OWN = """
from torch import nn

class Steep(nn.Module):
    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.layer = nn.Linear(in_features, out_features)

    def forward(self, features):
        found = self.layer(features)
        return found * 2 if found.sum() > 0 else found
"""


@pytest.mark.parametrize(("serving", "name"), [("torch", "model.pt2"), ("onnx", "model.onnx")])
def test_a_network_that_cannot_be_exported_costs_no_training(
    serving: Serving,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "branching.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = make_model(mixed_schema("regression"), mixed_frame(), network="branching:Steep")
    folder = tmp_path / "model"
    export_model(model, str(folder))
    whole = sorted(item.name for item in folder.iterdir())
    for stale in (name, REQUEST_FILE):
        (folder / stale).write_bytes(b"of an earlier model")
    add_serving_file(str(folder), serving)
    shown = capsys.readouterr()
    (warning,) = [line for line in shown.out.splitlines() if line.startswith("WARNING")]
    assert f"no {name}: the network 'branching:Steep'" in warning
    assert f"serving={serving!r}" in warning
    assert "data-dependent" in warning
    assert "if found.sum() > 0" in warning, "the line at fault"
    assert "class GraphModule" not in shown.err, "pages that bury the warning"
    assert sorted(item.name for item in folder.iterdir()) == whole


@pytest.mark.parametrize(("serving", "name"), [("torch", "model.pt2"), ("onnx", "model.onnx")])
def test_the_file_replaces_an_earlier_one(serving: Serving, name: str, tmp_path: Path) -> None:
    export_model(make_model(mixed_schema("binary"), mixed_frame()), str(tmp_path))
    whole = [item.name for item in tmp_path.iterdir()]
    (tmp_path / name).write_bytes(b"of an earlier model")
    add_serving_file(str(tmp_path), serving)
    beside = [REQUEST_FILE] if serving == "onnx" else []
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted([*whole, name, *beside])
    if serving == "torch":
        program = torch.export.load(str(tmp_path / name)).module()
        assert program(torch.zeros(5, 5)).shape == (5, 1)
    else:
        import onnx

        onnx.checker.check_model(str(tmp_path / name))


def test_a_place_that_takes_no_file_is_no_fault_of_the_network(tmp_path: Path) -> None:
    export_model(make_model(mixed_schema("binary"), mixed_frame()), str(tmp_path))
    whole = sorted(item.name for item in tmp_path.iterdir())
    (tmp_path / "model.pt2").mkdir()
    (tmp_path / "model.pt2" / "in the way").touch()
    with pytest.raises(OSError, match=r"model\.pt2"):
        add_serving_file(str(tmp_path), "torch")
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted([*whole, "model.pt2"])
