"""What people ask of a registry: how runs went, how things stand, and to overrule a run.

The records dump to the JSON of `kubestill registry`; `by_alias` gives the names of `show`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from kubestill.errors import InvalidInput, Problem, counted
from kubestill.runtime.retraining import transitions
from kubestill.runtime.retraining.champions import check_champion, find_damage
from kubestill.runtime.retraining.history import RunOutcome
from kubestill.runtime.retraining.outcomes import abandon
from kubestill.runtime.retraining.ownership import find_end, is_alive
from kubestill.runtime.retraining.registry import Registry, open_registry
from kubestill.runtime.retraining.state import Champion, Claim, State

_QUIET = ("busy", "waiting", "rollback", "release", "quarantine")
"""Outcomes that say nothing of how the model stands."""
_ALARMING = ("stuck", "failed", "abandoned")


class _View(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        use_attribute_docstrings=True,
        alias_generator=lambda name: name.replace("_", " "),
        populate_by_name=True,
    )


class ChampionView(_View):
    """One champion, past or present."""

    version: int
    promoted: str
    """To the minute; ISO 8601, UTC."""
    window: str
    """The window whose rows judged it."""
    digest: str
    """The first twelve digits of the model's digest."""
    run: str
    """The run that promoted it."""


class WindowView(_View):
    """The rows that one run took, and what became of them."""

    window: str
    before: str
    """Every row is from before this minute; ISO 8601, UTC."""
    rows: int
    late: int
    """Rows from before the end of an earlier window."""
    verdict: str
    to_learn_from: str
    """What became of the rows to train on: `state.Part`."""
    judges: str
    """What became of the rows that judge: `state.Part`."""
    run: str


class Standing(_View):
    """How things stand in a registry."""

    registry: str
    champion: str
    model: str
    """URI of the champion's model; empty where there is no champion."""
    judged_through: str
    """Rows from before this second are late; empty before the first window."""
    trained_through: str
    golden: str
    """The fixed rows that catch forgetting."""
    at_work: str
    """The run that holds the claim, since when and until when."""
    champions: tuple[ChampionView, ...]
    """The current one first."""
    windows: tuple[WindowView, ...]
    """In the order in which their runs ended."""


