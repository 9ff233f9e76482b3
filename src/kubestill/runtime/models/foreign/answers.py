"""Keep what an endpoint answered and what that cost, so that no answer is paid for twice."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from kubestill.errors import Conflict, CorruptData, NotFound, Refused
from kubestill.runtime.base.values import Number, parse_json, read_as
from kubestill.runtime.stores import open_store

_FORMAT = "kubestill/answers/1"
_KNOWN = "model.json"
_EVERY = 1.0
"""Seconds after which a page that is not whole is written again: what a step loses when it is
killed. Where writing takes its time, it takes a twentieth of it at most."""
_ROUNDING = 1e-9
"""Share by which sums of many prices may miss the sum that they are."""

Outputs = tuple[tuple[Number, ...], ...]
"""[B][K], for the rows of one request."""


@dataclass(frozen=True, kw_only=True)
class _Kept:
    format: Literal["kubestill/answers/1"]
    version: str
    answers: Mapping[str, Outputs]
    """By the number of the request in its page."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """The model whose answers are kept, as it answered when it was brought in."""

    format: Literal["kubestill/known/1"] = "kubestill/known/1"
    version: str
    """As the server calls it."""
    mark: str
    """That its answers are kept under."""
    bodies: tuple[str, ...]
    """Requests that it is known again by."""
    outputs: tuple[Outputs, ...]


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
        self.due = time.monotonic() + _EVERY
        """When it is written, if it is not whole by then."""


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
            version: Of the model that answers, and its mark; what another one said does not count.
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
        begun = time.monotonic()
        if not page.key or not (whole or begun > page.due):
            return
        form = {
            "format": _FORMAT,
            "version": page.version,
            "answers": {str(place): page.answers[place] for place in sorted(page.answers)},
        }
        self._store.put(page.key, json.dumps(form, allow_nan=False).encode())
        now = time.monotonic()
        page.due = now + max(_EVERY, 20 * (now - begun))

    def known(self) -> Known | None:
        """Return the model that was brought in last; None where none was."""
        source = f"{self._root}/{_KNOWN}"
        try:
            form = parse_json(self._store.get(_KNOWN), source=source, what="model")
            return read_as(Known, form, source=source, what="model")
        except NotFound:
            return None
        except CorruptData:  # a model that no other is like: what it answered is asked again
            return Known(version="", mark="", bodies=(), outputs=())

    def know(self, model: Known) -> None:
        """Remember the model that was brought in."""
        self._store.put(_KNOWN, json.dumps(asdict(model), allow_nan=False).encode())

    def spent(self) -> float:
        """Return what has been spent so far, by everybody who shares the root."""
        return self._read()[0]

    def check(self, sum_: float) -> None:
        """Check that what is left of the budget covers a sum, which is not counted yet.

        Raises:
            Refused: It does not.
        """
        if sum_ > 0:
            self._check(sum_, self._read()[0])

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
                self._check(sum_, spent)
                self._commits += 1
                form = {"spent": max(spent + sum_, 0.0), "by": f"{self._writer}:{self._commits}"}
                try:
                    self._cell.swap(json.dumps(form).encode(), expect=version)
                    return
                except Conflict:
                    continue

    def _check(self, sum_: float, spent: float) -> None:
        if self._budget is None or sum_ <= 0 or spent + sum_ <= self._budget * (1 + _ROUNDING):
            return
        kept = " (what was answered is kept)" if self.kept else ""
        raise Refused(
            f"endpoint.budget: {self._budget:g} is what the teacher may cost; {spent:.4g} is "
            f"spent, and the next requests cost {sum_:.4g}; raise it, or label fewer rows{kept}"
        )

    def _read(self) -> tuple[float, str]:
        content, version = self._cell.read()
        if content is None:
            return 0.0, version
        source = f"{self._root}/spent"
        form = parse_json(content, source=source, what="record of costs")
        return read_as(_Spent, form, source=source, what="record of costs").spent, version
