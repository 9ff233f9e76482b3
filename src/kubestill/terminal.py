"""All that a person sees of a command: text that cannot act on the terminal, tables, steps at work.

`echo`, `print_summary`, `print_table` and `Steps` are the only ways to a terminal, and each of them
passes `clean`: what is shown may come from a server, a store or a step.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

import click

from kubestill.runtime.base.redaction import redact_uris
from kubestill.steplog import is_detail, is_routine, must_stay, read_progress

if TYPE_CHECKING:
    from rich.text import Text

QUIET_S = 10.0
"""Where no terminal is, a step that is at work gets a line no more often than this."""
_BAR = 20
_LONGEST_TABLE = 16
"""Most rows of a table in a summary that is shown whole."""
_LEAST_WIDTH = 24
"""Characters into which the widest column of a table may wrap."""
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
_STYLES = {"✓": "green", "✗": "red", "◌": "yellow"}


def clean(text: object, *, lines: bool = False) -> str:
    """Return a text without anything that would act on a terminal, and without credentials in URIs.

    Args:
        text: What to show.
        lines: Keep line ends and tabs; otherwise they become spaces.
    """
    shown = _ESCAPES.sub("", str(text)).replace("\r\n", "\n")
    if not lines:
        shown = " ".join(re.split(r"[\n\r\t\v\f\u2028\u2029]+", shown))
    kept = "\n\t" + _KEPT if lines else _KEPT
    shown = "".join(one for one in shown if one in kept or unicodedata.category(one) not in _HIDDEN)
    return redact_uris(shown)


def echo(text: object = "", *, err: bool = False) -> None:
    """Print lines that stay, to standard output or standard error."""
    click.echo(clean(text, lines=True), err=err)


def print_summary(markdown: str, whole: str) -> None:
    """Print a summary; in the place of each long table stands where the whole of it lies."""
    blocks = markdown.strip().split("\n\n")
    for number, block in enumerate(blocks):
        heading, _, rows = block.partition("\n")
        count = len(rows.splitlines()) - 1  # the first of them is the rule below the heading
        if heading.startswith("|") and count > _LONGEST_TABLE:
            names = ", ".join(name.strip() for name in heading.strip("|").split("|"))
            blocks[number] = f"({count} rows of {names}: {os.path.relpath(whole)})"
    echo("\n" + "\n\n".join(blocks) + "\n")


def print_table(table: Sequence[Sequence[str]]) -> None:
    """Print rows, the first of which is the heading.

    At a terminal long cells wrap within their columns; where it is too narrow for that, each row is
    a paragraph with one line a column. Elsewhere each row is one line, its columns are aligned and
    at least two spaces apart, so that other programs can read it.
    """
    heading, *rows = [[clean(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    if not is_terminal(sys.stdout):
        for row in (heading, *rows):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            click.echo("  ".join(cells).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    others = sum(widths) - max(widths) + 2 * len(widths)
    if others + min(_LEAST_WIDTH, max(widths)) > console.width:
        for row in rows:
            console.print(Text(row[0], style="bold"))
            facts = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
            facts.add_column(no_wrap=True)
            facts.add_column(overflow="fold")
            for name, cell in zip(heading[1:], row[1:], strict=True):
                if cell:
                    facts.add_row(Text(f"  {name}"), Text(cell))
            console.print(facts)
        return
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, name in enumerate(heading):
        # What a person copies, such as an id, stays in one piece.
        shown.add_column(Text(name), overflow="fold", no_wrap=number == 0)
    for row in rows:
        shown.add_row(*map(Text, row))
    console.print(shown)


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream leads to a terminal that can overwrite what it shows."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def draw_bar(done: int, total: int) -> str:
    """Return a bar and its numbers, such as `[████░░░░] 3/6`."""
    filled = min(_BAR, _BAR * done // max(1, total))
    return f"[{'█' * filled}{'░' * (_BAR - filled)}] {done:,}/{total:,}"


def show_duration(seconds: float) -> str:
    """Return a duration as a person would say it: `12 s`, `3:05` minutes, `2:03:05` hours."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass(kw_only=True)
