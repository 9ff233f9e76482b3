"""Task of the component `collect-fresh`: take the rows that no run took, or say why not."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import Conflict, Fenced, InvalidInput, Problem, Problems, counted, nearest
from kubestill.runtime.base.artifacts import Artifact, write_summary
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.reports.collected import collected_text
from kubestill.runtime.retraining import Claim, Registry, State, open_registry, transitions
from kubestill.runtime.retraining.champions import check_champion
from kubestill.runtime.retraining.collecting import CollectSettings, check_placeholders
from kubestill.runtime.retraining.fresh import Fresh, Unlabelled, find_fresh
from kubestill.runtime.retraining.golden import import_golden
from kubestill.runtime.retraining.history import Collection
from kubestill.runtime.retraining.identity import identify
from kubestill.runtime.retraining.outcomes import abandon, record_missing, record_taken_over
from kubestill.runtime.retraining.outputs import (
    Outputs,
    describe_rebuild,
    write_outputs,
    write_unlabelled,
)
from kubestill.runtime.retraining.ownership import find_end, find_owner, seems_alive
from kubestill.runtime.retraining.windows import Seen, WindowStore

_TRIES = 5
"""Plans that may be overtaken by other runs, or by files that change while they are read."""


def collect_fresh(
    *,
    source: str,
    timestamp: str,
    target: str,
    registry: str,
    run_id: str,
    dataset: Artifact,
    validation: Artifact,
    holdout: Artifact,
    fresh: Artifact,
    replay: Artifact,
    unlabelled: Artifact,
    whole: Artifact,
    summary: Artifact,
    as_of: str = "",
    since: str = "",
    label_delay_hours: float = 0.0,
    task: str = "auto",
    features: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    keys: Sequence[str] | None = None,
    golden_source: str = "",
    min_rows: int = 200,
    judge_fraction: float = 0.3,
    validation_fraction: float = 0.15,
    replay_rows: int = 0,
    rebuild_after: int = 3,
    lease_hours: float = 12.0,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> tuple[str, str, str]:
    """Take a window of fresh rows; the component documents the parameters.

    Returns:
        status: `ready`, `bootstrap`, `waiting`, `late` (it waits, and something is to be expected
            of rows without labels) or `busy`.
        reason: Why, in sentences.
        method: `fine-tune` or `rebuild`.

    Raises:
        InvalidInput: Everything wrong with parameters, files and registry, at once.
        CorruptData: The champion, or a window that the registry lists, is damaged.
        Conflict: Files kept changing while they were read.
        Fenced: The run has ended already.
    """
    checked = _check(
        {
            "source": source,
            "timestamp": timestamp,
            "target": target,
            "as_of": as_of,
            "since": since,
            "label_delay_hours": label_delay_hours,
            "task": task,
            "features": tuple(features or ()),
            "kinds": dict(kinds or {}),
            "keys": tuple(keys or ()),
            "golden_source": golden_source,
            "min_rows": min_rows,
            "judge_fraction": judge_fraction,
            "validation_fraction": validation_fraction,
            "replay_rows": replay_rows,
            "rebuild_after": rebuild_after,
            "lease_hours": lease_hours,
            "seed": seed,
        },
        settings or {},
        {"registry": registry, "run_id": run_id},
    )
    store = open_registry(registry)
    result = _collect(store, checked, run_id)
    if result.claim is not None:
        outputs = Outputs(
            dataset=dataset,
            validation=validation,
            holdout=holdout,
            fresh=fresh,
            replay=replay,
            whole=whole,
        )
        write_outputs(store, store.read(), result.claim, checked, outputs)
    write_unlabelled(result.unlabelled, unlabelled)
    collected = result.collected
    text = collected_text(collected.status, collected.reason, result.files, collected.told)
    write_summary(text, summary)
    print(f"{collected.status}: {collected.reason}", flush=True)
    for line in collected.told:
        print(f"drift: {line}", flush=True)
    status = "late" if _tells(result, checked) else collected.status
    return status, collected.reason, collected.method


def _tells(result: _Result, settings: CollectSettings) -> bool:
    """Return whether rows without labels are all there is to tell how the champion does."""
    return result.awaited and result.unlabelled.table.num_rows >= max(1, settings.min_judge_rows)


@dataclass(frozen=True, kw_only=True)
class _Result:
    collected: Collection
    """What the history says of it."""
    claim: Claim | None = None
    files: Sequence[Seen] = ()
    unlabelled: Unlabelled = Unlabelled(table=pa.table({}), schema=Schema(columns=()))
    awaited: bool = False
    """Whether there is a champion that states chances, and no rows to judge it by."""


def _check(
    values: Mapping[str, Any], settings: Mapping[str, Any], names: Mapping[str, str]
) -> CollectSettings:
    problems = Problems()
    check_placeholders(names, problems)
    for name, value in names.items():
        if not value:
            problems.add(name, value, "is empty; every run needs one")
    checked: CollectSettings | None = None
    with problems.collect():
        checked = CollectSettings.of(values, settings)
    problems.raise_if_any()
    assert checked
    return checked


def _collect(registry: Registry, settings: CollectSettings, run_id: str) -> _Result:
    """Claim a window, or find that there is none to claim."""
    for _ in range(_TRIES):
        state = registry.read()
        if state.claim is not None and state.claim.run_id == run_id:
            # A retry: the window was taken, and the claim says which.
            found = find_fresh(settings, state, WindowStore(registry, state))
            return _claimed(registry, settings, state, state.claim, found)
        _check_open(registry, state, run_id)
        if state.claim is not None and _freed(registry, state.claim):
            continue
        if state.claim is not None and seems_alive(state.claim, now=time.time()):
            return _busy(registry, run_id, state.claim)
        record_missing(registry, state)
        check_champion(registry, state)
        windows = WindowStore(registry, state)
        found = find_fresh(settings, state, windows)
        if why := _too_few(settings, found):
            target = found.schema.target
            awaited = state.champion is not None and target is not None and target.kind != "numeric"
            return _waiting(registry, run_id, found, why, awaited=awaited)
        if found.changed:
            continue
        try:
            return _take(registry, settings, run_id, state, windows, found)
        except Conflict as conflict:
            print(f"{conflict}; looking again", flush=True)
    message = f"the source or the registry changed {_TRIES} times while rows were collected"
    raise Conflict(f"{message}; run again when fewer writers are at work")


def _take(
    registry: Registry,
    settings: CollectSettings,
    run_id: str,
    state: State,
    windows: WindowStore,
    found: Fresh,
) -> _Result:
    golden = import_golden(registry, state, settings.golden_source, found.schema)
    order, judge = _judging(settings, found)
    window = windows.write(
        run_id,
        {
            "train": found.table.take(pa.array(order[~judge])),
            "judge": found.table.take(pa.array(order[judge])),
        },
        found.schema,
        found.identities,
        found.micros,
        end=found.end,
        late=found.total("late"),
        files=found.files,
        drift=found.drift,
        source=settings.source,
    )
    held = state.claim
    claim = Claim(
        run_id=run_id,
        owner=find_owner(run_id),
        at=time.time(),
        lease_seconds=settings.lease_hours * 3600,
        champion=state.champion.version if state.champion else 0,
        after=len(state.windows),
        window=window,
        pool=transitions.trainable(state),
        took_over=((held.run_id, held.window.id), *held.took_over) if held else (),
        contract=found.contract,
        golden=golden,
    )
    try:
        changed = registry.change(lambda now: transitions.claim(now, claim))
    except Conflict:
        windows.discard(window.id)
        raise
    # A run that was taken over may still be reading its window: it is swept another day.
    WindowStore(registry, changed).sweep()
    return _claimed(registry, settings, changed, claim, found)


def _freed(registry: Registry, held: Claim) -> bool:
    """Give back the window of a run that is known to be over; return whether there was one."""
    ended = registry.run(held.run_id).outcome
    why = f"It ended: {ended.outcome}." if ended else find_end(held)
    if why:
        print(f"run {held.run_id} holds a window, and is over: {why}", flush=True)
        abandon(registry, held.run_id, why)
    return bool(why)


def _check_open(registry: Registry, state: State, run_id: str) -> None:
    """Refuse a run that has ended, or whose window another took: what it wrote is of other rows."""
    run = registry.run(run_id)
    lost = run.taken_over or any(
        run_id == robbed for robbed, _ in (state.claim.took_over if state.claim else ())
    )
    if run.outcome or lost or any(window.run_id == run_id for window in state.windows):
        how = f" ({run.outcome.outcome})" if run.outcome else ""
        raise Fenced(f"run {run_id} has ended{how}; start a new run, which takes what it left")


def _claimed(
    registry: Registry, settings: CollectSettings, state: State, claim: Claim, found: Fresh
) -> _Result:
    record_taken_over(registry, claim)
    window = claim.window
    about = WindowStore(registry, state).manifest(window)
    late = f", {window.late:,} of them late" if window.late else ""
    reason = (
        f"{counted(window.rows, 'fresh row')}{late}, from {window.first[:16]} to "
        f"{window.last[:16]}: {window.judge_rows:,} to judge by, "
        f"{window.rows - window.judge_rows:,} to learn from."
    )
    if window.late == window.rows:
        reason += " All of them are late: what is judged is the past, not the present."
    if claim.golden:
        reason += (
            f" {counted(claim.golden.rows, 'golden row')} imported from {claim.golden.source}."
        )
    anew = describe_rebuild(state, claim, settings)
    collected = Collection(
        run_id=claim.run_id,
        status="ready" if claim.champion else "bootstrap",
        reason=f"{reason} {anew}".strip(),
        method="rebuild" if anew else "fine-tune",
        window=window.id,
        end=window.end,
        rows=window.rows,
        told=about.told,
        unlabelled=found.unlabelled.table.num_rows,
    )
    registry.append(collected)
    return _Result(collected=collected, claim=claim, files=about.files, unlabelled=found.unlabelled)


def _judging(
    settings: CollectSettings, found: Fresh
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the order of the rows in time, int64 [n], and which of them judge, bool [n].

    The latest rows judge, as the present will. Where rows have an entity, all of some entities do.
    """
    shares = found.identities.shares
    # Rows of one time are ordered by their identity: the same rows give the same window.
    order = np.lexsort((shares, found.micros))
    if not settings.group or not found.rows:
        learned = found.rows - round(settings.judge_fraction * found.rows)
        return order, np.arange(found.rows) >= learned
    if settings.group not in found.table.column_names:
        near = nearest(settings.group, found.table.column_names)
        remedy = f"no column of this name; {near}"
        raise InvalidInput([Problem("settings.group", settings.group, remedy)])
    who = identify(found.table, [settings.group], found.micros, settings.timestamp, counted=False)
    has = found.table.column(settings.group).is_valid().to_numpy()
    # Other ones in each window: those that always judged could never be learned from.
    turn = np.frombuffer(hashlib.sha256(found.end.encode()).digest()[:8], "<u8")[0] / 2.0**64
    drawn = (np.where(has, who.shares, shares) + turn) % 1.0
    return order, (drawn < settings.judge_fraction)[order]


