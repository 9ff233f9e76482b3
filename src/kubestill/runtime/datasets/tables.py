"""A user's own table as a dataset: kinds, roles and the task inferred from what is in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import pyarrow as pa
import pyarrow.dataset as pads

from kubestill.errors import InvalidInput, Problem, Problems, nearest, nearest_of
from kubestill.runtime.datasets.schema import Column, Kind, Schema, Task, sort_labels
from kubestill.runtime.datasets.sources import Opened, try_source
from kubestill.runtime.datasets.survey import MAX_LABELS, Finding, guess, report, survey

__all__ = ["UserTable", "read_table"]

_BATCH_ROWS = 1 << 16
_PIECE_BYTES = 16 << 20
_MAX_CLASSES = 50
"""Whole numbers with more distinct values than this are a quantity, not classes."""
_FEW_LABELS = 50
"""A text column with more labels than this, and than half its rows, names the rows."""


@dataclass(frozen=True, kw_only=True)
class UserTable:
    """A table that was looked through once and can be read as rows of `schema`."""

    source: pads.Dataset
    schema: Schema
    rows: int
    left_out: dict[str, str]
    """Columns that are no features although nobody said so, each with the reason."""
    losses: dict[str, str]
    """Features and targets that float32 stores coarsely, each with what it loses."""

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows in order, as `DatasetWriter.write` takes them."""
        return _scan(self.source, list(columns or self.schema.names))


def read_table(
    source: str | pa.Table,
    *,
    target: str = "",
    task: Literal["auto"] | Task = "auto",
    features: Sequence[str] = (),
    kinds: Mapping[str, str] | None = None,
) -> UserTable:
    """Look through a user's table once and infer its schema.

    Numbers are numeric, text and dictionaries categorical, lists of one shape tensors. Times and
    text columns that name their rows are kept but not learned from. The task follows from the
    target: two classes are binary; text, truth values and up to 50 distinct whole numbers
    multiclass; else regression.

    Args:
        source: See `sources.open_source`; or a table in memory.
        target: Column to predict; "" for none.
        task: What to predict, where inference would get it wrong.
        features: Columns to learn from; all but the target where empty. The others are kept,
            ignored.
        kinds: Kind by column, where inference would get it wrong.

    Raises:
        InvalidInput: Whatever keeps the table from being used; all problems together.
    """
    problems = Problems()
    kinds = dict(kinds or {})
    _check_words(target, task, kinds, problems)
    opened = _open(source, problems)
    names = [*opened.rows.schema.names, *opened.doubled]
    _check_names(names, target, features, kinds, problems)
    sound = not problems
    findings = _findings(opened.rows.schema, kinds)
    # What is named wrongly is left out from here on: the values of the rest are looked at still.
    target = target if target in findings else ""
    asked = {*features, *kinds, target}
    storable = {name: found for name, found in findings.items() if found.kind or name in asked}
    rows = opened.rows.count_rows()
    if not rows and opened.rows.schema.names:
        problems.add("source", source if isinstance(source, str) else "table", "has no rows")
    try:
        survey(_scan(opened.rows, list(storable)), storable, counted=[target] if target else [])
    except InvalidInput as error:
        # Of half the rows there is nothing more to say.
        raise InvalidInput([*problems, *error.problems]) from error
    columns, left_out = _features(storable, target, features, kinds, problems)
    left_out |= {n: f"{f.type} cannot be stored" for n, f in findings.items() if n not in storable}
    chosen: Task | None = None
    if target:
        report(findings[target], problems, target=True)
        chosen = _task(findings[target], task, problems)
    if sound and not any(column.role == "feature" for column in columns):
        problems.add("features", names, "no column is left to learn from")
    problems.raise_if_any()
    if chosen:
        columns.append(_target(findings[target], chosen))
    schema = Schema(columns=tuple(columns), task=chosen)
    losses = {
        column.name: findings[column.name].loss
        for column in columns
        if column.kind == "numeric" and column.role != "ignored" and findings[column.name].loss
    }
    return UserTable(source=opened.rows, schema=schema, rows=rows, left_out=left_out, losses=losses)


def _open(source: str | pa.Table, problems: Problems) -> Opened:
    """Return what can be read; raises with everything noted where nothing can."""
    if isinstance(source, pa.Table):
        return Opened(pads.dataset(source))
    opened = try_source(source, problems)
    if opened is None:
        raise InvalidInput(problems)
    return opened


def _findings(schema: pa.Schema, kinds: Mapping[str, str]) -> dict[str, Finding]:
    """Return what is known of each column before a row is read; of no column of unknown kind."""
    findings = {
        name: Finding(name=name, type=kind, kind=kinds.get(name, guess(kind)))
        for name, kind in zip(schema.names, schema.types, strict=True)
    }
    known = get_args(Kind)
    return {n: f for n, f in findings.items() if n not in kinds or kinds[n] in known}


def _features(
    findings: Mapping[str, Finding],
    target: str,
    features: Sequence[str],
    kinds: Mapping[str, str],
    problems: Problems,
) -> tuple[list[Column], dict[str, str]]:
    """Return every column but the target, and why some are not learned from or not even kept."""
    columns: list[Column] = []
    left_out: dict[str, str] = {}
    for name, found in findings.items():
        if name == target:
            continue
        if features and name not in features:
            # Nobody learns from it: it is kept for slices and joins where that is possible.
            if found.trouble or (found.kind == "tensor" and not found.shape):
                left_out[name] = found.trouble or "holds no value"
            else:
                columns.append(_column(found, ignored=True))
            continue
        why = _why_ignored(found, explicit=name in features or name in kinds)
        if why:
            left_out[name] = why
        elif found.kind == "text":
            problems.add("features", name, f"{found.type}: derive numbers such as hour or weekday")
        report(found, problems, target=False)
        columns.append(_column(found, ignored=bool(why)))
    return columns, left_out


