"""A user's own table as a dataset: kinds, roles and the task inferred from what is in it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problems, counted, nearest, nearest_of
from kubestill.runtime.datasets.answers import AnswerColumns, find_answers
from kubestill.runtime.datasets.columns import floats
from kubestill.runtime.datasets.options import Reading, TextOptions
from kubestill.runtime.datasets.schema import (
    MAX_TEXT,
    Column,
    Kind,
    Schema,
    Task,
    TextForm,
    sort_labels,
)
from kubestill.runtime.datasets.sources import Opened, opened_table, try_source
from kubestill.runtime.datasets.survey import (
    MAX_LABELS,
    Finding,
    guess,
    report,
    survey,
    survey_offsets,
)
from kubestill.runtime.datasets.text import least_ngrams
from kubestill.runtime.datasets.times import NO_TIME, read_times

_MAX_CLASSES = 50
"""Whole numbers with more distinct values than this are a quantity, not classes."""
_FEW_LABELS = 50
"""A text column with more labels than this, and than half its rows, names the rows."""
_FIRST_DAY, _LAST_DAY = 1900_01_01, 2200_01_01
_WEIGHTS = (
    *("weight", "sample_weight", "instance_weight", "case_weight", "row_weight", "class_weight"),
)
_ANSWERS = (
    *("teacher", "teacher_logit", "teacher_probability", "teacher_prediction", "teacher_output"),
    *(
        "teacher_prob",
        "teacher_score",
        "logit",
        "soft",
        "soft_label",
        "soft_target",
        "prediction",
        "predicted",
        "y_pred",
        "y_prob",
    ),
)
_ROLE_NOTES = {
    "weight": "how many rows a row counts for",
    "group": "rows of one value stay together",
    "time": "splits are in its order",
}
_PARTS = ("fold", "split", "is_train")
_BY_ACCIDENT = (
    dict.fromkeys(_WEIGHTS, ("a row's weight", "weight"))
    | dict.fromkeys(_ANSWERS, ("a model's answer", "soft"))
    | dict.fromkeys(_PARTS, ("a part of a split", ""))
)
"""Names, in the singular, of columns that are seldom something to learn from, and their roles."""


@dataclass(frozen=True, kw_only=True)
class ColumnStory:
    """What became of one column of a user's table."""

    name: str
    stored: str
    """Its type as it was read."""
    kind: str
    """A schema kind; "" for what could not be kept."""
    role: str
    """A schema role, or `left out`."""
    missing: int
    """Rows without a value."""
    why: str = ""
    """Why it is no feature although nobody said so."""
    loss: str = ""
    """What storing it as float32 loses."""
    notes: tuple[str, ...] = ()
    """How its values were read, where that took a decision."""


