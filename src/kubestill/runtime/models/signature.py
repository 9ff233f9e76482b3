"""Describe what a served model takes and gives, alike for an ONNX file and for a server.

One input a column, with the names and types of the Open Inference Protocol (v2): `FP64` for numbers
and truth values, `BYTES` for labels and text, `FP32` for tensors. An ONNX file takes the ids of
text, `INT64`, and describes how they are made. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.text import describe_form
from kubestill.runtime.models.rows import are_numbers

Datatype = Literal["FP64", "FP32", "INT64", "BYTES"]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input: a column of the model."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    """-1 stands for the number of rows."""
    missing: str | None = None
    """The text of a missing value; a missing number is NaN, or null in JSON."""
    labels: tuple[str, ...] | None = None
    """What a categorical column may hold; anything else counts as missing."""
    offset: float = 0.0
    """What is taken from its numbers in FP64, before the network gets them."""
    tokenizer: Mapping[str, Any] | None = None
    """How text becomes the ids that this takes; see `datasets.text`."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: that of the protocol, and the rest as parameters."""
        form: dict[str, Any] = {
            "name": self.name,
            "datatype": self.datatype,
            "shape": list(self.shape),
        }
        parameters: dict[str, Any] = {}
        if self.missing is not None:
            parameters["missing"] = self.missing
        if self.labels is not None:
            parameters["labels"] = list(self.labels)
        if self.tokenizer is not None:
            parameters["tokenizer"] = dict(self.tokenizer)
        return form | ({"parameters": parameters} if parameters else {})


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None
    """What its columns are called: the classes of probabilities, or the several values."""
    offset: float = 0.0
    """What is added to the network's values in FP64."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        form = {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}
        return form | ({} if self.names is None else {"parameters": {"names": list(self.names)}})


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a model takes and gives."""

    inputs: tuple[Tensor, ...]
    """In the order of the columns."""
    outputs: tuple[Output, ...]
    """`prediction`, then `probabilities` of classes; with "_" behind where a column has that
    name."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, whose two lists are those of the protocol's model metadata."""
        return {
            "inputs": [one.to_json() for one in self.inputs],
            "outputs": [one.to_json() for one in self.outputs],
        }


def describe(schema: Schema, outputs: tuple[str, ...], *, ids: bool = False) -> Signature:
    """Return the signature of a model.

    Args:
        schema: Its features and target.
        outputs: Class labels, or names of the values; see `models.model.output_names`.
        ids: It takes the ids of text instead of the text.
    """
    inputs = tuple(_input(column, ids) for column in schema.features)
    taken = {column.name for column in schema.features}

    def free(name: str) -> str:
        while name in taken:
            name += "_"
        return name

    target = schema.target
    assert target is not None
    if schema.task != "regression":
        label = Output(name=free("prediction"), datatype="BYTES", shape=(-1,))
        chances = Output(
            name=free("probabilities"), datatype="FP32", shape=(-1, len(outputs)), names=outputs
        )
        return Signature(inputs=inputs, outputs=(label, chances))
    several = outputs if len(target.shape) == 1 else None
    value = Output(
        name=free("prediction"),
        datatype="FP64" if target.offset else "FP32",
        shape=(-1, *target.shape),
        names=several,
        offset=target.offset,
    )
    return Signature(inputs=inputs, outputs=(value,))


def sample_request(signature: Signature, typical: Mapping[str, float]) -> dict[str, Any]:
    """Return the body of a request for one row, which a server takes as it is.

    Args:
        signature: Of the model.
        typical: A value for each column of numbers.
    """
    inputs: list[dict[str, Any]] = []
    for one in signature.inputs:
        shape = [1, *one.shape[1:]]
        value: Any = typical.get(one.name, 0.0) + one.offset
        if one.tokenizer is not None:
            value = one.tokenizer["padding"]
        elif one.datatype == "BYTES" and one.labels is None:
            value = ""
        elif one.labels is not None:
            value = one.labels[0] if one.labels else one.missing
            value = value if one.datatype == "BYTES" else float(value or "nan")
        data = [value] * math.prod(shape)
        inputs.append({"name": one.name, "datatype": one.datatype, "shape": shape, "data": data})
    return {"inputs": inputs}


def _input(column: Column, ids: bool) -> Tensor:
    if column.text and ids:
        form = describe_form(column.text)
        shape = (-1, column.width)
        return Tensor(name=column.name, datatype="INT64", shape=shape, tokenizer=form)
    if column.kind == "tensor":
        shape, offset = (-1, *column.shape), column.offset
        kind: Datatype = "FP64" if offset else "FP32"
        return Tensor(name=column.name, datatype=kind, shape=shape, offset=offset)
    if column.kind == "text":
        return Tensor(name=column.name, datatype="BYTES", shape=(-1,), missing="")
    if column.kind != "categorical":
        return Tensor(name=column.name, datatype="FP64", shape=(-1,), offset=column.offset)
    labels = column.categories or ()
    if labels and are_numbers(labels):
        return Tensor(name=column.name, datatype="FP64", shape=(-1,), labels=labels)
    missing = ""
    while missing in labels:
        missing += "?"
    return Tensor(name=column.name, datatype="BYTES", shape=(-1,), missing=missing, labels=labels)