class _Row:
    """A step at work."""

    name: str
    loop: bool = False
    """Whether it counts the iterations of a loop, rather than what the step says of itself."""
    started: float
    last_line: float
    """When the last plain line about it was printed."""
    done: int = 0
    total: int = 0
    detail: str = ""
    result: str = ""
    """What it said last that is no progress: at its end, what it came to."""
    counts: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=20))

    def count(self, done: int, total: int) -> None:
        self.done, self.total = min(done, total), total
        if not self.counts or self.counts[-1][1] != self.done:
            self.counts.append((time.monotonic(), self.done))

    @property
    def pace(self) -> str:
        """Its rate and remaining time; empty while they are unknown."""
        if len(self.counts) < 2 or self.done >= self.total:
            return ""
        (since, first), (last, done) = self.counts[0], self.counts[-1]
        if last - since < 0.1 or done <= first:
            return ""
        rate = (done - first) / (last - since)
        left = (self.total - done) / rate - (time.monotonic() - last)
        shown = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"
        if rate < 0.1:
            shown = f"{60 * rate:.1f}/min"
        return f"{shown}  {show_duration(left)} left"

    def describe(self, width: int) -> str:
        """Return its line, the name filled up to a width."""
        bar = draw_bar(self.done, self.total) if self.total > 1 else ""
        pace = self.pace or show_duration(time.monotonic() - self.started)
        parts = (f"▸ {self.name.ljust(width)}", bar, pace, self.detail)
        return "  ".join(part for part in parts if part)


class _Pen:
    """Keeps signals from breaking off the main thread while it draws.

    Half a picture could not be erased afterwards.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._waiting: BaseException | None = None

    def __enter__(self) -> None:
        self._depth += threading.current_thread() is threading.main_thread()

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._depth -= 1
        if not self._depth and self._waiting is not None:
            error, self._waiting = self._waiting, None
            raise error

    def interrupt(self, error: BaseException) -> None:
        """Raise an error now, or as soon as the picture is whole."""
        if not self._depth:
            raise error
        self._waiting = error


_pen = _Pen()


def interrupt(error: BaseException) -> None:
    """Raise an error in a signal's handler, after what is being drawn has been drawn."""
    _pen.interrupt(error)


