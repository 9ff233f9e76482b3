"""What a person sees of a local run: one line when a task starts or ends, its progress between."""

from __future__ import annotations

import threading
import time
from typing import TextIO


class Console:
    """Writes lines of several tasks to one stream, each whole, after the time since the start."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._lock = threading.Lock()
        self._start = time.monotonic()

    def started(self, task: str) -> None:
        """Say that a task starts."""
        self._write(f"▸ {task}")

    def progress(self, task: str, line: str) -> None:
        """Pass on one line that a task printed."""
        self._write(f"    {task}: {line}")

    def finished(self, task: str, seconds: float, ok: bool) -> None:
        """Say that a task is over."""
        self._write(f"{'✓' if ok else '✗'} {task}  {seconds:.1f} s")

    def _write(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        with self._lock:
            self._stream.write(f"{minutes:3}:{seconds:02}  {text}\n")
            self._stream.flush()
