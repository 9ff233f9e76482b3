"""A terminal of our own: what a person sees of a program that writes to one."""

from __future__ import annotations

import os
import pty
import re
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

_CODES = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Screen:
    """The lines of a terminal that is wide and high enough, and each picture it has shown."""

    def __init__(self) -> None:
        self.raw = ""
        self.lines = [""]
        self.pictures: list[list[str]] = []
        """Copies of the lines, one for each time that something was written."""
        self.cursor_hidden = False
        self._row = self._column = 0
        self._unread = ""

    @property
    def text(self) -> str:
        """What stands there now."""
        return "\n".join(line.rstrip() for line in self.lines).rstrip() + "\n"

    def feed(self, data: str) -> None:
        """Show what a program writes; raises for what it may not write."""
        self.raw += data
        data = self._unread + data
        # A code that is not whole yet.
        cut = re.search(r"\x1b(?:\[[?\d;]*)?$", data)
        self._unread = data[cut.start() :] if cut else ""
        data = data[: cut.start()] if cut else data
        at = 0
        for found in _CODES.finditer(data):
            assert found.start() == at, f"unknown code: {data[at : at + 20]!r}"
            at = found.end()
            arguments, code, end, text = found.groups()
            if text:
                self._write(text)
            elif end:
                self._column = 0
                self._row += end == "\n"
                self.lines += [""] * (self._row + 1 - len(self.lines))
            else:
                self._act(code, arguments)
        assert at == len(data), f"unknown code: {data[at:]!r}"
        self.pictures.append(self.lines[:])

    def _write(self, text: str) -> None:
        assert text.isprintable(), repr(text)
        line = self.lines[self._row].ljust(self._column)
        end = self._column + len(text)
        self.lines[self._row] = line[: self._column] + text + line[end:]
        self._column = end

    def _act(self, code: str, arguments: str) -> None:
        if code == "A":
            self._row -= int(arguments or 1)
        elif code == "K":
            line = self.lines[self._row]
            self.lines[self._row] = "" if arguments == "2" else line[: self._column]
        elif (arguments, code) in (("?25", "l"), ("?25", "h")):
            self.cursor_hidden = code == "l"
        else:
            assert code == "m", f"unknown code: {arguments}{code}"


@contextmanager
def open_terminal() -> Generator[tuple[int, Screen, Callable[[], None]]]:
    """Open a terminal that a thread reads.

    Yields:
        The end for the program, the screen, and a function that closes that end and waits until
        everything was read.
    """
    outer, inner = pty.openpty()
    screen = Screen()

    def read() -> None:
        rest = b""
        while True:
            try:
                data = os.read(outer, 65536)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            # A sign may be cut in two.
            text = (rest + data).decode(errors="ignore")
            rest = (rest + data)[len(text.encode()) :]
            screen.feed(text)

    reader = threading.Thread(target=read)
    reader.start()
    closed = False

    def close() -> None:
        nonlocal closed
        if not closed:
            closed = True
            os.close(inner)
            reader.join()

    try:
        yield inner, screen, close
    finally:
        close()
        os.close(outer)
