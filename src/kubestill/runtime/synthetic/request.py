"""What a generation can be told, checked in full before any row is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field

from kubestill.errors import Problems, nearest
from kubestill.runtime.settings import validate
from kubestill.runtime.synthetic.jitter import JitterSettings
from kubestill.runtime.synthetic.mixup import MixupSettings
from kubestill.runtime.synthetic.munge import MungeSettings
from kubestill.runtime.synthetic.philox import MAX_SEED

METHODS: dict[str, type[BaseModel]] = {
    "munge": MungeSettings,
    "mixup": MixupSettings,
    "jitter": JitterSettings,
}
"""Each built-in method's settings."""


class Request(BaseModel):
    """One shard of one generation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = "munge"
    """`munge`, `mixup`, `jitter`, or `package.module:Name` of a source of one's own."""
    rows: int = Field(default=32_768, ge=1)
    """Generated rows over all shards together; originals come on top."""
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

    @property
    def from_source(self) -> bool:
        """Whether the rows come from the user's own source."""
        return ":" in self.method


def parse_request(values: Mapping[str, Any], *, has_original: bool) -> Request:
    """Check everything that can be checked without reading data.

    Args:
        values: The fields of `Request`; whole floats pass as ints, as Kubeflow hands them over.
        has_original: Whether there is a dataset to start from.

    Returns:
        The request, with every setting of a built-in method filled in.

    Raises:
        InvalidInput: With everything that is wrong.
    """
    problems = Problems()
    method = str(values.get("method", "munge"))
    settings: Any = values.get("settings", {})
    if ":" not in method:
        if method not in METHODS:
            remedy = f"{nearest(method, METHODS)}; or a source as 'package.module:Name'"
            problems.add("method", method, remedy)
        elif isinstance(settings, dict):
            given = cast(dict[str, Any], settings)
            with problems.collect():
                settings = validate(METHODS[method], given, prefix="settings.").model_dump()
        if not has_original:
            remedy = f"the method {method!r} starts from a dataset; connect one"
            problems.add("original", None, remedy)
    request = None
    with problems.collect():
        request = validate(Request, {**values, "settings": settings})
    shard, shards = values.get("shard", 0), values.get("shards", 1)
    if request and request.shard >= request.shards:
        remedy = (
            f"shards are counted from 0, so with shards = {shards} at most {request.shards - 1}"
        )
        problems.add("shard", shard, remedy)
    problems.raise_if_any()
    assert request is not None
    return request
