"""A teacher's answers in the columns of a user's table, as a dataset stores them.

A dataset holds what a teacher puts out before it becomes a probability: logits [K], [1] where there
are two classes, or predictions [T]. A user's table has a probability or a logit, of one class or of
each, in one column or in several.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import Problems, counted, nearest
from kubestill.runtime.datasets import columns as read
from kubestill.runtime.datasets.schema import Column, soft_column

SoftValues = Literal["probability", "logit"]

_LEAST = 1e-7
"""Smallest probability: logits of 0 and 1 are infinite."""
_ROUNDED = 0.01
"""How far from 1 probabilities may add up, as those of a few digits do."""


@dataclass(frozen=True, kw_only=True)
class AnswerColumns:
    """Columns of one teacher's answers, and how they are read."""

    columns: tuple[str, ...]
    """In the order of `places`."""
    places: tuple[int, ...]
    """Class that each column is of; the only column of a list, or a prediction, has none."""
    width: int
    """Numbers a row that a list has, or a prediction."""
    classes: tuple[str, ...]
    """Empty for a regression."""
    values: SoftValues
    stored: Column
    """What becomes of them."""

    @property
    def note(self) -> str:
        """How they are read, in words."""
        if not self.classes:
            return "a teacher's prediction, in the unit of the target"
        if self.places:
            return f"a teacher's {self.values}, stored as a logit"
        return f"a teacher's {self.values} of {', '.join(self.classes)}, in this order"

    def read(self, table: pa.Table) -> NDArray[np.float64]:
        """Return the answers as they stand in the table, [n, columns]; NaN where missing.

        Raises:
            ValueError: They are no numbers, or lists of another length.
        """
        if len(self.columns) == 1 and self.width > 1:
            return read.tensors(table.column(self.columns[0]), (self.width,), np.float64)
        given = [table.column(name) for name in self.columns]
        flat = [
            read.tensors(one, (1,), np.float64)[:, 0]
            if read.is_list(one.type)
            else read.floats(one, np.float64)
            for one in given
        ]
        return np.stack(flat, axis=1)

    def stored_rows(self, table: pa.Table) -> pa.Array:
        """Return the answers as the dataset stores them, [stored width] a row."""
        exact = np.float64 if self.stored.exact else np.float32
        found = self.outputs(self.read(table)).astype(exact)
        return pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), found.shape[1])

    def outputs(self, given: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn answers [n, columns] into logits [n, K], [n, 1] for two classes; or leave them."""
        if not self.classes:
            return given
        if self.values == "probability":
            given = np.clip(given, _LEAST, 1 - _LEAST)
        if given.shape[1] == 1:
            alone = given if self.values == "logit" else np.log(given / (1 - given))
            return alone if self.places[0] == 1 else -alone
        logits = given if self.values == "logit" else np.log(given)
        if self.places:
            logits = logits[:, np.argsort(self.places)]
        return logits[:, 1:] - logits[:, :1] if len(self.classes) == 2 else logits

    def check(self, tables: Iterable[pa.Table], problems: Problems) -> None:
        """Note answers that are missing, not finite, or no probabilities."""
        missing = infinite = outside = unsummed = rows = shares = 0
        example = sums = ""
        for table in tables:
            try:
                found = self.read(table)
            except (pa.ArrowException, ValueError) as error:
                problems.add(f"soft {self._name}", str(table.schema.types[0]), str(error))
                return
            missing += int(np.isnan(found).any(axis=1).sum())
            infinite += int(np.isinf(found).any(axis=1).sum())
            found = found[np.isfinite(found).all(axis=1)]
            if not self.classes:
                continue
            wrong = ((found < 0) | (found > 1)).any(axis=1)
            total = found.sum(axis=1)
            if self.values == "logit":
                rows += len(found)
                shares += int((~wrong & (np.abs(total - 1) <= _ROUNDED)).sum())
                continue
            off = (np.abs(total - 1) > _ROUNDED) & ~wrong if found.shape[1] > 1 else wrong & False
            if wrong.any() and not example:
                worst = found[wrong][0]
                example = f"{worst[(worst < 0) | (worst > 1)][0]:g}"
            if off.any() and not sums:
                sums = f"{total[off][0]:g}"
            outside, unsummed = outside + int(wrong.sum()), unsummed + int(off.sum())
        field = f"soft {self._name}"
        if shares == rows > 1 and len(self.places or self.classes) > 1:
            remedy = (
                "logits do not add up to 1 in every row; these are probabilities, so leave it out"
            )
            problems.add("soft_values", self.values, remedy)
        if missing:
            remedy = "a teacher answers every row; drop these rows"
            problems.add(field, f"{missing} missing or NaN values", remedy)
        if infinite:
            remedy = "clip them, or give probabilities"
            problems.add(field, f"{infinite} infinite values", remedy)
        if outside:
            remedy = "no probability; if these are logits, settings={'soft_values': 'logit'}"
            what = f"outside of [0, 1] in {counted(outside, 'row')}, as {example}"
            problems.add(field, what, remedy)
        if unsummed:
            remedy = "the probabilities of all classes add up to 1; is a class missing?"
            what = f"add up to another sum in {counted(unsummed, 'row')}, as {sums}"
            problems.add(field, what, remedy)

    @property
    def _name(self) -> str:
        return ", ".join(map(repr, self.columns))


def find_answers(
    asked: Mapping[str, str],
    types: Mapping[str, pa.DataType],
    *,
    target: Column,
    shapes: Mapping[str, Sequence[int]],
    values: SoftValues,
    taken: Sequence[str],
    problems: Problems,
) -> AnswerColumns | None:
    """Return how the columns are read that hold a teacher's answers.

    Args:
        asked: Column → `soft`, or `soft:<class>`.
        types: Arrow type of each.
        target: What the teacher predicts.
        shapes: Shape of each that holds lists.
        values: What they are, of classes.
        taken: Names that what is stored must not have.
        problems: Takes what keeps them from being read; None is returned then.
    """
    classes = target.categories or ()
    for name in asked:
        if pa.types.is_struct(types[name]) or pa.types.is_map(types[name]):
            remedy = "give a column for each class, or one with a list of all in their order"
            problems.add(f"soft {name!r}", str(types[name]), remedy)
            return None
    lists = [name for name in asked if read.is_list(types[name]) or shapes.get(name)]
    wanted = len(classes) or target.width
    name = next(iter(asked))
    if len(asked) > 1:
        name = next(n for n in ("soft", "teacher_soft", "teacher_soft_") if n not in taken)
    before = len(problems)
    width, places = 1, tuple[int, ...]()
    if lists or not classes:
        width = int(np.prod(shapes.get(lists[0]) or (1,))) if lists else 1
        said = f"{width} numbers a row" if lists else "one number a row"
        for extra in list(asked)[1:]:
            remedy = "one column holds all that a teacher says; give one, as a list of numbers"
            problems.add(f"soft {extra!r}", asked[extra], remedy)
        role = asked[name] if len(asked) == 1 else "soft"
        if role != "soft" and (not classes or width > 1):
            remedy = "a list holds all classes in their order; use 'soft'"
            remedy = remedy if classes else "a regression has no classes; use 'soft'"
            problems.add(f"roles[{name!r}]", role, remedy)
        fits = (wanted, 1) if len(classes) == 2 else (wanted,)
        if width not in fits:
            what = f"{wanted} classes: {', '.join(classes[:8])}" if classes else f"{wanted} values"
            problems.add(f"soft {name!r}", said, f"the target {target.name!r} has {what}")
        if classes and width == 1:
            places = _places(asked, classes, target, problems)
    else:
        places = _places(asked, classes, target, problems)
    if len(problems) > before:
        return None
    stored = 1 if len(classes) == 2 else wanted
    return AnswerColumns(
        columns=tuple(asked),
        places=places,
        width=width,
        classes=classes,
        values=values,
        stored=soft_column(name, stored, target),
    )


def _places(
    asked: Mapping[str, str], classes: Sequence[str], target: Column, problems: Problems
) -> tuple[int, ...]:
    """Return the class of each column, by what was said or by the end of its name."""
    if len(asked) == 1 and len(classes) == 2 and next(iter(asked.values())) == "soft":
        name, first, second = next(iter(asked)), *classes
        if _ends_in(name, first) and not _ends_in(name, second):
            remedy = (
                f"its name ends in {first!r}, but one column alone is of {second!r}; say which, as "
                f"{{{name!r}: 'soft:{first}'}}"
            )
            problems.add(f"roles[{name!r}]", "soft", remedy)
        return (1,)
    places: list[int] = []
    for name, role in asked.items():
        said = role.partition(":")[2]
        fits = [one for one in classes if _ends_in(name, one)]
        if said and said not in classes:
            remedy = f"the target {target.name!r} has no such class; {nearest(said, classes)}"
            problems.add(f"roles[{name!r}]", role, remedy)
        elif not said and len(fits) != 1:
            form = f"{{{name!r}: 'soft:{classes[0]}'}}"
            remedy = f"its name does not end in a class of {target.name!r}; say which, as {form}"
            problems.add(f"roles[{name!r}]", role, remedy)
        else:
            places.append(classes.index(said or fits[0]))
    one_of_two = len(asked) == 1 and len(classes) == 2
    if len(places) == len(asked) and not one_of_two and sorted(places) != [*range(len(classes))]:
        held = ", ".join(
            f"{name!r} of {classes[at]!r}" for name, at in zip(asked, places, strict=True)
        )
        remedy = f"give a column for each of {', '.join(classes)}"
        problems.add("roles", held, remedy)
    return tuple(places)


def _ends_in(name: str, label: str) -> bool:
    return name == label or name.endswith((f"_{label}", f" {label}"))
