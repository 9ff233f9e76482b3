"""Everything that can be wrong with one node of a JSON file, node by node."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

# What Python's json cannot write stands in as a text and is replaced in the result.
HUGE, INFINITE, NAN, DEEP, HALF, DOUBLE = (f"<<{name}>>" for name in "HIUDSX")
RAW = {
    HUGE: "1" + "0" * 30,
    INFINITE: "1e999",
    NAN: "NaN",
    DEEP: "[" * 3000 + "]" * 3000,
    HALF: '"\\ud800"',
}
VALUES: dict[str, Any] = {
    "null": None,
    "text": "x",
    "up": "../../x",
    "nul": "a\0b",
    "negative": -1,
    "zero": 0,
    "large": 2**63,
    "huge": HUGE,
    "infinite": INFINITE,
    "nan": NAN,
    "fraction": 1.5,
    "true": True,
    "empty object": {},
    "empty list": [],
    "empty text": "",
    "object": {"x": 1},
    "list": [1],
    "deep": DEEP,
    "half": HALF,
}


def mutations(form: Any) -> Iterator[tuple[str, bytes]]:
    """Yield (what was done, the file) for every node of a JSON value."""
    for path in _paths(form):
        place = ".".join(map(str, path)) or "all"
        for name, value in VALUES.items():
            yield f"{place}: {name}", _encode(_replaced(form, path, value))
        if path:
            yield f"{place}: deleted", _encode(_without(form, path))
        if path and isinstance(path[-1], str):
            yield f"{place}: doubled", _doubled(form, path)
            yield f"{place}: beside a stranger", _encode(_with_stranger(form, path[:-1]))
        if path and isinstance(path[-1], int):
            yield f"{place}: repeated", _encode(_repeated(form, path))
    whole = _encode(form)
    for length in range(0, len(whole), max(1, len(whole) // 20)):
        yield f"cut at {length}", whole[:length]
    yield "bytes", b"\xff\xfe" + whole
    yield "deep", b'{"format": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def _paths(form: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    if isinstance(form, dict | list):
        for key, value in form.items() if isinstance(form, dict) else enumerate(form):
            yield from _paths(value, (*path, key))


def _replaced(form: Any, path: tuple[str | int, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(form)
    _at(changed, path[:-1])[path[-1]] = value
    return changed


def _without(form: Any, path: tuple[str | int, ...]) -> Any:
    changed = copy.deepcopy(form)
    del _at(changed, path[:-1])[path[-1]]
    return changed


def _with_stranger(form: Any, path: tuple[str | int, ...]) -> Any:
    changed = copy.deepcopy(form)
    _at(changed, path)["stranger"] = 1
    return changed


def _repeated(form: Any, path: tuple[str | int, ...]) -> Any:
    changed = copy.deepcopy(form)
    _at(changed, path[:-1]).append(copy.deepcopy(_at(form, path)))
    return changed


def _doubled(form: Any, path: tuple[str | int, ...]) -> bytes:
    changed = copy.deepcopy(form)
    parent = _at(changed, path[:-1])
    parent[DOUBLE] = parent[path[-1]]
    return _encode(changed).replace(DOUBLE.encode(), json.dumps(path[-1])[1:-1].encode())


def _at(form: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        form = form[key]
    return form


def _encode(form: Any) -> bytes:
    text = json.dumps(form)
    for stand_in, raw in RAW.items():
        text = text.replace(json.dumps(stand_in), raw)
    return text.encode()
