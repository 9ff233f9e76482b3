"""How far a process has got, in memory that another one reads: it notices one that hangs.

The process that trains writes a number for each step. Whoever watches it, the parent of a step or
rank 0, needs no answer, so that one that is stopped, or stuck in a call that never returns, is
noticed, too. Only the standard library is imported here.
"""

from __future__ import annotations

import mmap
import time

_NUMBERS = 3
_BYTES = 8 * _NUMBERS


class Pulse:
    """What a process says of itself: its steps, and how long one may take."""

    current: Pulse
    """This process's own."""

    def __init__(self, memory: mmap.mmap | bytearray):
        # Steps done + 1, or 0 while there is no bound; milliseconds that one may take; rank.
        self._numbers = memoryview(memory).cast("q")

    @classmethod
    def shared(cls) -> Pulse:
        """Return one that the processes forked from this one share with it."""
        return cls(mmap.mmap(-1, _BYTES))

    @classmethod
    def in_file(cls, path: str) -> Pulse:
        """Return the one in a file, made where it is missing, which any process can open."""
        with open(path, "a+b") as file:
            file.truncate(_BYTES)
            return cls(mmap.mmap(file.fileno(), _BYTES))

    def begin(self, *, rank: int, timeout: float) -> None:
        """Say who this is, and how many seconds a step may take at most."""
        self._numbers[1], self._numbers[2] = min(int(1e3 * timeout), 1 << 62), rank

    def beat(self, steps: int) -> None:
        """Say that so many steps are done."""
        self._numbers[0] = steps + 1

    def rest(self) -> None:
        """Say that what comes now may take as long as it likes."""
        self._numbers[0] = 0

    @property
    def steps(self) -> int | None:
        """Steps done; None while there is no bound."""
        return self._numbers[0] - 1 if self._numbers[0] else None

    @property
    def timeout(self) -> float:
        """Seconds that a step may take."""
        return self._numbers[1] / 1e3

    @property
    def rank(self) -> int:
        """Which process this is."""
        return self._numbers[2]


Pulse.current = Pulse(bytearray(_BYTES))


class Watch:
    """Looks at the pulse of another process now and then, by its own clock."""

    def __init__(self, pulse: Pulse):
        self._pulse = pulse
        self._seen: int | None = None
        self._since = time.monotonic()

    def find_hang(self) -> str:
        """Say that the process hangs; return nothing where it gets on or may take its time."""
        steps, now = self._pulse.steps, time.monotonic()
        if steps is None or steps != self._seen:
            self._seen, self._since = steps, now
            return ""
        if now - self._since <= self._pulse.timeout:
            return ""
        silence, rank = now - self._since, self._pulse.rank
        return (
            f"rank {rank} hangs: no step for {silence:.0f} s, the last was step {steps} (the "
            "setting rank_timeout bounds a step)"
        )