class Steps:
    """The steps of a run, as they come and go.

    At a terminal each step at work has one line that is written over, and that gives way to one
    line with its result. Elsewhere lines are only added, no more than one for each step every
    `QUIET_S` seconds while it is at work. What a person has to know stays in either case.
    """

    def __init__(self, stream: TextIO, *, verbose: bool = False, age_s: float = 0.0):
        """Find out whether the stream leads to a terminal.

        Args:
            stream: Where to write.
            verbose: Pass on every line of the steps, and write nothing over.
            age_s: For how long the run has been going.
        """
        self._live = not verbose and is_terminal(stream)
        self._stream = stream
        self._verbose = verbose
        self._start = time.monotonic() - age_s
        self._lock = threading.RLock()
        self._rows: dict[str, _Row] = {}
        self._footer = ""
        if self._live:
            from rich.console import Console
            from rich.live import Live

            self._console = Console(file=stream, force_terminal=True, highlight=False)
            self._screen = Live(
                console=self._console,
                get_renderable=self._render,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=sys.stderr.isatty(),
            )

    def __enter__(self) -> Steps:
        if self._live:
            try:
                with _pen:
                    self._screen.start()
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave nothing behind that would be written over; may be called again."""
        self._rows.clear()
        self._footer = ""
        if self._live:
            with _pen:
                self._screen.stop()
        self._stream.flush()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        shown = f"{minutes:3}:{seconds:02}  {clean(line)}"
        with self._lock:
            if self._live:
                from rich.text import Text

                text = Text(shown)
                for mark, style in _STYLES.items():
                    text.highlight_words([mark], style)
                text.highlight_regex(r"\bWARNING\b.*", "yellow")
                with _pen:
                    # The lines below are drawn again as they are now.
                    self._screen.refresh()
                    self._console.print(text, soft_wrap=True)
            else:
                self._stream.write(shown + "\n")
                self._stream.flush()

    def footer(self, line: str) -> None:
        """Show the state of the whole run below all steps, at a terminal only."""
        self._footer = clean(line)
        self._refresh()

    def begin(self, name: str, part: str = "", *, total: int = 0, age_s: float = 0.0) -> None:
        """Show that a step starts; nothing new where it has been shown.

        Args:
            name: Of the step.
            part: Which iteration of its loop, as `[3]`; all of them share the step's line.
            total: Iterations that its loop will have, as far as that is known.
            age_s: For how long it has been at work.
        """
        grouped = bool(part) and not self._verbose
        with self._lock:
            row = self._rows.get(self._key(name, part))
            if row is not None:
                row.total = max(row.total, total)
                return
            name = clean(name if grouped else name + part)
            now = time.monotonic()
            row = _Row(name=name, loop=grouped, started=now - age_s, last_line=now)
            self._rows[name] = row
            if grouped:
                row.count(0, total)
            self._refresh()
            if not self._live:
                self.say(f"▸ {name}")

    def tell(self, name: str, line: str, part: str = "") -> None:
        """Take a line that a step printed: pass it on, or keep it for the step's own line."""
        line = clean(line).rstrip()
        with self._lock:
            row = self._rows[self._key(name, part)]
            if self._verbose or must_stay(line):
                row.result = ""
                self.say(f"    {name}{part}: {line}")
                return
            progress = read_progress(line)
            if not progress and is_detail(line):
                return
            row.detail = " ".join(progress.detail.split()) if progress else line
            if progress:
                row.result = ""
                if not row.loop:
                    row.count(progress.done, progress.total)
                pace = f"  {row.pace}" if row.pace and not row.loop else ""
                self._whisper(row, f"{row.name}{part}: {line}{pace}")
            elif not is_routine(line):
                # The last one is the result, and stands in the step's last line.
                before, row.result = row.result, line
                if before:
                    self._whisper(row, f"{row.name}{part}: {before}")

    def advance(self, name: str, done: int, total: int) -> None:
        """Show how many iterations of a step's loop are over."""
        with self._lock:
            row = self._rows[clean(name)]
            row.loop = True
            row.count(done, total)
            self._refresh()
            self._whisper(row, f"{row.name}: {done}/{total}  {row.pace}")

    def finish(self, name: str, part: str = "", *, ok: bool, seconds: float) -> None:
        """Show that a step, or one iteration of it, is over."""
        with self._lock:
            row = self._rows[self._key(name, part)]
            if row.loop and ok:
                self.advance(name, row.done + 1, max(row.total, row.done + 1))
                return
            if row.loop:
                self.say(f"✗ {name}{part}  {seconds:.1f} s")
                return
            result = f"  {row.result}" if ok and row.result and not self._verbose else ""
            self.end(row.name, f"{'✓' if ok else '✗'} {row.name}  {seconds:.1f} s{result}")

    def collapse(self, name: str) -> None:
        """Show that the loop of a step is over, and went well."""
        with self._lock:
            if row := self._rows.get(clean(name)):
                of = f"  {row.done}/{row.total}" if row.total > 1 else ""
                self.end(row.name, f"✓ {row.name}{of}  {time.monotonic() - row.started:.1f} s")

    def end(self, name: str, line: str) -> None:
        """Put a line that stays in the place of a step's own."""
        with self._lock:
            self._rows.pop(clean(name), None)
            self.say(line)

    def _key(self, name: str, part: str) -> str:
        return clean(name + part if self._verbose else name)

    def _whisper(self, row: _Row, line: str) -> None:
        """Print a line about a step at work, unless there was one just now."""
        now = time.monotonic()
        if not self._live and (self._verbose or now - row.last_line >= QUIET_S):
            row.last_line = now
            self.say(f"    {line.rstrip()}")

    def _refresh(self) -> None:
        if self._live:
            with _pen:
                self._screen.refresh()

    def _render(self) -> Text:
        """Return the lines that are written over; without the lock, as the screen has its own."""
        from rich.text import Text

        rows = list(self._rows.values())
        width = max((len(row.name) for row in rows), default=0)
        lines = [f"        {row.describe(width)}" for row in rows]
        if self._footer:
            lines.append(f"        {self._footer}")
        # A line that wraps could not be erased.
        shown = [Text(line, style="dim" if line is self._footer else "") for line in lines]
        for text in shown:
            text.truncate(self._console.width - 1, overflow="ellipsis")
        return Text("\n").join(shown)


class Lines(io.TextIOBase):
    """A stream whose lines `Steps` prints, such as for another library's log."""

    def __init__(self, steps: Steps):
        self._steps = steps
        self._rest = ""

    def write(self, text: str) -> int:
        """Pass on what has become whole lines."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._steps.say(f"    {line}")
        return len(text)
