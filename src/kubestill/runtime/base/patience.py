"""How long a service is waited for that a run can do without."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a service is waited for."""

    attempts: int = 4
    pause_seconds: float = 1.0
    """Before the second attempt."""
    answer_seconds: float = 5.0
    """For a connection, and for each part of an answer."""
    all_seconds: float = 30.0
    """For everything."""


def do_within(seconds: float, work: Callable[[], object]) -> None:
    """Do some work, and go on without it after so long; it may raise nothing.

    It runs beside the caller: a service that answers byte by byte never runs into a timeout.
    """
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
