"""What may reach a terminal, and a line of it that is written over."""

from __future__ import annotations

import re
import shutil
import unicodedata
from typing import TextIO

_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, links and clipboards
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # colours and movements
    r"|\x1b[PX^_].*?(?:\x1b\\|$)"
    r"|\x1b.?",
    re.DOTALL,
)
_HIDDEN = {"Cc", "Cf", "Co", "Cs", "Cn"}
"""Unicode's categories of what is not seen but acts: control, direction, private, surrogate."""
_KEPT = "\u200d\u200c"
"""Joiners: some scripts cannot be written without them."""
_BAR = 20


def clean(text: object, *, lines: bool = False) -> str:
    """Take out of a text what would act on a terminal: it may come from a server or a store.

    Args:
        text: What to show.
        lines: Keep line ends and tabs; otherwise they become spaces.
    """
    shown = _ESCAPES.sub("", str(text)).replace("\r\n", "\n")
    if not lines:
        shown = " ".join(re.split(r"[\n\r\t\v\f\u2028\u2029]+", shown))
    kept = "\n\t" + _KEPT if lines else _KEPT
    return "".join(one for one in shown if one in kept or unicodedata.category(one) not in _HIDDEN)


class Screen:
    """Prints lines, and below them, where a person looks, one that is written over."""

    def __init__(self, stream: TextIO):
        """Look whether `stream` is a terminal: nothing is written over in a file."""
        self.live = stream.isatty()
        self._stream = stream
        self._shown = ""

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._erase()
        self._stream.write(line + "\n")
        self._draw()

    def status(self, line: str) -> None:
        """Write the last line over."""
        if self.live:
            self._erase()
            self._shown = line
            self._draw()

    def close(self) -> None:
        """Leave nothing behind that would be written over."""
        self._erase()
        self._shown = ""
        self._stream.flush()

    def _erase(self) -> None:
        if self._shown:
            self._stream.write("\r\x1b[K")

    def _draw(self) -> None:
        if self._shown:
            # A line that wraps could not be erased.
            self._stream.write(self._shown[: shutil.get_terminal_size().columns - 1])
        self._stream.flush()


def draw_bar(done: int, total: int) -> str:
    """Return a bar and its numbers, such as `[████░░░░] 3/6`."""
    filled = _BAR * done // max(1, total)
    return f"[{'█' * filled}{'░' * (_BAR - filled)}] {done}/{total}"


def show_duration(seconds: float) -> str:
    """Return a duration as one says it: `12 s`, `3:05` minutes, `2:03:05` hours."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
