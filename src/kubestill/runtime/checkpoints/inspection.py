"""Looking at checkpoints from outside, without torch: `kubestill checkpoints ls|show|verify`."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from kubestill.errors import CorruptData, InvalidInput, Problem
from kubestill.runtime.checkpoints.ledger import (
    LEDGER_KEY,
    Json,
    Ledger,
    read_ledger_artifact,
)
from kubestill.runtime.checkpoints.manifest import read_manifest
from kubestill.runtime.checkpoints.reading import verify_file
from kubestill.runtime.stores import open_store


def ledgers(uri: str) -> list[Ledger]:
    """Return every training's ledger at or below a URI.

    Args:
        uri: A training's place, any folder above it, or a ledger artifact's file.

    Raises:
        InvalidInput: There is none, or one of another format version.
        CorruptData: One cannot be parsed.
        StoreError: The store did not answer.
    """
    if os.path.isfile(uri):
        return [read_ledger_artifact(uri)]
    store = open_store(uri)
    keys = [e.key for e in store.list() if e.key.rpartition("/")[2] == LEDGER_KEY]
    found: list[Ledger] = []
    for key in keys:
        content, _ = store.cell(key).read()
        if content is not None:
            found.append(Ledger.from_bytes(content, source=f"{store.uri}/{key}"))
    if not found:
        remedy = "no training keeps checkpoints there: give its checkpoint_uri, or a ledger file"
        raise InvalidInput([Problem("uri", uri, remedy)])
    return found


def describe(uri: str) -> list[Json]:
    """Return one row a checkpoint, of every training at or below `uri`, oldest first.

    A row has `training` (`experiment/fingerprint`), `step`, `epoch`, `examples`, `kind`, `phase`,
    `metrics`, `bytes`, `created` (ISO 8601, UTC), `attempt`, `state` (`ok` or why it is damaged)
    and `uri`. Raises what `ledgers` raises.
    """
    return [
        {
            "training": f"{ledger.experiment}/{ledger.fingerprint}",
            "step": entry.step,
            "epoch": entry.epoch,
            "examples": entry.examples,
            "kind": entry.kind,
            "phase": entry.phase,
            "metrics": dict(entry.metrics),
            "bytes": entry.bytes,
            "created": datetime.fromtimestamp(entry.created, UTC).isoformat(timespec="seconds"),
            "attempt": entry.attempt,
            "state": entry.damaged or "ok",
            "uri": f"{ledger.uri}/{entry.manifest.key.rpartition('/')[0]}",
        }
        for ledger in ledgers(uri)
        for entry in ledger.entries
    ]


def show(uri: str) -> list[Json]:
    """Return what each ledger at or below `uri` says about its training besides the checkpoints.

    `training`, `uri`, `status` (`finished`, `failed: …` or `open`), `attempt`, `owner`, `last_sign`
    (ISO 8601, UTC), `checkpoints` (how many), `bytes`, `notices`.
    """
    return [
        {
            "training": f"{ledger.experiment}/{ledger.fingerprint}",
            "uri": ledger.uri,
            "status": _status(ledger),
            "attempt": ledger.attempt.number if ledger.attempt else 0,
            "owner": ledger.attempt.owner if ledger.attempt else "",
            "last_sign": datetime.fromtimestamp(
                ledger.attempt.beat_at if ledger.attempt else 0, UTC
            ).isoformat(timespec="seconds"),
            "checkpoints": len(ledger.entries),
            "bytes": sum(entry.bytes for entry in ledger.entries),
            "notices": [notice.text for notice in ledger.notices],
        }
        for ledger in ledgers(uri)
    ]


def verify(uri: str) -> list[str]:
    """Read and re-hash everything that the ledgers at or below `uri` list; return what is wrong.

    Downloads all state where it is remote, one file at a time.

    Raises:
        InvalidInput: There is no ledger, or one of another format version.
        StoreError: The store did not answer.
    """
    problems: list[str] = []
    for ledger in ledgers(uri):
        store = open_store(ledger.uri)
        for entry in ledger.entries:
            try:
                manifest = read_manifest(store, entry.manifest)
                for file in manifest.files:
                    verify_file(store, file)
            except (CorruptData, InvalidInput) as error:
                problems.append(f"{ledger.uri}: step {entry.step} ({entry.kind}): {error}")
    return problems


def _status(ledger: Ledger) -> str:
    if ledger.finished is not None:
        return "finished"
    return f"failed: {ledger.failed}" if ledger.failed else "open"
