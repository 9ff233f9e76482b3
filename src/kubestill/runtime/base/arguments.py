"""From a user's dict to the arguments of a function or class, read as its signature says."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from kubestill.errors import InvalidInput, Problem, Problems, nearest
from kubestill.runtime.base.complaints import complaints

T = TypeVar("T")


def fill(record: type[T], arguments: Mapping[str, Any]) -> T:
    """Build a dataclass from those of a function's arguments that have the names of its fields."""
    names = [field.name for field in dataclasses.fields(cast(Any, record))]
    return record(**{name: arguments[name] for name in names})


def import_factory(path: str, *, field: str, named: str = "") -> Callable[..., Any]:
    """Return the class or function at an import path.

    Args:
        path: `package.module:Name`; the name may be dotted.
        field: The parameter that the user gave it in.
        named: What the user wrote, where that was another name for it.

    Raises:
        InvalidInput: Importing it fails, or there is nothing of that name to call.
    """
    module_name, _, attribute = path.partition(":")
    try:
        found = _import(module_name)
    except ImportError as error:
        raise InvalidInput([Problem(field, named or path, str(error))]) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [name for name in vars(found) if not name.startswith("_")]
            remedy = f"{module_name} has no {attribute!r}; {nearest(part, known)}"
            raise InvalidInput([Problem(field, named or path, remedy)])
        found = getattr(found, part)
        if inspect.ismodule(found):
            # A module passes on all that it imports: `my_pkg.nets:torch.hub.load`.
            remedy = f"names the module {found.__name__}; write it before the colon"
            raise InvalidInput([Problem(field, named or path, remedy)])
    if not callable(found):
        remedy = "is neither a class nor a function, and must be called"
        raise InvalidInput([Problem(field, named or path, remedy)])
    return found


def _import(name: str) -> Any:
    """Import a module; an ImportError says in the user's words what is wrong with it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            message = f"importing {name} needs {error.name!r}, which is not installed"
        else:
            message = f"no module {error.name!r}; {_nearest_module(error.name)}"
        raise ImportError(message) from error
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}"
        raise ImportError(f"importing {name} raised {said}") from error


def _nearest_module(name: str) -> str:
    parent, _, tail = name.rpartition(".")
    paths = getattr(importlib.import_module(parent), "__path__", []) if parent else None
    remedy = nearest(tail, [module.name for module in pkgutil.iter_modules(paths)])
    return remedy if remedy.startswith("did") else "install it in the image that runs this step"


def fit_arguments(
    factory: Callable[..., Any], given: Mapping[str, Any], offers: Mapping[str, Any], *, prefix: str
) -> dict[str, Any]:
    """Join the user's arguments with those `offers` that the factory's signature names.

    Values are read as the parameter's annotation says. Without one, whole floats become ints,
    because Kubeflow turns every number in a dict into a float.

    Args:
        factory: What is to be called.
        given: The user's arguments.
        offers: Taken where the signature names them and the user does not.
        prefix: Put before an argument's name in messages: where the user finds it.

    Raises:
        InvalidInput: Unknown or missing arguments, or values of the wrong type; all of them
            together.
    """
    parameters = inspect.signature(factory).parameters
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    hints = type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    arguments = {name: value for name, value in offers.items() if name in named}
    problems = Problems()
    for name, value in given.items():
        if name not in named and not takes_anything(factory):
            problems.add(f"{prefix}{name}", value, "unknown; " + nearest(name, named))
            continue
        try:
            arguments[name] = _read(value, hints.get(name, Any))
            json.dumps(arguments[name], allow_nan=False)
        except ValidationError as error:
            for wrong in complaints(error, value):
                problems.add(prefix + ".".join((name, *wrong.path)), wrong.value, wrong.remedy)
        except (TypeError, ValueError):
            problems.add(f"{prefix}{name}", value, "must be JSON: it is kept and read again")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in {*arguments, *given}:
            problems.add(f"{prefix}{name}", "missing", "it has no default; give a value")
    problems.raise_if_any()
    return arguments


def type_hints(function: Any) -> dict[str, Any]:
    """Return a function's annotations as types; none where they cannot be followed."""
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        # An annotation that only a type checker can follow.
        return {}


def _read(value: Any, hint: Any) -> Any:
    if hint is Any:
        return _whole(value)
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
    except PydanticSchemaGenerationError:
        return _whole(value)
    return adapter.validate_python(value)


def takes_anything(factory: Callable[..., Any]) -> bool:
    """Say whether the factory takes `**kwargs`, as torchvision's do."""
    parameters = inspect.signature(factory).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return value
