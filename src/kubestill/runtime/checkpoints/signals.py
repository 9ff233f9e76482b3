"""Catch SIGTERM: it makes a recovery checkpoint due, and is passed on once that is durable.

Kubeflow gives about 0.3 s between the signal and the end, often none: only checkpoints taken every
so many seconds count.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class TerminationFlag:
    """Catches SIGTERM from `install` to `restore`; only the main thread can."""

    def __init__(self) -> None:
        self.raised = False
        self._previous: Any = None
        self._installed = False

    def install(self) -> None:
        """Start catching."""
        if not self._installed and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._catch)
            self._installed = True

    def restore(self) -> None:
        """Put the handler back that was there before."""
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous)
            self._installed = False

    def pass_on(self) -> None:
        """Let the signal that was caught do what it would have done.

        Returns only where somebody else handles it, and training is to go on.
        """
        self.restore()
        self.raised = False
        os.kill(os.getpid(), signal.SIGTERM)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.raised = True
