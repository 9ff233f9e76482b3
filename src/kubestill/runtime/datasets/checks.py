"""What must hold between datasets before training spends anything on them."""

from __future__ import annotations

from collections.abc import Collection

from kubestill.errors import Problems, nearest_of
from kubestill.runtime.datasets.columns import label_strings
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.parts import absolute, is_remote, local_path
from kubestill.runtime.datasets.schema import Schema


def check_trainable(dataset: Dataset) -> None:
    """Check that a dataset has rows and features, and that its local files are as long as ever.

    Raises:
        InvalidInput: With every problem found.
    """
    problems = Problems()
    if not dataset.rows:
        problems.add("dataset", dataset.root, "is empty; give at least one row")
    if not dataset.schema.features:
        problems.add("dataset", dataset.root, "has no feature column; import it with one")
    for part in dataset.parts:
        with problems.collect("dataset", dataset.root):
            if not is_remote(absolute(dataset.root, part.path)):
                local_path(dataset.root, part)
    problems.raise_if_any()


def check_validation(train: Dataset, validation: Dataset, *, learned: Collection[str] = ()) -> None:
    """Check that a model trained on `train` can be judged on `validation`.

    Args:
        train: Its training rows.
        validation: The rows to judge it on.
        learned: Classes that it knows from an earlier training.

    Raises:
        InvalidInput: The validation set is empty, lacks the target, in some row or altogether, or a
            feature, has columns of another kind or shape, another task, or classes that no training
            row has; or its rows are of entities that are trained on; all problems together.
    """
    problems = Problems()
    if not validation.rows:
        problems.add(
            "validation", validation.root, "is empty; leave it out or give at least one row"
        )
    _check_columns(train.schema, validation.schema, "validation", "the training rows", problems)
    if not len(problems) and train.schema.classes:
        _check_classes(train, validation, set(learned), problems)
    group = train.schema.group
    if not len(problems) and group and group.name in validation.schema.names:
        mine, theirs = (_labels(rows, group.name) for rows in (train, validation))
        if both := mine & theirs:
            remedy = "have training rows, too: what they share is learned, not predicted; move them"
            what = f"{len(both)} of {len(theirs)}"
            problems.add(f"validation groups of {group.name!r}", what, remedy)
    if validation.unlabelled:
        unlabelled = f"{validation.unlabelled} of {validation.rows} rows"
        problems.add("validation", unlabelled, "have no target to be scored by; drop them")
    problems.raise_if_any()


def check_continues(known: Schema, dataset: Dataset) -> None:
    """Check that a model that learned from rows of the schema `known` can learn from a dataset.

    Raises:
        InvalidInput: It lacks a feature or the target, has columns of another kind or shape,
            another task, or classes that the model does not know; all problems together.
    """
    problems = Problems()
    _check_columns(known, dataset.schema, "dataset", "the checkpoint", problems)
    target = known.target
    if not problems and target and known.classes:
        new = set(dataset.schema.classes) - set(known.classes)
        if unseen := new and _labels(dataset, target.name) & new:
            remedy = f"the checkpoint knows {', '.join(known.classes)}; drop them, or train anew"
            problems.add(f"dataset classes of {target.name!r}", sorted(unseen), remedy)
    problems.raise_if_any()


def _check_columns(
    known: Schema, schema: Schema, role: str, other_side: str, problems: Problems
) -> None:
    target = known.target
    there, near = set(schema.names), nearest_of(schema.names)
    for column in (*known.features, *([target] if target else [])):
        if column.name not in there:
            remedy = f"{column.role} is missing; {near(column.name)}"
            problems.add(f"{role} columns", column.name, remedy)
            continue
        other = schema.column(column.name)
        if (other.kind, other.shape) != (column.kind, column.shape):
            remedy = f"that of {other_side} is {column.kind} {list(column.shape)}"
            problems.add(
                f"{role} column {column.name!r}", f"{other.kind} {list(other.shape)}", remedy
            )
    if target and target.name in there and schema.task != known.task:
        problems.add(f"{role} task", schema.task, f"that of {other_side} is {known.task}")


def _check_classes(
    train: Dataset, validation: Dataset, learned: set[str], problems: Problems
) -> None:
    assert train.schema.target
    name = train.schema.target.name
    # A student learns classes from soft outputs too, so all that its teacher knows count as seen.
    known = set(train.schema.classes) if train.schema.soft else _labels(train, name)
    unseen = _labels(validation, name) - known - learned
    if unseen:
        remedy = "no training row has these classes; move some rows over or drop them"
        problems.add(f"validation classes of {name!r}", sorted(unseen), remedy)


def _labels(dataset: Dataset, name: str) -> set[str]:
    found: set[str | None] = set()
    for table in dataset.iter_tables([name]):
        found.update(label_strings(table.column(name).unique()).to_pylist())
    return {label for label in found if label is not None}
