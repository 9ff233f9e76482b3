"""Derive one state of the registry from another: pure functions, safe to repeat.

Each returns the very state it was given where its change has been made already, so that a retried
pod, a lost answer and a step run twice all end the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TypeAlias

from kubestill.errors import Conflict, Fenced, InvalidInput, Problem, Problems
from kubestill.runtime.retraining.collecting import parse_instant
from kubestill.runtime.retraining.state import Champion, Claim, Half, Part, State, Verdict, Window

Transition: TypeAlias = Callable[[State], State]

_AFTER: Mapping[Verdict, Part] = {
    "healthy": "trainable",
    "inconclusive": "trainable",
    # A challenger that lost says nothing against the rows: the next one has more of them.
    "rejected": "trainable",
    "unfit": "quarantined",
}
GOLDEN_AGE = timedelta(days=365)
"""Age at which golden rows of the registry's own are replaced: all seasons have passed since."""
_HALVES: tuple[Half, ...] = ("train", "judge")


def claim(state: State, wanted: Claim) -> State:
    """Take a window, which was planned against `wanted.champion` and the windows of that time.

    Args:
        state: The current one.
        wanted: The claim; it replaces one that is held by a run it says to take over.

    Raises:
        Conflict: Another run holds a window, or rows were taken since the claim was planned.
    """
    held = state.claim
    if held is not None and held.window.id == wanted.window.id:
        return state
    if held is not None and (held.run_id, held.window.id) not in wanted.took_over:
        raise Conflict(f"run {held.run_id} holds the window {held.window.id}")
    if (state.champion.version if state.champion else 0) != wanted.champion:
        raise Conflict("the champion changed while rows were collected")
    if len(state.windows) != wanted.after:
        raise Conflict("another run took rows while these were collected")
    return state.model_copy(update={"claim": wanted, "golden": wanted.golden or state.golden})


def abandon(state: State, run_id: str) -> State:
    """Give the run's window back: its rows were never taken."""
    if state.claim is None or state.claim.run_id != run_id:
        return state
    return state.model_copy(update={"claim": None})


def close(state: State, run_id: str, verdict: Verdict) -> State:
    """End a run that leaves the champion alone: its window is judged, and counts from here on.

    Raises:
        Fenced: The window belongs to another run by now.
    """
    if any(window.run_id == run_id for window in state.windows):
        return state
    held = holding(state, run_id)
    part = _AFTER[verdict]
    closed = held.window.model_copy(update={"verdict": verdict, "train": part, "judge": part})
    return state.model_copy(
        update={
            "claim": None,
            "windows": (*state.windows, closed),
            "contract": held.contract or state.contract,
        }
    )


def promote(state: State, champion: Champion) -> State:
    """Swap the champion and close the window it was judged on, in one change.

    The first champion's judging rows become the golden set, unless the user has one. Those of a
    later one take their place where they are a year old, so that what must not be forgotten does
    not become what nobody needs; else later runs may learn from them. A refit has learned from all
    of these already, which `trained_by` says: what becomes of them next is up to models that are
    judged, and those have not.

    Args:
        state: The current one.
        champion: The new one; its version is given here.

    Raises:
        Fenced: The window belongs to another run by now.
        Conflict: It was judged against a champion that no longer is, or has learned from rows that
            were quarantined since.
    """
    if promoted(state, champion.run_id) is not None:
        return state
    held = holding(state, champion.run_id)
    current = state.champion.version if state.champion else 0
    if current != held.champion:
        raise Conflict(
            f"the challenger was judged against champion {held.champion}, "
            f"but champion {current} is in production now; the next run judges again"
        )
    gone = sorted({id for id, _ in set(held.pool) - set(trainable(state))})
    if gone:
        raise Conflict(f"it learned from {', '.join(gone)}, which was quarantined in the meantime")
    former = () if state.champion is None else (state.champion,)
    version = state.versions + 1
    golden = {window.id: window for window in state.windows if window.judge == "golden"}
    oldest = parse_instant(held.window.last) - GOLDEN_AGE
    aged = all(parse_instant(window.last) <= oldest for window in golden.values())
    anew = not state.golden and (not held.champion or (bool(golden) and aged))
    becomes: dict[tuple[str, Half], Part] = {}
    for part in held.pool:
        becomes[part] = "trained"
    for id in golden if anew else ():
        becomes[id, "judge"] = "trainable"
    becomes[held.window.id, "train"] = "trained"
    becomes[held.window.id, "judge"] = "golden" if anew else "trainable"
    learned = {part for part, now in becomes.items() if now == "trained"}
    if champion.judged:
        learned |= {(id, "judge") for id in (*golden, held.window.id)}
    # What an earlier champion has learned from as well is not unlearned by giving this one up.
    earlier = {one.version for one in (*former, *state.previous)}
    windows: list[Window] = []
    for window in (*state.windows, held.window.model_copy(update={"verdict": "promoted"})):
        parts = {half: becomes.get((window.id, half), getattr(window, half)) for half in _HALVES}
        by = dict(window.trained_by)
        for half in _HALVES:
            if (window.id, half) in learned and by.get(half) not in earlier:
                by[half] = version
        windows.append(window.model_copy(update={**parts, "trained_by": by}))
    return state.model_copy(
        update={
            "claim": None,
            "champion": champion.model_copy(update={"version": version}),
            "previous": (*former, *state.previous),
            "versions": version,
            "windows": tuple(windows),
            "contract": held.contract or state.contract,
        }
    )


