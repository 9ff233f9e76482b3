"""Identify an exported model: one digest, wherever a model is named. Needs no torch.

The digest of a model is the SHA-256 of its `model.json`. That file holds the SHA-256 of the weights
beside it, so that this one digest covers preprocessing, architecture and weights. Artifacts, the
registry, decisions, certificates, datasets that a model labelled, and reports all name a model by
it; nothing else computes one.
"""

from __future__ import annotations

import hashlib

from kubestill.errors import CorruptData, NotFound
from kubestill.runtime.base.values import parse_json
from kubestill.runtime.stores.base import Store

__all__ = [
    "SPEC_FILE",
    "TRAINING_FILE",
    "WEIGHTS_FILE",
    "check_digest",
    "model_digest",
    "read_digest",
    "weights_digest",
]

SPEC_FILE = "model.json"
TRAINING_FILE = "training.json"
WEIGHTS_FILE = "model.safetensors"


def model_digest(spec: bytes) -> str:
    """Return the digest of the model whose `model.json` this is."""
    return hashlib.sha256(spec).hexdigest()


def weights_digest(weights: bytes) -> str:
    """Return what `model.json` says of the weights: their SHA-256."""
    return hashlib.sha256(weights).hexdigest()


def check_digest(spec: bytes, weights: bytes, *, source: str) -> str:
    """Return the digest of a model, once its two files are found to belong together.

    Args:
        spec: Content of `model.json`.
        weights: Content of `model.safetensors`.
        source: The folder they come from, for messages.

    Raises:
        CorruptData: `model.json` is no JSON, or these are not the weights that it names.
    """
    place = f"{source}/{SPEC_FILE}"
    named = parse_json(spec, source=place, what="model").get("digest")
    found = weights_digest(weights)
    if found != named:
        raise CorruptData(
            f"{source}/{WEIGHTS_FILE} is not what {SPEC_FILE} names: its SHA-256 is {found}, not "
            f"{named!r:.80}; restore both files of one export"
        )
    return model_digest(spec)


def read_digest(store: Store, folder: str = "") -> str:
    """Return the digest of the model in a folder of a store, computed from its files.

    Raises:
        CorruptData: A file is missing, or the two do not belong together.
        StoreError: The store did not answer.
    """
    below = f"{folder}/" if folder else ""
    try:
        spec = store.get(f"{below}{SPEC_FILE}")
        weights = store.get(f"{below}{WEIGHTS_FILE}", most=None)
    except NotFound as error:
        raise CorruptData(f"a file of the model is gone: {error}") from error
    return check_digest(spec, weights, source=f"{store.uri}/{folder}".rstrip("/"))
