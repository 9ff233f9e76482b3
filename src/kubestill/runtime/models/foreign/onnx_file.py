"""ONNX files, run by ONNX Runtime on the CPU."""

# onnx and onnxruntime are only partly typed.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import CorruptData, InvalidInput, Problem, nearest
from kubestill.runtime.base.values import JsonObject, parse_json, read_as
from kubestill.runtime.datasets.schema import Schema, TextForm
from kubestill.runtime.models.foreign.runtime import Block, Declared, declare_own, need
from kubestill.runtime.models.foreign.spec import Answers

SPEC_KEY = "kubestill/model.json"
"""Name of the spec among the metadata of an ONNX file that this package exported."""
SIGNATURE_KEY = "kubestill/signature"
"""Name of the signature among them, in a file that takes the columns as they are."""
_NUMBERS = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
_TEXT = "tensor(string)"


class OnnxFile:
    """A model with one input of all columns, [rows, R], or one input for each column."""

    def __init__(self, content: bytes, output: str = ""):
        onnxruntime = need("onnxruntime", "onnx")
        graph, classes, held = _read_graph(content)
        options = onnxruntime.SessionOptions()
        # One thread: blocks are computed side by side.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own classes share no other base
            raise CorruptData(f"ONNX Runtime cannot load it: {error}") from error
        inputs = self._session.get_inputs()
        self._feeds = [_feed(one) for one in inputs]
        self._output = _choose_output(self._session.get_outputs(), output)
        shape = self._output.shape
        outputs = shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None
        self._whole = len(inputs) == 1 and len(inputs[0].shape) > 1
        self._whole = self._whole and self._feeds[0].dtype is not None
        names = tuple(one.name for one in inputs)
        width = None
        if self._whole:
            sizes = inputs[0].shape[1:]
            width = int(np.prod(sizes)) if all(isinstance(n, int) for n in sizes) else None
            self._shape = tuple(sizes) if width is not None else (-1,)
        metadata = self._session.get_modelmeta().custom_metadata_map
        numeric = frozenset(one.name for one in inputs if one.type != _TEXT)
        if SIGNATURE_KEY in metadata:
            self._whole = False
            self.declared = self._declare_columns(metadata[SIGNATURE_KEY], names, numeric, held)
            return
        told = _own_spec(metadata)
        if told is not None:
            self._whole = True
            self.declared = declare_own(told, held)
            return
        self.declared = Declared(
            # The name of one that takes all columns is not that of a column.
            inputs=None if self._whole and width != 1 else names,
            width=width,
            reads="numbers" if self._whole else "labels",
            numeric=frozenset() if self._whole else numeric,
            worded=frozenset(names) - numeric,
            classes=classes,
            outputs=outputs,
            answers=_guess_answers(self._output.name, classes),
            output=self._output.name,
            parameters=held,
        )

    def predict(self, rows: Block) -> NDArray[Any]:
        """Return what the chosen output holds for these rows."""
        return self._session.run([self._output.name], self.feeds(rows))[0]

    def feeds(self, rows: Block) -> dict[str, NDArray[Any]]:
        """Return rows as the file's inputs, by their names."""
        if any(one.dtype == np.float64 for one in self._feeds):
            rows = rows.in_float64()
        if not self._whole:
            # By place: a column may have blanks where the input has underscores.
            pairs = zip(self._feeds, rows.names, strict=True)
            return {one.name: one(rows, column) for one, column in pairs}
        one = self._feeds[0]
        matrix = rows.matrix.astype(one.dtype, copy=False)
        if len(one.shape) > 2:
            matrix = matrix.reshape(len(rows), *self._shape)
        return {one.name: matrix}

    def _declare_columns(
        self, text: str, names: tuple[str, ...], numeric: frozenset[str], held: int
    ) -> Declared:
        """Return what a file says that this package exported, with an input for each column."""
        source = "the ONNX file's metadata"
        form = parse_json(text, source=source, what="signature")
        signature = read_as(_Signature, form, source=source, what="signature")
        told = {one.name: one.parameters for one in signature.inputs}
        for one in self._feeds:
            if one.name in told:
                one.missing = told[one.name].missing or ""
                one.ids = told[one.name].tokenizer is not None
        last = signature.outputs[-1]
        classes = last.parameters.names if len(signature.outputs) > 1 else None
        return Declared(
            inputs=names,
            width=None,
            reads="labels",
            numeric=numeric,
            worded=frozenset(names) - numeric,
            categories={
                name: one.labels for name, one in told.items() if one.labels and name not in numeric
            },
            ids={name: _form(one.tokenizer) for name, one in told.items() if one.tokenizer},
            classes=classes,
            outputs=math.prod(last.shape[1:]),
            answers="value" if classes is None else "probability",
            output=self._output.name,
            parameters=held,
        )


