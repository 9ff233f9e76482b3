"""Manifests: what one checkpoint consists of, byte for byte.

A manifest is written after the state files it lists, and before the ledger lists it. It carries all
that a ledger entry says, so that a lost ledger can be rebuilt from the manifests alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from kubestill.errors import CorruptData, NotFound
from kubestill.runtime.checkpoints.ledger import (
    Attempt,
    CheckpointKind,
    Json,
    Ledger,
    LedgerEntry,
    ManifestRef,
    check_format,
)
from kubestill.runtime.checkpoints.protocol import in_order
from kubestill.runtime.stores.base import Store

MANIFEST_FORMAT = "kubestill/manifest/1"
MANIFEST_NAME = "manifest.json"
_FOLDER = re.compile(r"^(?P<step>\d+)-(?P<attempt>a(?P<number>\d+)-[0-9a-f]+)-(?P<save>\d+)$")


@dataclass(frozen=True, kw_only=True)
class StateFile:
    """One rank's tensors, in safetensors format."""

    key: str
    """Below the training's place."""
    rank: int
    bytes: int
    sha256: str
    crc32c: int
    """For the reader in a hurry; `checksum` says who that is."""
    version: str = ""
    """What the store called this content: a GCS generation."""


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """When in the training a state was copied, and what for."""

    step: int
    epoch: float
    examples: int
    kind: CheckpointKind
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    created: float
    """Seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One checkpoint: its files, and the JSON half of its state."""

    stamp: Stamp
    files: tuple[StateFile, ...]
    """One a rank, in order of rank."""
    attempt: int
    attempt_id: str
    experiment: str
    fingerprint: str
    numerics: Mapping[str, Any]
    """Everything besides state and data that changes bits: device, threads, kernels."""
    meta: Json
    """`TrainingState.meta` of rank 0."""
    rank_meta: tuple[Json | None, ...]
    """`meta["rank"]` of every rank."""

    @property
    def bytes(self) -> int:
        """Size of all state files."""
        return sum(file.bytes for file in self.files)

    def entry(self, ref: ManifestRef) -> LedgerEntry:
        """Return the ledger entry that lists this manifest."""
        return LedgerEntry(**vars(self.stamp), bytes=self.bytes, manifest=ref, attempt=self.attempt)


def folder_name(step: int, attempt: Attempt, save: int) -> str:
    """Return the folder of an attempt's `save`-th checkpoint; none is ever used twice."""
    return f"{step:09d}-{attempt.id}-{save}"


def attempt_number(folder: str) -> int | None:
    """Return which attempt wrote a folder, or None where it is not a checkpoint's."""
    match = _FOLDER.match(folder)
    return int(match["number"]) if match else None


def encode_manifest(manifest: Manifest, *, meta: str, rank_meta: list[str]) -> bytes:
    """Return the manifest's JSON.

    Args:
        manifest: Everything but the metas.
        meta: Rank 0's meta, as JSON text: it was encoded when the state was copied.
        rank_meta: JSON text of every rank.
    """
    fields = {
        "format": MANIFEST_FORMAT,
        **vars(manifest.stamp),
        "metrics": dict(manifest.stamp.metrics),
        "files": [vars(file) for file in manifest.files],
        "attempt": manifest.attempt,
        "attempt_id": manifest.attempt_id,
        "experiment": manifest.experiment,
        "fingerprint": manifest.fingerprint,
        "numerics": dict(manifest.numerics),
    }
    head = json.dumps(fields, sort_keys=True, allow_nan=False)
    return f'{head[:-1]}, "meta": {meta}, "rank_meta": [{", ".join(rank_meta)}]}}\n'.encode()


def read_manifest(store: Store, ref: ManifestRef) -> Manifest:
    """Fetch and verify the manifest that a ledger entry lists.

    Raises:
        CorruptData: It is gone, or is not what was committed.
        InvalidInput: It was written by another format version.
        StoreError: The store did not answer.
    """
    try:
        content = store.get(ref.key)
    except NotFound as error:
        raise CorruptData(f"{ref.key} is missing") from error
    if hashlib.sha256(content).hexdigest() != ref.sha256:
        raise CorruptData(f"{ref.key} does not match its sha256")
    return parse_manifest(content, source=f"{store.uri}/{ref.key}")


def parse_manifest(content: bytes, *, source: str) -> Manifest:
    """Read a manifest's JSON.

    Raises:
        CorruptData: It is none.
        InvalidInput: It was written by another format version.
    """
    try:
        parsed: object = json.loads(content)
    except ValueError as error:
        raise CorruptData(f"{source} is not a manifest: {error}") from error
    if not isinstance(parsed, dict):
        raise CorruptData(f"{source} is not a manifest: it holds no JSON object")
    data = cast(Json, parsed)
    check_format(data.get("format"), MANIFEST_FORMAT, source, "checkpoint")
    try:
        names = ("step", "epoch", "examples", "kind", "metrics", "created")
        return Manifest(
            stamp=Stamp(**{name: data[name] for name in names}),
            files=tuple(StateFile(**file) for file in data["files"]),
            attempt=data["attempt"],
            attempt_id=data["attempt_id"],
            experiment=data["experiment"],
            fingerprint=data["fingerprint"],
            numerics=data["numerics"],
            meta=data["meta"],
            rank_meta=tuple(data["rank_meta"]),
        )
    except (KeyError, TypeError) as error:
        raise CorruptData(f"{source} is not a complete manifest: {error}") from error


def rebuild_ledger(store: Store, *, experiment: str, fingerprint: str, now: float) -> Ledger:
    """Make a ledger from what lies at a place: empty where nothing does.

    Of one step and kind, the highest attempt counts. Manifests that cannot be read are left out,
    and the ledger says so.

    Raises:
        InvalidInput: A manifest was written by another format version: left out, its checkpoint
            would be swept away as something that nobody committed.
        StoreError: The store did not answer.
    """
    ledger = Ledger(uri=store.uri, experiment=experiment, fingerprint=fingerprint)
    found: dict[tuple[int, str], LedgerEntry] = {}
    skipped: list[str] = []
    highest = 0
    for key in [entry.key for entry in store.list()]:
        folder, _, name = key.rpartition("/")
        number = attempt_number(folder)
        if number is None:
            continue
        highest = max(highest, number)
        if name != MANIFEST_NAME:
            continue
        try:
            content = store.get(key)
            manifest = parse_manifest(content, source=f"{store.uri}/{key}")
        except (CorruptData, NotFound) as error:
            skipped.append(f"{key} left out: {error}")
            continue
        entry = manifest.entry(ManifestRef(key=key, sha256=hashlib.sha256(content).hexdigest()))
        other = found.get((entry.step, entry.kind))
        if other is None or other.attempt < entry.attempt:
            found[entry.step, entry.kind] = entry
    if not highest:
        return ledger
    ledger = replace(
        ledger,
        entries=in_order(found.values()),
        attempt=Attempt(number=highest, id="lost", owner="whoever lost the ledger"),
    )
    text = f"ledger lost: rebuilt from {len(found)} manifests"
    for notice in (text, *skipped):
        ledger = ledger.with_notice(notice, at=now)
    return ledger
