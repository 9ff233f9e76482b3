"""Run `promote-model`: make the challenger the champion, if it is the one that was judged."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from kubestill.errors import InvalidInput, Problem, Problems, counted
from kubestill.runtime.base.artifacts import (
    Artifact,
    check_kind,
    read_metadata,
    read_record,
    write_summary,
)
from kubestill.runtime.checkpoints.ledger import Ledger, read_ledger_artifact
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.evaluation.refit import find_fault
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.identity import read_digest
from kubestill.runtime.retraining import (
    Champion,
    Claim,
    Registry,
    State,
    open_registry,
    transitions,
)
from kubestill.runtime.retraining.champions import (
    check_champion,
    copy_model,
    copy_training,
)
from kubestill.runtime.retraining.collecting import check_placeholders
from kubestill.runtime.retraining.decision import DecisionRecord, read_decision
from kubestill.runtime.retraining.history import Promotion
from kubestill.runtime.retraining.kubeflow import NotRegistered, check_address, register
from kubestill.runtime.retraining.windows import WindowStore
from kubestill.runtime.selection.criterion import Criterion, Evidence
from kubestill.runtime.selection.rules import select
from kubestill.runtime.steps.refit import RefitInputs, train_once_more
from kubestill.runtime.stores import open_store
from kubestill.runtime.training.record import read_training, training_of
from kubestill.supervision import TRAINJOB_VARIABLE

_PROMOTING = ("promote", "bootstrap")


def promote_model(
    *,
    model: Artifact,
    ledger: Artifact,
    registry: str,
    run_id: str,
    summary: Artifact,
    record: Artifact | None = None,
    metrics: Artifact | None = None,
    whole: Artifact | None = None,
    checkpoint: Artifact | None = None,
    replay: Artifact | None = None,
    refit: bool = True,
    model_registry: str = "",
    model_name: str = "",
    device: str = "auto",
    checkpoint_uri: str = "",
) -> tuple[int, str]:
    """Copy the challenger or its refit into the registry and swap the state, in one change.

    The component documents parameters and outputs.

    Raises:
        InvalidInput: The challenger, its rows or its opponent are not those of the decision, or the
            decision is another; all problems together. Or the challenger's training run cannot be
            repeated on these rows. Nothing was changed.
        CorruptData: The model or its training state is damaged.
        Conflict: Another champion came in between.
        Fenced: Another run has taken the window over.
    """
    store = open_registry(registry)
    state = store.read()
    digest, history, decision = _check(
        model,
        ledger,
        record,
        metrics,
        {"run_id": run_id, "model_registry": model_registry, "model_name": model_name},
    )
    champion = transitions.promoted(state, run_id)
    held = None if champion else transitions.holding(state, run_id)
    window = state.window(champion.window) if champion else None
    if held:
        _check_judged(decision, digest, state, held)
        check_champion(store, state)
        window = held.window
    elif champion and (judged := champion.judged or champion.model_digest) != digest:
        remedy = f"this run promoted another model already: {judged}"
        raise InvalidInput([Problem("model", digest, remedy)])
    assert window
    with tempfile.TemporaryDirectory(prefix="kubestill-refit-") as folder:
        chosen, told = model, ""
        if refit and whole:
            chosen, told = _refit(
                model,
                RefitInputs(whole=whole, checkpoint=checkpoint, replay=replay),
                WindowStore(store, state).dataset(window, "judge"),
                device=device,
                checkpoint_uri=checkpoint_uri,
                folder=folder,
                uri=f"{summary.uri}-refit",
            )
        if TRAINJOB_VARIABLE in os.environ:
            return 0, ""
        if held:
            champion = _promote(store, held, model, chosen, history, decision)
    assert champion
    if bool(champion.judged) != (chosen is not model):
        told = ""  # an earlier attempt was asked for something else, and did it
    store.append(
        Promotion(
            run_id=run_id,
            version=champion.version,
            model=champion.model_digest,
            window=champion.window,
            reason=decision.reason,
            **({"judged": champion.judged} if champion.judged else {}),
            **({"refit": told} if told else {}),
        )
    )
    line = f"champion {champion.version}: {decision.reason} {told}".strip()
    uri = store.model_uri(champion)
    if model_registry:
        name = model_name or store.uri.rstrip("/").rpartition("/")[2]
        try:
            told = f"{register(model_registry, name, champion, uri)}."
        except NotRegistered as error:  # does not undo the promotion
            told = f"**not registered**, but champion all the same: {error}"
        line += f"\n\nModel Registry: {told}"
    write_summary(line + "\n", summary)
    print(line, flush=True)
    return champion.version, uri


def _check(
    model: Artifact,
    ledger: Artifact,
    record: Artifact | None,
    metrics: Artifact | None,
    names: Mapping[str, str],
) -> tuple[str, Ledger, DecisionRecord]:
    problems = Problems()
    check_placeholders(names, problems)
    check_address(names["model_registry"], problems)
    digest, history, decision = "", None, None
    with problems.collect():
        check_kind(model, "model")
        digest = read_digest(open_store(model.path))
    with problems.collect():
        check_kind(ledger, "ledger")
        history = read_ledger_artifact(ledger.path)
    with problems.collect("record", record.uri if record else None):
        decision = _read_decision(record, metrics)
    problems.raise_if_any()
    assert history
    assert decision
    return digest, history, decision


def _read_decision(record: Artifact | None, metrics: Artifact | None) -> DecisionRecord:
    """Return the decision, from the record or from the metadata of older metrics."""
    check_kind(record, "decision", "record")
    check_kind(metrics, "metrics")
    found: Any = None
    if record:
        found = read_record(record).get("decision")
    elif metrics:
        found = read_metadata(metrics, "decision_record")
    given = record or metrics
    if given and isinstance(found, Mapping) and "model" in found:
        return read_decision(cast(Mapping[str, Any], found), source=given.uri)
    remedy = (
        "holds no decision on a model; connect the `record` of the continuous-eval that judged it"
    )
    raise InvalidInput([Problem("record", given.uri if given else None, remedy)])


def _check_judged(decision: DecisionRecord, digest: str, state: State, held: Claim) -> None:
    """Refuse to promote anything but what was judged."""
    problems = Problems()
    if decision.decision not in _PROMOTING:
        problems.add("decision", decision.decision, "only 'promote' makes a champion")
    current = state.champion.model_digest if state.champion else ""
    for field, found, judged, what in (
        ("model", digest, decision.model, "the challenger"),
        ("baseline", current, decision.baseline, "the champion it was compared with"),
        ("dataset", held.window.holdout, decision.dataset, "the rows it was judged by"),
    ):
        if found != judged:
            remedy = f"{what} had the digest {judged!r} when it was judged; judge again"
            problems.add(field, found, remedy)
    problems.raise_if_any()


def _refit(
    model: Artifact, inputs: RefitInputs, judging: Dataset, **how: str
) -> tuple[Artifact, str]:
    """Train a model once more with all rows; return which of the two to promote, and why."""
    refit, why = train_once_more(model, inputs, **how)
    if TRAINJOB_VARIABLE in os.environ:  # a pod that helps to train: the step goes on
        return model, ""
    if refit:
        fault = find_fault(load_model(refit.path), load_model(model.path), judging)
        why = f"trained with all rows, {fault}" if fault else ""
    if refit is None or why:
        return model, f"Promoted is the judged model as it was: {why}."
    before, after = read_training(model.path), read_training(refit.path)
    assert before
    assert after
    judged = read_digest(open_store(model.path))[:12]
    return refit, (
        f"Judged was model {judged}, trained on {counted(before.rows, 'row')} without the newest; "
        f"promoted is the same recipe, trained on all {after.rows:,}."
    )


def _promote(
    registry: Registry,
    held: Claim,
    judged: Artifact,
    model: Artifact,
    ledger: Ledger,
    decision: DecisionRecord,
) -> Champion:
    record = training_of(ledger)
    if record is None:
        remedy = "its training run is not finished; promote what a finished training run exported"
        raise InvalidInput([Problem("ledger", ledger.uri, remedy)])
    folder = f"models/{held.window.id}"
    copy_model(registry, model.path, folder)
    if model is not judged:
        copy_model(registry, judged.path, f"{folder}/judged")
    criterion = Criterion(rule="before-overfitting")
    entries = [entry for entry in ledger.entries if not entry.damaged]
    evidence = Evidence(curves=record.curves, own_metric=record.metric)
    choice = select(entries, criterion, evidence)
    print(f"kept to learn on from: {choice.reason}", flush=True)
    champion = Champion(
        version=1,
        run_id=held.run_id,
        window=held.window.id,
        promoted_at=datetime.now(UTC).isoformat(timespec="seconds"),
        folder=folder,
        model_digest=read_digest(open_store(model.path)),
        judged=decision.model if model is not judged else "",
        ledger_digest=copy_training(registry, ledger, choice.entry, folder),
        datasets={"judged": held.window.holdout},
        decision=decision,
    )
    changed = registry.change(lambda state: transitions.promote(state, champion))
    made = transitions.promoted(changed, held.run_id)
    assert made
    return made
