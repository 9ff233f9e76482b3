"""Task of the component `open-champion`: load the champion from the registry."""

from __future__ import annotations

import os

from kubestill.errors import CorruptData, InvalidInput, Problem, counted
from kubestill.runtime.base.artifacts import Artifact
from kubestill.runtime.checkpoints.ledger import (
    Checkpoint,
    write_checkpoint_artifact,
    write_ledger_artifact,
)
from kubestill.runtime.datasets.manifest import Dataset, gather
from kubestill.runtime.models.identity import read_digest
from kubestill.runtime.retraining import Champion, Registry, State, open_registry, transitions
from kubestill.runtime.retraining.champions import check_champion, read_ledger
from kubestill.runtime.retraining.golden import open_golden
from kubestill.runtime.retraining.windows import WindowStore
from kubestill.runtime.stores import open_store


def open_champion(
    *,
    registry: str,
    model: Artifact,
    ledger: Artifact,
    checkpoint: Artifact,
    golden: Artifact,
    run_id: str = "",
) -> tuple[int]:
    """Copy the champion's export; write its ledger, its one state, and an index of golden rows.

    The component documents the parameters.

    Returns:
        version: Version of the champion.

    Raises:
        InvalidInput: There is no champion.
        CorruptData: It is damaged.
        Fenced: Another run has taken the window over.
    """
    store = open_registry(registry)
    state = store.read()
    champion = _champion(store, state, run_id)
    check_champion(store, state)
    _copy(store, champion, model)
    found = read_ledger(store, champion)
    write_ledger_artifact(found, ledger.path)
    ledger.metadata.update(kind="ledger", uri=found.uri, fingerprint=found.fingerprint)
    # Promotion kept the one that a challenger is fine-tuned from.
    (entry,) = found.entries
    write_checkpoint_artifact(Checkpoint.of(found, entry), checkpoint.path)
    checkpoint.metadata["kind"] = "checkpoint"
    rows = _golden(store, state, golden)
    print(
        f"champion {champion.version}, promoted {champion.promoted_at[:16]}; "
        f"{counted(rows, 'golden row')}",
        flush=True,
    )
    return (champion.version,)


def _champion(registry: Registry, state: State, run_id: str) -> Champion:
    wanted = transitions.holding(state, run_id).champion if run_id else None
    if state.champion is None:
        remedy = "has no champion yet; the first run of continuous-retraining makes one"
        raise InvalidInput([Problem("registry", registry.uri, remedy)])
    if wanted is not None and wanted != state.champion.version:
        remedy = (
            f"this run's window is for champion {wanted}, but champion {state.champion.version} "
            "came in between (a rollback?): the next run goes on with that"
        )
        raise InvalidInput([Problem("run_id", run_id, remedy)])
    return state.champion


def _copy(registry: Registry, champion: Champion, model: Artifact) -> None:
    prefix = f"{champion.folder}/model/"
    for entry in registry.store.list(prefix):
        path = os.path.join(model.path, entry.key.removeprefix(prefix))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        registry.store.download(entry.key, path)
    if read_digest(open_store(model.path)) != champion.model_digest:
        raise CorruptData(f"champion {champion.version} changed while it was copied")
    model.metadata.update(kind="model", digest=champion.model_digest, version=champion.version)


def _golden(registry: Registry, state: State, golden: Artifact) -> int:
    made = gather(
        _golden_parts(registry, state), golden.path, provenance={"made-by": "open-champion"}
    )
    golden.metadata.update(kind="dataset", fingerprint=made.fingerprint, rows=made.rows)
    return made.rows


def _golden_parts(registry: Registry, state: State) -> list[Dataset]:
    """Return the user's own golden rows, or else those that judged the first champion."""
    if state.golden is not None:
        return [open_golden(registry, state.golden)]
    windows = WindowStore(registry, state)
    kept = [window for window in state.windows if window.judge == "golden"]
    return [windows.dataset(window, "judge") for window in kept]
