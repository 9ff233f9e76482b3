"""Write one file that serves without this package: ONNX, or torch.export.

The ONNX file takes the columns as they are, numbers and labels, and gives labels and probabilities,
or values in target units: what `load_model` gives. Its metadata say so (`signature`). Of text it
takes the ids; `tokenizer.json` beside it says how they are made.

The torch.export file takes `raw` [B, R] float32 for any B and gives what `Model.forward` gives:
logits or values. How a raw row is laid out stands in the spec, which travels inside the file.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, redirect_stderr, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.fake_quantise import fold_norms, is_quantised, whole_numbers
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.rows import numeric_labels
from kubestill.runtime.models.signature import Signature, describe, sample_request
from kubestill.runtime.models.signature import Tensor as Input

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Serving = Literal["none", "onnx", "torch"]
"""The serving file beside an exported model."""

SPEC_KEY = "kubestill/model.json"
"""Name of the spec among an ONNX file's metadata."""

SIGNATURE_KEY = "kubestill/signature"
"""Name of the signature among them."""
REQUEST_FILE = "request.json"
"""Written beside the ONNX file: a request of one row, as a server takes it."""
TOKENIZER_FILE = "tokenizer.json"
"""Written beside the ONNX file of a model that reads text: how each column becomes ids."""

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
            for stale in (name, REQUEST_FILE, TOKENIZER_FILE):
                with suppress(FileNotFoundError):
                    os.remove(os.path.join(folder, stale))
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
    """Write an ONNX file with one input a column, and a sample request beside it.

    Inputs are `double` [rows] for numbers and truth values, NaN where missing, `string` [rows] for
    labels, `float` [rows, *shape] for tensors, and `int64` [rows, length] for the ids of text.
    Outputs are `prediction`, and for classes `probabilities` [rows, K] in the order of the labels.
    Both stand in the file's metadata. Layers that compute in 8 bits (`fake_quantise`) have weights
    of 8 bits in the file.

    Needs the packages `onnx` and `onnxscript` (the extra `kubestill[onnx]`).
    """
    import onnx
    from torch.export import Dim

    with warnings.catch_warnings(), _quiet(), whole_numbers(model.network):
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
    signature = describe(model.spec.schema, model.spec.outputs, ids=True)
    whole = _with_columns(program.model_proto, signature, model)
    if is_quantised(model.network):
        fold_norms(whole)
        shorten(whole)
    metadata = {SPEC_KEY: model.spec.to_json(), SIGNATURE_KEY: signature.to_json()}
    onnx.helper.set_model_props(whole, {key: json.dumps(form) for key, form in metadata.items()})
    _strip(whole)
    onnx.save(whole, path)
    means = {
        column.name: column.mean[0]
        for column in model.encoder.columns
        if column.kind in ("numeric", "tensor")
    }
    with open(os.path.join(os.path.dirname(path), REQUEST_FILE), "w", encoding="utf-8") as file:
        json.dump(sample_request(signature, means), file, indent=1)
    if forms := {one.name: one.tokenizer for one in signature.inputs if one.tokenizer}:
        with open(os.path.join(os.path.dirname(path), TOKENIZER_FILE), "w") as file:
            json.dump(forms, file, indent=1)


@contextmanager
def _quiet() -> Generator[None]:
    """Leave out what the exporter says of packages that no model of ours needs.

    The last line that a step prints counts as its result.
    """
    exporter = logging.getLogger("torch.onnx")
    before = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        yield
    finally:
        exporter.setLevel(before)


def _strip(model: ModelProto) -> None:
    """Remove what the exporter notes for its own use: most of a small file, with local paths."""
    versions = {one.domain: one.version for one in model.opset_import}
    model.ClearField("opset_import")
    for domain, version in versions.items():
        model.opset_import.add(domain=domain, version=version)
    # Any runtime infers the shapes in between from those of inputs and weights.
    model.graph.ClearField("value_info")
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def shorten(model: ModelProto) -> None:
    """Give what lies between inputs and outputs short names: a third of a small file is names."""
    graph = model.graph
    if any(one.HasField("g") or one.graphs for node in graph.node for one in node.attribute):
        return  # a branch or a loop refers to names outside of it
    fixed = {one.name for one in (*graph.input, *graph.output)} | {""}
    taken = set(fixed)
    short: dict[str, str] = {}

    def rename(name: str) -> str:
        if name in fixed:
            return name
        if name not in short:
            number = len(short)
            while (made := f"t{number}") in taken:
                number += 1
            taken.add(made)
            short[name] = made
        return short[name]

    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [rename(one) for one in node.input]
        node.output[:] = [rename(one) for one in node.output]
    used = {name for node in graph.node for name in node.input}
    for one in [*graph.initializer]:
        one.name = rename(one.name)
        if one.name not in used:
            graph.initializer.remove(one)
    graph.ClearField("value_info")


