"""Keep solved rows in a store, so that no step that is retried or repeated solves them again.

A row is found by what its system is (`identify`) and by its inputs, bit by bit. Rows lie in
segments that are written once, under the digest of their content: any number of shards and attempts
may write to one folder.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import struct
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import kubestill
from kubestill.errors import CorruptData, KubestillError, counted
from kubestill.runtime.base.values import parse_json
from kubestill.runtime.generation.systems.domain import stacked
from kubestill.runtime.generation.systems.system import System
from kubestill.runtime.stores import open_store

SLOW = 5e-3
"""Seconds for a row from which on rows are kept: others are solved sooner than read."""
FOLDER = "solved"

Floats = NDArray[np.float64]

_MAGIC = b"KSR1"
_HEAD = "<4sQIQ"
"""Magic, rows, numbers of an answer, bytes of the reasons."""
_KEY = 16
"""Bytes of a row's digest."""
_EVERY = 20.0
"""Seconds after which new rows are written: what a lost machine may cost."""
_MOST = 1 << 30
"""Bytes of segments that are read."""
_MOST_FILE = 256 << 20
"""Bytes of a package, or of a file among the arguments, that an identity reads."""
_SAME = 1e-9
"""Relative difference that another processor may make."""


class Unknown(Exception):
    """A system cannot be identified; says why."""


class KeptRows:
    """The solved rows of one system, in a folder of a store.

    Args:
        uri: The folder.
        names: The domain's inputs, in order.
        width: Numbers of an answer.

    Raises:
        StoreError: The folder cannot be read and written.
    """

    def __init__(self, uri: str, names: Sequence[str], width: int):
        self._store = open_store(uri)
        self._store.check_writable()
        self.uri = self._store.uri
        self._names, self._width = tuple(names), width
        self._known: dict[bytes, tuple[Floats, str]] = {}
        self._new: dict[bytes, tuple[Floats, str]] = {}
        self._written = time.monotonic()
        self._read()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, inputs: pd.DataFrame) -> tuple[Floats, NDArray[np.bool_], list[str]]:
        """Look rows up.

        Returns:
            answers: [N, T], NaN where the solver failed, or where the row is not known.
            known: [N]
            reasons: Why it failed, of known rows on which it did.
        """
        found = np.full((len(inputs), self._width), np.nan)
        known, reasons = np.zeros(len(inputs), np.bool_), list[str]()
        for row, key in enumerate(_keys(inputs, self._names) if self._known else ()):
            if key in self._known:
                found[row], reason = self._known[key]
                known[row] = True
                if reason:
                    reasons.append(reason)
        return found, known, reasons

    def add(self, inputs: pd.DataFrame, answers: Floats, reasons: Iterable[str]) -> None:
        """Keep rows with their answers [N, T], and for each row without one why."""
        why = iter(reasons)
        for key, answer in zip(_keys(inputs, self._names), answers, strict=True):
            entry = answer.copy(), next(why) if np.isnan(answer[0]) else ""
            if key not in self._known:
                self._known[key] = self._new[key] = entry
        if time.monotonic() - self._written > _EVERY:
            self.flush()

    def agree(self, inputs: pd.DataFrame, answers: Floats) -> bool:
        """Return whether rows that are known have these answers [N, T], but for roundings."""
        found, known, _ = self.find(inputs)
        return np.allclose(found[known], answers[known], rtol=_SAME, atol=1e-300, equal_nan=True)

    def flush(self) -> None:
        """Write what is new."""
        if self._new:
            content = _pack(self._new, self._width)
            self._store.put(f"{hashlib.sha256(content).hexdigest()}.rows", content)
            self._new = {}
        self._written = time.monotonic()

    def _read(self) -> None:
        size = 0
        for entry in self._store.list():
            size += entry.size
            if size > _MOST:
                print(f"WARNING: more solved rows at {self.uri} than are read: {_MOST:,} bytes")
                return
            content = self._store.get(entry.key, most=None)
            try:
                if hashlib.sha256(content).hexdigest() != entry.key.removesuffix(".rows"):
                    raise CorruptData("its content is not what its name says")
                self._known.update(_unpack(content, self._width))
            except CorruptData as error:
                print(f"WARNING: rows of {self.uri}/{entry.key} are solved again: {error}")


