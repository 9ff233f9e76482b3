"""A bounded folder of things that can be made again: decoded datasets and downloaded parts.

Where: a folder of this user's below `$KUBESTILL_CACHE`, or below the temporary directory. Nobody
else can write to it: what lies there is taken for what this package made. How much:
`$KUBESTILL_CACHE_BYTES`, 64 GiB unless told, never more than half of what the disk has free. The
entry that was used longest ago goes first; one that a living process has used stays.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.stores.files import private_folder, translated

_DEFAULT_BYTES = 64 << 30
_ABANDONED_SECONDS = 24 * 3600
_LOCK = ".lock"
_HOLDS = ".in-use-"
"""Of each process a file that names the entries it has used, locked for as long as it lives."""


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """Entries are folders; one appears whole or not at all, and is never changed."""

    root: Path
    max_bytes: int

    @classmethod
    def default(cls) -> Shelf:
        """Return this user's shelf, as the environment says.

        Raises:
            InvalidInput: `KUBESTILL_CACHE_BYTES` is no number of bytes.
            PermissionDenied: The folder is somebody else's, or others can write to it.
        """
        given = os.environ.get("KUBESTILL_CACHE_BYTES", "").strip()
        if given and not (given.isascii() and given.isdecimal()):
            remedy = "give a whole number of bytes, or unset it"
            raise InvalidInput([Problem("KUBESTILL_CACHE_BYTES", given, remedy)])
        place = os.environ.get("KUBESTILL_CACHE", "") or tempfile.gettempdir()
        root = private_folder(os.path.join(place, f"kubestill-cache-{os.getuid()}"))
        return cls(root=Path(root), max_bytes=int(given or _DEFAULT_BYTES))

    def entry(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return the folder of entry `name`; `make(empty folder)` fills it where it is not there.

        It stays until this process ends. Two processes may make the same entry at once: the first
        to finish publishes, both use that.
        """
        place = self.root / name
        with self._alone():
            _holds_of(self.root, os.getpid()).add(name)
            if place.is_dir():
                os.utime(place)
                return place
        draft = self.root / f"draft-{uuid.uuid4().hex}"
        draft.mkdir()
        try:
            make(draft)
            needed = _size(draft)
            with self._alone():
                evicted = self._make_room(needed)
                if not place.is_dir():
                    draft.rename(place)
            for gone in evicted:
                shutil.rmtree(gone, ignore_errors=True)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return place

    def unused(self) -> list[tuple[float, int, Path]]:
        """Return (last use in epoch seconds, bytes, folder) of entries that no process is using."""
        with self._alone():
            in_use = self._in_use()
            return [one for one in self._entries() if one[2].name not in in_use]

    def drop(self, name: str) -> None:
        """Delete entry `name`, unless it is gone already or a process uses it by now."""
        draft = self.root / f"draft-{uuid.uuid4().hex}"
        with self._alone():
            if name in self._in_use() or not (self.root / name).is_dir():
                return
            (self.root / name).rename(draft)
        shutil.rmtree(draft, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Generator[None]:
        """Keep other processes and threads from publishing, evicting and taking entries."""
        with open(self.root / _LOCK, "ab") as file:
            with translated(str(self.root), _LOCK):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make_room(self, needed: int) -> list[Path]:
        """Take as many entries off the shelf as `needed` bytes ask for; return what to delete."""
        used = sorted(self._entries(), key=lambda found: found[0])
        held = sum(size for _, size, _ in used)
        free = shutil.disk_usage(self.root).free
        limit = min(self.max_bytes, (held + free + needed) // 2)
        in_use = self._in_use() if held + needed > limit else set()
        evicted: list[Path] = []
        for _, size, place in used:
            if held + needed > limit and place.name not in in_use:
                evicted.append(place.rename(self.root / f"draft-{uuid.uuid4().hex}"))
                held -= size
        return evicted

    def _in_use(self) -> set[str]:
        names: set[str] = set()
        for path in self.root.glob(f"{_HOLDS}*"):
            with suppress(FileNotFoundError), open(path, "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()  # Its process has ended.
                except BlockingIOError:
                    names |= set(file.read().decode().split())
        return names

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Yield (last use in epoch seconds, bytes, folder) of each entry, and sweep dead drafts."""
        places = [place for place in self.root.iterdir() if not place.name.startswith(".")]
        used: dict[Path, float] = {}
        for place in places:
            with suppress(FileNotFoundError):  # A draft of another process, deleted meanwhile.
                used[place] = place.stat().st_mtime
        now = max(used.values(), default=0.0)
        for place, when in used.items():
            if not place.name.startswith("draft-"):
                yield when, _size(place), place
            elif now - when > _ABANDONED_SECONDS:
                shutil.rmtree(place, ignore_errors=True)


class _Holds:
    """What this process uses, in a file that the kernel unlocks when the process ends."""

    def __init__(self, path: Path) -> None:
        self._names: set[str] = set()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def add(self, name: str) -> None:
        if name not in self._names:
            os.write(self._file, f"{name}\n".encode())
            self._names.add(name)


@cache
def _holds_of(root: Path, process: int) -> _Holds:
    return _Holds(root / f"{_HOLDS}{process}-{uuid.uuid4().hex}")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
