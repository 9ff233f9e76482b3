"""Several files of a model as one: a zip without compression, equal bytes for equal files."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from kubestill.errors import CorruptData, KubestillError


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return the zip of these files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            # Without a time: the same files are the same model.
            archive.writestr(zipfile.ZipInfo(name), files[name])
    return packed.getvalue()


def unpack(content: bytes, what: str) -> dict[str, bytes]:
    """Return the files of a zip that `pack` wrote.

    Args:
        content: All of it.
        what: What it should be, for messages.

    Raises:
        CorruptData: It is no such zip.
    """
    with opened(content, what) as archive:
        return {one.filename: archive.read(one) for one in archive.infolist()}


@contextmanager
def opened(content: bytes, what: str) -> Generator[zipfile.ZipFile]:
    """Open a zip whose files are not compressed, and together not larger than it.

    Args:
        content: All of it.
        what: What it should be, for messages.

    Raises:
        CorruptData: It is no such zip, or a file of it is damaged or there twice.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if any(one.compress_type != zipfile.ZIP_STORED for one in members):
                raise ValueError("its files are compressed")
            if sum(one.file_size for one in members) > len(content):
                raise ValueError("it claims more bytes than it has")
            if len({one.filename for one in members}) < len(members):
                raise ValueError("it holds a file twice")
            yield archive
    except KubestillError:
        raise
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise CorruptData(f"this is no whole {what}: {error}") from error
