"""From what a user wrote to a validated pydantic model, with complaints in this package's words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from kubestill.errors import InvalidInput, Problems
from kubestill.runtime.base.complaints import complaints

M = TypeVar("M", bound=BaseModel)


class Settings(BaseModel):
    """What a user sets: no other keys, and a docstring a field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def validate(
    model: type[M],
    values: Mapping[str, Any],
    *,
    prefixed: Mapping[str, str] | None = None,
    prefix: str = "",
) -> M:
    """Build a pydantic model from a user's values.

    Args:
        model: Pydantic model.
        values: What the user gave; whole floats pass as ints, as Kubeflow hands them over.
        prefixed: What to put before a field in messages, by field: where the user finds it.
        prefix: The same for all other fields.

    Raises:
        InvalidInput: With every unknown key, wrong type and value out of range.
    """
    problems = Problems()
    parsed = read(model, values, problems, prefixed=prefixed, prefix=prefix)
    if parsed is None or problems:
        raise InvalidInput(problems)
    return parsed


def read(
    model: type[M],
    values: Mapping[str, Any],
    problems: Problems,
    *,
    prefixed: Mapping[str, str] | None = None,
    prefix: str = "",
) -> M | None:
    """Do what `validate` does, but note what is wrong and leave that at its default.

    The caller can go on and find what else is wrong. None where a field that has no default
    is wrong or missing.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        wrong: set[str] = set()
        for found in complaints(error, values, model):
            name = found.path[0] if found.path else ""
            field = (prefixed or {}).get(name, prefix) + ".".join(found.path)
            problems.add(field, found.value, found.remedy)
            wrong.add(name)
    try:
        return model.model_validate({k: v for k, v in values.items() if k not in wrong})
    except ValidationError:
        return None


def check_overlap(
    settings: Mapping[str, Any], typed: Collection[str], problems: Problems
) -> dict[str, str]:
    """Note settings that a parameter of the component stands for.

    Args:
        settings: A component's `settings`.
        typed: Names of its typed parameters.
        problems: Takes what is wrong.

    Returns:
        What `validate` puts before the names of the others.
    """
    for key in settings:
        if key in typed:
            problems.add(f"settings.{key}", settings[key], f"use the parameter {key!r} instead")
    return {key: "settings." for key in settings if key not in typed}
