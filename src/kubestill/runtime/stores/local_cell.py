"""Compare-and-swap on a file system that has none: create-only sequence files, the highest wins.

Rename is no swap: it replaces whatever is there. A hard link is: it fails where the name exists. So
version n+1 of `ledger.json` is made by linking a finished file to `ledger.json.<n+1>`, and of any
number of writers exactly one succeeds.

Old sequences are pruned, which opens one hole: a writer that read version n and slept while n+1
came *and was pruned* would link n+1 once more and believe that it won. But sequence n+1 is pruned
only when the highest is at least n+1+KEPT, and the highest never falls. So a writer looks after its
link: with the highest closer than that, and the version it built upon still in place, it has won;
otherwise it takes its link back. Readers never notice, since a re-created sequence is lower than
the highest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress

from kubestill.errors import Conflict
from kubestill.runtime.base import LARGEST
from kubestill.runtime.stores.base import ABSENT
from kubestill.runtime.stores.files import fsync_folder, temporary_beside, write_all

KEPT = 64
"""Sequences that pruning leaves. A winner held up between its link and its look for so many commits
gets `Conflict` although it won; reading the cell again shows it, as after any conflict."""

_SEQUENCE = re.compile(r"^(.+)\.(\d{10})$")


class CellFiles:
    """The cell at one path. Raises plain `OSError`s, and `Conflict`."""

    def __init__(self, path: str):
        self._path = path
        self._folder, self._name = os.path.split(path)

    def read(self, most: int | None = LARGEST) -> tuple[bytes | None, str]:
        """Return (content, version) of the highest sequence, or (None, `ABSENT`).

        Of more than `most` bytes, the first of them and one more.
        """
        while sequences := self.sequences():
            found = self._load(sequences[-1], most)
            if found is not None:
                return found
            # pruned since the folder was read: so there is a higher one, or the cell was removed
        return None, ABSENT

    def swap(self, content: bytes, *, expect: str) -> str:
        """Link `content` as the sequence after `expect`; see `Cell.swap`."""
        base = _sequence_of(expect)
        mine = base + 1
        with temporary_beside(self._path) as (temporary, fd):
            if not os.path.exists(self._file(mine)):
                write_all(fd, content)
                os.fsync(fd)
                with suppress(FileExistsError):
                    os.link(temporary, self._file(mine))
                    return self._confirm(mine, expect, os.fstat(fd))
        return self._taken(mine, content)

    def destroy(self) -> None:
        """Remove every sequence."""
        while sequences := self.sequences():
            self._unlink(sequences)

    def sequences(self) -> list[int]:
        """Return the sequence numbers present, lowest first."""
        try:
            names = os.listdir(self._folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        start = self._name + "."
        matches = (_SEQUENCE.match(name) for name in names if name.startswith(start))
        return sorted(int(match[2]) for match in matches if match and match[1] == self._name)

    def _confirm(self, mine: int, expect: str, status: os.stat_result) -> str:
        present = self.sequences()
        if max(present, default=mine) - mine >= KEPT or not self._in_place(expect):
            self._unlink([mine])
            raise Conflict(
                f"{self._path} moved on, or was removed, since version {expect} was read"
            )
        fsync_folder(self._folder)
        if len(present) > 2 * KEPT:
            self._unlink(number for number in present if number <= present[-1] - KEPT)
        return _version(mine, status)

    def _in_place(self, expect: str) -> bool:
        if expect == ABSENT:
            return True
        try:
            status = os.stat(self._file(_sequence_of(expect)))
        except FileNotFoundError:
            return False
        return _version(_sequence_of(expect), status) == expect

    def _taken(self, mine: int, content: bytes) -> str:
        found = self._load(mine, len(content))
        if found is None or found[0] != content:
            raise Conflict(f"{self._path} already has a version {mine}, from another writer")
        fsync_folder(self._folder)
        return found[1]

    def _load(self, number: int, most: int | None) -> tuple[bytes, str] | None:
        try:
            with open(self._file(number), "rb") as file:
                content = file.read(-1 if most is None else most + 1)
                return content, _version(number, os.fstat(file.fileno()))
        except FileNotFoundError:
            return None

    def _unlink(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            with suppress(FileNotFoundError):
                os.unlink(self._file(number))

    def _file(self, number: int) -> str:
        return f"{self._path}.{number:010d}"


def cell_of(name: str) -> str | None:
    """Return the name of the cell that a sequence file belongs to, or None for any other file."""
    match = _SEQUENCE.match(name)
    return match[1] if match else None


def _version(number: int, status: os.stat_result) -> str:
    # The time of writing tells a removed and re-created cell from the one that was read.
    return f"{number}-{status.st_mtime_ns}"


def _sequence_of(version: str) -> int:
    return int(version.partition("-")[0])
