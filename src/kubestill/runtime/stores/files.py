"""Files that appear whole or not at all, survive a power cut, and are swept after a kill."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress

from kubestill.errors import PermissionDenied, StoreError, StoreUnavailable
from kubestill.runtime.stores.base import Content

_TEMPORARY = re.compile(r"^\..*\.tmp$")


@contextmanager
def temporary_beside(target: str) -> Generator[tuple[str, int]]:
    """Make a locked temporary in the folder of `target`, for renaming or linking it there.

    Yields:
        Its path and a descriptor open for reading and writing. A name still there at the end is
        removed.
    """
    temporary, fd = _create_locked(target)
    try:
        yield temporary, fd
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        os.close(fd)


def publish(temporary: str, fd: int, target: str) -> None:
    """Make the temporary's content durable under the name `target`, replacing what is there."""
    os.fsync(fd)
    os.replace(temporary, target)
    fsync_folder(os.path.dirname(target))


def write_file(target: str, content: Content) -> None:
    """Write a file, whole or not at all, in place of what has this name; never through a link."""
    with temporary_beside(target) as (temporary, fd):
        write_all(fd, content)
        publish(temporary, fd, target)


def write_all(fd: int, content: Content) -> None:
    """Write all of `content` at the descriptor's position, however many calls that takes."""
    with memoryview(content) as whole, whole.cast("B") as view:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:])


def fsync_folder(folder: str) -> None:
    """Make the names in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def private_folder(path: str) -> str:
    """Return `path` as a folder that nobody else can write to, made where it is missing.

    A shared temporary folder is everybody's: what somebody else put there in advance would be taken
    for our own.

    Raises:
        PermissionDenied: It is a link or no folder, another user's, or open to others.
        StoreError: It cannot be made.
    """
    path = os.path.abspath(path)
    parent = os.path.dirname(path)
    with translated(parent, path):
        os.makedirs(parent, exist_ok=True)
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
    if wrong := _what_is_open(found):
        raise PermissionDenied(
            f"{path} {wrong}: it must be a folder of user {os.geteuid()} with mode 0700; remove "
            "it, or name another folder"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:  # as earlier versions made it: read by others, no more
        os.chmod(path, 0o700)
    return path


def _what_is_open(found: os.stat_result) -> str:
    if not stat.S_ISDIR(found.st_mode):
        return "is a link" if stat.S_ISLNK(found.st_mode) else "is no folder"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}"
    mode = stat.S_IMODE(found.st_mode)
    return f"has mode {mode:04o}" if mode & 0o022 else ""


@contextmanager
def translated(root: str, key: str) -> Generator[None]:
    """Raise what goes wrong with files below `root` as errors of the store there."""
    try:
        yield
    except OSError as error:
        raise _translate(error, root, key) from error


def is_temporary(name: str) -> bool:
    """Return whether a file of this name is an unfinished write."""
    return _TEMPORARY.match(name) is not None


def sweep_temporaries(root: str) -> int:
    """Remove the temporaries below `root` whose writers are dead; return how many there were."""
    swept = 0
    for folder, _, names in os.walk(root):
        for name in filter(is_temporary, names):
            swept += _sweep(os.path.join(folder, name))
    return swept


def _sweep(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        return True
    except OSError:
        return False  # its writer lives, or has just finished
    finally:
        os.close(fd)


def _create_locked(target: str) -> tuple[str, int]:
    """Create a temporary and lock it: the kernel drops the lock of a process that dies.

    `sweep_temporaries` tells by it. One that was swept between its creation and its lock has no
    name left: then another is made.
    """
    folder, name = os.path.split(target)
    while True:
        temporary = os.path.join(folder, f".{name[:80]}.{uuid.uuid4().hex}.tmp")
        fd = _create(folder, temporary)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return temporary, fd
        except BlockingIOError:
            pass  # a sweeper holds it, and is about to remove it
        except OSError:  # a file system without locks
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            os.close(fd)
            raise
        os.close(fd)


def _create(folder: str, temporary: str) -> int:
    # Another process may remove the folder, empty, between its creation and that of the file in it,
    # and its parent before the new name in it is durable.
    for _ in range(100):
        try:
            _make_folder(folder)
            return os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue
    raise StoreUnavailable(f"{folder} keeps disappearing")


def _make_folder(folder: str) -> None:
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    _make_folder(parent)
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", folder) from None
    except FileNotFoundError:
        return  # the parent was removed again; the caller starts over
    else:
        fsync_folder(parent)


def _translate(error: OSError, root: str, key: str) -> StoreError:
    place = error.filename or os.path.join(root, key)
    why = f"{place}: {error.strerror or error}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(f"{why}: user {os.geteuid()} must be able to write below {root}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"{why}: free some space below {root}")
    if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        return StoreUnavailable(why)
    return StoreError(why)
