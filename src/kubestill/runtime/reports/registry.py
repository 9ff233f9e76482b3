"""The front page of a registry: its champion, every run and how it ended, and what each left."""

from __future__ import annotations

from collections.abc import Sequence

from kubestill.errors import counted
from kubestill.runtime.base.redaction import redact_uris
from kubestill.runtime.reports.numbers import score_text
from kubestill.runtime.reports.page import (
    Cell,
    Html,
    Tile,
    emphasised,
    link,
    page,
    pill,
    section,
    table,
    tiles,
)
from kubestill.runtime.retraining import Champion, State
from kubestill.runtime.retraining.history import RunHistory

_TONES = {
    "promoted": "good",
    "healthy": "good",
    "failed": "bad",
    "abandoned": "bad",
    "stuck": "bad",
    "unfit": "bad",
}
SHOWN = 500
"""Runs on the page, the latest ones."""


def registry_page(uri: str, state: State, history: Sequence[RunHistory]) -> str:
    """Return the page; its links are relative to the registry's folder."""
    champion = state.champion
    headline = "There is no champion yet."
    if champion:
        headline = f"Champion {champion.version} since {champion.promoted_at[:10]}."
    last = next((run.outcome for run in reversed(history) if run.outcome), None)
    counts = [run.outcome.outcome for run in history if run.outcome]
    facts = [
        Tile(value=f"{len(history):,}", label="runs"),
        Tile(value=f"{len(state.windows):,}", label="windows"),
        Tile(value=f"{counts.count('promoted'):,}", label="promotions"),
        Tile(value=f"{counts.count('failed') + counts.count('abandoned'):,}", label="failures"),
    ]
    shown = list(history[-SHOWN:])[::-1]
    note = "The latest first; the links lead to what each step wrote down."
    if len(shown) < len(history):
        note += f" The first {counted(len(history) - len(shown), 'run')} are left out."
    columns = ["run", "began", "outcome", "why", "rows", "champion", "steps"]
    runs = table(columns, [_run(run) for run in shown], prose=True)
    return page(
        title="registry",
        subject="kubestill · registry",
        badge=pill(last.outcome, _TONES.get(last.outcome, "doubt")) if last else Html(""),
        headline=emphasised(headline),
        lead=f"{redact_uris(uri)}. {last.reason if last else 'No run has ended yet.'}",
        body=[tiles(facts), *_champions(state.champions), section("Every run", runs, note=note)],
    )


def _run(run: RunHistory) -> tuple[str, list[Cell]]:
    outcome, lost = run.outcome, run.taken_over[-1] if run.taken_over else None
    word = outcome.outcome if outcome else "abandoned" if lost else "under way"
    why = outcome.reason if outcome else lost.reason if lost else ""
    version = run.promotion.version if run.promotion else ""
    steps = [link(one.step, f"history/{run.run_id}-{one.step}.json") for one in run.entries]
    return run.run_id, [
        Cell(text=run.entries[0].at[:16].replace("T", " ")),
        Cell(text=pill(word, _TONES.get(word, "doubt"))),
        Cell(text=why),
        Cell(text=f"{run.collection.rows:,}" if run.collection else ""),
        Cell(text=str(version)),
        Cell(text=Html(", ").join(steps)),
    ]


def _champions(champions: Sequence[Champion]) -> list[Html]:
    if not champions:
        return []
    rows: list[tuple[str | Html, list[Cell]]] = []
    for one in champions:
        shown = [
            f"{name} {score_text(name, score.value)}"
            for name, score in one.decision.scores.items()
            if score.value is not None
        ]
        model = link(one.model_digest[:12], f"{one.folder}/model/model.json")
        if one.judged:
            judged = link(one.judged[:12], f"{one.folder}/judged/model/model.json")
            model = Html(" ").join([model, Html("refit of"), judged])
        cells = [
            Cell(text=one.promoted_at[:16].replace("T", " ")),
            Cell(text=", ".join(shown)),
            Cell(text=model),
            Cell(text=one.run_id),
        ]
        rows.append((f"{one.version}", cells))
    columns = ["champion", "promoted", "scores as judged", "model", "by run"]
    return [section("Champions", table(columns, rows, prose=True))]
