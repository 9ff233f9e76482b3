"""What pydantic finds wrong with a value, in this package's words: where, and what to give."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from kubestill.errors import nearest

_KINDS = {
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a dict",
    "mapping": "a dict",
    "model": "a dict",
    "dataclass": "a dict",
    "date": "a date",
}
"""What to give where a value is of another type, by the first word of pydantic's error type."""
_NUMBERS = ("int", "float", "finite", "greater", "less", "multiple")
_BOUNDS = ("gt", "ge", "lt", "le")
_UNKNOWN = "extra_forbidden"


@dataclass(frozen=True)
class Complaint:
    """One value that cannot be taken."""

    path: tuple[str, ...]
    """Where it is: names of fields and keys, and numbers of items."""
    value: Any
    remedy: str


def complaints(
    error: ValidationError, given: object, model: type[BaseModel] | None = None
) -> list[Complaint]:
    """Return what is wrong, once for each value; of a union, what any of its types would take.

    Args:
        error: From pydantic.
        given: The value that it validated.
        model: What it was validated as, where that has named fields.
    """
    found: dict[tuple[str, ...], tuple[Any, list[str]]] = {}
    for detail in error.errors(include_url=False):
        path = tuple(_walk(detail["loc"], given, ends=detail["type"] in ("missing", _UNKNOWN)))
        held = "missing" if detail["type"] == "missing" else detail["input"]
        _, wanted = found.setdefault(path, (held, []))
        remedy = _remedy(detail, path, model)
        if remedy not in wanted:
            wanted.append(remedy)
    return [
        # Of a union, the types are alternatives: `use text`, `use a dict`.
        Complaint(path, value, " or ".join([first, *(one.removeprefix("use ") for one in others)]))
        for path, (value, (first, *others)) in found.items()
    ]


def _walk(loc: Iterable[str | int], given: object, *, ends: bool) -> Iterator[str]:
    """Yield what of a place is in the value; the rest are pydantic's names for types."""
    for part in loc:
        if isinstance(given, Mapping) and part in given:
            given = cast(Mapping[Any, Any], given)[part]
        elif isinstance(given, Sequence) and isinstance(part, int) and part < len(given):
            given = cast(Sequence[Any], given)[part]
        elif not ends:
            continue
        yield str(part)


def _remedy(detail: Any, path: tuple[str, ...], model: type[BaseModel] | None) -> str:
    kind, context = str(detail["type"]), detail.get("ctx", {})
    name, fields = path[-1] if path else "", _fields(model, path[:-1])
    if kind == _UNKNOWN:
        return f"unknown key; {nearest(name, fields)}"
    if kind == "missing":
        return "it has no default; give a value"
    if kind == "value_error":
        return str(detail["msg"]).removeprefix("Value error, ")
    if kind == "literal_error":
        close = nearest(str(detail["input"]), re.findall(r"'([^']*)'", str(context["expected"])))
        meant = f"; {close}" if close.startswith("did") and isinstance(detail["input"], str) else ""
        return f"use {context['expected']}{meant}"
    word = kind.partition("_")[0]
    if word in _NUMBERS:
        return f"use {_number(fields.get(name), context, whole=word == 'int')}"
    if word in _KINDS and kind.endswith(("_type", "_parsing")):
        return f"use {_KINDS[word]}"
    return str(detail["msg"]).replace("Input should", "must")


def _number(field: FieldInfo | None, context: Mapping[str, Any], *, whole: bool) -> str:
    """Return which numbers a field takes, such as `a whole number, 1 or more`."""
    bounds: dict[str, Any] = {name: context[name] for name in _BOUNDS if name in context}
    if field:
        whole = whole or field.annotation is int or int in get_args(field.annotation)
        for constraint in field.metadata:
            bounds |= {b: getattr(constraint, b) for b in _BOUNDS if hasattr(constraint, b)}
    if whole:
        bounds = {
            {"gt": "ge", "lt": "le"}.get(name, name): value + (name == "gt") - (name == "lt")
            for name, value in bounds.items()
        }
    shown = {name: f"{value:,}" if whole else f"{value:g}" for name, value in bounds.items()}
    noun = "a whole number" if whole else "a number"
    above, below = shown.keys() & {"gt", "ge"}, shown.keys() & {"lt", "le"}
    if above and below:
        first = f"({shown['gt']}" if "gt" in shown else f"[{shown['ge']}"
        last = f"{shown['lt']})" if "lt" in shown else f"{shown['le']}]"
        return f"{noun} in {first}, {last}"
    phrases = {"gt": " above {}", "ge": ", {} or more", "lt": " below {}", "le": ", {} or less"}
    return noun + "".join(phrases[name].format(value) for name, value in shown.items())


def _fields(model: type[BaseModel] | None, path: Iterable[str]) -> Mapping[str, FieldInfo]:
    """Return the fields of the model that lies at `path` below another; none below a dict."""
    for name in path:
        field = model.model_fields.get(name) if model else None
        kind = field.annotation if field else None
        model = kind if inspect.isclass(kind) and issubclass(kind, BaseModel) else None
    return model.model_fields if model else {}
