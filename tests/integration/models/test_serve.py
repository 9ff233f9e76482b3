from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_samples import (  # pyright: ignore[reportMissingImports]
    image_schema,
    images,
    make_model,
    mixed_frame,
    mixed_schema,
)

from kubestill.runtime.data.decode import RawLayout, decode_features
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.models.serve import SPEC_KEY, export_onnx, export_torch

MODELS: dict[str, tuple[Any, ...]] = {
    "mixed, regression": (mixed_schema("regression"), mixed_frame(), {}),
    "mixed, norm and skip": (
        mixed_schema("multiclass"),
        mixed_frame(),
        {"network_args": {"hidden": [9, 9], "norm": "batch", "dropout": 0.1, "residual": True}},
    ),
    "image, mlp": (image_schema(8, 8), images(8, 8), {}),
    "colours, conv": (image_schema(3, 8, 8), images(3, 8, 8), {"network": "own_networks:TinyConv"}),
}


@pytest.fixture(params=MODELS)
def served(request: pytest.FixtureRequest) -> tuple[Predictor, np.ndarray]:
    schema, frame, options = MODELS[request.param]
    model = make_model(schema, frame, **options)
    return Predictor(model), decode_features(frame, RawLayout(schema))


def test_onnx_gives_what_the_predictor_gives(
    served: tuple[Predictor, np.ndarray], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    predictor, raw = served
    path = str(tmp_path / "model.onnx")
    export_onnx(predictor.model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows in (1, 2, len(raw)):
        (found,) = session.run(["outputs"], {"raw": raw[:rows]})
        np.testing.assert_allclose(found, predictor.logits(raw[:rows]), rtol=1e-5, atol=1e-5)
    kept = session.get_modelmeta().custom_metadata_map[SPEC_KEY]
    assert json.loads(kept) == json.loads(json.dumps(predictor.spec.to_json()))
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"], "one file is all"


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
