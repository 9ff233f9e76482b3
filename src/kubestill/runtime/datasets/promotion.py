"""One type for a column that files store in different ways, wherever no value is lost."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from kubestill.errors import Problems
from kubestill.runtime.datasets.reading import is_number_type, is_text


def unified(
    schemas: Sequence[pa.Schema], names: Sequence[str], problems: Problems
) -> pa.Schema | None:
    """Return a schema that holds the columns of all files; None where they contradict each other.

    Arrow's own promotion decides, with what it leaves out: dictionaries beside plain values, truth
    values beside numbers, dates beside times, and times of two zones. A cast that loses a value
    fails where the value is read.

    Args:
        schemas: One a file.
        names: The files, for messages.
        problems: Takes every column on which two files contradict each other.
    """
    schemas = [without_views(schema) for schema in schemas]
    first = schemas[0]
    if all(schema.equals(first) for schema in schemas):
        return first
    types: dict[str, pa.DataType] = {}
    origin: dict[str, str] = {}
    refused: set[str] = set()
    for schema, file in zip(schemas, names, strict=True):
        for field in schema:
            known = types.setdefault(field.name, field.type)
            if pa.types.is_null(known):
                types[field.name] = field.type
            if not pa.types.is_null(field.type):
                origin.setdefault(field.name, file)
            if known == field.type or field.name in refused:
                continue
            joined = _joined(known, field.type)
            if joined is None:
                refused.add(field.name)
                before = origin[field.name]
                said = f"is {known} in {before}: files contradict each other; write one type"
                problems.add(f"column {field.name!r}", f"{field.type} in {file}", said)
            else:
                types[field.name] = joined
    if refused:
        return None
    metadata = next((schema.metadata for schema in schemas if schema.metadata), None)
    return pa.schema(list(types.items()), metadata=metadata)


def without_views(schema: pa.Schema) -> pa.Schema:
    """Return a schema with plain text for views of text, whose nulls Arrow's `unique` loses."""
    for at, kind in enumerate(schema.types):
        if pa.types.is_string_view(kind):
            schema = schema.set(at, schema.field(at).with_type(pa.string()))
    return schema


def conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns and types of `schema`; columns that it lacks are empty.

    Raises:
        pa.ArrowInvalid: A value would be lost.
    """
    there = set(table.column_names)
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in there
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _joined(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return a type that holds the values of both; None where there is none."""
    types = pa.types
    pair = (one, other)
    if any(map(types.is_null, pair)):
        return other if types.is_null(one) else one
    plain = [kind.value_type if types.is_dictionary(kind) else kind for kind in pair]
    if plain != list(pair):
        return plain[0] if plain[0] == plain[1] else _joined(plain[0], plain[1])
    if any(map(is_text, pair)):
        others = [kind for kind in pair if not is_text(kind)]
        if not all(types.is_binary(kind) or types.is_large_binary(kind) for kind in others):
            return None
        return pa.large_string() if any(map(types.is_large_string, pair)) else pa.string()
    if any(map(types.is_boolean, pair)):
        number = other if types.is_boolean(one) else one
        return number if is_number_type(number) and not types.is_decimal(number) else None
    if any(map(types.is_timestamp, pair)):
        return _joined_times(one, other)
    try:
        fields = [pa.schema([("x", kind)]) for kind in pair]
        return pa.unify_schemas(fields, promote_options="permissive").field(0).type
    except (pa.ArrowException, TypeError):
        return None


def _joined_times(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    dated = next((kind for kind in (one, other) if pa.types.is_date(kind)), None)
    if dated is not None:
        stamp = other if dated is one else one
        return None if stamp.tz else pa.timestamp("us" if stamp.unit == "s" else stamp.unit)
    if not pa.types.is_timestamp(one) or not pa.types.is_timestamp(other):
        return None
    if bool(one.tz) != bool(other.tz):
        return None
    units = ("s", "ms", "us", "ns")
    finer = units[max(units.index(one.unit), units.index(other.unit))]
    return pa.timestamp(finer, one.tz if one.tz == other.tz else "UTC")
