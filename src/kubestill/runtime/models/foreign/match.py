"""Match a foreign model with a dataset: inputs and classes by name, never by their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from kubestill.errors import Problems, nearest_of
from kubestill.runtime.base.settings import Settings
from kubestill.runtime.datasets.columns import label_strings
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.text import packed_form
from kubestill.runtime.models.foreign.endpoint import EndpointOptions
from kubestill.runtime.models.foreign.runtime import Declared
from kubestill.runtime.models.foreign.several import SeveralOptions
from kubestill.runtime.models.foreign.spec import Answers, Input


class Options(Settings):
    """What a user says about a model that its file does not."""

    format: str = "auto"
    """`auto` tells by the content: `lightgbm`, `xgboost`, `catboost`, `onnx`, `pt2`,
    `skops`, `huggingface`, `python`, which is an import path, `endpoint`, which is an address,
    or `several`."""
    inputs: list[str] = []
    """Columns that it reads, in the order it was fitted on; for files that do not name them."""
    classes: list[Any] = []
    """Class labels in the order of its outputs; for files that do not name them."""
    output: Literal["auto", "logit", "probability", "value"] = "auto"
    """What it puts out, where the file does not say."""
    output_name: str = ""
    """Which output of an ONNX file, a `.pt2` or a server to learn from; empty takes the only one
    of numbers."""
    categories: dict[str, list[Any]] = {}
    """Labels by column, in the order of the codes 0, 1, ... that the model was fitted on."""
    missing: float | None = Field(default=None, allow_inf_nan=False)
    """Number that stood for a missing value where XGBoost was fitted, as its own `missing=-999`
    says; no file keeps it. NaN is missing either way."""
    args: dict[str, Any] = {}
    """Keyword arguments of a teacher given by import path."""
    weights: str = ""
    """File that such a teacher reads, local, gs:// or s3://; its argument `weights` is the path."""
    endpoint: EndpointOptions = EndpointOptions()
    several: SeveralOptions = SeveralOptions()


@dataclass(frozen=True, kw_only=True)
class Match:
    """How a model and the columns of a dataset belong together."""

    schema: Schema
    """Features in the model's order, with the categories that it knows, and the target."""
    inputs: tuple[Input, ...]
    order: tuple[int, ...]
    answers: Answers
    notes: tuple[str, ...]
    """What a reader of the report should know."""


def match(declared: Declared, schema: Schema, options: Options, *, certain: bool) -> Match:
    """Match what a file declares with the columns of a dataset.

    Args:
        declared: What the file says.
        schema: The dataset's.
        options: What the user says.
        certain: The file's word about its outputs is the library's own, which nobody overrides.

    Raises:
        InvalidInput: Everything that is missing, unknown or contradictory.
    """
    problems = Problems()
    notes: list[str] = []
    columns: list[Column] = []
    inputs: list[Input] = []
    for name in _names(declared, schema, options, problems):
        found = _find(name, schema, problems)
        if found is not None:
            column, one = _read_as(found, name, declared, options, problems, notes)
            columns.append(column)
            inputs.append(one)
    width = sum(1 if column.text else column.width for column in columns)
    if not problems and declared.width is not None and width != declared.width:
        remedy = f"hold {width} numbers a row, but the model reads {declared.width}"
        problems.add("inputs", [column.name for column in columns], remedy)
    target, order, answers = schema.target, (), None
    if target is None:
        problems.add("dataset", "no target", "give the rows that the student is to learn from")
    else:
        answers = _answers(declared, schema, options, certain, problems)
        order = _order(declared, schema, options, problems)
        classes = target.width if schema.task == "regression" else len(schema.classes)
        allowed = (1, 2) if schema.task == "binary" else (classes,)
        if declared.outputs not in (None, *allowed):
            what = "values" if schema.task == "regression" else "classes"
            remedy = f"the dataset's target has {classes} {what}; import the rows it was fitted on"
            problems.add("model", f"{declared.outputs} outputs for a row", remedy)
    problems.raise_if_any()
    assert target is not None
    assert answers is not None
    return Match(
        schema=Schema(columns=(*columns, target), task=schema.task),
        inputs=tuple(inputs),
        order=order,
        answers=answers,
        notes=tuple(notes),
    )


