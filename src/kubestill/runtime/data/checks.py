"""What must hold between datasets before training spends anything on them."""

from __future__ import annotations

from kubestill.errors import Problems, nearest
from kubestill.runtime.data.columns import label_strings
from kubestill.runtime.data.manifest import Dataset
from kubestill.runtime.data.parts import absolute, is_remote, local_path

__all__ = ["check_trainable", "check_validation"]


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


def check_validation(train: Dataset, validation: Dataset) -> None:
    """Check that a model trained on `train` can be judged on `validation`.

    Raises:
        InvalidInput: The validation set is empty, lacks the target or a feature, has columns of
            another kind or shape, another task, or classes that no training row has; all problems
            together.
    """
    problems = Problems()
    if not validation.rows:
        problems.add(
            "validation", validation.root, "is empty; leave it out or give at least one row"
        )
    _check_columns(train, validation, problems)
    if not len(problems) and train.schema.classes:
        _check_classes(train, validation, problems)
    problems.raise_if_any()


def _check_columns(train: Dataset, validation: Dataset, problems: Problems) -> None:
    target = train.schema.target
    for column in (*train.schema.features, *([target] if target else [])):
        if column.name not in validation.schema.names:
            remedy = f"{column.role} is missing; {nearest(column.name, validation.schema.names)}"
            problems.add("validation columns", column.name, remedy)
            continue
        other = validation.schema.column(column.name)
        if (other.kind, other.shape) != (column.kind, column.shape):
            remedy = f"the training rows hold {column.kind} {list(column.shape)}"
            problems.add(
                f"validation column {column.name!r}", f"{other.kind} {list(other.shape)}", remedy
            )
    if target and target.name in validation.schema.names:
        if validation.schema.task != train.schema.task:
            remedy = f"the training rows are for {train.schema.task}"
            problems.add("validation task", validation.schema.task, remedy)


def _check_classes(train: Dataset, validation: Dataset, problems: Problems) -> None:
    assert train.schema.target
    name = train.schema.target.name
    # A student learns classes from soft outputs too, so all that its teacher knows count as seen.
    known = set(train.schema.classes) if train.schema.soft else _labels(train, name)
    unseen = _labels(validation, name) - known
    if unseen:
        remedy = "no training row has these classes; move some rows over or drop them"
        problems.add(f"validation classes of {name!r}", sorted(unseen), remedy)


def _labels(dataset: Dataset, name: str) -> set[str]:
    found: set[str | None] = set()
    for table in dataset.iter_tables([name]):
        found.update(label_strings(table.column(name).unique()).to_pylist())
    return {label for label in found if label is not None}
