"""Find the model to serve: that of a folder, or the champion of a registry, which may change."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from kubestill.errors import CorruptData, InvalidInput, NotFound, Problem
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.identity import SPEC_FILE, model_digest
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.models.signature import Signature, describe, sample_request
from kubestill.runtime.retraining import open_registry
from kubestill.runtime.stores import open_store

_QUICK = 0.002
"""Seconds: a batch that takes no longer is answered at once, without another thread."""
_SMALL = 64
"""Rows of such a batch."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A model that is there to be served."""

    uri: str
    version: str
    """The champion's number; for a folder, the first digits of the digest."""
    digest: str


@dataclass(frozen=True, kw_only=True)
class Served:
    """A loaded model."""

    found: Found
    predictor: Predictor
    signature: Signature
    shapes: dict[str, tuple[int, ...]]
    """Of the inputs, by name."""
    quick: int
    """Rows of a batch that is answered at once."""


class ModelSource:
    """Where the model comes from, now and later."""

    def __init__(
        self, uri: str, *, trust: Iterable[str] = (), device: str = "cpu", strict: bool = False
    ):
        """Name the place; the other arguments are those of `load_model`."""
        self.uri = uri
        self._trust, self._device, self._strict = tuple(trust), device, strict

    def find(self) -> Found:
        """Return the model that should be served now; nothing is loaded.

        Raises:
            InvalidInput: There is none.
            CorruptData: The registry cannot be read.
            StoreError: The store did not answer.
        """
        try:
            digest = model_digest(open_store(self.uri).get(SPEC_FILE))
            return Found(uri=self.uri, version=digest[:12], digest=digest)
        except NotFound as missing:
            registry = open_registry(self.uri)
            state = registry.read()
            if state.champion is not None:
                return Found(
                    uri=registry.model_uri(state.champion),
                    version=str(state.champion.version),
                    digest=state.champion.model_digest,
                )
            remedy = (
                f"holds neither {SPEC_FILE} nor a registry with a champion; give a model's folder, "
                "such as the `student` of a run, or a registry of continuous-retraining"
            )
            raise InvalidInput([Problem("source", self.uri, remedy)]) from missing

    def load(self, found: Found) -> Served:
        """Load a model, and have it answer a first request.

        Raises:
            InvalidInput: It cannot be served here; see `load_model`.
            CorruptData: It is damaged, or another than was found.
            StoreError: The store did not answer.
        """
        predictor = load_model(
            found.uri, trust=self._trust, device=self._device, strict=self._strict
        )
        if predictor.digest != found.digest:
            raise CorruptData(
                f"{found.uri} has the digest {predictor.digest[:12]}, not {found.digest[:12]}; it "
                "is being replaced, or was changed by hand"
            )
        spec = predictor.spec
        signature = describe(spec.schema, spec.outputs)
        sample = sample_request(signature, {})
        row = {one["name"]: one["data"] for one in sample["inputs"]}
        for column in spec.schema.features:
            if column.kind == "tensor":
                row[column.name] = [row[column.name]]
        raw = predictor.read(row)
        few = raw.repeat(_SMALL, axis=0)
        spent = math.inf
        for _ in range(2):  # the first one also allocates and compiles
            begun = time.perf_counter()
            predictor.answers(few)
            spent = time.perf_counter() - begun
        predictor.answers(raw)
        # That row was ours.
        predictor.familiar.rows = 0
        predictor.familiar.counts.clear()
        return Served(
            found=found,
            predictor=predictor,
            signature=signature,
            shapes={one.name: one.shape for one in signature.inputs},
            quick=_SMALL if spent <= _QUICK else 0,
        )