@dataclass(frozen=True, kw_only=True)
class UserTable:
    """A table that was looked through once and can be read as rows of `schema`."""

    source: Opened
    schema: Schema
    rows: int
    stories: tuple[ColumnStory, ...]
    """Every column of the source, in its order."""
    answers: AnswerColumns | None = None
    """A teacher's, which the source has in other columns than the schema."""
    times: NDArray[Any] | None = None
    """[rows] when each row is from, in any unit; None without a column of that role."""

    @property
    def told(self) -> tuple[str, ...]:
        """What was detected about the files."""
        return tuple(self.source.notes.told)

    @property
    def left_out(self) -> dict[str, str]:
        """Columns that are no features although nobody said so, each with the reason."""
        return {story.name: story.why for story in self.stories if story.why}

    @property
    def losses(self) -> dict[str, str]:
        """Features and targets that float32 holds coarsely, each with what it loses."""
        return {story.name: story.loss for story in self.stories if story.loss}

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows in order, as `DatasetWriter.write` takes them."""
        names, answers = list(columns or self.schema.names), self.answers
        if answers is None or answers.stored.name not in names:
            yield from self.source.scan(names)
            return
        given = [name for name in names if name != answers.stored.name]
        for table in self.source.scan(list(dict.fromkeys([*given, *answers.columns]))):
            arrays = {name: table.column(name) for name in given}
            arrays[answers.stored.name] = answers.stored_rows(table)
            yield pa.Table.from_arrays([arrays[name] for name in names], names=names)


def read_table(
    source: str | pa.Table,
    *,
    target: str = "",
    task: Literal["auto"] | Task = "auto",
    features: Sequence[str] = (),
    ignore: Sequence[str] = (),
    kinds: Mapping[str, str] | None = None,
    reading: Reading | None = None,
    complete: bool = False,
) -> UserTable:
    """Look through a user's table once and infer its schema.

    Numbers are numeric, text and dictionaries categorical, lists of one shape tensors. Times, text
    columns that name their rows and the index of a pandas DataFrame are kept but not learned from;
    text that is to be read word by word takes `kinds={"body": "text"}`.
    The task follows from the target: two classes are binary; text, truth values and up to 50
    distinct whole numbers multiclass; else regression.

    Args:
        source: See `files.find_files`; or a table in memory.
        target: Column to predict; "" for none.
        task: What to predict, where inference would get it wrong.
        features: Columns to learn from; all but the target where empty. The others are kept,
            ignored.
        ignore: Columns not to learn from, in place of a list of all others.
        kinds: Kind by column, where inference would get it wrong.
        reading: How files and their text are to be read.
        complete: The user wants all columns learned from, whatever they are called.

    Raises:
        InvalidInput: Whatever keeps the table from being used; all problems together.
    """
    problems = Problems()
    reading = reading or Reading()
    roles = {name: role for name, role in reading.roles.items() if role != "ignored"}
    ignore = [*ignore, *(name for name, role in reading.roles.items() if role == "ignored")]
    kinds = dict(kinds or {})
    _check_words(target, task, kinds, problems)
    opened = _open(source, _kinds_by_role(roles) | kinds, reading, problems)
    names = [*opened.types, *opened.notes.doubled]
    _check_names(names, target, features, ignore, kinds, reading.text, problems)
    _check_roles(names, target, features, reading.roles, problems)
    ignored, named = set(ignore), {*features, *kinds}
    sound = not problems
    soft = {name: role for name, role in roles.items() if role.startswith("soft")}
    said = {name: kind for name, kind in _kinds_by_role(roles).items() if name not in soft}
    findings = _findings(opened.types, said | kinds)
    for name in opened.images.keys() & findings.keys():
        findings[name].pixels = findings[name].kind == "tensor"
    # What is named wrongly is left out from here on: the values of the rest are looked at still.
    target = target if target in findings else ""
    roles = {name: role for name, role in roles.items() if name in findings}
    asked = {*features, *kinds, *roles, target}
    storable = {name: found for name, found in findings.items() if found.kind or name in asked}
    rows = opened.rows.count_rows()
    if not rows and opened.types:
        problems.add("source", source if isinstance(source, str) else "table", "has no rows")
    try:
        answered = [target] if target else []
        survey(opened.scan(list(storable)), storable, counted=answered, exact=answered)
        lossy = [
            found
            for name, found in storable.items()
            if found.rounded.said(found.low, found.high) and not found.trouble and name not in roles
        ]
        if lossy:
            survey_offsets(opened.scan([found.name for found in lossy]), lossy)
    except InvalidInput as error:
        # Of half the rows there is nothing more to say.
        raise InvalidInput([*problems, *error.problems]) from error
    if not features and not complete:
        asked_about = [n for n in storable if n not in ignored and n not in roles]
        _ask_about(asked_about, target, kinds, problems)
    learned = {name: found for name, found in storable.items() if name not in roles}
    kept = {name for name in learned if name in ignored or (features and name not in features)}
    columns, left_out = _features(learned, target, kept, named, opened, reading, problems)
    for name, role in roles.items():
        if name not in soft:
            columns.append(_in_role(findings[name], role, problems))
    left_out |= {n: f"{f.type} cannot be stored" for n, f in findings.items() if n not in storable}
    chosen: Task | None = None
    if target:
        words = opened.notes.words.get(target, {})
        report(findings[target], problems, target=True, words=words, unlabelled=bool(soft))
        chosen = _task(findings[target], task, problems)
    if sound and not any(column.role == "feature" for column in columns):
        problems.add("features", names, "no column is left to learn from")
    problems.raise_if_any()
    answers = None
    if chosen:
        columns.append(_target(findings[target], chosen))
        if soft:
            shapes = {name: findings[name].shape for name in soft}
            answers = find_answers(
                soft,
                opened.types,
                target=columns[-1],
                shapes=shapes,
                values=reading.soft_values,
                taken=names,
                problems=problems,
            )
    if answers:
        answers.check(opened.scan(list(answers.columns)), problems)
        columns.append(answers.stored)
    times = _times(opened, roles, problems)
    problems.raise_if_any()
    schema = Schema(columns=tuple(columns), task=chosen)
    return UserTable(
        source=opened,
        schema=schema,
        rows=rows,
        stories=_stories(opened, findings, schema, left_out, kinds, answers),
        answers=answers,
        times=times,
    )


def _open(
    source: str | pa.Table, kinds: Mapping[str, str], reading: Reading, problems: Problems
) -> Opened:
    """Return what can be read; raises with everything noted where nothing can."""
    if isinstance(source, pa.Table):
        return opened_table(source, reading=reading, kinds=kinds)
    opened = try_source(source, problems, reading=reading, kinds=kinds)
    if opened is None:
        raise InvalidInput(problems)
    return opened


def _kinds_by_role(roles: Mapping[str, str]) -> dict[str, str]:
    """Return the kinds that text of some roles follows before it is parsed."""
    by_role = {"weight": "numeric", "group": "categorical", "soft": "numeric"}
    found = {name: by_role.get(role.partition(":")[0]) for name, role in roles.items()}
    return {name: kind for name, kind in found.items() if kind}


def _findings(types: Mapping[str, pa.DataType], kinds: Mapping[str, str]) -> dict[str, Finding]:
    """Return what is known of each column before a row is read; of no column of unknown kind."""
    findings = {
        name: Finding(name=name, type=kind, kind=kinds.get(name, guess(kind)))
        for name, kind in types.items()
    }
    known = get_args(Kind)
    return {n: f for n, f in findings.items() if n not in kinds or kinds[n] in known}


def _ask_about(
    names: Collection[str], target: str, kinds: Collection[str], problems: Problems
) -> None:
    """Refuse to learn by accident from what is seldom an input: the user decides."""
    for name in names:
        known = _BY_ACCIDENT.get(name.lower()) or _BY_ACCIDENT.get(_singular(name.lower()))
        if known and name != target and name not in kinds:
            what, role = known
            use = f"settings={{'roles': {{{name!r}: '{role}'}}}} uses it as that, " if role else ""
            remedy = (
                f"is {what} by its name: {use}ignore=[{name!r}] keeps it and does not learn from "
                f"it, kinds={{{name!r}: ...}} or `features` with it does"
            )
            problems.add("features", name, remedy)


def _singular(name: str) -> str:
    return f"{name[:-3]}y" if name.endswith("ies") else name.removesuffix("s")


def _stories(
    opened: Opened,
    findings: Mapping[str, Finding],
    schema: Schema,
    left_out: Mapping[str, str],
    kinds: Collection[str],
    answers: AnswerColumns | None,
) -> tuple[ColumnStory, ...]:
    kept = {column.name: column for column in schema.columns}
    if answers:
        kept |= dict.fromkeys(answers.columns, answers.stored)
    stories: list[ColumnStory] = []
    for name, found in findings.items():
        column = kept.get(name)
        learned = column is not None and column.role in ("feature", "target")
        numbers = column is not None and column.kind in ("numeric", "tensor")
        said = [_ROLE_NOTES[column.role]] if column and column.role in _ROLE_NOTES else []
        said += [answers.note] if answers and name in answers.columns else []
        stories.append(
            ColumnStory(
                name=name,
                stored=str(found.type),
                kind=column.kind if column else "",
                role=column.role if column else "left out",
                missing=found.missing,
                why=left_out.get(name, ""),
                loss=found.loss if learned and numbers else "",
                notes=(
                    *said,
                    *_notes(
                        opened,
                        found,
                        column.text if column else None,
                        learned=learned,
                        asked=name in kinds,
                    ),
                ),
            )
        )
    return tuple(stories)


def _notes(
    opened: Opened, found: Finding, form: TextForm | None, *, learned: bool, asked: bool
) -> Iterator[str]:
    """Yield how a column was read, where that took a decision that the user may want to change."""
    for word, rows in opened.notes.words.get(found.name, {}).items():
        if word:
            keep = "settings={'null_words': []} keeps it as text"
            yield f"{word!r} is read as missing in {counted(rows, 'row')}; {keep}"
    yield from opened.notes.columns.get(found.name, ())
    if learned and found.offset:
        yield f"kept in float64, and learned from less {found.offset:.9g}"
    if learned and found.words:
        yield from _text_notes(np.concatenate(found.words), form)
    days = _FIRST_DAY <= found.low <= found.high <= _LAST_DAY
    if days and learned and not asked and pa.types.is_integer(found.type):
        formats = f"{{'date_formats': {{{found.name!r}: '%Y%m%d'}}}}"
        yield f"{found.low:.0f} to {found.high:.0f}: if these are days, settings={formats} says so"


def _text_notes(words: NDArray[np.int32], form: TextForm | None) -> Iterator[str]:
    """Yield which texts are read in part or not at all."""
    if empty := int((words == 0).sum()):
        yield f"{counted(empty, 'text')} without a word, which a model cannot tell apart"
    if form and (cut := int((least_ngrams(words, form) > form.length).sum())):
        least = "at least " if form.chars[1] else ""
        yield (
            f"{least}{counted(cut, 'text')} cut off after {form.length:,} n-grams, the longest has "
            f"{counted(int(words.max()), 'word')}; settings={{'text': ...}} has another `length`"
        )


def _features(
    findings: Mapping[str, Finding],
    target: str,
    kept: Collection[str],
    named: Collection[str],
    opened: Opened,
    reading: Reading,
    problems: Problems,
) -> tuple[list[Column], dict[str, str]]:
    """Return every column but the target, and why some are not learned from or not even kept.

    Args:
        findings: What a pass over the columns found.
        target: The column to predict.
        kept: Columns that the user wants kept, not learned from.
        named: Columns that the user named otherwise.
        opened: Knows what is no feature unless named, and where a row comes from.
        reading: How text becomes numbers.
        problems: Takes what keeps a feature from being used.
    """
    columns: list[Column] = []
    left_out: dict[str, str] = {}
    for name, found in findings.items():
        if name == target:
            continue
        if name in kept:
            # Nobody learns from it: it is kept for slices and joins where that is possible.
            if found.trouble or (found.kind == "tensor" and not found.shape):
                left_out[name] = found.trouble or "holds no value"
            else:
                columns.append(_column(found, ignored=True))
            continue
        why = "" if name in named else opened.unlearned.get(name, "") or _why_ignored(found)
        if why:
            left_out[name] = why
        else:
            report(found, problems, target=False)
            if found.large:
                row, size = found.large
                remedy = f"a text has {MAX_TEXT:,} at most; cut it, or drop the row"
                where = opened.notes.place(row)
                problems.add(f"column {name!r}", f"{size:,} bytes in {where}", remedy)
            if found.kind == "temporal":
                remedy = f"{found.type}: derive numbers such as hour or weekday"
                problems.add("features", name, remedy)
        columns.append(_column(found, ignored=bool(why), options=reading.text.get(name)))
    return columns, left_out


def _in_role(found: Finding, role: str, problems: Problems) -> Column:
    """Return a column that is neither feature nor target; note what keeps it from being used."""
    if role == "weight":
        report(found, problems, target=False)
        field = f"weight {found.name!r}"
        if found.missing:
            remedy = "every row needs a weight; 1 is that of an ordinary row"
            problems.add(field, f"{found.missing} missing or NaN values", remedy)
        if found.low < 0:
            remedy = "a row counts for 0 rows or more; clip them, or drop the rows"
            problems.add(field, f"negative values, down to {found.low:g}", remedy)
        elif found.high == 0:
            problems.add(field, "all zero", "no row counts for anything; give some more than 0")
        return Column(name=found.name, kind="numeric", role="weight")
    field = f"{role} {found.name!r}"
    if found.trouble or found.kind in ("tensor", "boolean" if role == "time" else "tensor", ""):
        problems.add(field, str(found.type), found.trouble or "give one number or text a row")
    if role == "time" and found.missing:
        remedy = "every row needs a time to be split by; drop these rows"
        problems.add(field, f"{found.missing} missing values", remedy)
    kind: Kind = "numeric" if found.kind == "numeric" else "categorical"
    return Column(name=found.name, kind=kind, role=cast("Literal['group', 'time']", role))


def _times(
    opened: Opened, roles: Mapping[str, str], problems: Problems
) -> NDArray[np.int64] | NDArray[np.float64] | None:
    """Return when each row is from; note times that cannot be put in one order."""
    name = next((name for name, role in roles.items() if role == "time"), "")
    if not name or problems:
        return None
    field, kind = f"time {name!r}", opened.types[name]
    tables = opened.scan([name])
    if guess(kind) == "numeric":
        return np.concatenate([floats(table.column(0), np.float64) for table in tables])
    form = f"settings={{'date_formats': {{{name!r}: '%d.%m.%Y'}}}} says how they are written"
    try:
        read = [read_times(table.column(0)) for table in tables]
    except (pa.ArrowException, ValueError) as error:
        problems.add(field, str(kind), f"{error}; {form}")
        return None
    found = np.concatenate([one.micros for one in read])
    if unread := int((found == NO_TIME).sum()):
        problems.add(field, f"{counted(unread, 'row')} whose time cannot be read", form)
    if any(one.zoned for one in read) and any(one.naive for one in read):
        remedy = "hours apart in an order nobody knows; write all of them with a zone, or without"
        problems.add(field, "times with a zone and times without one", remedy)
    return found


def _check_roles(
    names: Collection[str],
    target: str,
    features: Sequence[str],
    roles: Mapping[str, str],
    problems: Problems,
) -> None:
    """Note roles of columns that are not there, or have another one."""
    near = nearest_of(names)
    for name, role in roles.items():
        if name not in names:
            problems.add(f"roles[{name!r}]", role, "there is no such column; " + near(name))
        elif name == target or name in features:
            other = "target" if name == target else "features"
            problems.add(f"roles[{name!r}]", role, f"is named in `{other}`, too; give one role")
    if not target and (soft := [n for n, role in roles.items() if role.startswith("soft")]):
        remedy = "give the target that the teacher predicts; its rows may lack a label"
        problems.add("target", "", f"{remedy} ({', '.join(map(repr, soft))} is soft)")


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
    ignore: Sequence[str],
    kinds: Mapping[str, str],
    texts: Collection[str],
    problems: Problems,
) -> None:
    """Note what the table does not have, and what is named for two things."""
    there, near = set(names), nearest_of(names)
    if target and target not in there:
        problems.add("target", target, "there is no such column; " + near(target))
    for name in features:
        if name not in there:
            problems.add("features", name, "there is no such column; " + near(name))
        elif name == target:
            problems.add("features", name, "is the target; a model must not read what it predicts")
    for name in ignore:
        if name not in there:
            problems.add("ignore", name, "there is no such column; " + near(name))
        elif name == target or name in features:
            role = "target" if name == target else "features"
            problems.add("ignore", name, f"is named in `{role}`, too; give one of the two")
    for name in kinds:
        if name not in there:
            problems.add("kinds", name, "there is no such column; " + near(name))
    for name in texts:
        if kinds.get(name) != "text":
            remedy = f"is no text; say kinds={{{name!r}: 'text'}}, too"
            problems.add("text", name, near(name) if name not in there else remedy)


def _why_ignored(found: Finding) -> str:
    """Say why a column is no feature unless the user asked for it; "" where it is one."""
    if found.kind == "temporal":
        return f"{found.type} is not a number; derive features such as hour or weekday"
    many = max(_FEW_LABELS, found.rows // 2)
    if found.kind == "categorical" and len(found.labels) > min(many, MAX_LABELS):
        what = f"{len(found.labels):,} labels in {found.rows:,} rows"
        if _reads_like_text(found.labels):
            return f"{what}: free text; kinds={{{found.name!r}: 'text'}} has its words read"
        return f"{what}: an identifier"
    return ""


def _reads_like_text(labels: Collection[str]) -> bool:
    """Return whether most labels have several words."""
    return sum(label.count(" ") >= 2 for label in labels) > len(labels) / 2


def _column(found: Finding, *, ignored: bool, options: TextOptions | None = None) -> Column:
    if ignored and found.kind in ("categorical", "text", "temporal"):
        return Column(name=found.name, kind="categorical", role="ignored")
    categories = sort_labels(found.labels) if found.kind == "categorical" else None
    return Column(
        name=found.name,
        kind=cast("Kind", found.kind),
        role="ignored" if ignored else "feature",
        shape=found.shape,
        categories=categories,
        exact=bool(found.offset) and not ignored,
        offset=0.0 if ignored else found.offset,
        pixels=found.pixels,
        text=TextForm(**dict(options or TextOptions()), longest=found.longest)
        if found.kind == "text"
        else None,
    )


def _target(found: Finding, task: Task) -> Column:
    if task == "regression":
        kind: Kind = "tensor" if found.kind == "tensor" else "numeric"
        return Column(
            name=found.name,
            kind=kind,
            role="target",
            shape=found.shape,
            exact=found.inexact,
            offset=found.offset,
        )
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
    if found.kind in ("text", "temporal") or not found.kind:
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
