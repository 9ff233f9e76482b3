"""int8 ONNX: the weights of matrix products and convolutions in 8 bits, by ONNX Runtime's tools.

*Dynamic*: weights are int8, and each batch of activations is scaled by its own range. *Static*: the
ranges of activations are fixed beforehand, from rows that the model has learned from. Weights have
a scale for each output channel (Jacob et al. 2018, "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference"). Reading columns, normalisation and the answer
itself stay as they are.

Columns that reach unequally far are evened out before a matrix product (Xiao et al. 2023,
"SmoothQuant"), since they share one scale. In a static file, what a layer gives stays in float32:
it is what the next one is given that becomes int8, and the last one's are the answers. So do stacks
of matrices, which ONNX Runtime scales as one, or cannot multiply by at all. Weights take 7 of the 8
bits, so that no processor cuts off a sum; see `fake_quantise.WEIGHT_STEPS`.
"""

# onnx and onnxruntime are only partly typed.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import itertools
import logging
import math
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.models.fake_quantise import UNEVEN
from kubestill.runtime.models.foreign.onnx_file import SIGNATURE_KEY, SPEC_KEY
from kubestill.runtime.models.foreign.runtime import need
from kubestill.runtime.models.serve import shorten

Scheme = Literal["dynamic", "static"]
SCHEMES: tuple[Scheme, ...] = ("dynamic", "static")

_WEIGHTS = {"MatMul": 1, "Gemm": 1, "Conv": 1, "Gather": 0}
"""Operators whose weights make up a network, and which of their inputs those are. Runtimes compute
products in 8 bits, and widen what they gather from a table."""

_PRODUCTS = ["MatMul", "Gemm", "Conv"]

_EVEN_BATCHES = 8
"""Batches by which columns are evened out."""

Feeds = Mapping[str, NDArray[Any]]


def quantisable(content: bytes) -> int:
    """Return how many numbers of an ONNX file are weights that become int8.

    Raises:
        InvalidInput: onnx is not installed.
    """
    return sum(math.prod(shape) for _, shape in _weights(_folded(content)))


def convolves(content: bytes) -> bool:
    """Return whether weights of an ONNX file are those of convolutions."""
    return any(kind == "Conv" for kind, _ in _weights(_folded(content)))


