"""The ledger in its store: read it, claim the training run, and change it by compare-and-swap."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from threading import RLock

from kubestill.errors import Conflict, CorruptData, TrainingFailed
from kubestill.runtime.base.redaction import redact
from kubestill.runtime.checkpoints import protocol
from kubestill.runtime.checkpoints.ledger import LEDGER_KEY, Attempt, Ledger
from kubestill.runtime.checkpoints.manifest import rebuild_ledger
from kubestill.runtime.checkpoints.place import Announce, Place
from kubestill.supervision import last_try


class LedgerCell:
    """The ledger of one training run.

    Threads of one process take turns; other processes compete by swap.
    """

    def __init__(self, place: Place, *, clock: Callable[[], float] = time.time):
        self._place = place
        self._cell = place.store.cell(LEDGER_KEY)
        self._clock = clock
        self._lock = RLock()
        self._known: tuple[Ledger, str] | None = None
        self._rebuilt = ""
        self.predecessor: Attempt | None = None
        """Whose training `claim` took over."""

    @property
    def latest(self) -> Ledger:
        """The ledger as this process last read or wrote it."""
        assert self._known is not None, "read or claimed before"
        return self._known[0]

    def read(self) -> tuple[Ledger, str]:
        """Read what the cell holds, or rebuild it where that is lost or torn.

        Raises:
            InvalidInput: A ledger of another format version.
            StoreError: The store did not answer.
        """
        content, version = self._cell.read()
        why = "it is gone"
        if content is not None:
            try:
                ledger = Ledger.from_bytes(content, source=f"{self._place.uri}/{LEDGER_KEY}")
                # A place that was moved or copied lists what lies beside it, not where it came
                # from.
                return replace(ledger, uri=self._place.uri), version
            except CorruptData as error:
                why = str(error)
        if self._known is not None:
            text = f"ledger lost ({why}): restored from the memory of its owner"
            return self._known[0].with_notice(text, at=self._clock()), version
        ledger = self._rebuild(why)
        self._rebuilt = "; ".join(notice.text for notice in ledger.notices)
        return ledger, version

    def refresh(self) -> Ledger:
        """Read what the cell holds, and remember it as `latest`."""
        with self._lock:
            self._known = self.read()
            return self._known[0]

    def change(self, transition: protocol.Transition) -> Ledger:
        """Apply `transition` to the current ledger, again each time somebody else swapped first.

        After a lost answer (`StoreUnavailable`) it is safe to call this again.

        Raises:
            Fenced: By the transition, when another attempt owns the training run.
            StoreError: The store did not answer.
        """
        with self._lock:
            ledger, version = self._known or self.read()
            while True:
                changed = transition(ledger)
                content = changed.to_bytes()
                try:
                    version = self._cell.swap(content, expect=version)
                    break
                except Conflict:
                    current, version = self._cell.read()
                    if current == content:
                        break
                    ledger, version = self.read()
            self._known = changed, version
            return changed

    def claim(
        self,
        *,
        owner: str,
        beat_seconds: float,
        announce: Announce,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> Attempt | None:
        """Become the next attempt at this training run; wait while another run's may be alive.

        Returns:
            The attempt, or None where the training run is finished: `latest` then holds the result.

        Raises:
            TrainingFailed: An earlier attempt recorded that it cannot succeed.
            StoreError: The store did not answer.
        """
        identity = uuid.uuid4().hex[:12]
        watched, since = "", 0.0
        while True:
            ledger, version = self.read()
            if self._rebuilt:
                announce(f"WARNING: {self._rebuilt}")
                self._rebuilt = ""
            mine = ledger.attempt
            if mine is not None and mine.id.endswith(identity):
                self._known = ledger, version
                return mine
            if ledger.finished is not None:
                self._known = ledger, version
                return None
            if ledger.failed:
                raise TrainingFailed(
                    f"an earlier attempt with the same data and settings failed for good: "
                    f"{ledger.failed}. Change data or settings, or use resume='never'."
                )
            now = self._clock()
            verdict = protocol.judge(ledger, owner=owner, now=now)
            if verdict.act == "wait":
                if version != watched:
                    watched, since = version, monotonic()
                    announce(f"{verdict.why}; waiting {verdict.seconds:.0f} s for a sign of life")
                still = monotonic() - since
                if still < verdict.seconds:
                    sleep(min(verdict.seconds - still, verdict.seconds / 10, 1.0))
                    continue
            number = mine.number + 1 if mine else 1
            me = Attempt(
                number=number,
                id=f"a{number}-{identity}",
                owner=owner,
                beat_at=now,
                beat_seconds=beat_seconds,
                began=now,
            )
            ended = _last_end(mine, owner) if mine else ""
            claimed = protocol.claim(ledger, me, ended=ended)
            try:
                version = self._cell.swap(claimed.to_bytes(), expect=version)
            except Conflict:
                continue
            self._known = claimed, version
            self.predecessor = mine
            if mine:
                why = claimed.past[-1].ended if mine.began else protocol.NO_WORD
                announce(f"attempt {number} takes over from attempt {mine.number}: {why}")
            return me

    def _rebuild(self, why: str) -> Ledger:
        return rebuild_ledger(
            self._place.store,
            experiment=self._place.experiment,
            fingerprint=self._place.fingerprint,
            now=self._clock(),
            why=why,
        )


def _last_end(before: Attempt, owner: str) -> str:
    """Say what ended `before`, where it was the try of this process that came before this one."""
    last = last_try()
    if last is None or before.owner != owner or before.began < last.started:
        return ""
    # It may quote an error, and stays with the model.
    return redact(last.ended)
