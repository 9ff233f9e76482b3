"""Check a request for generated rows in full, before any row is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, Field

from kubestill.errors import Problems, nearest, renaming
from kubestill.runtime.base.random import MAX_SEED
from kubestill.runtime.base.settings import Settings, validate
from kubestill.runtime.generation.covering import COVERINGS, MAX_SOBOL_WIDTH, SOBOL_BITS
from kubestill.runtime.generation.given import FilesSettings
from kubestill.runtime.generation.jitter import JitterSettings
from kubestill.runtime.generation.mixup import MixupSettings
from kubestill.runtime.generation.munge import MungeSettings
from kubestill.runtime.generation.systems.load import load_system
from kubestill.runtime.generation.systems.solving import OnFailure
from kubestill.runtime.generation.systems.system import System

AUGMENTATIONS: dict[str, type[BaseModel]] = {
    "munge": MungeSettings,
    "mixup": MixupSettings,
    "jitter": JitterSettings,
}
"""The settings of each method that varies the rows of a dataset."""
GIVEN: dict[str, type[BaseModel]] = {"files": FilesSettings}
"""Those of the method that adds rows that people have."""


class Request(Settings):
    """One shard of one generation."""

    method: str = "auto"
    """One of `AUGMENTATIONS`, `GIVEN` or `COVERINGS`, or `package.module:Name` of a source of one's
    own. `auto` is munge for a dataset; for a system grid where every input is discrete, else sobol.
    """
    rows: int = Field(default=32_768, ge=0)
    """Generated rows over all shards together; originals come on top. A grid has its own number,
    and files may hold fewer."""
    shard: int = Field(default=0, ge=0)
    """Which shard to make, counted from 0."""
    shards: int = Field(default=1, ge=1)
    """How many shards there are."""
    include_original: bool = True
    """Start with the originals, labels included."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Of all random numbers."""
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Options of the method."""
    system: str = ""
    """What labels the rows; empty where they come from a dataset or a source."""
    system_args: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Its arguments."""
    on_failure: OnFailure = "stop"
    """Whether an input on which the system fails ends the work, or is left out."""

    @property
    def from_source(self) -> bool:
        """Whether the rows come from the user's own source."""
        return ":" in self.method


def parse_request(
    values: Mapping[str, Any], *, has_original: bool, has_model: bool = False
) -> tuple[Request, System | None]:
    """Check everything that can be checked without reading data.

    Args:
        values: The fields of `Request`; whole floats pass as ints, as Kubeflow hands them over.
        has_original: Whether there is a dataset to start from.
        has_model: Whether there is a surrogate to look at.

    Returns:
        The request, with its method resolved and every setting filled in; and its system, if any.

    Raises:
        InvalidInput: With everything that is wrong.
    """
    problems = Problems()
    system = None
    name, args = str(values.get("system", "")), values.get("system_args", {})
    if name:
        with problems.collect():
            system = load_system(name, args)
    elif args:
        problems.add("system_args", args, "there is no system; name one in `system`")
    if not name and values.get("on_failure", "stop") == "leave-out":
        problems.add("on_failure", "leave-out", "there is no system that could fail; use stop")
    method = _method(str(values.get("method", "auto")), name, system, has_original, problems)
    settings: Any = values.get("settings", {})
    known = (AUGMENTATIONS | GIVEN | COVERINGS).get(method)
    if known and isinstance(settings, dict):
        given = cast(dict[str, Any], settings)
        with problems.collect():
            settings = validate(known, given, prefix="settings.").model_dump()
    _check_model(method, has_model, problems)
    request = None
    with problems.collect():
        filled = {**values, "method": method, "settings": settings}
        request = validate(Request, filled)
    shard, shards = values.get("shard", 0), values.get("shards", 1)
    if request and request.shard >= request.shards:
        remedy = (
            f"shards are counted from 0, so with shards = {shards} at most {request.shards - 1}"
        )
        problems.add("shard", shard, remedy)
    if request and system and not problems:
        with problems.collect():
            request = _covered(request, system)
    problems.raise_if_any()
    assert request is not None
    return request, system


def _method(
    method: str, name: str, system: System | None, has_original: bool, problems: Problems
) -> str:
    """Resolve `auto`, and note a method that does not go with where the rows come from."""
    if method == "auto" and name:
        return "grid" if system and system.domain.grid_rows is not None else "sobol"
    method = "munge" if method == "auto" else method
    known = COVERINGS if name else AUGMENTATIONS | GIVEN
    if ":" in method:
        if name:
            problems.add("method", method, "a source labels its own rows; leave `system` empty")
    elif method in COVERINGS and not name:
        problems.add("method", method, "it covers a system's domain; name one in `system`")
    elif method in AUGMENTATIONS | GIVEN and name:
        problems.add("method", method, "it starts from a dataset; " + nearest(method, known))
    elif method not in known:
        source = "" if name else "; or a source as 'package.module:Name'"
        problems.add("method", method, nearest(method, known) + source)
    if not name and ":" not in method and method not in COVERINGS and not has_original:
        problems.add("original", None, f"the method {method!r} starts from a dataset; connect one")
    return method


def _check_model(method: str, has_model: bool, problems: Problems) -> None:
    if method == "adaptive" and not has_model:
        problems.add("model", None, "adaptive looks where a surrogate errs; connect one")
    if method != "adaptive" and has_model:
        problems.add("model", method, "only adaptive looks at a surrogate; use it, or disconnect")


def _covered(request: Request, system: System) -> Request:
    """Return the request with the size of its grid; note a domain that the method cannot cover."""
    problems = Problems()
    if request.method in ("sobol", "adaptive") and system.domain.width > MAX_SOBOL_WIDTH:
        remedy = f"Sobol sequences have at most {MAX_SOBOL_WIDTH} dimensions; use random"
        problems.add("method", request.method, remedy)
    candidates = request.rows * int(request.settings.get("oversample", 1))
    if request.method in ("sobol", "adaptive") and candidates > 1 << SOBOL_BITS:
        problems.add("rows", request.rows, "a Sobol sequence has 2^32 points; use random")
    problems.raise_if_any()
    if request.method != "grid":
        return request
    with renaming("settings.{}".format):
        points = system.domain.points(request.settings["points"], rows=max(request.rows, 1))
    resolved = {"settings": {"points": points}, "rows": math.prod(points.values())}
    return request.model_copy(update=resolved)
