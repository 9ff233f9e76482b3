"""Windows in the registry: their rows, which later runs may learn from, and what was in them.

    windows/<id>/window.json           files and what became of their rows, drift, fingerprints
    windows/<id>/identities.parquet    one identity for each row
    windows/<id>/train/, judge/        the rows, as two datasets

What `state.json` does not list, in its windows or its claim, does not exist.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from kubestill.errors import CorruptData, NotFound
from kubestill.runtime.base import LARGEST
from kubestill.runtime.base.values import Digest, Key, Time, Whole, parse_json, read_as
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.retraining.collecting import iso, micros, parse_instant
from kubestill.runtime.retraining.conform import Drift
from kubestill.runtime.retraining.files import SourceFile
from kubestill.runtime.retraining.identity import Identities
from kubestill.runtime.retraining.registry import Registry
from kubestill.runtime.retraining.state import Half, State, Window
from kubestill.runtime.stores import join_uri

_READERS = 16
_ID_TIME = "%Y%m%dT%H%M%S"
_ABANDONED = timedelta(days=2)
"""After which a window that no state lists was left behind by a run that died."""


@dataclass(kw_only=True)
class Seen:
    """One file, and what became of its rows."""

    uri: str
    version: str
    rows: int
    taken: int = 0
    not_due: int = 0
    """From the window's end or later: for another run."""
    too_old: int = 0
    """From before `since`."""
    timeless: int = 0
    """Without a time that can be read."""
    repeated: int = 0
    """Taken by an earlier run, or delivered twice in this window."""
    unlabelled: int = 0
    """Without a target that can be used; delivered again with one they are new rows."""
    late: int = 0
    """Of those taken: from before the end of an earlier window."""


class WindowRecord(BaseModel):
    """What is written down about a window, in its `window.json`."""

    # A later version may add facts, which are nothing to fail over.
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    id: Key
    run_id: str
    end: Time
    rows: Whole
    source: str
    """Where the rows came from, as the run was given it."""
    files: tuple[Seen, ...]
    drift: Mapping[str, Any]
    """See `Drift.to_json`."""
    told: tuple[str, ...]
    """The drift in sentences."""
    identities: Digest
    """SHA-256 of `identities.parquet`."""
    fingerprints: Mapping[Half, str]

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        form = self.model_dump(mode="json")
        return json.dumps(form, indent=1, sort_keys=True, allow_nan=False).encode()


