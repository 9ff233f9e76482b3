"""Translate between rows and the JSON of the Open Inference Protocol (v2), or an Arrow stream."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import CorruptData, InvalidInput, Problem, Problems, counted, nearest
from kubestill.runtime.base.values import parse_json
from kubestill.runtime.models.predict import arrow_array
from kubestill.runtime.serving.source import Served

ARROW = "application/vnd.apache.arrow.stream"
"""Media type of a table as Arrow's stream format."""

_TYPES = frozenset(
    "BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 BYTES".split()
)


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """Rows that somebody asks about."""

    id: str
    """As the caller named it; empty where not at all."""
    raw: NDArray[np.float32]
    """[N, R]"""
    outputs: tuple[str, ...]
    """What is asked for; empty means all."""


def read_request(body: bytes, served: Served) -> InferRequest:
    """Read the body of a request: one tensor for each column of the model.

    `null` stands for a missing value. Tensors that the model has no use for are ignored.

    Raises:
        InvalidInput: It is no such request, or does not fit the model; all problems together.
    """
    try:
        form = parse_json(body, source="the body", what="request")
    except CorruptData as error:
        raise InvalidInput([Problem("request", f"{len(body)} bytes", str(error))]) from error
    inputs: Any = form.get("inputs")
    if not isinstance(inputs, list):
        told = type(inputs).__name__
        remedy = "must be a list of tensors, one a column; GET the model's address to see which"
        raise InvalidInput([Problem("inputs", told, remedy)])
    problems = Problems()
    columns: dict[str, Any] = {}
    shapes = served.shapes
    for place, tensor in enumerate(cast(list[Any], inputs)):
        name = tensor.get("name") if isinstance(tensor, dict) else None
        if not isinstance(name, str):
            problems.add(f"inputs[{place}].name", name, "must be the name of a column")
        elif name in columns:
            problems.add(f"inputs[{place}].name", name, "is there twice; give a column once")
        elif name in shapes:
            values = _plain(tensor) if len(shapes[name]) == 1 else None
            if values is None:
                with problems.collect():
                    values = _read_tensor(name, cast(dict[str, Any], tensor), shapes[name])
            columns[name] = values
    known = [one.name for one in served.signature.outputs]
    wanted: list[str] = []
    for output in cast(list[Any], form.get("outputs") or []):
        name = output.get("name") if isinstance(output, dict) else output
        wanted.append(str(name))
        if name not in known:
            problems.add("outputs", name, nearest(str(name), known))
    problems.raise_if_any()
    return InferRequest(
        id=str(form.get("id") or ""), raw=served.predictor.read(columns), outputs=tuple(wanted)
    )


def read_arrow(body: bytes, served: Served) -> InferRequest:
    """Read a table in Arrow's stream format: a column for each of the model.

    Raises:
        InvalidInput: It is no such table, is compressed, or does not fit the model.
    """
    try:
        for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(body)):
            if _is_compressed(memoryview(message.metadata)):
                # A few bytes may unpack to all memory, and nothing tells how many they are.
                raise _no_table(body, "is compressed; send the stream uncompressed")
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            table = reader.read_all()
        # What a stranger's offsets point at is looked up only after this.
        table.validate(full=True)
    except (pa.ArrowException, ValueError, OSError, struct.error) as error:
        if isinstance(error, InvalidInput):
            raise
        raise _no_table(body, f"is no stream of Arrow: {error}") from error
    # Columns of nulls or of runs take no bytes a row.
    if table.num_rows * len(served.predictor.columns) > 8 * len(body):
        told = counted(table.num_rows, "row")
        raise _no_table(body, f"claims {told}; send columns of numbers and text, not of runs")
    return InferRequest(id="", raw=served.predictor.read(table), outputs=())


def _no_table(body: bytes, remedy: str) -> InvalidInput:
    return InvalidInput([Problem("request", f"{len(body)} bytes", remedy)])


