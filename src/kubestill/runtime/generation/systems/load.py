"""Load a system by its name or import path."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kubestill.errors import InvalidInput, Problem, nearest
from kubestill.runtime.base import trust
from kubestill.runtime.base.arguments import fit_arguments, import_factory
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.system import Output, System

BUILTIN = {
    "black-scholes": "black_scholes:BlackScholes",
    "burgers": "burgers:Burgers",
    "collision-avoidance": "collision_avoidance:CollisionAvoidance",
    "darcy": "darcy:Darcy",
    "heat": "heat:Heat",
    "heston": "heston:Heston",
    "interpolated-table": "interpolation:InterpolatedTable",
    "lorenz": "lorenz:Lorenz",
    "model": "answering:AnsweringModel",
    "robertson": "robertson:Robertson",
    "table": "table:Table",
}
"""Location of each built-in system, below `kubestill.runtime.generation.systems`."""


def load_system(system: str, args: Mapping[str, Any] | None = None) -> System:
    """Build a system.

    Args:
        system: A built-in name, or `package.module:Name` of a subclass of `System`.
        args: Its keyword arguments; whole floats pass as ints, as Kubeflow hands them over.

    Raises:
        InvalidInput: No such system (with the nearest), unknown or missing arguments or values that
            the system refuses, or something that is no system.
    """
    factory = import_system(system)
    arguments = fit_arguments(factory, args or {}, {}, prefix="system_args.")
    try:
        made = factory(**arguments)
    except InvalidInput as error:
        raise InvalidInput(
            Problem(f"system_args.{problem.field}", problem.value, problem.remedy)
            for problem in error.problems
        ) from error
    except (Exception, SystemExit) as error:
        remedy = f"{system} raised {type(error).__name__}: {error}"
        raise InvalidInput([Problem("system_args", arguments, remedy)]) from error
    if not isinstance(made, System):
        raise _invalid(system, "make it a subclass of kubestill.systems.System")
    for field, kind in (("domain", Domain), ("output", Output)):
        if not isinstance(getattr(made, field, None), kind):
            raise _invalid(system, f"set its `{field}` to a {kind.__name__} in `__init__`")
    return made


def load_named_system(system: str, args: Mapping[str, Any] | None = None) -> System:
    """Build a system that a file names; see `kubestill.runtime.base.trust`.

    Raises:
        InvalidInput: Nobody vouches for it, it is no subclass of `System`, or as `load_system`.
    """
    trust.check_trusted(system, field="system", group=trust.SYSTEMS)
    found = import_system(system)
    if not (inspect.isclass(found) and issubclass(found, System)):
        raise _invalid(system, "is named by a file, and no subclass of System: it is not called")
    trust.check_defined(found, system, field="system", group=trust.SYSTEMS, trust=())
    return load_system(system, args)


def import_system(system: str) -> Callable[..., Any]:
    """Return what makes a system, by the name or import path that `load_system` takes.

    Raises:
        InvalidInput: There is none.
    """
    path = system
    if ":" not in system:
        if system not in BUILTIN and (found := trust.find_registered(trust.SYSTEMS, system)):
            return found
        if system not in BUILTIN:
            known = [*BUILTIN, *trust.registered(trust.SYSTEMS)]
            remedy = nearest(system, known) + "; or give an import path, 'package.module:Name'"
            raise _invalid(system, remedy)
        path = f"{__package__}.{BUILTIN[system]}"
    return import_factory(path, field="system", named=system)


def _invalid(system: str, remedy: str) -> InvalidInput:
    return InvalidInput([Problem("system", system, remedy)])