def _check_words(target: str, task: str, kinds: Mapping[str, str], problems: Problems) -> None:
    """Note what is wrong whatever the table is."""
    if task not in ("auto", *get_args(Task)):
        problems.add("task", task, nearest(task, ("auto", *get_args(Task))))
    elif task != "auto" and not target:
        problems.add("task", task, "needs a target column")
    for name, kind in kinds.items():
        if kind not in get_args(Kind):
            problems.add(f"kinds[{name!r}]", kind, nearest(str(kind), get_args(Kind)))


def _check_names(
    names: list[str],
    target: str,
    features: Sequence[str],
    kinds: Mapping[str, str],
    problems: Problems,
) -> None:
    """Note what the table does not have."""
    there, near = set(names), nearest_of(names)
    if target and target not in there:
        problems.add("target", target, "there is no such column; " + near(target))
    for name in features:
        if name not in there:
            problems.add("features", name, "there is no such column; " + near(name))
        elif name == target:
            problems.add("features", name, "is the target; a model must not read what it predicts")
    for name in kinds:
        if name not in there:
            problems.add("kinds", name, "there is no such column; " + near(name))


def _scan(source: pads.Dataset, columns: list[str]) -> Iterator[pa.Table]:
    """Yield the rows in pieces that are worth looking at.

    Of a wide CSV a batch holds a few rows only; every piece costs time for each of its columns.
    """
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in _batches(source, columns):
        held.append(batch)
        size += batch.nbytes
        if size >= _PIECE_BYTES:
            yield pa.Table.from_batches(held)
            held, size = [], 0
    if held:
        yield pa.Table.from_batches(held)


def _batches(source: pads.Dataset, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for fragment in source.get_fragments():
        try:
            for batch in fragment.to_batches(
                schema=source.schema, columns=columns, batch_size=_BATCH_ROWS
            ):
                if batch.num_rows:
                    yield batch
        except (pa.ArrowException, OSError) as error:
            file = getattr(fragment, "path", "table")
            raise InvalidInput([Problem("source", file, f"is damaged: {error}")]) from error


def _why_ignored(found: Finding, *, explicit: bool) -> str:
    """Say why a column is no feature unless the user asked for it; "" where it is one."""
    if explicit:
        return ""
    if found.kind == "text":
        return f"{found.type} is not a number; derive features such as hour or weekday"
    many = max(_FEW_LABELS, found.rows // 2)
    if found.kind == "categorical" and len(found.labels) > min(many, MAX_LABELS):
        return f"{len(found.labels):,} labels in {found.rows:,} rows: an identifier"
    return ""


def _column(found: Finding, *, ignored: bool) -> Column:
    if ignored and found.kind in ("categorical", "text"):
        return Column(name=found.name, kind="categorical", role="ignored")
    categories = sort_labels(found.labels) if found.kind == "categorical" else None
    return Column(
        name=found.name,
        kind=cast("Kind", found.kind),
        role="ignored" if ignored else "feature",
        shape=found.shape,
        categories=categories,
    )


def _target(found: Finding, task: Task) -> Column:
    if task == "regression":
        kind: Kind = "tensor" if found.kind == "tensor" else "numeric"
        return Column(name=found.name, kind=kind, role="target", shape=found.shape)
    labels = sort_labels(found.labels)
    return Column(name=found.name, kind="categorical", role="target", categories=labels)


def _task(found: Finding, asked: str, problems: Problems) -> Task | None:
    if asked not in ("auto", *get_args(Task)):
        return None
    count = len(found.labels)
    if asked == "auto":
        task = _guess_task(found)
    else:
        task = cast("Task", asked)
    field = f"target {found.name!r}"
    if found.kind == "text" or not found.kind:
        problems.add(field, str(found.type), "cannot be predicted")
    elif task == "regression" and found.kind not in ("numeric", "tensor"):
        problems.add(field, str(found.type), "regression needs numbers")
    elif task == "regression" and found.unlearnable:
        remedy = f"{found.loss}; subtract what they have in common, or use a larger unit"
        problems.add(field, f"{found.low:.9g} to {found.high:.9g}", remedy)
    elif task != "regression" and found.kind == "tensor":
        problems.add(field, str(found.type), f"{task} needs one label a row")
    elif task != "regression" and count < 2:
        problems.add(field, sorted(found.labels), f"{task} needs at least two classes")
    elif task != "regression" and count > MAX_LABELS:
        problems.add(field, f"{count:,} classes", f"at most {MAX_LABELS:,}; is it an identifier?")
    elif task == "binary" and count != 2:
        problems.add(field, f"{count} classes", "binary needs two; use task='multiclass'")
    return task


def _guess_task(found: Finding) -> Task:
    count = len(found.labels)
    whole = pa.types.is_integer(found.type) and count <= _MAX_CLASSES
    if found.kind in ("categorical", "boolean") or (whole and found.kind == "numeric"):
        return "binary" if count == 2 else "multiclass"
    if found.kind == "numeric" and found.labels == {"0", "1"}:
        return "binary"
    return "regression"
