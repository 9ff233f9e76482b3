"""What a foreign model is: the content of its `model.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kubestill.errors import CorruptData
from kubestill.runtime.base.values import Number, Whole, read_as
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.models.identity import FOREIGN
from kubestill.runtime.models.model import ModelSpec

Format = Literal[
    "lightgbm",
    "xgboost",
    "catboost",
    "onnx",
    "pt2",
    "skops",
    "huggingface",
    "python",
    "endpoint",
    "several",
]
"""Of the file beside `model.json`."""
Spelling = Literal["", "1", "1.0", "True", "true", "TRUE", "yes", "Yes", "YES", "y", "Y", "t", "T"]
"""How a model was given truth values, by its word for what is true; `1.0` is also of whole numbers.
Empty: as the labels of a dataset are, and by digits where it holds numbers or truth values."""
Answers = Literal["logit", "probability", "value"]
"""What a model puts out: logits or probabilities of classes, or values in target units."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """One column as the model reads it."""

    name: str
    codes: tuple[Number, ...] | None = None
    """The number that it reads in place of each category, in the schema's order. None where it
    reads the column's own code, number or label."""
    decimal: bool = False
    """Whether the numbers of the column have seven digits at most, and are read as they were
    written and not as float32 holds them."""
    spelling: Spelling = ""
    """Of its labels, where the model knows them by text."""
    missing: str = "nan"
    """Text of a missing label."""


@dataclass(frozen=True, kw_only=True)
class ForeignSpec(ModelSpec):
    """All of a foreign model but its file.

    The features of the schema stand in the order in which the model reads them. `encoder` and
    `decoder` are empty; `network` holds `factory` (the format, an import path or an address),
    `args`, and `source`, the digest of a teacher's source file.
    """

    kind: Format
    inputs: tuple[Input, ...]
    """In the order of the schema's features."""
    order: tuple[Whole, ...]
    """Where the model's outputs hold each class of the schema, or each value."""
    width: Whole
    """Outputs for a row: 1 for the second of two classes alone."""
    answers: Answers
    output: str = ""
    """Name of the output that is read, where the file has several."""
    bytes: Whole
    """Size of the file."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "format": FOREIGN,
            "kind": self.kind,
            "task": self.task,
            "schema": self.schema.to_json(),
            "layout": RawLayout(self.schema).to_json(),
            "network": self.network,
            "inputs": [
                {"name": one.name}
                | ({"codes": list(one.codes)} if one.codes is not None else {})
                | ({"decimal": True} if one.decimal else {})
                | ({"spelling": one.spelling} if one.spelling else {})
                | ({"missing": one.missing} if one.missing != "nan" else {})
                for one in self.inputs
            ],
            "order": list(self.order),
            "width": self.width,
            "answers": self.answers,
            "output": self.output,
            "bytes": self.bytes,
            "parameters": self.parameters,
            "outputs": list(self.outputs),
            "digest": self.digest,
        }

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> ForeignSpec:
        """Read what `to_json` wrote.

        Raises:
            CorruptData: It is no such spec, or its parts contradict each other.
        """
        kept = {name: form[name] for name in _READ if name in form}
        spec = read_as(
            cls, kept | {"encoder": {}, "decoder": {}}, source="the model spec", what="model"
        )
        if spec.schema.task is None or not spec.schema.features:
            raise CorruptData("the model spec has no target, or no feature")
        names = [column.name for column in spec.schema.features]
        if names != [one.name for one in spec.inputs]:
            raise CorruptData("the model spec has other inputs than features")
        for column, one in zip(spec.schema.features, spec.inputs, strict=True):
            if one.codes is not None and len(one.codes) != len(column.categories or ()):
                raise CorruptData(f"the model spec has other codes of {column.name!r} than labels")
        outputs = len(spec.outputs)
        single = spec.width == 1 and spec.task == "binary" and spec.answers != "value"
        if sorted(spec.order) != list(range(outputs)) or spec.width != (1 if single else outputs):
            raise CorruptData("the model spec has an order that does not fit its outputs")
        if (spec.answers == "value") != (spec.task == "regression"):
            raise CorruptData(f"the model spec has {spec.answers} outputs for {spec.task}")
        return spec


_READ = (
    *("kind", "schema", "network", "inputs", "order", "width", "answers", "output", "bytes"),
    *("parameters", "digest"),
)