def left_in_float(content: bytes, scheme: Scheme) -> list[str]:
    """Return what of a float32 file has weights that no scheme, or this one, takes to int8.

    Each is an operator, with how many numbers it holds.
    """
    onnx = need("onnx", "onnx", extra="onnx")
    content = _folded(content)
    graph = onnx.load_model_from_string(content).graph
    sizes = {
        one.name: math.prod(one.dims)
        for one in graph.initializer
        if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) > 1
    }
    stacks = set(_stacked(content, scheme))
    found: Counter[str] = Counter()
    for node in graph.node:
        place = _WEIGHTS.get(node.op_type)
        for at, name in enumerate(node.input):
            if name in sizes and (at != place or node.name in stacks):
                stack = " of stacked matrices" if node.name in stacks else ""
                found[f"{node.op_type}{stack}"] += sizes[name]
    return [f"{name} ({count:,} numbers)" for name, count in found.items()]


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
        calibration: Batches of the file's inputs by name, which even out columns and set the ranges
            of activations for `static`: rows that the model has learned from, never those that
            judge it.

    Raises:
        InvalidInput: A package is missing, or the graph cannot be quantised.
    """
    onnx = need("onnx", "onnx", extra="onnx")
    need("onnxruntime", "onnx")
    from onnxruntime import quantization as tools

    content = _folded(content)
    with tempfile.TemporaryDirectory(prefix="kubestill-int8-") as folder, _quiet():
        source, made = os.path.join(folder, "float32.onnx"), os.path.join(folder, "int8.onnx")
        rest = iter(calibration)
        first = [*itertools.islice(rest, _EVEN_BATCHES)]
        content = _evened(content, first)
        with open(source, "wb") as file:
            file.write(content)
        options: dict[str, Any] = {
            "op_types_to_quantize": list(_WEIGHTS),
            "per_channel": True,
            "reduce_range": True,
            "weight_type": tools.QuantType.QInt8,
        }
        try:
            if scheme == "dynamic":
                stacks = _stacked(content, scheme)
                tools.quantize_dynamic(source, made, nodes_to_exclude=stacks, **options)
            else:
                reader: Any = _Reader(itertools.chain(first, rest))
                tools.quantize_static(
                    source,
                    made,
                    reader,
                    nodes_to_exclude=_stacked(content, scheme),
                    extra_options={
                        "OpTypesToExcludeOutputQuantization": _PRODUCTS,
                        "TensorQuantOverrides": _unranged(content),
                    },
                    **options,
                )
        except Exception as error:  # its own, of any kind, for a graph that it does not understand
            said = f"{type(error).__name__}: {error}"
            remedy = f"ONNX Runtime cannot quantise it: {said:.400}"
            raise InvalidInput([Problem("model", scheme, remedy)]) from error
        whole = onnx.load(made)
    shorten(whole)
    return whole.SerializeToString()


def compact(content: bytes) -> bytes:
    """Return an ONNX file of 8 bits without what can be computed beforehand, and with short names.

    Raises:
        InvalidInput: A package is missing.
    """
    onnx = need("onnx", "onnx", extra="onnx")
    whole = onnx.load_model_from_string(_folded(content))
    shorten(whole)
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
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}/{number}"
    used = {node.domain for node in model.graph.node} | {""}
    versions = {one.domain: one.version for one in model.opset_import if one.domain in used}
    model.ClearField("opset_import")
    for domain, version in versions.items():
        model.opset_import.add(domain=domain, version=version)
    return model.SerializeToString()


def _stacked(content: bytes, scheme: Scheme) -> list[str]:
    """Return the names of products with stacks of matrices that have to stay in float32.

    A dynamic product has one scale for all matrices or none: those of a single column do.
    """
    onnx = need("onnx", "onnx", extra="onnx")
    graph = onnx.load_model_from_string(content).graph
    stacks = {
        one.name
        for one in graph.initializer
        if len(one.dims) > 2 and (scheme == "static" or one.dims[-1] > 1)
    }
    return [one.name for one in graph.node if one.op_type == "MatMul" and one.input[1] in stacks]


def _unranged(content: bytes) -> dict[str, list[dict[str, Any]]]:
    """Return a range for what is gathered from other than weights, and so stays as it is.

    The tools measure it as well, and stumble over columns with gaps, whose range is NaN.
    """
    onnx = need("onnx", "onnx", extra="onnx")
    graph = onnx.load_model_from_string(content).graph
    held = {one.name for one in graph.initializer}
    found = {
        name
        for node in graph.node
        if node.op_type == "Gather" and node.input[0] not in held
        for name in (node.input[0], node.output[0])
    }
    multiplied = {node.input[0] for node in graph.node if node.op_type in _PRODUCTS}
    ends = {"rmin": np.float32(0), "rmax": np.float32(1)}
    return {name: [dict(ends)] for name in sorted(found - multiplied)}


def _evened(content: bytes, batches: Iterable[Feeds]) -> bytes:
    """Return the file with columns divided before matrix products, and weights multiplied.

    The products are the same. Where a column reaches far beyond the others, which share a scale
    with it, they gain values: each factor is the root of what column and weights reach (Xiao et al.
    2023, eq. 4, alpha 0.5), in units of the median.
    """
    onnx = need("onnx", "onnx", extra="onnx")
    runtime = need("onnxruntime", "onnx")
    model = onnx.load_model_from_string(content)
    graph = model.graph
    held = {one.name: one for one in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        flat = node.op_type in ("MatMul", "Gemm") and node.input[1] in held
        if flat and len(held[node.input[1]].dims) == 2 and node.input[0] not in held:
            readers.setdefault(node.input[0], []).append(node)
    readers = {  # a weight that others multiply by, too, stays
        name: nodes
        for name, nodes in readers.items()
        if all(uses[one.input[1]] == 1 for one in nodes)
    }
    reach: dict[str, NDArray[np.float32]] = {}
    with _quiet():
        probe = onnx.load_model_from_string(content)
        for name in readers:
            probe.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
        session = runtime.InferenceSession(
            probe.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        for batch in batches:
            for name, seen in zip(readers, session.run([*readers], dict(batch)), strict=True):
                most = np.abs(seen).reshape(-1, seen.shape[-1]).max(0)
                reach[name] = np.maximum(reach[name], most) if name in reach else most
    for number, (name, nodes) in enumerate(readers.items()):
        if name not in reach:
            continue
        weights = [onnx.numpy_helper.to_array(held[one.input[1]]) for one in nodes]
        axes = [int(_transposed(one)) for one in nodes]
        strength = np.max(
            [np.abs(w).max(1 - a) for w, a in zip(weights, axes, strict=True)], axis=0
        )
        there = (reach[name] > 0) & (strength > 0)
        if not there.any() or reach[name].max() <= UNEVEN * np.median(reach[name][there]):
            continue
        factor = np.ones_like(strength)
        found = np.sqrt(reach[name][there] / strength[there])
        # Other rows may reach further than these in a column that is nearly always 0.
        factor[there] = np.maximum(found / np.median(found), 1.0)
        even = f"{name}/even/{number}"
        graph.initializer.append(onnx.numpy_helper.from_array(factor, f"{even}/factor"))
        place = [*graph.node].index(nodes[0])
        graph.node.insert(place, onnx.helper.make_node("Div", [name, f"{even}/factor"], [even]))
        for node, weight, axis in zip(nodes, weights, axes, strict=True):
            node.input[0] = even
            weight = weight * np.expand_dims(factor, 1 - axis)
            held[node.input[1]].CopyFrom(onnx.numpy_helper.from_array(weight, node.input[1]))
    return model.SerializeToString()


def _transposed(node: Any) -> bool:
    return any(one.name == "transB" and one.i for one in node.attribute)


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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)  # of `_unranged`
            yield
    finally:
        onnxruntime.set_default_logger_severity(2)
        root.setLevel(before)
