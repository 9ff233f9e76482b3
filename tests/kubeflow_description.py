"""Kubeflow's own description of its API, read out of the client that is generated from it.

`kfp_server_api` comes with kfp. Each of its methods names a path, a verb and the queries it takes,
and each of its models the type of every field: enough to tell a valid request from another.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import kfp_server_api


@dataclass(frozen=True)
class Operation:
    """One call of the API."""

    verb: str
    path: re.Pattern[str]
    queries: frozenset[str]
    body: str
    """Name of the body's model; empty where there is none."""
    files: frozenset[str]


def read_operations() -> list[Operation]:
    """List every operation of the v2beta1 API."""
    operations: list[Operation] = []
    services = [getattr(kfp_server_api, name) for name in dir(kfp_server_api)]
    for service in (one for one in services if inspect.isclass(one) and one.__name__[-3:] == "Api"):
        for name, method in inspect.getmembers(service, inspect.isfunction):
            if name.endswith("_with_http_info"):
                operations.append(_read(inspect.getsource(method)))
    return operations


def find_problem(
    operations: list[Operation], verb: str, path: str, queries: set[str], body: Any, files: set[str]
) -> str:
    """Say what the description has against a request; empty where nothing."""
    fitting = [one for one in operations if one.verb == verb and one.path.fullmatch(path)]
    if not fitting:
        return f"no such operation: {verb} {path}"
    operation = fitting[0]
    if queries - operation.queries:
        return f"unknown queries of {verb} {path}: {sorted(queries - operation.queries)}"
    if files != operation.files:
        return f"files {sorted(files)}, not {sorted(operation.files)}"
    if not operation.body:
        return f"{verb} {path} takes no body" if body is not None else ""
    return _check(body, operation.body, "body") if body is not None else "the body is missing"


def _read(source: str) -> Operation:
    called = re.search(r"call_api\(\s*'([^']+)', '([A-Z]+)'", source)
    assert called, source
    body = re.search(r"body_params = local_var_params\['(\w+)'\]", source)
    types = dict(re.findall(r":type (\w+): ([\w.()\[\], ]+)", source))
    return Operation(
        verb=called[2],
        # An id holds no slash, and no colon: that starts an action, such as `:disable`.
        path=re.compile(re.sub(r"\\?\{[^}]+\\?\}", "[^/:]+", re.escape(called[1]))),
        queries=frozenset(re.findall(r"query_params\.append\(\('(\w+)'", source)),
        body=types[body[1]] if body else "",
        files=frozenset(re.findall(r"local_var_files\['(\w+)'\]", source)),
    )


def _check(value: Any, kind: str, where: str) -> str:
    """Check a JSON value against a type of the generated client."""
    if kind == "object":
        return ""
    if many := re.fullmatch(r"list\[(.*)\]", kind):
        if not isinstance(value, list):
            return f"{where} is no list"
        return _first(_check(part, many[1], f"{where}[]") for part in value)
    if table := re.fullmatch(r"dict\(str, (.*)\)", kind):
        if not isinstance(value, dict):
            return f"{where} is no mapping"
        return _first(_check(part, table[1], f"{where}.{name}") for name, part in value.items())
    if kind == "datetime":
        try:
            datetime.fromisoformat(value)
        except (TypeError, ValueError):
            return f"{where} is no time"
        return ""
    plain = {"str": str, "int": int, "bool": bool, "float": (int, float)}
    if kind in plain:
        return "" if isinstance(value, plain[kind]) else f"{where} = {value!r} is no {kind}"
    return _check_model(value, getattr(kfp_server_api, kind), where)


def _check_model(value: Any, model: Any, where: str) -> str:
    if allowed := getattr(model, "allowable_values", None):
        return "" if value in allowed else f"{where} = {value!r} is none of {allowed}"
    if not isinstance(value, dict):
        return f"{where} is no {model.__name__}"
    kinds = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
    unknown = value.keys() - kinds.keys()
    if unknown:
        return f"{where} has no {sorted(unknown)}"
    return _first(_check(part, kinds[name], f"{where}.{name}") for name, part in value.items())


def _first(found: Any) -> str:
    return next((problem for problem in found if problem), "")