def _names(
    declared: Declared, schema: Schema, options: Options, problems: Problems
) -> Sequence[str]:
    features = [column.name for column in schema.features]
    if declared.inputs is None:
        if not options.inputs:
            many = "the columns" if declared.width is None else f"the {declared.width} columns"
            remedy = (
                f"the file does not name its inputs; list {many} that it was fitted on, in that "
                f"order, of {', '.join(features[:20])}"
            )
            problems.add("inputs", [], remedy)
        return options.inputs
    if not options.inputs:
        return declared.inputs
    same = sorted(options.inputs) == sorted(declared.inputs)
    if not same and (declared.reads == "labels" or len(options.inputs) != len(declared.inputs)):
        remedy = f"the file names its inputs: {', '.join(declared.inputs[:20])}; leave this empty"
        problems.add("inputs", options.inputs, remedy)
    return declared.inputs if same else options.inputs


def _find(name: str, schema: Schema, problems: Problems) -> Column | None:
    # LightGBM writes blanks in names as underscores.
    found = next((c for c in schema.columns if c.name == name), None) or next(
        (c for c in schema.columns if c.name.replace(" ", "_") == name), None
    )
    features = [column.name for column in schema.features]
    if found is None:
        near = nearest_of(features)(name)
        remedy = f"the model reads it, but the dataset has no such column; {near}"
        problems.add("inputs", name, remedy)
        return None
    if found.role != "feature":
        remedy = f"the model reads it, but in the dataset it is {found.role}, not a feature"
        problems.add("inputs", name, remedy)
        return None
    return found


def _read_as(
    column: Column,
    name: str,
    declared: Declared,
    options: Options,
    problems: Problems,
    notes: list[str],
) -> tuple[Column, Input]:
    """Return a column as the model's schema has it, and how the model reads it."""
    one = Input(name=column.name)
    given = options.categories.get(column.name)
    known = declared.categories.get(name)
    if given is not None:
        known = tuple(map(str, label_strings(pa.array(given)).to_pylist()))
    if declared.reads == "text":
        if column.kind not in ("text", "categorical"):
            remedy = "the model reads text, and this is not text; name columns of text in `inputs`"
            problems.add(f"column {column.name!r}", column.kind, remedy)
        return _packed(column, notes), one
    if name in declared.ids:
        if not column.text:
            remedy = f"the model reads text; import the rows with kinds={{{column.name!r}: 'text'}}"
            problems.add(f"column {column.name!r}", column.kind, remedy)
        return replace(column, text=declared.ids[name]), one
    if column.text and declared.reads == "labels" and known is None and name not in declared.coded:
        return _packed(column, notes), one
    if column.text:
        remedy = (
            "the model reads numbers or labels, and this is text; bring in the whole pipeline with "
            "its vectoriser, or a kubestill.teachers.Teacher that has one"
        )
        problems.add(f"column {column.name!r}", column.kind, remedy)
        return column, one
    if column.kind != "categorical":
        if known is not None or name in declared.worded:
            remedy = (
                f"the model takes it as a category; import the rows with "
                f"kinds={{{column.name!r}: 'categorical'}}"
            )
            problems.add(f"column {column.name!r}", column.kind, remedy)
        return column, one
    labels = column.categories or ()
    if known is not None:
        unknown = [label for label in labels if label not in known]
        if len(unknown) == len(labels) or len(set(known)) < len(known):
            remedy = (
                f"none of the dataset's labels is known to the model, which has "
                f"{', '.join(map(repr, known[:5]))}, ..."
            )
            problems.add(f"categories of {column.name!r}", list(labels[:5]), remedy)
        elif unknown:
            shown = ", ".join(map(repr, unknown[:5]))
            notes.append(
                f"{len(unknown)} of {len(labels)} labels of {column.name!r} are unknown to the "
                f"model and count as missing: {shown}"
            )
        if declared.reads == "labels" and name in declared.numeric:
            return replace(column, categories=known), replace(
                one, codes=tuple(map(float, range(len(known))))
            )
        return replace(column, categories=known), one
    if declared.reads == "labels" and name in declared.learned:
        unknown = [label for label in labels if label not in declared.learned[name]]
        if unknown:
            shown = ", ".join(map(repr, unknown[:5]))
            learned = ", ".join(map(repr, sorted(declared.learned[name])[:5]))
            notes.append(
                f"{len(unknown)} of {len(labels)} labels of {column.name!r} are none that the "
                f"model's encoder has learned: {shown}; it has learned {learned}"
            )
    if declared.reads == "labels" and name not in declared.numeric:
        return column, one
    try:
        return column, replace(one, codes=tuple(float(label) for label in labels))
    except ValueError:
        remedy = (
            f"the model reads numbers; give categories={{{column.name!r}: [...]}} with the labels "
            "in the order of the codes it was fitted on, or bring in the whole pipeline with its "
            "encoder"
        )
        problems.add(f"column {column.name!r}", list(labels[:5]), remedy)
        return column, one