def _too_few(settings: CollectSettings, found: Fresh) -> str:
    """Return why nothing could be decided on these rows; empty where something could."""
    if found.rows < settings.min_rows:
        return f"a verdict needs {settings.min_rows:,}"
    order, judge = _judging(settings, found)
    weight = found.schema.weight
    if weight is not None:
        counts = found.table.column(weight.name).take(pa.array(order)).to_numpy()
        # A row that counts for nothing does not judge; other values that are none are refused.
        judge = judge & (counts != 0)
    rows, wanted = int(judge.sum()), max(settings.min_judge_rows, int(weight is not None))
    if rows < wanted:
        how = f"judge_fraction {settings.judge_fraction:g}"
        if settings.group:
            entities = len(found.table.column(settings.group).unique())
            how += f" of {counted(entities, 'value')} of {settings.group!r}"
        how += f"; those with a {weight.name!r} of 0 do not" if weight else ""
        return f"{rows:,} of them would judge ({how}), where at least {wanted:,} have to"
    target = found.schema.target
    if target is None or target.kind == "numeric" or found.rows >= 10 * settings.min_rows:
        return ""
    labels = found.table.column(target.name).take(pa.array(order[judge])).value_counts()
    counts = [one["counts"].as_py() for one in labels]
    rare = sum(counts) - max(counts, default=0)
    if rare >= settings.min_events:
        return ""
    return (
        f"{rare:,} of the {rows:,} that would judge are outside of the most frequent class, where "
        f"at least {settings.min_events:,} have to be"
    )


