"""One file that serves without this package: ONNX, or torch.export.

Both take `raw` [B, R] float32 for any B and give what `Model.forward` gives: logits or predictions
in target units. How a raw row is laid out stands in the spec, which travels inside the file.
"""

from __future__ import annotations

import json
import os
import warnings
from importlib.util import find_spec
from typing import Literal

import torch

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.model import Model

__all__ = [
    "SPEC_KEY",
    "Serving",
    "add_serving_file",
    "check_serving",
    "export_onnx",
    "export_torch",
]

Serving = Literal["none", "onnx", "torch"]
"""What a model's folder holds beside the model itself."""

SPEC_KEY = "kubestill/model.json"
"""Name of the spec among an ONNX file's metadata."""

# Two rows: torch.export takes a batch of one for a constant.
EXAMPLE_ROWS = 2


def check_serving(serving: Serving, field: str) -> None:
    """Check, before anything expensive, that the file can be written here.

    Raises:
        InvalidInput: The packages that ONNX needs are not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if serving == "onnx" and missing:
        remedy = (
            f"needs {' and '.join(missing)}: install kubestill[onnx] in the image, or use torch"
        )
        raise InvalidInput([Problem(field, serving, remedy)])


def add_serving_file(folder: str, serving: Serving) -> None:
    """Write `model.onnx` or `model.pt2` beside an exported model; "none" writes nothing.

    Args:
        folder: Of an export.
        serving: Which file.
    """
    if serving == "onnx":
        export_onnx(load_model(folder).model, os.path.join(folder, "model.onnx"))
    elif serving == "torch":
        export_torch(load_model(folder).model, os.path.join(folder, "model.pt2"))


def export_onnx(model: Model, path: str) -> None:
    """Write an ONNX file with input `raw` [rows, R] and output `outputs` [rows, K or T].

    Needs the packages `onnx` and `onnxscript` (the extra `kubestill[onnx]`).
    """
    from torch.export import Dim

    with warnings.catch_warnings():
        # The exporter warns about its own future, which its caller can do nothing about.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval(),
            (_example(model),),
            dynamo=True,
            input_names=["raw"],
            output_names=["outputs"],
            dynamic_shapes=({0: Dim("rows")},),
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[SPEC_KEY] = json.dumps(model.spec.to_json())
    program.save(path, external_data=False)


def export_torch(model: Model, path: str) -> None:
    """Write a torch.export file; `torch.export.load(path).module()(raw)` runs it.

    The spec is the extra file `model.json`.
    """
    from torch.export import Dim

    exported = torch.export.export(
        model.eval(), (_example(model),), dynamic_shapes=({0: Dim("rows")},)
    )
    extra = {"model.json": json.dumps(model.spec.to_json())}
    torch.export.save(exported, path, extra_files=extra)


def _example(model: Model) -> torch.Tensor:
    return torch.zeros(EXAMPLE_ROWS, model.encoder.raw_width, device=model.device)
