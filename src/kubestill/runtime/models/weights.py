"""Weights that another trainer wrote, as safetensors files: whole, or in pieces.

`torch.distributed.checkpoint` writes both by its `HuggingFaceStorageWriter`, and its reader takes
the state files of checkpoints here. What it writes by default, `.metadata` and `.distcp`, are
pickles: whoever loads them runs what they say, so that they are not read.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Generator, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kubestill.errors import CorruptData, InvalidInput, Problem, Problems, nearest_of
from kubestill.runtime.base.values import Value, Whole, parse_json, read_as
from kubestill.runtime.models.build import Shaped
from kubestill.runtime.models.sizes import kind_of
from kubestill.runtime.stores import open_store
from kubestill.runtime.stores.files import translated

_PIECES = "DCP_SHARDING_INFO"
"""Where torch.distributed.checkpoint says at which indices a piece begins."""
_SHOWN = 100
"""Characters of a name in a message."""


def digest_weights(uri: str, field: str) -> str:
    """Return the SHA-256 of the files of weights in a folder, in the order of their names.

    Raises:
        InvalidInput: There are none.
        StoreError: The store did not answer.
    """
    digest = hashlib.sha256()
    with _local_files(uri, field) as paths:
        for path in paths:
            with translated(uri, os.path.basename(path)), open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@torch.no_grad()
def load_weights(network: nn.Module, uri: str, field: str) -> None:
    """Give a network the weights of a folder, a tensor at a time.

    Names are those of the network's own state; what comes before all of them, such as `model.`, is
    passed over, and so is whatever has another name.

    Args:
        network: Gets them.
        uri: Of the folder, local or in a store.
        field: The setting that names it, for messages.

    Raises:
        InvalidInput: A weight is missing or there twice, has another shape or kind of numbers, or
            some that are not finite: all of them. Or there are several networks like this one.
        CorruptData: A file does not say where its pieces begin.
        StoreError: The store did not answer.
    """
    # Not with what this package puts around it.
    own = network.network if isinstance(network, Shaped) else network
    wanted = own.state_dict()
    problems = Problems()
    with _local_files(uri, field) as paths:
        try:
            found: dict[str, list[_Piece]] = {}
            for path in paths:
                for piece in _look(path):
                    found.setdefault(piece.name, []).append(piece)
            near = nearest_of({name[:_SHOWN] for name in found})
            before = _find_prefix(wanted, found.keys(), field)
            for short, into in wanted.items():
                name = before + short
                if told := _fill(into, found.get(name, [])):
                    problems.add(field, name[:_SHOWN], told)
                elif told is None:
                    remedy = f"does not have all of the network's {short}; {near(name[:_SHOWN])}"
                    problems.add(field, uri, remedy)
        except (SafetensorError, RuntimeError, KeyError, TypeError, OSError) as error:
            raise InvalidInput([Problem(field, uri, f"cannot be read: {error}")]) from error
    problems.raise_if_any()


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A tensor of a file: a whole one, or a part that begins at `offsets`."""

    path: str
    name: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


class _Begins(Value):
    saved_offsets: tuple[Whole, ...]


def _fill(into: Tensor, pieces: list[_Piece]) -> str | None:
    """Put a tensor together; return what is wrong with it, or None where a part is missing."""
    has = torch.zeros(into.shape, dtype=torch.bool)
    plain = bool(into.isfinite().all())
    for piece in pieces:
        ends = [at + size for at, size in zip(piece.offsets, piece.shape, strict=True)]
        if len(ends) != into.dim() or any(map(int.__gt__, ends, into.shape)):
            where = f" at {list(piece.offsets)}" if any(piece.offsets) else ""
            shapes = f"has {list(piece.shape)}{where}, and the network's {list(into.shape)}"
            return f"{shapes}; mend network_args"
        place = tuple(map(slice, piece.offsets, ends))
        if has[place].any():
            return "is there twice; give a folder in which every number is once"
        with safe_open(piece.path, framework="pt") as opened:
            given = opened.get_tensor(piece.name)
        if kind_of(given) != kind_of(into):
            return f"holds {given.dtype}, and the network's {into.dtype}; save it as that"
        given = given.to(into.dtype)
        if plain and not given.isfinite().all():
            return "holds numbers that are not finite; give weights of a training run that went on"
        into[place], has[place] = given, True
    return "" if has.all() and (pieces or into.numel() == 0) else None


def _find_prefix(wanted: Iterable[str], names: Set[str], field: str) -> str:
    """Return what stands before the names of the network in those of the files.

    Raises:
        InvalidInput: There are several networks like it.
    """
    wanted = list(wanted)
    if not wanted:
        return ""
    found = [name.removesuffix(wanted[0]) for name in names if name.endswith(wanted[0])]
    counts = {before: sum(before + name in names for name in wanted) for before in found}
    ranked = sorted(counts, key=lambda before: (-counts[before], len(before), before))
    whole = [before for before in ranked if counts[before] == len(wanted)]
    if len(whole) > 1 and whole[0]:
        remedy = "are before the names of as many networks like it; give a folder with one"
        raise InvalidInput([Problem(field, [before[:_SHOWN] for before in whole[:5]], remedy)])
    return ranked[0] if ranked else ""


def _look(path: str) -> Iterator[_Piece]:
    """Yield every tensor of a file.

    Raises:
        CorruptData: It does not say where its pieces begin.
    """
    what = "table of pieces"
    with safe_open(path, framework="pt") as opened:
        told = (opened.metadata() or {}).get(_PIECES)
        table = parse_json(told, source=path, what=what) if told is not None else None
        for name in opened.keys():  # noqa: SIM118
            shape = tuple(opened.get_slice(name).get_shape())
            offsets = (0,) * len(shape)
            if table is not None:
                source = f"{path} {name[:_SHOWN]}"
                begins = read_as(_Begins, table.get(name), source=source, what=what)
                offsets = begins.saved_offsets
                if len(offsets) != len(shape):
                    raise CorruptData(f"{source} of {list(shape)} begins at {list(offsets)[:9]}")
            yield _Piece(path=path, name=name, offsets=offsets, shape=shape)


@contextmanager
def _local_files(uri: str, field: str) -> Generator[list[str]]:
    """Give the paths of the files of weights, downloaded where they are not local."""
    store = open_store(uri)
    keys = sorted(entry.key for entry in store.list() if "/" not in entry.key)
    found = [key for key in keys if key.endswith(".safetensors")]
    if not found:
        remedy = "has no *.safetensors; give a folder that has"
        if ".metadata" in keys or any(key.endswith(".distcp") for key in keys):
            remedy = (
                "is in the default format of torch.distributed.checkpoint, a pickle, which runs "
                "what it says when it is read; have its HuggingFaceStorageWriter write it"
            )
        raise InvalidInput([Problem(field, uri, remedy)])
    with tempfile.TemporaryDirectory(prefix="kubestill-weights-") as folder:
        paths: list[str] = []
        for key in found:
            path = store.local_path(key)
            if path is None:
                store.download(key, path := os.path.join(folder, key))
            paths.append(path)
        yield paths
