"""Write one file that serves without this package: ONNX, or torch.export.

Both take `raw` [B, R] float32 for any B and give what `Model.forward` gives: logits or predictions
in target units. How a raw row is laid out stands in the spec, which travels inside the file.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, suppress
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
"""The serving file beside an exported model."""

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


def add_serving_file(folder: str, serving: Serving, *, trust: Iterable[str] = ()) -> None:
    """Write `model.onnx` or `model.pt2` beside an exported model; "none" writes nothing.

    Not every network can be exported, and whether one can shows only here, after training. The
    model survives that: a line starting with WARNING says why there is no such file.

    Args:
        folder: The export.
        serving: Which file.
        trust: Packages that the caller trusts; see `load_model`.

    Raises:
        OSError: The file cannot be written.
    """
    if serving == "none":
        return
    name, export = _EXPORTS[serving]
    model = load_model(folder, trust=trust).model
    # A folder, since both exporters care about the file's name.
    with tempfile.TemporaryDirectory(prefix=".serving-", dir=folder) as draft:
        try:
            # Where it fails, torch prints the whole graph there, which would bury the warning.
            with redirect_stderr(io.StringIO()):
                export(model, os.path.join(draft, name))
        except OSError:
            # The disk failed, not the network: trying again may help.
            raise
        except Exception as error:
            # The file of an earlier model in this folder would pass for that of this one.
            with suppress(FileNotFoundError):
                os.remove(os.path.join(folder, name))
            network = model.spec.network["factory"]
            print(
                f"WARNING: no {name}: the network {network!r} cannot be exported with "
                f"serving={serving!r} ({_reason(error)}). The model itself is complete; to serve "
                "it, use kubestill.load_model, or change the network's forward and train again",
                flush=True,
            )
            return
        for made in os.listdir(draft):
            os.replace(os.path.join(draft, made), os.path.join(folder, made))


def _reason(error: BaseException) -> str:
    """Return one line on what an exporter, which wraps errors in pages of advice, stumbled over."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [type(error).__name__, *lines[:1]]
    # Torch quotes the user's own line as a traceback does.
    places = [place for place, line in enumerate(lines[:-1]) if line.startswith('File "')]
    return ": ".join(told + [line for place in places[-1:] for line in lines[place : place + 2]])


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


_EXPORTS: dict[Serving, tuple[str, Callable[[Model, str], None]]] = {
    "onnx": ("model.onnx", export_onnx),
    "torch": ("model.pt2", export_torch),
}


def _example(model: Model) -> torch.Tensor:
    return torch.zeros(EXAMPLE_ROWS, model.encoder.raw_width, device=model.device)
