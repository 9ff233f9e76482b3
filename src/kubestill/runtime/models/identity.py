"""Identify an exported model: one digest, wherever a model is named. Needs no torch.

The digest of a model is the SHA-256 of its `model.json`. That file holds the SHA-256 of the weights
beside it, so that this one digest covers preprocessing, architecture and weights. Artifacts, the
registry, decisions, certificates, datasets that a model labelled, and reports all name a model by
it; nothing else computes one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from kubestill.errors import CorruptData, NotFound
from kubestill.runtime.base.values import parse_json
from kubestill.runtime.stores.base import Store

SPEC_FILE = "model.json"
TRAINING_FILE = "training.json"
WEIGHTS_FILE = "model.safetensors"
FOREIGN = "kubestill/foreign-model/1"
"""The format of the `model.json` of a model that this package did not train."""
_FOREIGN_FILES = {
    "lightgbm": "model.txt",
    "xgboost": "model.xgb",
    "catboost": "model.cbm",
    "onnx": "model.onnx",
    "pt2": "model.pt2",
    "skops": "model.skops",
    "python": "model.weights",
    "endpoint": "endpoint.json",
    "huggingface": "model.zip",
    "several": "model.zip",
}


def weights_file(form: Mapping[str, Any]) -> str:
    """Return the name of the file beside `model.json`, whose content this is."""
    if form.get("format") != FOREIGN:
        return WEIGHTS_FILE
    return _FOREIGN_FILES.get(str(form.get("kind")), WEIGHTS_FILE)


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
        weights: Content of the file beside it: `model.safetensors`, or a foreign model's own.
        source: The folder they come from, for messages.

    Raises:
        CorruptData: `model.json` is no JSON, or these are not the weights that it names.
    """
    place = f"{source}/{SPEC_FILE}"
    form = parse_json(spec, source=place, what="model")
    named = form.get("digest")
    found = weights_digest(weights)
    if found != named:
        raise CorruptData(
            f"{source}/{weights_file(form)} is not what {SPEC_FILE} names: its SHA-256 is {found}, "
            f"not {named!r:.80}; restore both files of one export"
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
        form = parse_json(spec, source=f"{store.uri}/{below}{SPEC_FILE}", what="model")
        weights = store.get(f"{below}{weights_file(form)}", most=None)
    except NotFound as error:
        raise CorruptData(f"a file of the model is gone: {error}") from error
    return check_digest(spec, weights, source=f"{store.uri}/{folder}".rstrip("/"))
