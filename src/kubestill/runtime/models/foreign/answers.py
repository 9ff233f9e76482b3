"""Keep what an endpoint answered and what that cost, so that no answer is paid for twice."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kubestill.errors import Conflict, CorruptData, NotFound, Refused
from kubestill.runtime.base.values import Number, parse_json, read_as
from kubestill.runtime.stores import open_store

_FORMAT = "kubestill/answers/1"
_EVERY = 30.0
"""Seconds after which a page that is not whole is written again."""

Outputs = tuple[tuple[Number, ...], ...]
"""[B][K], for the rows of one request."""


@dataclass(frozen=True, kw_only=True)
class _Kept:
    format: Literal["kubestill/answers/1"]
    version: str
    answers: Mapping[str, Outputs]
    """By the number of the request in its page."""


@dataclass(frozen=True, kw_only=True)
class _Spent:
    spent: Number
    by: str
    """Writer and commit: what is swapped has to be unique."""


class Page:
    """The answers to some requests that are kept together."""

    def __init__(self, key: str, version: str, answers: dict[int, Outputs]):
        self.key = key
        self.version = version
        self.answers = answers
        self.written = time.monotonic()


class AnswerCache:
    """What one endpoint said to one kind of question, below a root that the user owns."""

    def __init__(self, root: str, identity: str, budget: float | None):
        """Open; nothing is read.

        Args:
            root: Where, local, gs:// or s3://; empty keeps no answers, and counts what this
                process spends.
            identity: Of the endpoint and all that it is asked with.
            budget: The most that may be spent; None for any sum.
        """
        self.kept = bool(root)
        self._budget = budget
        self._root = f"{root.rstrip('/')}/{identity[:32]}" if root else ""
        self._store = open_store(self._root or f"memory://endpoint-{uuid.uuid4().hex}")
        self._cell = self._store.cell("spent")
        self._writer = uuid.uuid4().hex
        self._commits = 0
        self._lock = threading.Lock()

    def open(self, bodies: Sequence[bytes], version: str) -> Page:
        """Return what is known of these requests.

        Args:
            bodies: In their order.
            version: Of the model that answers; what another one said does not count.
        """
        if not self.kept:
            return Page("", version, {})
        digest = hashlib.sha256()
        for body in bodies:
            digest.update(len(body).to_bytes(8, "big") + body)
        key = f"{digest.hexdigest()}.json"
        try:
            form = parse_json(self._store.get(key), source=f"{self._root}/{key}", what="answers")
            kept = read_as(_Kept, form, source=f"{self._root}/{key}", what="answers")
        except (NotFound, CorruptData):  # what cannot be read is asked again
            return Page(key, version, {})
        known = {int(place): given for place, given in kept.answers.items() if place.isdecimal()}
        return Page(key, version, known if kept.version == version else {})

    def write(self, page: Page, *, whole: bool) -> None:
        """Keep a page; one that is not whole only now and then."""
        if not self.kept or not (whole or time.monotonic() - page.written > _EVERY):
            return
        form = {
            "format": _FORMAT,
            "version": page.version,
            "answers": {str(place): page.answers[place] for place in sorted(page.answers)},
        }
        self._store.put(page.key, json.dumps(form, allow_nan=False).encode())
        page.written = time.monotonic()

    def spent(self) -> float:
        """Return what has been spent so far, by everybody who shares the root."""
        return self._read()[0]

    def spend(self, sum_: float) -> None:
        """Count what requests cost, before they are sent; a negative sum was not needed after all.

        Raises:
            Refused: It is more than is left of the budget.
        """
        if not sum_:
            return
        with self._lock:
            while True:
                spent, version = self._read()
                if self._budget is not None and sum_ > 0 and spent + sum_ > self._budget:
                    raise Refused(
                        f"endpoint.budget: {self._budget:g} is what the teacher may cost; "
                        f"{spent:.4g} is spent, and the next requests cost {sum_:.4g}; raise it, "
                        "or label fewer rows"
                        + (" (what was answered is kept)" if self.kept else "")
                    )
                self._commits += 1
                form = {"spent": max(spent + sum_, 0.0), "by": f"{self._writer}:{self._commits}"}
                try:
                    self._cell.swap(json.dumps(form).encode(), expect=version)
                    return
                except Conflict:
                    continue

    def _read(self) -> tuple[float, str]:
        content, version = self._cell.read()
        if content is None:
            return 0.0, version
        source = f"{self._root}/spent"
        form = parse_json(content, source=source, what="record of costs")
        return read_as(_Spent, form, source=source, what="record of costs").spent, version
