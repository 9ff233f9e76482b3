"""From what the user wrote, a name or an import path, to a network factory and its arguments.

An import path is recorded in `model.json` and followed again by whoever loads that file, so it may
only name what makes networks: a subclass of `torch.nn.Module`, or a function whose return
annotation is one. Otherwise a forged file could call any function of the image, `os.system`
included.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import pkgutil
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError
from torch import nn

from kubestill.errors import InvalidInput, Problem, Problems, nearest
from kubestill.runtime.models.networks import NETWORKS

__all__ = ["Factory", "fit_arguments", "resolve_network", "source_digest"]

Factory = Callable[..., nn.Module]


def resolve_network(network: str) -> Factory:
    """Return the factory called `network`: a name such as "mlp", or "package.module:attribute".

    Raises:
        InvalidInput: No such name, module or attribute (with the nearest), or not a network
            factory.
    """
    if ":" not in network:
        if network in NETWORKS:
            return NETWORKS[network]
        remedy = nearest(network, NETWORKS) + "; or give an import path, 'package.module:attribute'"
        raise _invalid(network, remedy)
    module_name, _, attribute = network.partition(":")
    module = _import(network, module_name)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in vars(found) if not name.startswith("_")]
            raise _invalid(network, f"{module_name} has no {attribute!r}; {nearest(part, names)}")
        found = getattr(found, part)
    if not _makes_networks(found):
        remedy = (
            "must be a subclass of torch.nn.Module, or a function annotated to return one "
            "('-> torch.nn.Module'): nothing else is called, since the path is followed again by "
            "whoever loads the model"
        )
        raise _invalid(network, remedy)
    return found


def _import(network: str, module_name: str) -> Any:
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise _invalid(network, "a module of the standard library makes no networks")
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _invalid(
                network, f"importing {module_name} needs {error.name!r}, which is not installed"
            ) from error
        raise _invalid(
            network, f"no module {error.name!r}; {_nearest_module(error.name)}"
        ) from error
    except Exception as error:
        raise _invalid(network, f"importing {module_name} raised {_say(error)}") from error


def _nearest_module(name: str) -> str:
    parent, _, tail = name.rpartition(".")
    paths = getattr(importlib.import_module(parent), "__path__", []) if parent else None
    known = [module.name for module in pkgutil.iter_modules(paths)]
    remedy = nearest(tail, known)
    return remedy if remedy.startswith("did") else "install it in the image that runs this step"


def _makes_networks(found: Any) -> bool:
    made = found
    if inspect.isfunction(found):
        made = _hints(found).get("return")
    return inspect.isclass(made) and issubclass(made, nn.Module)


def fit_arguments(
    factory: Factory, given: Mapping[str, Any], offers: Mapping[str, Any]
) -> dict[str, Any]:
    """Join the user's arguments with those `offers` that the factory's signature names.

    Values are read as the parameter's annotation says. Without one, whole floats become ints,
    because Kubeflow turns every number in a dict into a float.

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
    hints = _hints(factory.__init__ if inspect.isclass(factory) else factory)
    arguments = {name: value for name, value in offers.items() if name in named}
    problems = Problems()
    for name, value in given.items():
        if name not in named and not takes_anything(factory):
            problems.add(f"network_args.{name}", value, "unknown; " + nearest(name, named))
            continue
        try:
            arguments[name] = _read(value, hints.get(name, Any))
            json.dumps(arguments[name], allow_nan=False)
        except ValidationError as error:
            for wrong in error.errors():
                place = ".".join(map(str, ("network_args", name, *wrong["loc"])))
                problems.add(place, wrong["input"], wrong["msg"])
        except (TypeError, ValueError):
            problems.add(f"network_args.{name}", value, "must be JSON: the model's spec keeps it")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in {*arguments, *given}:
            problems.add(f"network_args.{name}", "missing", "the network needs it; give a value")
    problems.raise_if_any()
    return arguments


def _hints(function: Any) -> dict[str, Any]:
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


def takes_anything(factory: Factory) -> bool:
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


def source_digest(factory: Factory) -> str | None:
    """Return the SHA-256 of the text of the file that defines `factory`.

    It enters the training's fingerprint, so that an edited network does not resume old checkpoints.
    Files that this one imports are not followed. None where there is no source file.
    """
    path = inspect.getsourcefile(inspect.unwrap(factory))
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return hashlib.sha256(file.read().encode()).hexdigest()


def _invalid(network: str, remedy: str) -> InvalidInput:
    return InvalidInput([Problem("network", network, remedy)])


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
