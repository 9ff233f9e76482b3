"""From what a user wrote to a validated pydantic model, with complaints in this package's words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kubestill.errors import InvalidInput, Problem, Problems, nearest

__all__ = ["check_overlap", "validate"]

Settings = TypeVar("Settings", bound=BaseModel)


def validate(
    model: type[Settings],
    values: Mapping[str, Any],
    *,
    prefixed: Mapping[str, str] | None = None,
    prefix: str = "",
) -> Settings:
    """Build a pydantic model from a user's values.

    Args:
        model: Pydantic model.
        values: What the user gave; whole floats pass as ints, as Kubeflow hands them over.
        prefixed: What to put before a field in messages, by field: where the user finds it.
        prefix: The same for all other fields.

    Raises:
        InvalidInput: With every unknown key, wrong type and value out of range.
    """
    prefixed = prefixed or {}
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems: list[Problem] = []
        for detail in error.errors():
            path = ".".join(str(part) for part in detail["loc"])
            field = prefixed.get(path.split(".")[0], prefix) + path
            if detail["type"] == "extra_forbidden":
                remedy = f"unknown key; {nearest(str(detail['loc'][-1]), model.model_fields)}"
            else:
                remedy = detail["msg"].removeprefix("Value error, ")
            problems.append(Problem(field, detail["input"], remedy))
        raise InvalidInput(problems) from error


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