def _is_compressed(metadata: memoryview) -> bool:
    """Return whether a message of Arrow's stream holds a compressed batch: pyarrow does not say.

    The metadata is a flatbuffer, of which these are the two tables: `Message` with its `header`,
    and `RecordBatch`, in a `DictionaryBatch` where the header is one, with its `compression`.
    """

    def field(table: int, slot: int) -> int:
        """Return where a field of a table lies; 0 where it is not set."""
        vtable = table - struct.unpack_from("<i", metadata, table)[0]
        size = struct.unpack_from("<H", metadata, vtable)[0]
        place = 4 + 2 * slot
        offset = struct.unpack_from("<H", metadata, vtable + place)[0] if place < size else 0
        return table + offset if offset else 0

    def follow(place: int) -> int:
        return place + struct.unpack_from("<I", metadata, place)[0]

    message = follow(0)
    kind, header = field(message, 1), field(message, 2)
    if not kind or not header:
        return False
    batch = follow(header)
    if metadata[kind] == _DICTIONARY_BATCH:
        data = field(batch, 1)
        return bool(data) and bool(field(follow(data), 3))
    return metadata[kind] == _RECORD_BATCH and bool(field(batch, 3))


_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


def _plain(tensor: Mapping[str, Any]) -> list[Any] | None:
    """Return the values of a flat column, as nearly all are; None where one has to look closer."""
    data = tensor.get("data")
    if (
        isinstance(data, list)
        and tensor.get("shape") == [len(cast(list[Any], data))]
        and tensor.get("datatype") in _TYPES
        and not (data and isinstance(data[0], list))
    ):
        return cast(list[Any], data)
    return None


def _read_tensor(name: str, tensor: Mapping[str, Any], expected: tuple[int, ...]) -> list[Any]:
    """Return the values of one column, a list of numbers each where it holds tensors."""
    problems = Problems()
    shape, data = tensor.get("shape"), tensor.get("data")
    if tensor.get("datatype") not in _TYPES:
        remedy = f"must be one of {', '.join(sorted(_TYPES))}"
        problems.add(f"{name}.datatype", tensor.get("datatype"), remedy)
    sizes = cast(list[int], shape) if _is_shape(shape) else []
    fits = len(expected) == 1 and sizes[1:] == [1]
    if not sizes or not (fits or sizes[1:] == list(expected[1:])):
        remedy = f"must be {['rows', *expected[1:]]}".replace("'", "")
        problems.add(f"{name}.shape", shape, remedy)
    if not isinstance(data, list):
        problems.add(f"{name}.data", type(data).__name__, "must be a list; binary data is not read")
    problems.raise_if_any()
    values = cast(list[Any], data)
    while values and isinstance(values[0], list):
        if not all(isinstance(value, list) for value in values):
            break
        values = [one for value in values for one in value]
    if len(values) != math.prod(sizes):
        told = counted(len(values), "value")
        raise InvalidInput([Problem(f"{name}.data", told, f"must be as many as {sizes} says")])
    if len(expected) == 1:
        return values
    width = math.prod(expected[1:])
    return [values[start : start + width] for start in range(0, len(values), width)]


def _is_shape(shape: object) -> bool:
    return isinstance(shape, list) and all(
        type(size) is int and size >= 0 for size in cast(list[object], shape)
    )


def write_arrow(answers: Mapping[str, NDArray[Any]]) -> bytes:
    """Return answers as a table in Arrow's stream format, with the columns of `load_model`."""
    table = pa.table({name: arrow_array(values) for name, values in answers.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def write_response(
    name: str, served: Served, request: InferRequest, answers: Mapping[str, NDArray[Any]]
) -> bytes:
    """Return the body of the response.

    Raises:
        ValueError: An answer is not finite, which JSON cannot say.
    """
    columns = list(answers.values())
    outputs: list[dict[str, Any]] = []
    for place, output in enumerate(served.signature.outputs):
        if request.outputs and output.name not in request.outputs:
            continue
        values = columns[place]
        shape, data = list(values.shape), values.reshape(-1).tolist()
        if output.names is not None:
            lists = [column.tolist() for column in columns[place:]]
            shape = [len(values), len(lists)]
            data = [value for row in zip(*lists, strict=True) for value in row]
        outputs.append(
            {"name": output.name, "datatype": output.datatype, "shape": shape, "data": data}
        )
    form: dict[str, Any] = {"model_name": name, "model_version": served.found.version}
    if request.id:
        form["id"] = request.id
    return json.dumps(form | {"outputs": outputs}, allow_nan=False, ensure_ascii=False).encode()
