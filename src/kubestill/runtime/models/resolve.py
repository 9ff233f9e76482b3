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
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from kubestill.errors import InvalidInput, Problem, nearest
from kubestill.runtime.arguments import type_hints
from kubestill.runtime.models.networks import NETWORKS

__all__ = ["Factory", "resolve_network", "source_digest"]

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
        made = type_hints(found).get("return")
    return inspect.isclass(made) and issubclass(made, nn.Module)


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