class WindowStore:
    """The windows of one state of a registry."""

    def __init__(self, registry: Registry, state: State):
        self._registry = registry
        self._state = state
        # Not a cached_property: before Python 3.12 its lock is one for all instances, and would be
        # held while files are read.
        self._exhausted: set[tuple[str, str]] | None = None

    def exhausted(self, file: SourceFile) -> bool:
        """Return whether earlier runs read this very content and took all of it that was due."""
        if self._exhausted is None:
            self._exhausted = self._find_exhausted()
        return (file.uri, file.version) in self._exhausted

    def identities(self, span: tuple[int, int] | None) -> Identities:
        """Return the identities of the rows that were taken.

        Args:
            span: Only from windows with rows from between these times, in microseconds since 1970:
                a row's time is part of its identity. None for all, where keys identify rows.
        """
        wanted = [
            window
            for window in self._state.windows
            if span is None
            or (_micros(window.first) <= span[1] and span[0] <= _micros(window.last))
        ]
        return Identities.joined([self._identities(window) for window in wanted])

    def dataset(self, window: Window, half: Half) -> Dataset:
        """Open one part of a window."""
        return Dataset.open(self.uri(window.id, half))

    def uri(self, id: str, half: Half) -> str:
        """Return where one part of a window lies."""
        return join_uri(self._registry.uri, f"windows/{id}/{half}")

    def manifest(self, window: Window) -> WindowRecord:
        """Return what was written about a window.

        Raises:
            CorruptData: It is gone, or is not what the state lists.
        """
        content = self._get(f"windows/{window.id}/window.json")
        if hashlib.sha256(content).hexdigest() != window.manifest:
            raise CorruptData(
                f"{self._registry.uri}/windows/{window.id}/window.json is not what the registry "
                "lists: it was changed by hand"
            )
        source = f"{self._registry.uri}/windows/{window.id}/window.json"
        form = parse_json(content, source=source, what="window")
        return read_as(WindowRecord, form, source=source, what="window")

    def write(
        self,
        run_id: str,
        tables: Mapping[Half, pa.Table],
        schema: Schema,
        identities: Identities,
        times: Any,
        *,
        end: str,
        late: int,
        files: Sequence[Seen],
        drift: Drift,
        source: str,
    ) -> Window:
        """Write a window that no state lists yet.

        Args:
            run_id: Which run takes it.
            tables: Its two parts.
            schema: Of both.
            identities: Of all rows.
            times: [n], their times in microseconds since 1970.
            end: Before which instant they are from.
            late: How many are late.
            files: What became of the rows of each file.
            drift: How the rows differ from what was agreed on.
            source: Where the files are.
        """
        id = f"{datetime.now(UTC).strftime(_ID_TIME)}-{uuid.uuid4().hex[:8]}"
        datasets: dict[Half, Dataset] = {}
        for half, table in tables.items():
            provenance = {"made-by": "collect-fresh", "window": id, "part": half}
            with DatasetWriter(self.uri(id, half), schema, provenance=provenance) as writer:
                writer.write(table)
            datasets[half] = writer.dataset
        packed = identities.to_bytes()
        content = WindowRecord(
            id=id,
            run_id=run_id,
            end=end,
            rows=len(identities),
            source=source,
            files=tuple(files),
            drift=drift.to_json(),
            told=tuple(drift.told()),
            identities=hashlib.sha256(packed).hexdigest(),
            fingerprints={half: dataset.fingerprint for half, dataset in datasets.items()},
        ).to_bytes()
        self._registry.store.put(f"windows/{id}/identities.parquet", packed)
        self._registry.store.put(f"windows/{id}/window.json", content)
        return Window(
            id=id,
            run_id=run_id,
            end=end,
            first=iso(int(np.min(times))),
            last=iso(int(np.max(times))),
            rows=len(identities),
            judge_rows=datasets["judge"].rows,
            late=late,
            manifest=hashlib.sha256(content).hexdigest(),
            holdout=datasets["judge"].fingerprint,
        )

    def discard(self, id: str) -> None:
        """Remove a window that no state lists."""
        for entry in list(self._registry.store.list(f"windows/{id}/")):
            self._registry.store.delete(entry.key)

    def sweep(self) -> None:
        """Remove what runs that died long ago left behind."""
        listed = {window.id for window in self._state.windows}
        if self._state.claim:
            listed.add(self._state.claim.window.id)
        oldest = (datetime.now(UTC) - _ABANDONED).strftime(_ID_TIME)
        found = {entry.key.split("/")[1] for entry in self._registry.store.list("windows/")}
        for id in found - listed:
            if id < oldest:
                self.discard(id)

    def _find_exhausted(self) -> set[tuple[str, str]]:
        with ThreadPoolExecutor(_READERS) as readers:
            manifests = readers.map(self.manifest, self._state.windows)
            return {
                (file.uri, file.version)
                for manifest in manifests
                for file in manifest.files
                if not file.not_due and not file.too_old
            }

    def _identities(self, window: Window) -> Identities:
        key = f"windows/{window.id}/identities.parquet"
        content = self._get(key, most=None)
        if hashlib.sha256(content).hexdigest() != self.manifest(window).identities:
            raise CorruptData(f"{self._registry.uri}/{key} is not what its window.json lists")
        return Identities.from_bytes(content, source=f"{self._registry.uri}/{key}")

    def _get(self, key: str, *, most: int | None = LARGEST) -> bytes:
        try:
            return self._registry.store.get(key, most=most)
        except NotFound as error:
            message = f"{self._registry.uri}/{key} is gone although the registry lists it"
            raise CorruptData(f"{message}; restore it: without it rows may count twice") from error


def _micros(text: str) -> int:
    return micros(parse_instant(text))