class RunView(BaseModel):
    """One run, and how it ended."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    run_id: str
    at: str
    """When it began; ISO 8601, UTC."""
    end: str
    """Its rows are from before this instant; empty where it took none."""
    rows: int
    outcome: str
    """One of `history.RunOutcome.outcome`; `at work` or `unknown` where there is none yet."""
    version: int | None
    """Version of the champion that it made or returned to."""
    reason: str
    drift: tuple[str, ...]
    """What changed about the columns, in sentences."""


def runs(uri: str) -> list[RunView]:
    """Return every run in the order in which it began, with how it ended.

    Raises:
        InvalidInput: There is no registry at `uri`, or a newer version wrote it.
        CorruptData: It cannot be read.
    """
    registry, state = _open(uri)
    holder = state.claim.run_id if state.claim else None
    found: list[RunView] = []
    for run in registry.runs():
        collected, outcome, promotion = run.collection, run.outcome, run.promotion
        lost = run.taken_over[-1] if run.taken_over else None
        otherwise = "at work" if run.run_id == holder else "abandoned" if lost else "unknown"
        ended = outcome or lost
        found.append(
            RunView(
                run_id=run.run_id,
                at=run.entries[0].at,
                end=collected.end if collected else "",
                rows=collected.rows if collected else 0,
                outcome=outcome.outcome if outcome else otherwise,
                version=promotion.version if promotion else outcome.version if outcome else None,
                reason=ended.reason if ended else "",
                drift=collected.told if collected else (),
            )
        )
    return found


def standing(uri: str) -> Standing:
    """Return champions, windows and the run at work; raises as `runs` does."""
    registry, state = _open(uri)
    if state.golden is not None:
        golden = f"{counted(state.golden.rows, 'row')} of {state.golden.source}"
    else:
        judges = sum(window.judge_rows for window in state.windows if window.judge == "golden")
        golden = f"{counted(judges, 'row')} that judged the first champion" if judges else "none"
    return Standing(
        registry=registry.uri,
        champion=_named(state.champion),
        model=registry.model_uri(state.champion) if state.champion else "",
        judged_through=state.judged_through[:19],
        trained_through=state.trained_through[:19],
        golden=golden,
        at_work=_describe(state.claim) if state.claim else "nobody",
        champions=tuple(
            ChampionView(
                version=champion.version,
                promoted=champion.promoted_at[:16],
                window=champion.window,
                digest=champion.model_digest[:12],
                run=champion.run_id,
            )
            for champion in state.champions
        ),
        windows=tuple(
            WindowView(
                window=window.id,
                before=window.end[:16],
                rows=window.rows,
                late=window.late,
                verdict=window.verdict,
                to_learn_from=window.train,
                judges=window.judge,
                run=window.run_id,
            )
            for window in state.windows
        ),
    )


def verify(uri: str) -> tuple[int, list[str]]:
    """Read and hash again every champion's files; return how many there are, and what is wrong.

    Raises as `runs` does.
    """
    registry, state = _open(uri)
    wrong = [
        f"champion {one.version}: {damage}"
        for one in state.champions
        for damage in find_damage(registry, one)
    ]
    return len(state.champions), wrong


def check(uri: str) -> tuple[str, bool]:
    """Return how the last run ended, and whether a person has to look; raises as `runs` does."""
    found = [run.outcome for run in _open(uri)[0].runs() if run.outcome]
    ended = [one for one in found if one.outcome not in _QUIET]
    if not ended:
        return "no run has ended yet", False
    last = ended[-1]
    return f"{last.outcome}: {last.reason}", last.outcome in _ALARMING


def roll_back(
    uri: str, *, to: int = 0, confirm: Callable[[str, str], object] = lambda now, then: None
) -> str:
    """Make a former champion the champion again, and write that to the history.

    Args:
        uri: The registry.
        to: Version; the one before the current where 0.
        confirm: Takes the names of the champion that is and the one that will be, once nothing
            stands in the way; may raise to leave all as it is.

    Returns:
        What was done, in a sentence.

    Raises:
        InvalidInput: There is no such former champion.
        CorruptData: Its files are damaged: nothing was changed.
    """
    registry, state = _open(uri)
    before = state.champion.version if state.champion else 0
    after = transitions.rollback(state, to=to)
    check_champion(registry, after.model_copy(update={"previous": ()}))
    wanted = after.champion.version if after.champion else 0
    if wanted != before:
        confirm(_named(state.champion), _named(after.champion))
    changed = registry.change(lambda now: transitions.rollback(now, to=wanted))
    if wanted == before:
        return f"{_named(changed.champion)} is the champion already"
    quarantined = sum(
        (window.train, window.judge).count("quarantined") for window in changed.windows
    )
    reason = (
        f"{_named(changed.champion)} is the champion again, instead of champion {before}; "
        f"quarantined are {counted(quarantined, 'part')} of windows"
    )
    return _record(registry, "rollback", reason, replaced=before, version=wanted)


def release(uri: str, windows: Sequence[str]) -> str:
    """Let later runs learn from quarantined windows, and write that to the history.

    Args:
        uri: The registry.
        windows: Their ids, as `standing` lists them.

    Returns:
        What was done, in a sentence.

    Raises:
        InvalidInput: There is no such window, or nothing of it is quarantined.
    """
    registry, _ = _open(uri)
    registry.change(lambda now: transitions.release(now, windows))
    reason = f"released by hand, to be learned from: {', '.join(windows)}"
    return _record(registry, "release", reason, windows=tuple(windows))


def quarantine(uri: str, windows: Sequence[str]) -> str:
    """Keep later runs from learning from windows; as `release`, the other way round.

    What a champion has learned from them already stays with it, and the sentence says so.
    """
    registry, _ = _open(uri)
    state = registry.change(lambda now: transitions.quarantine(now, windows))
    reason = f"quarantined by hand, no run learns from it: {', '.join(windows)}"
    versions = {champion.version for champion in state.champions}
    first = {version for id in windows for version in _learned(state, id) if version in versions}
    if first:
        reason += (
            f"; champion {min(first)} has learned from some of these rows already: "
            f"`kubestill registry rollback {uri}` gives a champion up"
        )
    return _record(registry, "quarantine", reason, windows=tuple(windows))


def _learned(state: State, window: str) -> Sequence[int]:
    """Return the versions of the champions that first learned from what is quarantined of it."""
    found = state.window(window)
    by = found.trained_by if found else {}
    return [version for half, version in by.items() if getattr(found, half) == "quarantined"]


def free_claim(uri: str, run_id: str) -> RunOutcome | None:
    """Give back the rows of a run that was terminated by hand, and write that to the history.

    May be repeated. No other run's rows are touched, and a run that ended by itself keeps its own
    outcome; one that is still at work is refused from here on.

    Args:
        uri: The registry.
        run_id: Which run.

    Returns:
        How it ended; None where it never did anything in this registry.

    Raises:
        InvalidInput: There is no registry at `uri`, or a newer version wrote it.
        CorruptData: It cannot be read.
        StoreError: It did not answer.
    """
    registry, _ = _open(uri)
    return abandon(registry, run_id, "It was terminated by hand.")


def unlock(uri: str, *, confirm: Callable[[str], object] = lambda held: None) -> str:
    """Take the claim from a run that has died, and give its rows back.

    Args:
        uri: The registry.
        confirm: Takes a sentence on who holds it, since when and until when; raises to leave it
            alone.

    Returns:
        What was done, in a sentence.

    Raises:
        InvalidInput: The run seems to be alive; or as `free_claim`.
        CorruptData: As `free_claim`.
        StoreError: As `free_claim`.
    """
    registry, state = _open(uri)
    claim = state.claim
    if claim is None:
        return f"no run holds {registry.uri}"
    held = _describe(claim)
    over = find_end(claim)
    if not over and is_alive(claim):
        remedy = (
            "it is at work; end it first, as `kubestill runs stop` does, and its claim ends, too"
        )
        raise InvalidInput([Problem("URI", f"{uri}: {held}", remedy)])
    confirm(f"{held}. {over}".strip())
    outcome = abandon(registry, claim.run_id, over or "It was unlocked by hand.")
    return f"{outcome.outcome}: {outcome.reason}" if outcome else f"no run holds {registry.uri}"


def _describe(claim: Claim) -> str:
    """Return who holds a registry, since when and until when."""
    since, until = (
        datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
        for at in (claim.at, claim.at + claim.lease_seconds)
    )
    return f"run {claim.run_id}, last heard of at {since}, its lease ends at {until} UTC"


def _record(registry: Registry, what: str, reason: str, **facts: Any) -> str:
    """Add what a person did to the history, as a run of its own."""
    name = f"{what}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
    registry.append(RunOutcome(run_id=name, outcome=what, reason=reason, **facts))
    return reason


def _open(uri: str) -> tuple[Registry, State]:
    registry = open_registry(uri)
    state = registry.read()
    if state == State() and not any(registry.store.list("history/")):
        remedy = "there is no registry here; the first run of continuous-retraining makes one"
        raise InvalidInput([Problem("URI", uri, remedy)])
    return registry, state


def _named(champion: Champion | None) -> str:
    return f"champion {champion.version}" if champion else "nobody"