class Keep:
    """Opens the rows of a system if it turns out to be slow, and writes at its end what is new.

    Args:
        uri: Root that the user owns, below which they lie.
        system: The system.
        args: What it was made with.
    """

    def __init__(self, uri: str, system: System, args: Mapping[str, Any]):
        self._uri, self._system, self._args = uri, system, args
        self.rows: KeptRows | None = None
        """Rows to look up before they are solved; None where there are none to be used."""
        self.seconds = 0.0
        """For a row of a slow system."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.rows is not None:
            self.rows.flush()

    def open(self, seconds: float, inputs: pd.DataFrame, answers: Floats) -> str:
        """Open the rows of a slow system; say in a sentence what is kept, or why nothing is.

        Args:
            seconds: That a row takes; of a fast system none is kept, and nothing is said.
            inputs: Rows [N] that were just solved.
            answers: To these [N, T]. Where others are kept for them, none of what is kept is used.
        """
        if seconds < SLOW:
            return ""
        self.seconds = seconds
        identity = identify(self._system, self._args)
        if isinstance(identity, Unknown):
            return f"solved rows are not kept: {identity}"
        width = max(1, int(np.prod(self._system.output.shape)))
        place = f"{self._uri.rstrip('/')}/{FOLDER}/{identity}"
        try:
            found = KeptRows(place, self._system.domain.names, width)
        except KubestillError as error:
            return f"solved rows are not kept: {error}"
        if not found.agree(inputs, answers):
            return f"what is kept in {found.uri} is not what the system answers now: it is not used"
        before = len(found)
        answered = np.flatnonzero(~np.isnan(answers[:, 0]))
        found.add(inputs.iloc[answered], answers[answered], [])
        self.rows = found
        if not before:
            return f"solved rows are kept in {found.uri}"
        rows = f"{counted(before, 'row')} of {self._system.name}"
        return f"{rows} from before, in {found.uri}, are not solved again"


def identify(system: System, args: Mapping[str, Any]) -> str | Unknown:
    """Return a digest of all that a solution depends on, or why that cannot be known.

    A `version` that the system declares stands for all of it. Otherwise it is: the files of the
    package that defines the class and of those that it imports from elsewhere than where packages
    are installed, the versions of installed packages, and the files that its arguments name. What
    a solver reads beside these (data, a program of its own) has no part in it.
    """
    found = type(system)
    facts: dict[str, Any] = {
        "class": f"{found.__module__}:{found.__qualname__}",
        "args": args,
        "inputs": system.domain.describe(),
        "output": repr(system.output),
    }
    try:
        if system.version is not None:
            facts["version"] = system.version
        else:
            facts["sources"] = _sources(found)
            facts["installed"] = _installed()
            facts["files"] = [_file(value) for value in _paths(args)]
        text = json.dumps(facts, sort_keys=True, allow_nan=False)
    except Unknown as error:
        return error
    except (TypeError, ValueError) as error:
        return Unknown(f"its arguments cannot be identified ({error})")
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def _installed() -> list[str]:
    return sorted(f"{one.name}=={one.version}" for one in importlib.metadata.distributions())


def _sources(found: type) -> list[str]:
    """Return digests of the code that a system is made of, by package."""
    digests = [kubestill.__version__]
    left = [one.__module__.partition(".")[0] for one in found.__mro__ if one is not System]
    for one in found.__mro__:
        try:
            path = inspect.getsourcefile(one)
        except (OSError, TypeError):
            path = None
        if one.__module__ not in ("builtins", "abc") and not os.path.exists(path or ""):
            raise Unknown(
                f"{one.__qualname__} has no source file, so nobody can tell whether it changed; "
                "give the system a `version`"
            )
        if path and one.__module__.startswith("kubestill."):
            here = os.path.dirname(path)
            digests.append(
                _digest(
                    [
                        os.path.join(here, name)
                        for name in sorted(os.listdir(here))
                        if name.endswith(".py")
                    ]
                )
            )
    seen = {"builtins", "abc", "kubestill"}
    while left:
        name = left.pop()
        if name not in seen:
            files = _code(name)
            digests.append(f"{name} {_digest(files)}")
            # Other installed packages are identified by their version.
            left += [other for other in _imported(files) if other not in seen and _is_own(other)]
        seen.add(name)
    return sorted(digests)


def _code(name: str) -> list[str]:
    """Return the files of a package, or of a module alone."""
    module = sys.modules.get(name)
    spec = (module and module.__spec__) or importlib.util.find_spec(name)
    folders = list(spec.submodule_search_locations or []) if spec else []
    alone = getattr(module, "__file__", None) or (spec and spec.origin) or ""
    inside = [
        os.path.join(root, file)
        for folder in folders
        for root, _, files in os.walk(folder)
        for file in files
        if not file.endswith((".pyc", ".pyo"))
    ]
    return sorted(inside) or [alone]


def _imported(files: Sequence[str]) -> set[str]:
    """Return the packages that Python files import, wherever in them."""
    names = set[str]()
    for path in files:
        if path.endswith(".py"):
            with open(path, "rb") as file:
                tree = ast.parse(file.read())
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    names.update(alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module.partition(".")[0])
    return names


def _is_own(name: str) -> bool:
    """Return whether a package lies where no installation put it: its version says nothing."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return False
    place = os.path.realpath((spec and spec.origin) or "")
    prefixes = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix)}
    return os.path.isfile(place) and not any(place.startswith(f"{one}/") for one in prefixes)


