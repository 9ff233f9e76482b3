"""A bounded folder of things that can be made again: decoded datasets and downloaded parts.

Where: `$KUBESTILL_CACHE`, or a folder of this user's below the temporary directory. How much:
`$KUBESTILL_CACHE_BYTES`, 64 GiB unless told, never more than half of what the disk has free. The
entry that was used longest ago goes first.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kubestill.errors import InvalidInput, Problem

__all__ = ["Shelf"]

_DEFAULT_BYTES = 64 << 30
_ABANDONED_SECONDS = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """Entries are folders; one appears whole or not at all, and is never changed."""

    root: Path
    max_bytes: int

    @classmethod
    def default(cls) -> Shelf:
        """Return this user's shelf, as the environment says."""
        place = os.environ.get("KUBESTILL_CACHE", "")
        root = Path(place or Path(tempfile.gettempdir(), f"kubestill-cache-{os.getuid()}"))
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        given = os.environ.get("KUBESTILL_CACHE_BYTES", "").strip()
        if given and not (given.isascii() and given.isdecimal()):
            remedy = "give a whole number of bytes, or unset it"
            raise InvalidInput([Problem("KUBESTILL_CACHE_BYTES", given, remedy)])
        return cls(root=root, max_bytes=int(given or _DEFAULT_BYTES))

    def entry(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return the folder of entry `name`; `make(empty folder)` fills it where it is not there.

        Two processes may make the same entry at once: the first to finish publishes, both use that.
        """
        place = self.root / name
        if not place.is_dir():
            draft = self.root / f"draft-{uuid.uuid4().hex}"
            draft.mkdir()
            try:
                make(draft)
                self._make_room(_size(draft))
                with suppress(OSError):  # Somebody else published the same content first.
                    draft.rename(place)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        os.utime(place)
        return place

    def _make_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.root).free
        entries = sorted(self._entries(), key=lambda found: found[0])
        held = sum(size for _, size, _ in entries)
        limit = min(self.max_bytes, (held + free + needed) // 2)
        for _, size, place in entries:
            if held + needed <= limit:
                return
            # Readers that have it mapped keep their pages until they close them.
            shutil.rmtree(place, ignore_errors=True)
            held -= size

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Yield (last use in epoch seconds, bytes, folder) of each entry, and sweep dead drafts."""
        used: dict[Path, float] = {}
        for place in self.root.iterdir():
            with suppress(FileNotFoundError):  # Published or evicted by another process meanwhile.
                used[place] = place.stat().st_mtime
        now = max(used.values(), default=0.0)
        for place, when in used.items():
            with suppress(FileNotFoundError):
                if not place.name.startswith("draft-"):
                    yield when, _size(place), place
                elif now - when > _ABANDONED_SECONDS:
                    shutil.rmtree(place, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
