"""What a dataset's columns mean: kind, role, shape and labels. Plain values with a JSON form."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field

from kubestill.errors import InvalidInput, Problem, Problems, nearest
from kubestill.runtime.base.values import WholeFloat, read_as

if TYPE_CHECKING:  # those who only read a registry have no numpy
    import numpy as np

MAX_WIDTH = 1 << 22
"""Numbers in one row: 16 MiB of float32. A schema of a few bytes may claim any number."""

MAX_TEXT = 1 << 20
"""Bytes of one cell of text, in UTF-8."""
Kind = Literal["numeric", "boolean", "categorical", "tensor", "text"]
Role = Literal["feature", "target", "soft", "weight", "group", "time", "ignored"]
Task = Literal["regression", "binary", "multiclass"]


@dataclass(frozen=True, kw_only=True)
class TextForm:
    """How the text of a column becomes numbers; part of every model that reads it."""

    form: Literal["ngrams", "bytes"] = "ngrams"
    """`bytes` packs three bytes into a number, for foreign models, which read text themselves."""
    words: tuple[WholeFloat, WholeFloat] = (1, 2)
    """Shortest and longest word n-gram; (0, 0) for none."""
    chars: tuple[WholeFloat, WholeFloat] = (0, 0)
    """Shortest and longest character n-gram; (0, 0) for none."""
    length: WholeFloat = 256
    """Numbers of a text; what is longer is cut off."""
    longest: WholeFloat = field(default=0, compare=False)
    """Bytes of the longest text that was imported; rows of other imports may go together."""

    def complaint(self) -> str:
        """Return what is wrong with it; "" where nothing is."""
        for name, (low, high) in (("words", self.words), ("chars", self.chars)):
            if (low, high) != (0, 0) and not 1 <= low <= high <= 8:
                return f"{name} is {[low, high]}; give two numbers from 1 to 8, or [0, 0] for none"
        if self.words == self.chars == (0, 0):
            return "words and chars are both [0, 0]; give one of them a range, such as [1, 2]"
        if not 1 <= self.length <= 1 << 14:
            return f"length is {self.length}; give 1 to {1 << 14:,} n-grams"
        if self.longest > MAX_TEXT:
            return f"longest {self.longest}: no text has more than {MAX_TEXT:,} bytes"
        return ""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**vars(self), "words": list(self.words), "chars": list(self.chars)}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a dataset."""

    name: str
    kind: Kind
    role: Role = "feature"
    """`soft` is what a teacher put out for the row: class logits [K], or predictions [T]. `weight`
    is how many rows the row counts for, `group` an entity whose rows stay together, and `time`
    when it came to be."""
    shape: Annotated[tuple[WholeFloat, ...], Field(max_length=32)] = ()
    """Shape of one row's value; `()` for everything but tensors."""
    categories: tuple[str, ...] | None = None
    """The labels of a categorical feature or a classification target, sorted by `sort_labels`. A
    label's code (a target's class index) is its position here. None keeps free text (columns that
    are kept as given only)."""
    exact: bool = False
    """Whether numbers are stored in float64, as they came, where float32 would change them."""
    offset: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """What exact numbers have in common: models read and answer them less this, in float32."""
    pixels: bool = False
    """Whether numbers are whole, from 0 to 255, and stored in a byte each, as those of images."""
    text: TextForm | None = None
    """How text becomes numbers; None for all other kinds."""

    @property
    def width(self) -> int:
        """Numbers that one row's value takes: the product of the shape, 1 for a scalar."""
        return self.text.length if self.text else math.prod(self.shape)

    @property
    def as_given(self) -> bool:
        """Whether values are kept as they came, numbers in float64 and text of any label."""
        return self.role in ("ignored", "group", "time")

    @property
    def float_type(self) -> type[np.floating[Any]]:
        """The type in which numbers are read, and stored unless they are pixels."""
        import numpy as np

        return np.float64 if self.exact or (self.as_given and not self.shape) else np.float32

    @property
    def stored_type(self) -> type[np.number[Any]]:
        """The type in which a file has them; where that is bytes, they are read as `float_type`."""
        import numpy as np

        return np.uint8 if self.pixels else self.float_type

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without what is at its default."""
        form: dict[str, Any] = {"name": self.name, "kind": self.kind, "role": self.role}
        if self.shape:
            form["shape"] = list(self.shape)
        if self.categories is not None:
            form["categories"] = list(self.categories)
        if self.exact:
            form["exact"] = True
        if self.offset:
            form["offset"] = self.offset
        if self.pixels:
            form["pixels"] = True
        if self.text:
            form["text"] = self.text.to_json()
        return form

    @classmethod
    def from_json(cls, form: dict[str, Any]) -> Column:
        """Read what `to_json` wrote; numbers may have become floats on the way.

        Raises:
            CorruptData: It is no column.
        """
        return read_as(cls, form, source="the schema", what="column")


def soft_column(name: str, width: int, target: Column | None) -> Column:
    """Return the column of soft outputs [width].

    Values lie as far from 0 as the target, so that float32 would hold as little of them.
    """
    offset = target.offset if target else 0.0
    return Column(
        name=name, kind="tensor", role="soft", shape=(width,), exact=bool(offset), offset=offset
    )


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The columns of a dataset in order, and what is to be predicted.

    Raises:
        InvalidInput: Duplicate names, unknown kinds or roles, two targets, a tensor without a
            shape, a target that does not fit the task; all problems together.
    """

    columns: tuple[Column, ...]
    task: Task | None = None
    """None where there is no target column."""

    def __post_init__(self) -> None:
        problems = Problems()
        for name, count in Counter(column.name for column in self.columns).items():
            if count > 1:
                problems.add("columns", name, f"occurs {count} times; rename or drop the others")
        for column in self.columns:
            _check_column(column, problems)
        width = sum(min(column.width, MAX_WIDTH + 1) for column in self.columns)
        if width > MAX_WIDTH:
            problems.add("columns", f"{len(self.columns)} columns", _TOO_WIDE)
        for role in ("target", "soft", "weight", "group", "time"):
            names = [column.name for column in self.columns if column.role == role]
            if len(names) > 1:
                problems.add("columns", names, f"only one column can have the role {role!r}")
        self._check_task(problems)
        problems.raise_if_any()

    def _check_task(self, problems: Problems) -> None:
        target = self.target
        if self.task is not None and self.task not in get_args(Task):
            problems.add("task", self.task, nearest(str(self.task), get_args(Task)))
        elif self.task is None and target is not None:
            problems.add("task", None, f"the target {target.name!r} needs one of {get_args(Task)}")
        elif self.task is not None and target is None:
            problems.add("task", self.task, "give one column the role 'target'")
        elif target is not None and self.task == "regression":
            if target.kind not in ("numeric", "tensor"):
                problems.add("task", self.task, f"the target {target.name!r} is {target.kind}")
        elif target is not None:
            count = len(target.categories or ())
            if target.kind != "categorical":
                problems.add("task", self.task, f"the target {target.name!r} is {target.kind}")
            elif count < 2 or (self.task == "binary" and count != 2):
                problems.add("task", self.task, f"the target {target.name!r} has {count} classes")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every column's name, in order."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def features(self) -> tuple[Column, ...]:
        """The columns a model reads, in order."""
        return tuple(column for column in self.columns if column.role == "feature")

    @cached_property
    def target(self) -> Column | None:
        """The column to predict."""
        return self.of_role("target")

    @cached_property
    def soft(self) -> Column | None:
        """The teacher's outputs."""
        return self.of_role("soft")

    @cached_property
    def weight(self) -> Column | None:
        """How many rows each row counts for."""
        return self.of_role("weight")

    @cached_property
    def group(self) -> Column | None:
        """The entity that each row belongs to."""
        return self.of_role("group")

    def of_role(self, role: Role) -> Column | None:
        """Return the first column of a role."""
        return next((column for column in self.columns if column.role == role), None)

    @property
    def classes(self) -> tuple[str, ...]:
        """The target's labels; empty for regression and where there is no target."""
        return (self.target.categories or ()) if self.target else ()

    def column(self, name: str) -> Column:
        """Return the column called `name`.

        Raises:
            InvalidInput: There is none.
        """
        found = self._by_name.get(name)
        if found is None:
            remedy = "not in the dataset; " + nearest(name, self.names)
            raise InvalidInput([Problem("column", name, remedy)])
        return found

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    def with_soft(self, name: str, width: int) -> Schema:
        """Return this schema with a teacher's outputs [width] in column `name`, in place of any."""
        kept = tuple(column for column in self.columns if column.role != "soft")
        return Schema(columns=(*kept, soft_column(name, width, self.target)), task=self.task)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON form."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"task": self.task, "columns": [column.to_json() for column in self.columns]}

    @classmethod
    def from_json(cls, form: dict[str, Any]) -> Schema:
        """Read what `to_json` wrote.

        Raises:
            CorruptData: It is no schema, or contradicts itself.
        """
        return read_as(cls, form, source="the schema", what="schema")


