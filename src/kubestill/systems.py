"""Write numerical systems of your own, and build those that come with kubestill.

A `System` has a `Domain` of inputs (`Continuous`, `Integer`, `Levels`, `Choice`, `Field`), an
`Output` (with an `Axis` for each dimension of a tensor) and a method `solve`. `load_system` builds
one by its name (`BUILTIN`) or import path. `stacked` turns a column of fields into one array,
and `taylor` holds the arithmetic of `System.expand`. docs/systems.md writes a system from nothing.

Everything here imports without torch and without kfp; it takes numpy, pandas, scipy, pyarrow and
pydantic.
"""

from kubestill.runtime.generation.systems import taylor
from kubestill.runtime.generation.systems.domain import Domain, stacked
from kubestill.runtime.generation.systems.inputs import (
    Choice,
    Continuous,
    Field,
    Input,
    Integer,
    Levels,
)
from kubestill.runtime.generation.systems.load import BUILTIN, load_system
from kubestill.runtime.generation.systems.system import Axis, Output, System

__all__ = [
    "BUILTIN",
    "Axis",
    "Choice",
    "Continuous",
    "Domain",
    "Field",
    "Input",
    "Integer",
    "Levels",
    "Output",
    "System",
    "load_system",
    "stacked",
    "taylor",
]


def __dir__() -> list[str]:
    return sorted(__all__)
