"""Champions in the registry: their files, which need nothing of the run that made them.

models/<window>/model/           the export
models/<window>/judged/model/    the model that was judged, where the export is its refit
models/<window>/training/        the judged model's ledger, and its state from before overfitting
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import replace

from kubestill.errors import CorruptData, InvalidInput, NotFound
from kubestill.runtime.checkpoints.ledger import LEDGER_KEY, Ledger, LedgerEntry
from kubestill.runtime.checkpoints.manifest import read_manifest
from kubestill.runtime.checkpoints.reading import verify_file
from kubestill.runtime.models.identity import read_digest
from kubestill.runtime.retraining.registry import Registry
from kubestill.runtime.retraining.state import Champion, State
from kubestill.runtime.stores import ABSENT, open_store


def check_champion(registry: Registry, state: State) -> None:
    """Prove that the champion's files are there, before anything is spent on judging it.

    Raises:
        CorruptData: They are gone or were changed by hand; the message says what to do.
    """
    champion = state.champion
    if champion is None:
        return
    problem = _damage(registry, champion)
    if not problem:
        return
    sound = [former.version for former in state.previous if not _damage(registry, former)]
    remedy = (
        f"`kubestill registry rollback {registry.uri} --to {sound[0]}` returns to the one before"
        if sound
        else "no former champion is whole either: use a new registry"
    )
    raise CorruptData(
        f"champion {champion.version} of {registry.uri} cannot be used: {problem}. Restore its "
        f"files, or: {remedy}"
    )


def copy_model(registry: Registry, source: str, folder: str) -> None:
    """Copy the export in the local folder `source` below the champion's `folder`."""
    for place, _, names in os.walk(source):
        for name in names:
            path = os.path.join(place, name)
            key = os.path.relpath(path, source).replace(os.sep, "/")
            registry.store.upload(path, f"{folder}/model/{key}")


def copy_training(registry: Registry, ledger: Ledger, entry: LedgerEntry, folder: str) -> str:
    """Copy one state below the champion's `folder`, with a ledger that lists nothing else.

    Returns:
        SHA-256 of the ledger.

    Raises:
        CorruptData: The state is damaged.
        StoreError: One of the two stores did not answer.
    """
    source = open_store(ledger.uri)
    manifest = read_manifest(source, entry.manifest)
    target = f"{folder}/training"
    with tempfile.TemporaryDirectory(prefix="kubestill-promote-") as scratch:
        for key in [*(file.key for file in manifest.files), entry.manifest.key]:
            path = source.local_path(key)
            if path is None:
                path = os.path.join(scratch, "state")
                source.download(key, path)
            registry.store.upload(path, f"{target}/{key}")
    copied = replace(ledger, uri="", entries=(entry,), attempt=None, sequence=1, notices=())
    content = copied.to_bytes()
    cell = registry.store.cell(f"{target}/{LEDGER_KEY}")
    found, version = cell.read()
    if found != content:
        cell.swap(content, expect=version if found is not None else ABSENT)
    return hashlib.sha256(content).hexdigest()


def read_ledger(registry: Registry, champion: Champion) -> Ledger:
    """Return the champion's ledger, whose state lies beside it.

    Raises:
        CorruptData: It is gone or was changed.
    """
    uri = registry.ledger_uri(champion)
    content, _ = open_store(uri).cell(LEDGER_KEY).read()
    if content is None or hashlib.sha256(content).hexdigest() != champion.ledger_digest:
        why = "is gone" if content is None else "was changed"
        raise CorruptData(f"{uri}/{LEDGER_KEY} {why}: champion {champion.version} is damaged")
    # A registry that was moved lists what lies beside it, not where it came from.
    return replace(Ledger.from_bytes(content, source=f"{uri}/{LEDGER_KEY}"), uri=uri)


def find_damage(registry: Registry, champion: Champion) -> list[str]:
    """Read and hash again all that a champion consists of; return what is wrong.

    That is its model, its ledger, and the state that a challenger is fine-tuned from.

    Raises:
        StoreError: The store did not answer.
    """
    problem = _damage(registry, champion)
    if problem or not champion.ledger_digest:
        return [problem] if problem else []
    found: list[str] = []
    ledger = read_ledger(registry, champion)
    store = open_store(ledger.uri)
    for entry in ledger.entries:
        try:
            for file in read_manifest(store, entry.manifest).files:
                verify_file(store, file)
        except (CorruptData, InvalidInput, NotFound) as error:
            found.append(f"the state of step {entry.step}: {error}")
    return found


def _damage(registry: Registry, champion: Champion) -> str:
    try:
        found = read_digest(registry.store, f"{champion.folder}/model")
        judged = champion.judged
        if judged:
            judged = read_digest(registry.store, f"{champion.folder}/judged/model")
        if champion.ledger_digest:
            read_ledger(registry, champion)
    except (CorruptData, InvalidInput, NotFound) as error:
        return str(error)
    if found != champion.model_digest:
        return "its model is another than was promoted"
    return "" if judged == champion.judged else "the model kept in `judged` is another than it was"
