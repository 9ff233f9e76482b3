"""Retrying what usually passes, for as long as it is worth while."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from kubestill.errors import StoreUnavailable

T = TypeVar("T")

FIRST_WAIT = 0.1
LONGEST_WAIT = 5.0


def retrying(
    operation: Callable[[], T],
    *,
    transient: Callable[[Exception], bool],
    deadline: float,
    what: str,
    progress: Callable[[], object] = lambda: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Return what `operation` returns, calling it again after transient errors.

    Waits double from 0.1 s to 5 s, each drawn from its upper half so that many clients spread out.
    The patience of `deadline` seconds starts with the first failure, so that a long transfer is not
    given up at its first hiccup, and anew whenever `progress()` returns something else than before.

    Raises:
        StoreUnavailable: The deadline passed; chained to the last error. `what` begins its message.
    """
    wait, since, seen = FIRST_WAIT, None, progress()
    while True:
        try:
            return operation()
        except Exception as error:
            if not transient(error):
                raise
            now = clock()
            if since is None or progress() != seen:
                wait, since, seen = FIRST_WAIT, now, progress()
            if now - since + wait > deadline:
                message = f"{what}: gave up after {now - since:.0f} s of retrying: {error}"
                raise StoreUnavailable(message) from error
        sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, LONGEST_WAIT)