def _with_columns(core: ModelProto, signature: Signature, model: Model) -> ModelProto:
    """Return the network's graph between one that reads columns and one that answers."""
    from onnx import TensorProto, compose, helper

    types = {
        "FP64": TensorProto.DOUBLE,
        "FP32": TensorProto.FLOAT,
        "INT64": TensorProto.INT64,
        "BYTES": TensorProto.STRING,
    }
    opsets = {one.domain: one.version for one in core.opset_import} | {"ai.onnx.ml": 4}
    made = {
        "opset_imports": [helper.make_opsetid(*one) for one in opsets.items()],
        "ir_version": core.ir_version,
    }

    def value(one: Any) -> Any:
        shape = [size if place else "rows" for place, size in enumerate(one.shape)]
        return helper.make_tensor_value_info(one.name, types[one.datatype], shape)

    # The names of columns are the user's: those of all else must not be among them.
    mark = "kubestill:"
    while any(one.name.startswith(mark) for one in signature.inputs):
        mark += ":"
    raw, outputs = f"{mark}raw", f"{mark}outputs"
    width = model.encoder.raw_width
    reading = helper.make_graph(
        _reading(signature, raw, mark),
        "columns",
        [value(one) for one in signature.inputs],
        [helper.make_tensor_value_info(raw, TensorProto.FLOAT, ["rows", width])],
    )
    answering = helper.make_graph(
        _answering(signature, outputs, mark, model),
        "answers",
        [helper.make_tensor_value_info(outputs, TensorProto.FLOAT, ["rows", None])],
        [value(one) for one in signature.outputs],
    )
    core = compose.add_prefix(core, f"{mark}network/")
    for domain in opsets.keys() - {one.domain for one in core.opset_import}:
        core.opset_import.append(helper.make_opsetid(domain, opsets[domain]))
    entry, end = core.graph.input[0].name, core.graph.output[0].name
    whole = compose.merge_models(helper.make_model(reading, **made), core, io_map=[(raw, entry)])
    return compose.merge_models(
        whole, helper.make_model(answering, **made), io_map=[(end, outputs)]
    )


def _reading(signature: Signature, raw: str, mark: str) -> list[NodeProto]:
    """Return what turns columns into raw rows, as `datasets.decode` does."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node(
            "Constant", [], [f"{mark}1"], value=helper.make_tensor("", TensorProto.INT64, [1], [1])
        )
    ]
    places: list[str] = []
    for number, one in enumerate(signature.inputs):
        value, place = one.name, f"{mark}raw/{number}"
        if one.labels is not None:
            nodes.append(_codes(one, f"{mark}code/{number}"))
            value = f"{mark}code/{number}"
        if one.offset:
            common, less = f"{mark}offset/{number}", f"{mark}less/{number}"
            nodes.append(_number(common, one.offset))
            nodes.append(helper.make_node("Sub", [value, common], [less]))
            value = less
        if one.datatype != "FP32":
            single = f"{mark}single/{number}"
            nodes.append(helper.make_node("Cast", [value], [single], to=TensorProto.FLOAT))
            value = single
        if len(one.shape) > 1:
            nodes.append(helper.make_node("Flatten", [value], [place], axis=1))
        else:
            nodes.append(helper.make_node("Unsqueeze", [value, f"{mark}1"], [place]))
        places.append(place)
    return [*nodes, helper.make_node("Concat", places, [raw], axis=1)]


def _number(name: str, value: float) -> NodeProto:
    from onnx import TensorProto, helper

    number = helper.make_tensor("", TensorProto.DOUBLE, [], [value])
    return helper.make_node("Constant", [], [name], value=number)


def _codes(one: Input, output: str) -> NodeProto:
    """Return what turns the labels of a column into their codes, and all else into NaN."""
    from onnx import TensorProto, helper

    assert one.labels is not None
    node = {"domain": "ai.onnx.ml", "name": output}
    codes = [float(code) for code in range(len(one.labels))]
    if one.datatype == "BYTES":
        # Without labels there is nothing to find, which the operator does not take.
        labels = {"keys_strings": one.labels or [""], "values_floats": codes or [math.nan]}
        return helper.make_node(
            "LabelEncoder", [one.name], [output], default_float=math.nan, **labels, **node
        )
    numbers = numeric_labels(one.labels)

    def tensor(name: str, values: list[float]) -> Any:
        return helper.make_tensor(name, TensorProto.DOUBLE, [len(values)], values)

    return helper.make_node(
        "LabelEncoder",
        [one.name],
        [output],
        keys_tensor=tensor("keys", list(numbers)),
        values_tensor=tensor("values", [float(code) for code in numbers.values()]),
        default_tensor=tensor("default", [math.nan]),
        **node,
    )


def _answering(signature: Signature, outputs: str, mark: str, model: Model) -> list[NodeProto]:
    """Return what turns the network's outputs into answers, as `models.predict` does."""
    from onnx import TensorProto, helper

    node = helper.make_node
    prediction = signature.outputs[0]
    if model.spec.task == "regression":
        shape = helper.make_tensor("", TensorProto.INT64, [len(prediction.shape)], prediction.shape)
        nodes = [node("Constant", [], [f"{mark}shape"], value=shape)]
        if prediction.offset:
            wide = f"{mark}wide"
            nodes.append(node("Cast", [outputs], [wide], to=TensorProto.DOUBLE))
            nodes.append(_number(f"{mark}offset", prediction.offset))
            outputs = f"{mark}whole"
            nodes.append(node("Add", [wide, f"{mark}offset"], [outputs]))
        return [*nodes, node("Reshape", [outputs, f"{mark}shape"], [prediction.name])]
    chances, place = signature.outputs[1].name, f"{mark}place"
    if model.spec.task == "binary":
        spread = [
            node("Neg", [outputs], [f"{mark}no"]),
            node("Concat", [f"{mark}no", outputs], [f"{mark}both"], axis=1),
            node("Sigmoid", [f"{mark}both"], [chances]),
        ]
    else:
        spread = [node("Softmax", [outputs], [chances], axis=1)]
    label = node(
        "LabelEncoder",
        [place],
        [prediction.name],
        domain="ai.onnx.ml",
        keys_int64s=list(range(len(model.spec.outputs))),
        values_strings=list(model.spec.outputs),
    )
    return [*spread, node("ArgMax", [chances], [place], axis=1, keepdims=0), label]


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
