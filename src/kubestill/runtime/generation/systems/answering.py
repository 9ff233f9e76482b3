"""A model as a system: whatever it answers is right, and a surrogate of it can be certified."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem, Problems, nearest
from kubestill.runtime.datasets.schema import Column
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.inputs import (
    Choice,
    Continuous,
    Floats,
    Indices,
    Input,
    Levels,
)
from kubestill.runtime.generation.systems.system import Axis, Output, System
from kubestill.runtime.models.export import load_model


class AnsweringModel(System):
    """An exported model, or one that `import-model` brought in, of numbers, labels and flags.

    Of classes it answers the likeliest. It never leaves an input out, so that rows without gaps are
    its domain.

    Args:
        model: Folder of the model, local, gs:// or s3://.
        ranges: Lowest and highest value of each column of numbers, such as `{"amount": [0, 500]}`.
    """

    name = "model"

    def __init__(self, model: str, ranges: dict[str, list[float]]) -> None:
        self._predictor = load_model(model)
        # Its file may change where the address does not.
        self.version = self._predictor.digest
        schema = self._predictor.spec.schema
        problems = Problems()
        numbers = [column.name for column in schema.features if column.kind == "numeric"]
        for name in sorted(ranges.keys() - set(numbers)):
            problems.add(f"ranges.{name}", ranges[name], nearest(name, numbers))
        inputs: list[Input] = []
        for column in schema.features:
            given = ranges.get(column.name)
            if column.kind == "categorical":
                inputs.append(Choice(name=column.name, choices=column.categories or ()))
            elif column.kind == "boolean":
                inputs.append(_Flag(name=column.name, values=(0.0, 1.0)))
            elif column.kind == "tensor":
                remedy = "is a tensor, which has no ranges; write a System that makes its values"
                problems.add(f"column {column.name!r}", list(column.shape), remedy)
            elif given is None or len(given) != 2:
                problems.add(f"ranges.{column.name}", given, "give its lowest and highest value")
            else:
                inputs.append(Continuous(name=column.name, low=given[0], high=given[1]))
        problems.raise_if_any()
        self.domain = Domain(inputs)
        target = schema.target
        assert target is not None
        self.output = Output(
            name=target.name,
            axes=tuple(
                Axis(name=f"axis {place}", values=tuple(map(float, range(size))))
                for place, size in enumerate(target.shape)
            ),
            classes=schema.classes,
            offset=target.offset,
        )

    @property
    def table_bytes(self) -> int:
        """Size of the model's file."""
        return self._predictor.model.bytes

    def solve(self, inputs: pd.DataFrame) -> NDArray[Any]:
        """Return its answers.

        Raises:
            InvalidInput: It answers NaN or infinity.
        """
        raw = self._predictor.read(inputs)
        answers = self._predictor.answers(raw)
        if self.output.classes:
            return np.asarray(answers["prediction"])
        values = self._predictor.logits(raw).astype(np.float64)
        if not np.isfinite(values).all():
            remedy = "its answers are NaN or infinite on some of these inputs; narrow `ranges`"
            raise InvalidInput([Problem("model", self.version, remedy)])
        return values.reshape(len(inputs), *self.output.shape)


class _Flag(Levels):
    """True or false."""

    @property
    def column(self) -> Column:
        return Column(name=self.name, kind="boolean")

    def at(self, unit: Floats) -> NDArray[Any]:
        return super().at(unit) > 0

    def on_grid(self, index: Indices, points: int) -> NDArray[Any]:
        return super().on_grid(index, points) > 0
