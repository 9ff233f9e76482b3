"""A folder as a store: atomic, durable writes and a compare-and-swap cell made of hard links."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence

from kubestill.errors import Conflict, NotFound
from kubestill.runtime.base import LARGEST
from kubestill.runtime.stores.base import Content, Entry, check_key, check_size, probe
from kubestill.runtime.stores.files import (
    fsync_folder,
    is_temporary,
    publish,
    sweep_temporaries,
    temporary_beside,
    translated,
    write_all,
)
from kubestill.runtime.stores.local_cell import CellFiles, cell_of


class LocalStore:
    """Objects are files below `root`; the folder is created by the first write.

    A write goes to a temporary in the destination's folder, is fsynced and renamed (or linked,
    where it must not replace), and the folder is fsynced too. Temporaries of processes that died
    are swept by `check_writable`.
    """

    def __init__(self, root: str):
        self._root = os.path.abspath(root)

    @property
    def uri(self) -> str:
        """The absolute path of the folder."""
        return self._root

    def get(self, key: str, *, most: int | None = LARGEST) -> bytes:
        """Return the whole object; see `Store.get`."""
        path = self._path(key)
        with translated(self._root, key):
            try:
                with open(path, "rb") as file:
                    # No more than there is: Python takes memory for all that it is asked to read.
                    size = os.fstat(file.fileno()).st_size
                    content = file.read(-1 if most is None else min(most, size) + 1)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                content, _ = CellFiles(path).read(most)
                if content is None:
                    raise self._not_found(key) from None
        return check_size(content, most, path)

    def put(self, key: str, content: Content, *, create: bool = False) -> Entry:
        """Write the whole object; see `Store.put`."""
        if not create:
            return self.put_parts(key, [content])
        target = self._path(key)
        with translated(self._root, key), temporary_beside(target) as (temporary, fd):
            write_all(fd, content)
            os.fsync(fd)
            try:
                os.link(temporary, target)
            except FileExistsError:
                if self.get(key, most=None) != content:
                    message = f"{self._root} already has an object {key!r}"
                    raise Conflict(message) from None
            fsync_folder(os.path.dirname(target))
            return _entry(key, os.stat(target))

    def put_parts(self, key: str, parts: Sequence[Content]) -> Entry:
        """Write the concatenation of the buffers; see `Store.put_parts`."""
        target = self._path(key)
        with translated(self._root, key), temporary_beside(target) as (temporary, fd):
            for part in parts:
                write_all(fd, part)
            publish(temporary, fd, target)
            return _entry(key, os.fstat(fd))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the objects below `prefix` in key order; see `Store.list`."""
        folder, slash, _ = prefix.rpartition("/")
        with translated(self._root, prefix):
            yield from self._walk(folder + slash, prefix)

    def delete(self, key: str) -> None:
        """Remove the object, and the folders that this leaves empty; see `Store.delete`.

        Never through a link: what it leads to may be somebody else's, and stays.
        """
        path = self._path(key)
        if not self._holds(os.path.dirname(path)):
            return
        with translated(self._root, key):
            try:
                os.unlink(path)
            except (FileNotFoundError, NotADirectoryError):
                CellFiles(path).destroy()
            self._remove_empty_folders(os.path.dirname(path))

    def upload(self, path: str, key: str) -> Entry:
        """Copy a local file; see `Store.upload`."""
        target = self._path(key)
        with translated(self._root, key), temporary_beside(target) as (temporary, fd):
            shutil.copyfile(path, temporary)
            publish(temporary, fd, target)
            return _entry(key, os.fstat(fd))

    def download(self, key: str, path: str) -> None:
        """Copy the object to a local file; see `Store.download`."""
        source, target = self._path(key), os.path.abspath(path)
        with translated(self._root, key):
            if not os.path.isfile(source):
                raise self._not_found(key)
            with temporary_beside(target) as (temporary, _):
                shutil.copyfile(source, temporary)
                os.replace(temporary, target)

    def local_path(self, key: str) -> str | None:
        """Return the object's own file; see `Store.local_path`."""
        return self._path(key)

    def cell(self, key: str) -> LocalCell:
        """Return the compare-and-swap cell at `key`."""
        return LocalCell(self._root, key)

    def check_writable(self) -> None:
        """Create, read, list and delete a probe, then sweep what dead writers left behind."""
        probe(self)
        with translated(self._root, ""):
            sweep_temporaries(self._root)

    def _path(self, key: str) -> str:
        return os.path.join(self._root, check_key(key))

    def _not_found(self, key: str) -> NotFound:
        return NotFound(f"{self._root} has no object {key!r}")

    def _walk(self, folder: str, prefix: str) -> Iterator[Entry]:
        names = self._scan(folder)
        for name in sorted(names):
            key = folder + name
            if name.endswith("/"):
                if key.startswith(prefix) or prefix.startswith(key):
                    yield from self._walk(key, prefix)
            elif key.startswith(prefix):
                try:
                    status = os.stat(os.path.join(self._root, folder, names[name]))
                except FileNotFoundError:
                    continue  # deleted since the folder was read
                yield _entry(key, status)

    def _scan(self, folder: str) -> dict[str, str]:
        """Map the names in `folder`, as keys show them, to the files' own names."""
        names: dict[str, str] = {}
        try:
            with os.scandir(os.path.join(self._root, folder)) as entries:
                for entry in entries:
                    if is_temporary(entry.name):
                        continue
                    if _leads_up(entry):
                        continue
                    if entry.is_dir():
                        names[entry.name + "/"] = entry.name
                    else:
                        shown = cell_of(entry.name) or entry.name
                        names[shown] = max(names.get(shown, ""), entry.name)
        except (FileNotFoundError, NotADirectoryError):
            pass
        return names

    def _holds(self, folder: str) -> bool:
        """Return whether a folder lies below the root itself, and not behind a link."""
        below = os.path.relpath(folder, self._root)
        plain = os.path.normpath(os.path.join(os.path.realpath(self._root), below))
        return os.path.realpath(folder) == plain

    def _remove_empty_folders(self, folder: str) -> None:
        while folder.startswith(self._root + os.sep):
            try:
                os.rmdir(folder)
            except OSError:
                return
            folder = os.path.dirname(folder)


class LocalCell:
    """One small file replaced by compare-and-swap; `local_cell` tells how."""

    def __init__(self, root: str, key: str):
        self._root = root
        self._key = key
        self._files = CellFiles(os.path.join(root, check_key(key)))

    def read(self) -> tuple[bytes | None, str]:
        """Return (content, version); see `Cell.read`."""
        with translated(self._root, self._key):
            return self._files.read()

    def swap(self, content: bytes, *, expect: str) -> str:
        """Replace version `expect`; see `Cell.swap`."""
        with translated(self._root, self._key):
            return self._files.swap(content, expect=expect)


def _leads_up(entry: os.DirEntry[str]) -> bool:
    """Return whether a link leads nowhere, or to a folder around it: a walk would never end."""
    if not entry.is_symlink():
        return False
    target, here = os.path.realpath(entry.path), os.path.realpath(os.path.dirname(entry.path))
    return not os.path.exists(entry.path) or os.path.commonpath([target, here]) == target


def _entry(key: str, status: os.stat_result) -> Entry:
    version = f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"
    return Entry(key=key, size=status.st_size, version=version)
