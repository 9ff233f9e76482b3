"""Check what a user gives a pipeline before anything runs."""

# Protobuf makes its classes at run time.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from kubestill.assets.reading import read_yaml
from kubestill.errors import Problems, nearest

_Type = pipeline_spec_pb2.ParameterType
_WANTED = {
    _Type.STRING: ("a string", (str,)),
    _Type.NUMBER_INTEGER: ("a whole number", (int,)),
    _Type.NUMBER_DOUBLE: ("a number", (float, int)),
    _Type.BOOLEAN: ("true or false", (bool,)),
    _Type.LIST: ("a list, such as [1, 2]", (list,)),
    _Type.STRUCT: ("a mapping, such as {hidden: [64, 64]}", (dict,)),
}


def read_parameters(
    spec: pipeline_spec_pb2.PipelineSpec,
    assignments: Iterable[str],
    file: str = "",
    *,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Join `name=value` assignments and a YAML file into the arguments of a pipeline.

    Args:
        spec: The pipeline.
        assignments: As on the command line; they override the file. Values of lists, mappings,
            numbers and booleans are read as YAML, strings as they are.
        file: A YAML mapping of names to values; empty for none.
        defaults: Values for parameters that are not given, where the pipeline has them.

    Raises:
        InvalidInput: With every unknown name, value of a wrong type and missing parameter.
    """
    known = dict(spec.root.input_definitions.parameters)
    problems = Problems()
    given = {name: value for name, value in (defaults or {}).items() if name in known}
    for name, value in _from_file(file, problems).items():
        number = isinstance(value, str) and name in known and _is_number(known[name])
        given[name] = _parse(value, known[name].parameter_type) if number else value
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            problems.add("-p", assignment, "write name=value")
        elif name in known:
            given[name] = _parse(text, known[name].parameter_type)
        else:
            given[name] = text
    with problems.collect():
        check_parameters(spec, given)
    problems.raise_if_any()
    return given


def check_parameters(spec: pipeline_spec_pb2.PipelineSpec, given: Mapping[str, Any]) -> None:
    """Refuse values that a pipeline does not take, and values that it lacks.

    Raises:
        InvalidInput: With every unknown name, value of a wrong type and missing parameter.
    """
    known = dict(spec.root.input_definitions.parameters)
    problems = Problems()
    for name, value in given.items():
        if name not in known:
            problems.add(name, value, f"the pipeline has no such parameter; {nearest(name, known)}")
        else:
            wanted, types = _WANTED[known[name].parameter_type]
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                problems.add(name, value, f"give {wanted}")
    for name, parameter in known.items():
        if name not in given and not parameter.is_optional:
            problems.add(name, None, "the pipeline needs a value; give -p " + name + "=...")
    problems.raise_if_any()


def default_places(spec: pipeline_spec_pb2.PipelineSpec, root: str) -> dict[str, str]:
    """Return where runs below one folder keep what outlives them, as far as a pipeline asks."""
    known = spec.root.input_definitions.parameters
    places = {"checkpoint_uri": "checkpoints", "registry": "registry"}
    return {name: os.path.join(root, part) for name, part in places.items() if name in known}


def with_defaults(
    spec: pipeline_spec_pb2.PipelineSpec, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Add the defaults of the parameters that are not given."""
    known = spec.root.input_definitions.parameters.items()
    defaults = {
        name: json_format.MessageToDict(parameter.default_value)
        for name, parameter in known
        if parameter.HasField("default_value")
    }
    return defaults | dict(arguments)


def _from_file(file: str, problems: Problems) -> dict[str, Any]:
    if not file:
        return {}
    try:
        with open(file, encoding="utf-8") as stream:
            content = read_yaml(stream)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.add("--params", file, f"cannot be read as YAML ({error})")
        return {}
    if not isinstance(content, Mapping):
        problems.add("--params", file, "must hold a mapping of parameter names to values")
        return {}
    return {str(name): value for name, value in content.items()}


def _parse_number(text: str, *, whole: bool) -> int | float | str:
    """Read a number as people write it: YAML takes 1e-3 for a string, and 010 for eight."""
    try:
        return int(text) if whole else float(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number


def _is_number(parameter: Any) -> bool:
    return parameter.parameter_type in (_Type.NUMBER_INTEGER, _Type.NUMBER_DOUBLE)


def _parse(text: str, kind: int) -> Any:
    if kind == _Type.STRING:
        return text
    if kind in (_Type.NUMBER_INTEGER, _Type.NUMBER_DOUBLE):
        return _parse_number(text, whole=kind == _Type.NUMBER_INTEGER)
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        return text
