"""Weights that another trainer wrote, as safetensors files: whole, or in pieces.

`torch.distributed.checkpoint` writes both by its `HuggingFaceStorageWriter`, and its reader takes
the state files of checkpoints here. What it writes by default, `.metadata` and `.distcp`, are
pickles: whoever loads them runs what they say, so that they are not read.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kubestill.errors import InvalidInput, Problem, Problems, nearest_of
from kubestill.runtime.base.values import parse_json
from kubestill.runtime.models.build import Shaped
from kubestill.runtime.stores import open_store

_PIECES = "DCP_SHARDING_INFO"
"""Where torch.distributed.checkpoint says at which indices a piece begins."""
_CHUNK = 16 << 20


def digest_weights(uri: str, field: str) -> str:
    """Return the SHA-256 of the files of weights in a folder, in the order of their names.

    Raises:
        InvalidInput: There are none.
        StoreError: The store did not answer.
    """
    digest = hashlib.sha256()
    with _local_files(uri, field) as paths:
        for path in paths:
            with open(path, "rb") as file:
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
        InvalidInput: A weight is missing, or has another shape: all of them.
        StoreError: The store did not answer.
    """
    # Not with what this package puts around it.
    own = network.network if isinstance(network, Shaped) else network
    wanted = {name: tensor for name, tensor in own.state_dict().items()}
    problems = Problems()
    with _local_files(uri, field) as paths:
        try:
            pieces = [piece for path in paths for piece in _look(path)]
            names = {name for _, name, _, _ in pieces}
            before = _find_prefix(wanted, names)
            left = {name: tensor.numel() for name, tensor in wanted.items()}
            for path, name, offsets, shape in pieces:
                short = name.removeprefix(before)
                if not name.startswith(before) or short not in wanted:
                    continue
                into = wanted[short]
                ends = [at + size for at, size in zip(offsets, shape, strict=False)]
                fits = len(offsets) == len(shape) == into.dim()
                if not fits or any(end > size for end, size in zip(ends, into.shape, strict=True)):
                    told = f"{list(shape)} at {list(offsets)}" if any(offsets) else f"{list(shape)}"
                    remedy = f"the network's {short} has {list(into.shape)}; mend network_args"
                    problems.add(field, f"{name} of {told}", remedy)
                    del left[short], wanted[short]
                    continue
                for dim, (at, size) in enumerate(zip(offsets, shape, strict=True)):
                    into = into.narrow(dim, at, size)
                with safe_open(path, framework="pt") as opened:
                    into.copy_(opened.get_tensor(name))
                left[short] -= into.numel()
        except (SafetensorError, RuntimeError, KeyError, TypeError) as error:
            raise InvalidInput([Problem(field, uri, f"cannot be read: {error}")]) from error
    near = nearest_of(names)
    for name in [name for name, count in left.items() if count]:
        problems.add(
            field, uri, f"does not have all of the network's {name}; {near(before + name)}"
        )
    problems.raise_if_any()


def _find_prefix(wanted: dict[str, Tensor], names: set[str]) -> str:
    """Return what stands before the names of the network in those of the files."""
    first = next(iter(wanted), "")
    found = [name.removesuffix(first) for name in names if name.endswith(first)]
    found.sort(key=lambda before: (-sum(before + name in names for name in wanted), len(before)))
    return found[0] if found else ""


def _look(path: str) -> Iterator[tuple[str, str, list[int], list[int]]]:
    """Yield (path, name, first indices, shape) of every tensor of a file."""
    with safe_open(path, framework="pt") as opened:
        told = (opened.metadata() or {}).get(_PIECES)
        begins = parse_json(told, source=path, what="table of pieces") if told else {}
        for name in opened.keys():  # noqa: SIM118
            shape = opened.get_slice(name).get_shape()
            offsets = begins[name]["saved_offsets"] if told else [0] * len(shape)
            if not all(isinstance(at, int) and at >= 0 for at in offsets):
                raise ValueError(f"{name} begins at {offsets!r:.80}")
            yield path, name, list(offsets), list(shape)


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