@dataclass(frozen=True, kw_only=True)
class _Told:
    missing: str | None = None
    labels: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    tokenizer: JsonObject | None = None


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: _Told = _Told()


@dataclass(frozen=True, kw_only=True)
class _Signature:
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]


class _feed:
    """One input of the file, and how a column becomes its tensor."""

    def __init__(self, one: Any):
        self.name: str = one.name
        self.shape: list[Any] = one.shape
        self.missing = ""
        self.ids = False
        self.dtype = _NUMBERS.get(one.type)
        if self.dtype is None and one.type != _TEXT:
            remedy = f"is {one.type}; export it with numbers, truth values or text"
            raise InvalidInput([Problem(f"input {one.name!r}", one.type, remedy)])
        if self.shape and isinstance(self.shape[0], int):
            remedy = (
                f"takes batches of exactly {self.shape[0]} rows; export it with a dynamic first "
                "axis (dynamic_shapes or dynamic_axes of torch.onnx.export)"
            )
            raise InvalidInput([Problem(f"input {one.name!r}", self.shape, remedy)])

    def __call__(self, rows: Block, name: str) -> NDArray[Any]:
        if self.ids:
            return rows.ids(name)
        column = (
            rows.labels(name, missing=self.missing)
            if self.dtype is None
            else rows.numbers(name).astype(self.dtype)
        )
        return column[:, None] if len(self.shape) == 2 and column.ndim == 1 else column


def _form(tokenizer: JsonObject) -> TextForm:
    """Return how a file that this package exported wants text as ids.

    Raises:
        CorruptData: It describes no n-grams.
    """
    source = "the ONNX file's metadata"
    if (found := tokenizer.get("format")) != "kubestill/ngrams/1":
        raise CorruptData(f"{source} has a tokenizer of the format {found!r:.80}")
    kept = {name: tokenizer.get(name) for name in ("words", "chars", "length")}
    form = read_as(TextForm, kept, source=source, what="tokenizer")
    if complaint := form.complaint():
        raise CorruptData(f"{source} has a tokenizer that is none: {complaint}")
    return form


def _read_graph(content: bytes) -> tuple[bytes, tuple[str, ...] | None, int]:
    """Return the file with plain tensors as outputs, its classes, and how many numbers it holds.

    A converter of scikit-learn ends in a ZipMap, which makes a Python dict of every row.

    Raises:
        CorruptData: It is no ONNX file.
        InvalidInput: It refers to other files.
    """
    onnx = need("onnx", "onnx")
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own
        raise CorruptData(f"this is no whole ONNX file: {error}") from error
    external = [one.name for one in model.graph.initializer if one.data_location == 1]
    if external:
        remedy = (
            "keeps its weights in other files; write one file, with "
            "onnx.save(onnx.load(path), new_path), or external_data=False"
        )
        raise InvalidInput([Problem("model", external[:3], remedy)])
    classes: tuple[str, ...] | None = None
    held = sum(math.prod(one.dims) for one in model.graph.initializer)
    for node in model.graph.node:
        for one in node.attribute:
            held += len(one.floats)
            if one.name.startswith("classlabels_") or one.name == "classlabels_ints":
                labels = [text.decode() for text in one.strings] or [str(n) for n in one.ints]
                classes = tuple(labels) or classes
    maps = {node.output[0]: node for node in model.graph.node if node.op_type == "ZipMap"}
    if not maps:
        return content, classes, held
    for output in model.graph.output:
        if output.name in maps:
            plain = onnx.helper.make_tensor_value_info(
                maps[output.name].input[0], onnx.TensorProto.FLOAT, [None, len(classes or ())]
            )
            output.CopyFrom(plain)
    for node in maps.values():
        model.graph.node.remove(node)
    return model.SerializeToString(), classes, held


def _choose_output(outputs: Sequence[Any], wanted: str) -> Any:
    names = [one.name for one in outputs]
    if wanted:
        if wanted not in names:
            raise InvalidInput([Problem("output_name", wanted, nearest(wanted, names))])
        return outputs[names.index(wanted)]
    found = [one for one in outputs if one.type in ("tensor(float)", "tensor(double)")]
    likely = [one for one in found if "prob" in one.name.lower()]
    if len(found) == 1 or len(likely) == 1:
        return (likely or found)[0]
    remedy = f"name the one to learn from; the file has {', '.join(map(repr, names))}"
    raise InvalidInput([Problem("output_name", "", remedy)])


def _guess_answers(output: str, classes: tuple[str, ...] | None) -> Answers | None:
    if "prob" in output.lower() or classes is not None:
        return "probability"
    return "logit" if "logit" in output.lower() else None


def _own_spec(metadata: dict[str, str]) -> Schema | None:
    """Return the schema of a model that this package exported."""
    if SPEC_KEY not in metadata:
        return None
    form = parse_json(metadata[SPEC_KEY], source="the ONNX file's metadata", what="model")
    return Schema.from_json(form.get("schema", {}))