def rollback(state: State, *, to: int = 0) -> State:
    """Make a former champion the champion again.

    What only the champions given up had learned from is quarantined: it was judged before, and
    what it taught was not wanted.

    Args:
        state: The current one.
        to: Version; the one before the current where 0.

    Raises:
        InvalidInput: There is no such former champion.
    """
    versions = [former.version for former in state.previous]
    wanted = to or (versions[0] if versions else 0)
    if state.champion is not None and wanted == state.champion.version:
        return state
    if not wanted:
        remedy = "there is no former champion to go back to"
        raise InvalidInput([Problem("registry", "rollback", remedy)])
    if wanted not in versions:
        known = ", ".join(map(str, versions)) or "none"
        raise InvalidInput([Problem("version", to, f"no former champion; there are: {known}")])
    place = versions.index(wanted)
    given_up = {
        champion.version for champion in (state.champion, *state.previous[:place]) if champion
    }
    return state.model_copy(
        update={
            "champion": state.previous[place],
            "previous": state.previous[place + 1 :],
            "windows": tuple(_unlearned(window, given_up) for window in state.windows),
        }
    )


def release(state: State, ids: Iterable[str]) -> State:
    """Let later runs learn from windows that were quarantined.

    Raises:
        InvalidInput: There is no such window, or nothing of it is quarantined.
    """
    return _moved(state, ids, "quarantined", "trainable")


def quarantine(state: State, ids: Iterable[str]) -> State:
    """Keep later runs from learning from windows; a run at work that does will not promote.

    Raises:
        InvalidInput: There is no such window, or a champion has learned from all of it.
    """
    return _moved(state, ids, "trainable", "quarantined")


def holding(state: State, run_id: str) -> Claim:
    """Return the run's claim.

    Raises:
        Fenced: It has none: it never claimed, it has ended, or another run took over.
    """
    if state.claim is None or state.claim.run_id != run_id:
        who = f"run {state.claim.run_id} does" if state.claim else "no run does"
        raise Fenced(
            f"run {run_id} holds no window any more ({who}); nothing was changed. It was over, or "
            "seemed so, and its rows were given back: start a new run instead of retrying this one"
        )
    return state.claim


def trainable(state: State) -> tuple[tuple[str, Half], ...]:
    """Return the parts of closed windows that a challenger may learn from, oldest first."""
    return tuple(
        (window.id, half)
        for window in state.windows
        for half in _HALVES
        if getattr(window, half) == "trainable"
    )


def attempts(windows: Sequence[Window]) -> int:
    """Count the challengers that lost since the last one was promoted."""
    latest = max((n for n, w in enumerate(windows) if w.verdict == "promoted"), default=-1)
    return sum(window.verdict == "rejected" for window in windows[latest + 1 :])


def promoted(state: State, run_id: str) -> Champion | None:
    """Return the champion that the run promoted, in production or not, or None."""
    made = (state.champion, *state.previous)
    return next((one for one in made if one is not None and one.run_id == run_id), None)


def _moved(state: State, ids: Iterable[str], before: Part, after: Part) -> State:
    wanted = set(ids)
    found = {id: _parts(state.window(id)) for id in wanted}
    problems = Problems()
    for id, parts in sorted(found.items()):
        if not {before, after} & set(parts.values()):
            has = [w.id for w in state.windows if before in _parts(w).values()]
            known = f"{before} in: {', '.join(has)}" if has else f"nothing is {before}"
            stands = ", ".join(f"{half}: {part}" for half, part in parts.items())
            problems.add("window", id, f"{stands or 'no such window'}; {known}")
    problems.raise_if_any()
    moving = {
        id: {half: after for half, part in parts.items() if part == before}
        for id, parts in found.items()
    }
    if not any(moving.values()):
        return state
    windows = (window.model_copy(update=moving.get(window.id, {})) for window in state.windows)
    return state.model_copy(update={"windows": tuple(windows)})


def _parts(window: Window | None) -> dict[Half, Part]:
    return {"train": window.train, "judge": window.judge} if window else {}


def _unlearned(window: Window, versions: set[int]) -> Window:
    """Quarantine what only these versions learned from; golden rows go on judging."""
    halves = [
        half
        for half, version in window.trained_by.items()
        if version in versions and getattr(window, half) != "golden"
    ]
    return window.model_copy(update=dict.fromkeys(halves, "quarantined"))
