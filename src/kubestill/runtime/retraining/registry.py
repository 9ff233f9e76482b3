"""The registry in its store: one compare-and-swapped `state.json`, and an append-only history.

<registry>/state.json                      champion, windows, the claim of the run under way
<registry>/history/<run>-<step>.json       one object for each step of each run
<registry>/models/<version>-<window>/      champions: model, ledger, state before overfitting
<registry>/windows/<window>/               rows that were taken
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime

from kubestill.errors import Conflict, CorruptData, InvalidInput, Problem
from kubestill.runtime.base.values import check_format, parse_json, read_as
from kubestill.runtime.retraining.history import E, HistoryEntry, RunHistory, read_entry
from kubestill.runtime.retraining.state import FORMAT, Champion, State
from kubestill.runtime.retraining.transitions import Transition
from kubestill.runtime.stores import Store, join_uri, open_store

STATE_KEY = "state.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def open_registry(uri: str) -> Registry:
    """Return the registry at `uri`: a folder or `gs://bucket/prefix`; nothing is read yet.

    Raises:
        InvalidInput: The URI is empty, of an unknown scheme, or an unresolved placeholder.
    """
    if "[[" in uri or "{{" in uri:
        remedy = "is a placeholder that was not filled in; give the registry's own URI"
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
        """Apply `transition` by compare-and-swap, again each time another process swaps first.

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

    def append(self, entry: E) -> E:
        """Write one entry of the history, once: whatever is there already stays.

        Returns:
            The entry that stands. After a retry that is what the first attempt wrote.

        Raises:
            InvalidInput: Names that cannot be part of an object's name.
        """
        for field, value in (("run_id", entry.run_id), ("step", entry.step)):
            if not _NAME.fullmatch(value):
                remedy = "use letters, digits, '.', '_' and '-'"
                raise InvalidInput([Problem(field, value, remedy)])
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        written = entry.model_copy(update={"at": at})
        key = f"history/{entry.run_id}-{entry.step}.json"
        try:
            self.store.put(key, written.to_bytes(), create=True)
        except Conflict:
            standing = self._entry(key)
            if not isinstance(standing, type(entry)):
                raise CorruptData(f"{self.uri}/{key} tells of another step") from None
            return standing
        return written

    def run(self, run_id: str) -> RunHistory:
        """Return what one run left behind; nothing where it never did anything here."""
        found = [self._entry(one.key) for one in self.store.list(f"history/{run_id}-")]
        # The names of other runs may begin as this one's does.
        mine = (entry for entry in found if entry.run_id == run_id)
        return RunHistory(run_id, sorted(mine, key=lambda entry: entry.at))

    def runs(self) -> list[RunHistory]:
        """Return every run, in the order in which they began."""
        runs: dict[str, list[HistoryEntry]] = {}
        entries = [self._entry(found.key) for found in self.store.list("history/")]
        for entry in sorted(entries, key=lambda entry: entry.at):
            runs.setdefault(entry.run_id, []).append(entry)
        return [RunHistory(run_id, entries) for run_id, entries in runs.items()]

    def model_uri(self, champion: Champion) -> str:
        """Return the folder of a champion's export."""
        return join_uri(self.uri, f"{champion.folder}/model")

    def judged_uri(self, champion: Champion) -> str:
        """Return where the model lies that was judged in the champion's place, its refit."""
        return join_uri(self.uri, f"{champion.folder}/judged/model")

    def ledger_uri(self, champion: Champion) -> str:
        """Return the folder that a champion's ledger lists states below."""
        return join_uri(self.uri, f"{champion.folder}/training")

    def _entry(self, key: str) -> HistoryEntry:
        return read_entry(self.store.get(key), source=f"{self.uri}/{key}")

    def _read(self) -> tuple[State, str]:
        content, version = self.store.cell(STATE_KEY).read()
        if content is None:
            return State(), version
        source = f"{self.uri}/{STATE_KEY}"
        try:
            form = parse_json(content, source=source, what="registry")
            check_format(form.get("format"), FORMAT, source=source, what="registry")
            return read_as(State, form, source=source, what="registry"), version
        except CorruptData as error:
            raise CorruptData(f"{error}; restore it from a backup") from error
