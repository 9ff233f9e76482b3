"""Numerical systems that label inputs exactly: formulas, solvers and tables.

`load_system` builds one from its name, from an import path, or from a user's own table. What a
system is stands in `system`, what its inputs may be in `domain`.
"""

from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.load import BUILTIN, load_system
from kubestill.runtime.generation.systems.system import Axis, Output, System

__all__ = ["BUILTIN", "Axis", "Domain", "Output", "System", "load_system"]
