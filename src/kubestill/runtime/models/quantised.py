"""int8 ONNX: the weights of matrix products and convolutions in 8 bits, by ONNX Runtime's tools.

*Dynamic*: weights are int8, and each batch of activations is scaled by its own range. *Static*: the
ranges of activations are fixed beforehand, from rows that the model has learned from; a runtime
then computes whole layers in 8 bits. Weights have a scale for each output channel (Jacob et al.
2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference"). Reading columns, normalisation and the answer itself stay as they are.
"""

# onnx and onnxruntime are only partly typed.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.models.foreign.onnx_file import SIGNATURE_KEY, SPEC_KEY
from kubestill.runtime.models.foreign.runtime import need

Scheme = Literal["dynamic", "static"]
SCHEMES: tuple[Scheme, ...] = ("dynamic", "static")

_WEIGHTS = {"MatMul": 1, "Gemm": 1, "Conv": 1, "Gather": 0}
"""Operators whose weights make up a network, and which of their inputs those are. Runtimes compute
products in 8 bits, and widen what they gather from a table."""

Feeds = Mapping[str, NDArray[Any]]


def quantisable(content: bytes) -> int:
    """Return how many numbers of an ONNX file are weights that become int8.

    Raises:
        InvalidInput: onnx is not installed.
    """
    return sum(math.prod(shape) for _, shape in _weights(_folded(content)))


def _weights(content: bytes) -> list[tuple[str, tuple[int, ...]]]:
    """Return the operator and the shape of each weight that becomes int8."""
    onnx = need("onnx", "onnx", extra="onnx")
    model = onnx.load_model_from_string(content)
    shapes = {
        one.name: tuple(one.dims)
        for one in model.graph.initializer
        if one.data_type == onnx.TensorProto.FLOAT
    }
    found = {
        node.input[_WEIGHTS[node.op_type]]: node.op_type
        for node in model.graph.node
        if node.op_type in _WEIGHTS and node.input[_WEIGHTS[node.op_type]] in shapes
    }
    return [(kind, shapes[name]) for name, kind in found.items()]


def quantise_onnx(content: bytes, scheme: Scheme, calibration: Iterable[Feeds]) -> bytes:
    """Return an ONNX file with int8 weights that takes and gives what `content` does.

    Args:
        content: A float32 ONNX file.
        scheme: `dynamic` or `static`.
        calibration: Batches of the file's inputs by name, which set the ranges of activations for
            `static`: rows that the model has learned from, never those that judge it.

    Raises:
        InvalidInput: A package is missing, or the graph cannot be quantised.
    """
    onnx = need("onnx", "onnx", extra="onnx")
    need("onnxruntime", "onnx")
    from onnxruntime import quantization as tools

    content = _folded(content)
    with tempfile.TemporaryDirectory(prefix="kubestill-int8-") as folder, _quiet():
        source, made = os.path.join(folder, "float32.onnx"), os.path.join(folder, "int8.onnx")
        with open(source, "wb") as file:
            file.write(content)
        options: dict[str, Any] = {
            "op_types_to_quantize": list(_WEIGHTS),
            # A static product of stacked matrices has one scale for all of them.
            "per_channel": scheme == "dynamic" or not _stacked(content),
            "weight_type": tools.QuantType.QInt8,
        }
        try:
            if scheme == "dynamic":
                tools.quantize_dynamic(source, made, **options)
            else:
                reader: Any = _Reader(calibration)
                tools.quantize_static(source, made, reader, **options)
        except Exception as error:  # its own, of any kind, for a graph that it does not understand
            said = f"{type(error).__name__}: {error}"
            remedy = f"ONNX Runtime cannot quantise it: {said:.400}"
            raise InvalidInput([Problem("model", scheme, remedy)]) from error
        whole = onnx.load(made)
    _shorten(whole)
    return whole.SerializeToString()


def _folded(content: bytes) -> bytes:
    """Return the file with constants computed: a weight may be a product of others in it."""
    onnx = need("onnx", "onnx", extra="onnx")
    runtime = need("onnxruntime", "onnx")
    with tempfile.TemporaryDirectory(prefix="kubestill-int8-") as folder, _quiet():
        path = os.path.join(folder, "folded.onnx")
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = path
        options.log_severity_level = 3
        runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        model = onnx.load(path)
    before = onnx.load_model_from_string(content)
    told = {one.key: one.value for one in before.metadata_props}
    if SIGNATURE_KEY in told:
        # That says what goes in and out; the spec is one of other weights.
        told.pop(SPEC_KEY, None)
    onnx.helper.set_model_props(model, told)
    used = {node.domain for node in model.graph.node} | {""}
    versions = {one.domain: one.version for one in model.opset_import if one.domain in used}
    model.ClearField("opset_import")
    for domain, version in versions.items():
        model.opset_import.add(domain=domain, version=version)
    return model.SerializeToString()


def _stacked(content: bytes) -> bool:
    return any(kind == "MatMul" and len(shape) > 2 for kind, shape in _weights(content))


def _shorten(model: Any) -> None:
    """Give what lies between inputs and outputs short names: a third of a small file is names."""
    graph = model.graph
    if any(one.HasField("g") or one.graphs for node in graph.node for one in node.attribute):
        return  # a branch or a loop refers to names outside of it
    kept = {one.name for one in (*graph.input, *graph.output)} | {""}
    short: dict[str, str] = {}

    def rename(name: str) -> str:
        if name in kept:
            return name
        if name not in short:
            number = len(short)
            while (made := f"t{number}") in kept:
                number += 1
            kept.add(made)
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


class _Reader:
    """Batches in the form that ONNX Runtime's calibration asks for."""

    def __init__(self, batches: Iterable[Feeds]):
        self._batches: Iterator[Feeds] = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next batch; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else dict(batch)


@contextmanager
def _quiet() -> Generator[None]:
    """Leave out advice on preparing the graph, which concerns no graph of one's own."""
    import onnxruntime

    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)
        root.setLevel(before)
