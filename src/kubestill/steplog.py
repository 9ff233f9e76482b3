"""Which lines of a task's process a person wants to see."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TRACEBACK = "Traceback (most recent call last):"


class ProgressFilter:
    """Tells a task's own progress from the executor's log, its input dump and tracebacks."""

    def __init__(self) -> None:
        self._inside = ""

    def shows(self, line: str) -> bool:
        """Take the next line and say whether it is worth showing."""
        indented = line.startswith((" ", "\t"))
        if self._inside == "dump":
            self._inside = "" if line == "}" else "dump"
            return False
        if self._inside == "frames":
            self._inside = "frames" if indented else "message"
            return False
        if self._inside == "message" and indented:
            return False
        self._inside = ""
        if line == _TRACEBACK:
            self._inside = "frames"
            return False
        if line.startswith("[KFP Executor "):
            self._inside = "dump" if line.endswith("Got executor_input:") else ""
            return False
        return bool(line.strip())


def last_error(lines: Sequence[str]) -> str:
    """Find the message of the last traceback, without its frames; empty where there is none."""
    if _TRACEBACK not in lines:
        return ""
    after = len(lines) - 1 - lines[::-1].index(_TRACEBACK) + 1
    while after < len(lines) and lines[after].startswith((" ", "\t")):
        after += 1
    message = "\n".join(lines[after:]).strip()
    return re.sub(r"^kubestill\.errors\.", "", message)
