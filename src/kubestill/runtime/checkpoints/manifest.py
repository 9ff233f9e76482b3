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
from typing import Annotated, Any

from pydantic import Field, Strict

from kubestill.errors import CorruptData, NotFound
from kubestill.runtime.base.values import (
    Digest,
    Flag,
    Instant,
    Key,
    Number,
    Whole,
    parse_json,
    read_as,
)
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
_FOLDER = re.compile(r"\d{1,16}-a(?P<number>\d{1,15})-[0-9a-f]+-\d{1,16}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class StateFile:
    """One rank's tensors, in safetensors format."""

    key: Key
    """Below the training run's place."""
    rank: Whole
    bytes: Annotated[int, Strict(), Field(ge=1, le=1 << 53)]
    sha256: Digest
    crc32c: Annotated[int, Strict(), Field(ge=0, lt=1 << 32)]
    """For the reader in a hurry; `checksum` says who that is."""
    version: str = ""
    """What the store called this content: a GCS generation."""


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """When in the training run a state was copied, and what for."""

    step: Whole
    epoch: Number
    examples: Whole
    kind: CheckpointKind
    metrics: Mapping[str, Number] = field(default_factory=dict[str, float])
    created: Instant
    """Seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One checkpoint: its files, and the JSON half of its state."""

    stamp: Stamp
    files: tuple[StateFile, ...]
    """One a rank, in order of rank."""
    attempt: Whole
    attempt_id: str
    experiment: str
    fingerprint: str
    numerics: Mapping[str, Any]
    """Everything besides state and data that changes bits: device, threads, kernels."""
    meta: Json
    """`TrainingState.meta` of rank 0."""
    rank_meta: tuple[Any, ...]
    """`meta["rank"]` of every rank."""
    sharded: Flag = False
    """Whether each file has tensors that no other has, and all of them are the state."""

    @property
    def bytes(self) -> int:
        """Size of all state files."""
        return sum(file.bytes for file in self.files)

    def entry(self, key: str, content: bytes) -> LedgerEntry:
        """Return the ledger entry that lists this manifest.

        Args:
            key: Where it is, below the training run's place.
            content: Its bytes; they count, for small states are smaller than their curves.
        """
        return LedgerEntry(
            **vars(self.stamp),
            bytes=self.bytes + len(content),
            manifest=ManifestRef(key=key, sha256=hashlib.sha256(content).hexdigest()),
            attempt=self.attempt,
        )


def folder_name(step: int, attempt: Attempt, save: int) -> str:
    """Return the folder of an attempt's `save`-th checkpoint; none is ever used twice."""
    return f"{step:09d}-{attempt.id}-{save}"


def attempt_number(folder: str) -> int | None:
    """Return which attempt wrote a folder, or None where it is not a checkpoint's."""
    match = _FOLDER.fullmatch(folder)
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
    # Versions that know nothing of shards read all other manifests.
    fields |= {"sharded": True} if manifest.sharded else {}
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
    return check_manifest(content, ref, source=f"{store.uri}/{ref.key}")


def check_manifest(content: bytes, ref: ManifestRef, *, source: str) -> Manifest:
    """Read a manifest that is to be the one that a ledger entry lists.

    Raises:
        CorruptData: It is another.
        InvalidInput: It was written by another format version.
    """
    if hashlib.sha256(content).hexdigest() != ref.sha256:
        raise CorruptData(f"{ref.key} does not match its sha256")
    manifest = parse_manifest(content, source=source)
    folder = ref.key.rpartition("/")[0]
    if manifest.files[0].key.rpartition("/")[0] != folder:
        raise CorruptData(f"{ref.key} lists state files that do not lie beside it")
    return manifest


def parse_manifest(content: bytes, *, source: str) -> Manifest:
    """Read a manifest's JSON.

    Raises:
        CorruptData: It is none.
        InvalidInput: It was written by another format version.
    """
    form = parse_json(content, source=source, what="manifest")
    check_format(form.pop("format", None), MANIFEST_FORMAT, source, "checkpoint")
    names = ("step", "epoch", "examples", "kind", "metrics", "created")
    form["stamp"] = {name: form.pop(name) for name in names if name in form}
    manifest = read_as(Manifest, form, source=source, what="manifest")
    ranks = range(len(manifest.files))
    if not ranks or [file.rank for file in manifest.files] != list(ranks):
        raise CorruptData(f"{source} does not list one state file a rank, in order")
    if len(manifest.rank_meta) != len(ranks):
        raise CorruptData(
            f"{source} has {len(manifest.rank_meta)} rank_meta for {len(ranks)} files"
        )
    if len({file.key.rpartition("/")[0] for file in manifest.files}) > 1:
        raise CorruptData(f"{source} lists state files of several folders")
    return manifest


_GONE = "it is gone"
"""Why a ledger is lost that left nothing; a training run that never began has none either."""


def rebuild_ledger(
    store: Store, *, experiment: str, fingerprint: str, now: float, why: str = _GONE
) -> Ledger:
    """Make a ledger from what lies at a place: empty where nothing does.

    Of one step and kind, the highest attempt counts. The notices of the ledger say what was lost
    (`why`), and which manifests cannot be read and are left out.

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
        entry = manifest.entry(key, content)
        other = found.get((entry.step, entry.kind))
        if other is None or other.attempt < entry.attempt:
            found[entry.step, entry.kind] = entry
    if not highest:
        text = f"ledger lost ({why}), and no checkpoint lies here: training starts anew"
        return ledger if why == _GONE else ledger.with_notice(text, at=now)
    ledger = replace(
        ledger,
        entries=in_order(found.values()),
        attempt=Attempt(number=highest, id="lost", owner="whoever lost the ledger"),
    )
    text = f"ledger lost ({why}): rebuilt from {len(found)} manifests"
    for notice in (text, *skipped):
        ledger = ledger.with_notice(notice, at=now)
    return ledger
