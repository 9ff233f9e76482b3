"""Files of torch.export (`.pt2`), read by `pt2_read` and computed by `pt2_run`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kubestill.errors import CorruptData, InvalidInput, Problem, nearest
from kubestill.runtime.base.values import parse_json
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.models.foreign.pt2_graph import refuse
from kubestill.runtime.models.foreign.pt2_read import Given, read_program
from kubestill.runtime.models.foreign.pt2_run import BATCH_BYTES, Rehearsal, Runner
from kubestill.runtime.models.foreign.runtime import Block, Declared, declare_own
from kubestill.runtime.models.foreign.spec import Answers
from kubestill.runtime.models.predict import BATCH_ROWS

_FEW, _MORE = 2, 3
"""Rows that tell a size that grows with them from one that does not."""


class ExportedProgram:
    """A program with one input of all columns, [rows, ...], or one input for each column."""

    def __init__(self, content: bytes, output: str = "", device: str = "cpu"):
        program = read_program(content)
        self._device = torch.device(device)
        self._given = program.given
        self._runner = Runner(program, self._device)
        if not program.given:
            raise refuse("no input", "reads no tensor of the caller's")
        few = max(program.least, _FEW)
        more = few + _MORE
        if program.most is not None and program.most < more:
            raise refuse(f"{program.most} rows at most", "allow more: Dim('rows', max=8192)")
        first, second = self._runner.rehearse(few), self._runner.rehearse(more)
        name = _choose_output(first, second, few, more, output)
        self._output = program.outputs[name]
        self._writes = first.writes_inputs
        self._least = program.least
        self._most = self._fit(program.most or BATCH_ROWS, few, first.peak, more, second.peak)
        sizes, _ = first.outputs[name]
        width = math.prod(sizes[1:])
        self._own = None
        if program.spec is not None:
            form = parse_json(program.spec, source="the file's model.json", what="model")
            if "schema" in form:  # else it is a user's own file of that name
                self._own = Schema.from_json(form["schema"])
        self._whole = len(program.given) == 1 and bool(program.given[0].sizes)
        if self._own is not None:
            own = declare_own(self._own, program.parameters)
            self.declared = replace(own, output=name)
            self._check_own(width)
            return
        read = math.prod(program.given[0].sizes) if self._whole else None
        self.declared = Declared(
            # The name of one that takes all columns is not that of a column.
            inputs=None if read not in (None, 1) else tuple(one.name for one in program.given),
            width=read,
            reads="numbers",
            classes=None,
            outputs=width,
            answers=_guess_answers(name),
            output=name,
            parameters=program.parameters,
            tried=min(256, max(32, self._most)),
        )

    def predict(self, rows: Block) -> NDArray[Any]:
        """Return what the chosen output holds for these rows."""
        feeds = self._feeds(rows)
        parts: list[NDArray[Any]] = []
        for start in range(0, len(rows), self._most):
            part = {name: one[start : start + self._most] for name, one in feeds.items()}
            parts.append(self._answer(part, min(self._most, len(rows) - start)))
        found = np.concatenate(parts) if len(parts) > 1 else parts[0]
        target = self._own.target if self._own and self._own.task == "regression" else None
        return found.astype(np.float64) + target.offset if target and target.offset else found

    def _answer(self, part: dict[str, NDArray[Any]], rows: int) -> NDArray[Any]:
        given: dict[str, Tensor] = {}
        for name, one in part.items():
            if rows < self._least:  # the last rows again: each row is answered by itself
                one = np.concatenate([one, np.repeat(one[-1:], self._least - rows, axis=0)])
            tensor = torch.from_numpy(np.ascontiguousarray(one))
            given[name] = tensor.clone() if self._writes else tensor
        given = {one.name: given[one.name].to(self._device, one.dtype) for one in self._given}
        found = self._runner.run(given, self._output)[:rows]
        if found.dtype in (torch.bfloat16, torch.float16):
            found = found.float()
        return found.reshape(rows, -1).cpu().numpy()

    def _feeds(self, rows: Block) -> dict[str, NDArray[Any]]:
        if any(one.dtype == torch.float64 for one in self._given) and self._own is None:
            rows = rows.in_float64()
        if self._whole:
            one = self._given[0]
            matrix = rows.matrix
            if self._own is not None:
                matrix = _without_offsets(matrix, self._own)
            _check_whole(one, matrix)
            return {one.name: matrix.reshape(len(rows), *one.sizes)}
        found: dict[str, NDArray[Any]] = {}
        # By place: the names of a function's arguments are seldom those of columns.
        for one, name in zip(self._given, rows.names, strict=True):
            column = rows.numbers(name)
            if math.prod(column.shape[1:]) != math.prod(one.sizes):
                said = f"takes {list(one.sizes)} for a row; {name!r} has {list(column.shape[1:])}"
                raise ValueError(f"input {one.name!r} {said}")
            _check_whole(one, column)
            found[one.name] = column.reshape(len(rows), *one.sizes)
        return found

    def _fit(self, most: int, few: int, small: int, more: int, large: int) -> int:
        """Return the rows of a batch that takes `BATCH_BYTES`, or of the smallest there is.

        Raises:
            InvalidInput: Even that is too large.
        """
        growth = max((large - small) / (more - few), 1.0)
        rows = min(most, BATCH_ROWS, int(few + (BATCH_BYTES - small) / growth))
        rows = max(rows, self._least, 1)
        while rows > max(self._least, 1) and self._runner.rehearse(rows).peak > 2 * BATCH_BYTES:
            rows = max(rows // 2, self._least, 1)
        self._runner.rehearse(rows)
        return rows

    def _check_own(self, width: int) -> None:
        """Compare the schema in a file of this package with its program.

        Raises:
            CorruptData: They do not belong together.
        """
        assert self._own is not None
        raw = RawLayout(self._own).width
        if not self._whole or self._given[0].sizes != (raw,) or width != self.declared.outputs:
            raise CorruptData(
                f"the file's model.json describes {raw} numbers a row and {self.declared.outputs} "
                f"outputs; its program takes {[list(one.sizes) for one in self._given]} and gives "
                f"{width}"
            )


def _without_offsets(matrix: NDArray[Any], schema: Schema) -> NDArray[Any]:
    """Return numbers as a model of this package holds them: less what the column has in common."""
    places = RawLayout(schema).slices
    columns = [column for column in schema.features if column.offset]
    if columns:
        matrix = matrix.astype(np.float64)
        for column in columns:
            matrix[:, places[column.name]] -= column.offset
    return matrix


def _check_whole(one: Given, values: NDArray[Any]) -> None:
    if not one.dtype.is_floating_point and np.isnan(values).any():
        kind = str(one.dtype).removeprefix("torch.")
        raise ValueError(f"input {one.name!r} takes {kind}, and some of these values are missing")


def _choose_output(first: Rehearsal, second: Rehearsal, few: int, more: int, wanted: str) -> str:
    """Return the output to learn from, which has one entry a row.

    Raises:
        InvalidInput: There is none, or several.
    """
    names = list(first.outputs)
    if wanted and wanted not in names:
        raise InvalidInput([Problem("output_name", wanted, nearest(wanted, names))])
    found: list[str] = []
    for name, (sizes, dtype) in first.outputs.items():
        grown, _ = second.outputs[name]
        by_row = sizes[:1] == (few,) and grown == (more, *sizes[1:])
        if by_row and not dtype.is_complex:
            found.append(name)
    if wanted and wanted not in found:
        sizes = list(first.outputs[wanted][0])
        raise InvalidInput(
            [Problem("output_name", wanted, f"is {sizes} for {few} rows, not one entry a row")]
        )
    likely = [one for one in found if "prob" in one.lower() or "logit" in one.lower()]
    for some in ([wanted] if wanted else []), found, likely:
        if len(some) == 1:
            return some[0]
    if not found:
        sizes = {name: list(one) for name, (one, _) in first.outputs.items()}
        raise refuse(f"outputs {sizes} for {few} rows", "let forward return one entry a row")
    remedy = f"name the one to learn from; the program has {', '.join(map(repr, found))}"
    raise InvalidInput([Problem("output_name", "", remedy)])


def _guess_answers(output: str) -> Answers | None:
    if "prob" in output.lower():
        return "probability"
    return "logit" if "logit" in output.lower() else None