def _waiting(registry: Registry, run_id: str, found: Fresh, why: str, *, awaited: bool) -> _Result:
    counts = {
        "not due yet": found.total("not_due"),
        "taken before": found.total("repeated"),
        "without a usable target": found.total("unlabelled"),
        "without a readable time": found.total("timeless"),
        "older than `since`": found.total("too_old"),
    }
    others = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    reason = (
        f"{counted(found.rows, 'fresh row')} before {found.end[:16]}, and {why}: they wait for the "
        "next run." + (f" ({others})" if others else "")
    )
    collected = Collection(
        run_id=run_id,
        status="waiting",
        reason=reason,
        end=found.end,
        rows=found.rows,
        told=tuple(found.drift.told()),
        unlabelled=found.unlabelled.table.num_rows,
    )
    registry.append(collected)
    return _Result(
        collected=collected,
        files=found.files,
        unlabelled=found.unlabelled,
        awaited=awaited,
    )


def _busy(registry: Registry, run_id: str, held: Claim) -> _Result:
    reason = (
        f"Run {held.run_id} is at work on the rows up to {held.window.end[:16]}; this run leaves "
        "everything to it and to the next."
    )
    collected = Collection(run_id=run_id, status="busy", reason=reason)
    registry.append(collected)
    return _Result(collected=collected)
