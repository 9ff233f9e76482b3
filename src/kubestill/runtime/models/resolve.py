"""From what the user wrote, a name or an import path, to a network factory and its arguments.

An import path is recorded in `model.json` and followed again by whoever loads that file and
vouches for its package (`kubestill.runtime.base.trust`). It may only name what makes networks: a
subclass of `torch.nn.Module`, or a function whose return annotation is one.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from kubestill.errors import InvalidInput, Problem, nearest
from kubestill.runtime.base import trust
from kubestill.runtime.base.arguments import import_factory, type_hints
from kubestill.runtime.models.networks import NETWORKS

Factory = Callable[..., nn.Module]


def resolve_network(network: str) -> Factory:
    """Return the factory called `network`: a name such as "mlp", or "package.module:attribute".

    Names are those of this package and those that installed packages register as entry points of
    the group `kubestill.networks`.

    Raises:
        InvalidInput: No such name, module or attribute (with the nearest), or not a network
            factory.
    """
    if ":" not in network:
        if network in NETWORKS:
            return NETWORKS[network]
        found = trust.find_registered(trust.NETWORKS, network)
        if found is not None:
            return _checked(network, found)
        known = [*NETWORKS, *trust.registered(trust.NETWORKS)]
        remedy = nearest(network, known) + "; or give an import path, 'package.module:attribute'"
        raise _invalid(network, remedy)
    if re.split("[.:]", network)[0] in sys.stdlib_module_names:
        raise _invalid(network, "a module of the standard library makes no networks")
    return _checked(network, import_factory(network, field="network"))


def _checked(network: str, found: Any) -> Factory:
    if not _makes_networks(found):
        remedy = (
            "must be a subclass of torch.nn.Module, or a function annotated to return one "
            "('-> torch.nn.Module'): nothing else is called, since the path is followed again by "
            "whoever loads the model"
        )
        raise _invalid(network, remedy)
    return found


def _makes_networks(found: Any) -> bool:
    made = found
    if inspect.isfunction(found):
        made = type_hints(found).get("return")
    return inspect.isclass(made) and issubclass(made, nn.Module)


def source_digest(factory: Factory) -> str | None:
    """Return the SHA-256 of the text of the file that defines `factory`.

    It enters the fingerprint of a training run, so that an edited network does not resume old
    checkpoints. Files that this one imports are not followed. None where there is no source file.
    """
    path = inspect.getsourcefile(inspect.unwrap(factory))
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return hashlib.sha256(file.read().encode()).hexdigest()


def _invalid(network: str, remedy: str) -> InvalidInput:
    return InvalidInput([Problem("network", network, remedy)])