_TOO_WIDE = f"a row may hold {MAX_WIDTH:,} numbers at most; make its tensors smaller"


def sort_labels(labels: set[str]) -> tuple[str, ...]:
    """Sort labels: whole numbers by value ("9" before "10"), anything else as text."""
    try:
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))


def _check_column(column: Column, problems: Problems) -> None:
    if not column.name:
        problems.add("columns", column.name, "every column needs a name")
    if column.kind not in get_args(Kind):
        problems.add(f"kind of {column.name!r}", column.kind, nearest(column.kind, get_args(Kind)))
    if column.role not in get_args(Role):
        problems.add(f"role of {column.name!r}", column.role, nearest(column.role, get_args(Role)))
    if column.kind == "tensor" and (not column.shape or min(column.shape) < 1):
        problems.add(
            f"shape of {column.name!r}", column.shape, "a tensor needs sizes of 1 and more"
        )
    if column.exact and column.kind not in ("numeric", "tensor"):
        problems.add(f"exact of {column.name!r}", True, f"it is {column.kind}, not a number")
    if column.offset and not column.exact:
        remedy = "only numbers that are stored exactly can be read less an offset"
        problems.add(f"offset of {column.name!r}", column.offset, remedy)
    if column.pixels and (column.kind != "tensor" or column.exact or column.role == "soft"):
        remedy = "only tensors of whole numbers are stored as bytes"
        problems.add(f"pixels of {column.name!r}", True, remedy)
    if column.kind != "tensor" and column.shape:
        problems.add(f"shape of {column.name!r}", column.shape, "only tensors have a shape")
    if (column.kind == "text") != (column.text is not None):
        remedy = "columns of text, and no others, say how text becomes numbers"
        problems.add(f"text of {column.name!r}", column.text, remedy)
    elif column.text and (said := column.text.complaint()):
        problems.add(f"text of {column.name!r}", column.text.to_json(), said)
    if column.kind == "text" and column.role != "feature":
        remedy = f"a {column.role} is no text; use 'categorical'"
        problems.add(f"role of {column.name!r}", column.role, remedy)
    if column.role == "soft" and column.kind != "tensor":
        problems.add(
            f"kind of {column.name!r}", column.kind, "soft outputs are tensors of shape [K]"
        )
    if column.role == "weight" and column.kind != "numeric":
        problems.add(f"kind of {column.name!r}", column.kind, "a weight is a number: 'numeric'")
    if column.role in ("group", "time") and column.kind == "tensor":
        remedy = f"a {column.role} is one number or text a row"
        problems.add(f"kind of {column.name!r}", column.kind, remedy)
    if column.kind == "categorical":
        if column.categories is None and not column.as_given:
            problems.add(f"categories of {column.name!r}", None, "list its labels")
        elif column.categories and len(set(column.categories)) < len(column.categories):
            problems.add(f"categories of {column.name!r}", column.categories, "has duplicates")
    elif column.categories is not None:
        problems.add(f"categories of {column.name!r}", column.categories, "it is not categorical")
