"""Which lines of a task's process a person wants to see, and what they tell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_TRACEBACK = "Traceback (most recent call last):"
_PROGRESS = re.compile(r"\b(?:step|shard|part|file|row|month)s?\s+([\d,]+)\s*/\s*([\d,]+)\b(.*)")
_ROUTINE = re.compile(r"(?:[\w-]+: )?(?:ok|note|skipped|shown): ")
_STAYS = re.compile(
    r"(?:[\w-]+: )?(?:fail|failed|not shown|undetermined|drift): "
    r"|\w*(?:WARNING|ERROR|CRITICAL)\b|.*\b\w*Warning: |resuming from |SIGTERM: "
    r"|.*: starting the step again in |.*: the last of \d+ tries in this pod"
    r"|attempt \d+ takes over |.*; waiting \d+ s for |.*: its result is adopted"
)


@dataclass(frozen=True, kw_only=True)
class StepProgress:
    """The progress that a step reports."""

    done: int
    total: int
    detail: str
    """What it says beside that, such as its losses."""


def read_progress(line: str) -> StepProgress | None:
    """Read a line such as `epoch 0.72  step 100/1,500  train_loss 0.15`; None where it is none."""
    found = _PROGRESS.search(line)
    if found is None:
        return None
    done, total = (int(number.replace(",", "")) for number in found.groups()[:2])
    # The time that it took stands at the end.
    return StepProgress(done=done, total=total, detail=re.sub(r"\s+\d+ s$", "", found[3]).strip())


def is_routine(line: str) -> bool:
    """Return whether a line is one finding of a check, with nothing wrong."""
    return _ROUTINE.match(line) is not None


def is_detail(line: str) -> bool:
    """Return whether a line means nothing on its own: an indented one, such as a table's row."""
    return line.startswith((" ", "\t"))


def must_stay(line: str) -> bool:
    """Return whether people must see a line: a warning, a failed check, a run that resumes."""
    return _STAYS.match(line) is not None


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