def _packed(column: Column, notes: list[str]) -> Column:
    """Return a column with its text as the model gets it, whole or up to a limit."""
    if column.text is None:
        return column
    form = packed_form(column.text)
    if form.longest > 3 * form.length:
        notes.append(
            f"it gets the first {3 * form.length:,} bytes of each text of {column.name!r}; the "
            f"longest has {form.longest:,}"
        )
    return replace(column, text=form)


def _answers(
    declared: Declared, schema: Schema, options: Options, certain: bool, problems: Problems
) -> Answers | None:
    found = declared.answers if options.output == "auto" else options.output
    fixed = certain and declared.answers not in (None, "value")
    if fixed and found != declared.answers:
        problems.add("output", options.output, f"the file gives a {declared.answers}; use 'auto'")
        return None
    if found is None and schema.task == "regression":
        return "value"
    if found is None:
        problems.add("output", "auto", "the file does not say; use 'logit' or 'probability'")
    elif (found == "value") != (schema.task == "regression"):
        task = "values" if schema.task == "regression" else f"{schema.task} classes"
        remedy = f"the dataset's target {schema.target and schema.target.name!r} holds {task}"
        remedy += "; say output='logit' or 'probability' if that is what it gives" * (
            found == "value"
        )
        problems.add("output", found, remedy)
        return None
    return found


def _order(
    declared: Declared, schema: Schema, options: Options, problems: Problems
) -> tuple[int, ...]:
    """Return where the model's outputs hold each class of the dataset."""
    if schema.task == "regression":
        assert schema.target is not None
        return tuple(range(schema.target.width))
    wanted = schema.classes
    told = tuple(map(str, label_strings(pa.array(options.classes)).to_pylist()))
    names = told or declared.classes
    if names is None:
        numbered = tuple(map(str, range(len(wanted))))
        if wanted in (numbered, ("false", "true")):
            return tuple(range(len(wanted)))
        remedy = (
            "the file does not name its classes; list them in the order of its outputs, such as "
            f"{list(wanted)}"
        )
        problems.add("classes", [], remedy)
        return ()
    near = nearest_of(wanted)
    for name in names:
        if name not in wanted:
            problems.add("classes", name, f"is no class of the dataset; {near(name)}")
    missing = [name for name in wanted if name not in names]
    if missing:
        remedy = f"the model answers {', '.join(map(repr, names[:20]))} only"
        problems.add("classes", missing, f"are classes of the dataset; {remedy}")
    if len(set(names)) < len(names):
        problems.add("classes", list(names), "names a class twice")
    return () if problems else tuple(names.index(name) for name in wanted)