def _paths(args: Any) -> list[str]:
    """Return every text among the arguments that names a file or a place in a store."""
    if isinstance(args, str):
        if "://" in args:
            raise Unknown(f"{args} may hold something else tomorrow; give the system a `version`")
        return [args] if os.path.exists(args) else []
    values = args.values() if isinstance(args, Mapping) else args
    inside = values if isinstance(args, Mapping | list | tuple) else ()
    return [path for value in inside for path in _paths(value)]


def _file(path: str) -> str:
    if os.path.isdir(path):
        raise Unknown(f"{path} is a folder of files; give the system a `version`")
    return _digest([path])


def _digest(paths: Sequence[str]) -> str:
    if sum(os.path.getsize(path) for path in paths) > _MOST_FILE:
        raise Unknown(f"{paths[0]} is too large to be read every time; give it a `version`")
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.sha256(file.read()).digest())
    return digest.hexdigest()


def _keys(inputs: pd.DataFrame, names: Sequence[str]) -> list[bytes]:
    """Return a digest of each row's inputs, all bits of them."""
    columns: list[list[bytes]] = []
    for name in names:
        values = stacked(inputs[name])
        if values.dtype.kind in "fiub":
            numbers = np.ascontiguousarray(values, np.float64)
            columns.append([number.tobytes() for number in numbers])
        else:
            texts = [str(value).encode() for value in values]
            columns.append([struct.pack("<I", len(text)) + text for text in texts])
    return [hashlib.sha256(b"".join(cells)).digest()[:_KEY] for cells in zip(*columns, strict=True)]


def _pack(rows: Mapping[bytes, tuple[Floats, str]], width: int) -> bytes:
    answers = np.stack([answer for answer, _ in rows.values()]).astype("<f8")
    reasons = json.dumps([reason for _, reason in rows.values() if reason]).encode()
    head = struct.pack(_HEAD, _MAGIC, len(rows), width, len(reasons))
    return b"".join([head, *rows.keys(), answers.tobytes(), reasons])


def _unpack(content: bytes, width: int) -> dict[bytes, tuple[Floats, str]]:
    start = struct.calcsize(_HEAD)
    if len(content) < start:
        raise CorruptData("it is cut off")
    magic, rows, wide, text = struct.unpack_from(_HEAD, content)
    ends = (start + rows * _KEY, start + rows * (_KEY + 8 * wide))
    if magic != _MAGIC or wide != width or ends[1] + text != len(content):
        raise CorruptData("it is something else, or damaged")
    keys = [content[at : at + _KEY] for at in range(start, ends[0], _KEY)]
    answers = np.frombuffer(content[ends[0] : ends[1]], "<f8").reshape(rows, wide)
    reasons = _reasons(content[ends[1] :])
    failed = np.isnan(answers[:, 0])
    if len(reasons) != failed.sum():
        raise CorruptData("its reasons are not those of its rows")
    why = iter(reasons)
    return {
        key: (answer.astype(np.float64), next(why) if lost else "")
        for key, answer, lost in zip(keys, answers, failed, strict=True)
    }


def _reasons(content: bytes) -> list[str]:
    form = parse_json(b'{"reasons": ' + content + b"}", source="solved rows", what="reasons")
    reasons: list[Any] = form["reasons"] if isinstance(form.get("reasons"), list) else [None]
    if not all(isinstance(one, str) and one for one in reasons):
        raise CorruptData("its reasons are no texts")
    return [str(one) for one in reasons]
