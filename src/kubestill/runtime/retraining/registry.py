"""The registry in its store: one compare-and-swapped `state.json`, and a history nobody overwrites.

<registry>/state.json                      champion, windows, the claim of the run under way
<registry>/history/<run>-<step>.json       one object for each step of each run
<registry>/models/<version>-<window>/      champions: model, ledger, state before overfitting
<registry>/windows/<window>/               rows that were taken
"""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime
from typing import Any

from kubestill.errors import Conflict, CorruptData, InvalidInput, Problem
from kubestill.runtime.base.values import check_format, parse_json, read_as
from kubestill.runtime.retraining.decision import DECISION_FORMAT
from kubestill.runtime.retraining.state import FORMAT, Champion, State
from kubestill.runtime.retraining.transitions import Transition
from kubestill.runtime.stores import Store, join_uri, open_store

__all__ = ["Registry", "open_registry"]

STATE_KEY = "state.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def open_registry(uri: str) -> Registry:
    """Return the registry at `uri`: a folder or `gs://bucket/prefix`; nothing is read yet.

    Raises:
        InvalidInput: The URI is empty, of an unknown scheme, or an unresolved placeholder.
    """
    if "[[" in uri or "{{" in uri:
        remedy = "is a placeholder that nobody filled in; give the registry's own URI"
        raise InvalidInput([Problem("registry", uri, remedy)])
    if not uri:
        remedy = "is empty; give a folder or gs://bucket/prefix that all runs share"
        raise InvalidInput([Problem("registry", uri, remedy)])
    return Registry(open_store(uri))


class Registry:
    """A registry; every method may be called by any number of processes at once."""

    def __init__(self, store: Store):
        self.store = store

    @property
    def uri(self) -> str:
        """Its root."""
        return self.store.uri

    def read(self) -> State:
        """Return what is there; an empty state where nothing was ever written.

        Raises:
            InvalidInput: A newer version of kubestill wrote it.
            CorruptData: It cannot be read.
            StoreError: The store did not answer.
        """
        return self._read()[0]

    def change(self, transition: Transition) -> State:
        """Apply `transition` by compare-and-swap, again each time somebody else swapped first.

        Raises what the transition raises, and what `read` does.
        """
        state, version = self._read()
        while True:
            changed = transition(state)
            if changed is state:
                return state
            changed = changed.model_copy(
                update={"sequence": state.sequence + 1, "writer": uuid.uuid4().hex}
            )
            content = changed.model_dump_json(indent=1).encode()
            try:
                self.store.cell(STATE_KEY).swap(content, expect=version)
                return changed
            except Conflict:
                state, version = self._read()
                if state.writer == changed.writer:
                    return changed

    def append(self, run_id: str, step: str, body: dict[str, Any]) -> dict[str, Any]:
        """Write one entry of the history, once: whatever is there already stays.

        Args:
            run_id: Of the pipeline run.
            step: What is told: `collect`, `judge`, `challenge`, `promote`, `outcome`.
            body: Finite JSON.

        Returns:
            The entry that stands: the body and `run_id`, `step`, `at` (when it was written; ISO
            8601, UTC). After a retry that is what the first attempt wrote.

        Raises:
            InvalidInput: Names that cannot be part of an object's name.
        """
        for field, value in (("run_id", run_id), ("step", step)):
            if not _NAME.fullmatch(value):
                remedy = "use letters, digits, '.', '_' and '-'"
                raise InvalidInput([Problem(field, value, remedy)])
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {"format": FORMAT, "at": at, "run_id": run_id, "step": step, **body}
        content = json.dumps(entry, indent=1, sort_keys=True, allow_nan=False).encode()
        key = f"history/{run_id}-{step}.json"
        try:
            self.store.put(key, content, create=True)
        except Conflict:
            return self._entry(key)
        return entry

    def entry(self, run_id: str, step: str) -> dict[str, Any] | None:
        """Return one entry of the history, or None."""
        key = f"history/{run_id}-{step}.json"
        found = [entry for entry in self.store.list(key) if entry.key == key]
        return self._entry(key) if found else None

    def entries(self, run_id: str, prefix: str) -> list[dict[str, Any]]:
        """Return the run's entries whose steps start with `prefix`, in order of step."""
        found = self.store.list(f"history/{run_id}-{prefix}")
        return [self._entry(entry.key) for entry in found]

    def history(self) -> list[dict[str, Any]]:
        """Return every entry, in the order in which they were written."""
        entries = [self._entry(found.key) for found in self.store.list("history/")]
        return sorted(entries, key=lambda entry: entry["at"])

    def model_uri(self, champion: Champion) -> str:
        """Return the folder of a champion's export."""
        return join_uri(self.uri, f"{champion.folder}/model")

    def ledger_uri(self, champion: Champion) -> str:
        """Return the folder that a champion's ledger lists states below."""
        return join_uri(self.uri, f"{champion.folder}/training")

    def _entry(self, key: str) -> dict[str, Any]:
        source = f"{self.uri}/{key}"
        form = parse_json(self.store.get(key), source=source, what="entry of the history")
        if form.get("format") != DECISION_FORMAT:  # a judgement keeps the format of its decision
            check_format(form.get("format"), FORMAT, source=source, what="entry of the history")
        for name in ("at", "run_id", "step"):
            if not isinstance(form.get(name), str):
                raise CorruptData(f"{source} is no entry of the history: it lacks {name!r}")
        return form

    def _read(self) -> tuple[State, str]:
        content, version = self.store.cell(STATE_KEY).read()
        if content is None:
            return State(), version
        return _parse(content, f"{self.uri}/{STATE_KEY}"), version


def _parse(content: bytes, source: str) -> State:
    try:
        form = parse_json(content, source=source, what="registry")
        check_format(form.get("format"), FORMAT, source=source, what="registry")
        return read_as(State, form, source=source, what="registry")
    except CorruptData as error:
        raise CorruptData(f"{error}; restore it from a backup") from error
