"""Rows from a user's own source, by import path: a simulator, a sampler, a formula.

A source is any object with a schema and a method that makes rows by number:

    class Pendulum:
        schema = Schema(columns=(Column(name="angle", kind="numeric"), ...), task="regression")

        def __init__(self, length: float = 1.0): ...

        def sample(self, rows: np.ndarray, seed: int) -> pd.DataFrame: ...

`sample` gets global row numbers (int64 [N]) and returns N rows with the columns of the schema, in
that order. Row g may depend on g and the seed alone; `philox.uniforms` gives such numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.base.arguments import import_factory
from kubestill.runtime.datasets.schema import Schema


class Source(Protocol):
    """The interface of a user's class."""

    schema: Schema
    """Meaning of the columns."""

    def sample(self, rows: NDArray[np.int64], seed: int) -> pd.DataFrame:
        """Return the rows with these global numbers."""
        ...


def load_source(path: str, settings: Mapping[str, Any]) -> Source:
    """Build the source at an import path.

    Args:
        path: `package.module:Name` of a class or factory.
        settings: Its keyword arguments.

    Raises:
        InvalidInput: It cannot be imported or built, or offers no schema and `sample`.
    """
    factory = import_factory(path, field="method")
    try:
        source = factory(**settings)
    except (Exception, SystemExit) as error:
        said = f"{path} raised {type(error).__name__}: {error}"
        _refuse("settings", dict(settings), said, error)
    if not isinstance(getattr(source, "schema", None), Schema):
        _refuse("method", path, "give it an attribute `schema` (kubestill.runtime.datasets.schema)")
    if not callable(getattr(source, "sample", None)):
        _refuse("method", path, "give it a method `sample(rows, seed)` that returns a DataFrame")
    return source


def _refuse(field: str, value: object, remedy: str, cause: BaseException | None = None) -> NoReturn:
    raise InvalidInput([Problem(field, value, remedy)]) from cause
