"""A store in this process's memory, for tests: the same semantics, nothing to clean up."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kubestill.errors import Conflict, NotFound
from kubestill.runtime.base import LARGEST
from kubestill.runtime.stores.base import ABSENT, Content, Entry, check_key, check_size
from kubestill.runtime.stores.files import temporary_beside


@dataclass
class _Bucket:
    lock: threading.Lock = field(default_factory=threading.Lock)
    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict[str, tuple[bytes, int]])
    generation: int = 0

    def read(self, name: str) -> tuple[bytes | None, str]:
        with self.lock:
            content, generation = self.objects.get(name, (None, 0))
        return content, str(generation)

    def write(self, name: str, content: bytes, *, expect: str | None) -> str:
        with self.lock:
            current, generation = self.objects.get(name, (None, 0))
            if expect is not None and str(generation) != expect:
                if current == content:
                    return str(generation)
                raise Conflict(f"{name} is at version {generation}, not {expect}")
            self.generation += 1
            self.objects[name] = content, self.generation
            return str(self.generation)


_buckets: dict[str, _Bucket] = {}
_buckets_lock = threading.Lock()


class MemoryStore:
    """Objects below `memory://name/prefix`; stores of one name share them in this process."""

    def __init__(self, name: str, prefix: str = ""):
        self._uri = f"memory://{name}" + (f"/{prefix}" if prefix else "")
        self._prefix = f"{prefix}/" if prefix else ""
        with _buckets_lock:
            self._bucket = _buckets.setdefault(name, _Bucket())

    @property
    def uri(self) -> str:
        """The root."""
        return self._uri

    def get(self, key: str, *, most: int | None = LARGEST) -> bytes:
        """Return the whole object; see `Store.get`."""
        content, _ = self._bucket.read(self._name(key))
        if content is None:
            raise NotFound(f"{self._uri} has no object {key!r}")
        return check_size(content, most, f"{self._uri}/{key}")

    def put(self, key: str, content: Content, *, create: bool = False) -> Entry:
        """Write the whole object; see `Store.put`."""
        data = bytes(content)
        version = self._bucket.write(self._name(key), data, expect=ABSENT if create else None)
        return Entry(key=key, size=len(data), version=version)

    def put_parts(self, key: str, parts: Sequence[Content]) -> Entry:
        """Write the concatenation of the buffers; see `Store.put_parts`."""
        return self.put(key, b"".join(parts))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the objects below `prefix` in key order; see `Store.list`."""
        with self._bucket.lock:
            found = sorted(self._bucket.objects.items())
        for name, (content, generation) in found:
            if name.startswith(self._prefix + prefix):
                key = name.removeprefix(self._prefix)
                yield Entry(key=key, size=len(content), version=str(generation))

    def delete(self, key: str) -> None:
        """Remove the object; see `Store.delete`."""
        with self._bucket.lock:
            self._bucket.objects.pop(self._name(key), None)

    def upload(self, path: str, key: str) -> Entry:
        """Copy a local file; see `Store.upload`."""
        with open(path, "rb") as file:
            return self.put(key, file.read())

    def download(self, key: str, path: str) -> None:
        """Copy the object to a local file; see `Store.download`."""
        content = self.get(key, most=None)
        target = os.path.abspath(path)
        with temporary_beside(target) as (temporary, _):
            with open(temporary, "wb") as file:
                file.write(content)
            os.replace(temporary, target)

    def local_path(self, key: str) -> str | None:
        """Return None: there are no files."""
        check_key(key)
        return None

    def cell(self, key: str) -> MemoryCell:
        """Return the compare-and-swap cell at `key`."""
        return MemoryCell(self._bucket, self._name(key))

    def check_writable(self) -> None:
        """Memory always is."""

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)


class MemoryCell:
    """One small object replaced by compare-and-swap."""

    def __init__(self, bucket: _Bucket, name: str):
        self._bucket = bucket
        self._name = name

    def read(self) -> tuple[bytes | None, str]:
        """Return (content, version); see `Cell.read`."""
        content, version = self._bucket.read(self._name)
        return None if content is None else content[: LARGEST + 1], version

    def swap(self, content: bytes, *, expect: str) -> str:
        """Replace version `expect`; see `Cell.swap`."""
        return self._bucket.write(self._name, content, expect=expect)
