"""A model as a folder: `model.safetensors`, `training.json` where there is one, `model.json` last.

Loading executes nothing from the store: weights are safetensors, the rest is JSON, and what is not
trusted on this side is not even imported (see `kubestill.runtime.base.trust`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from kubestill.errors import CorruptData, InvalidInput, NotFound, Problem
from kubestill.runtime.base.device import choose_device
from kubestill.runtime.base.values import parse_json
from kubestill.runtime.models.bands import read_bands
from kubestill.runtime.models.identity import (
    FOREIGN,
    SPEC_FILE,
    TRAINING_FILE,
    WEIGHTS_FILE,
    check_digest,
    model_digest,
    weights_digest,
    weights_file,
)
from kubestill.runtime.models.model import Model, ModelSpec
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.stores import open_store
from kubestill.runtime.stores.files import publish, temporary_beside, write_all, write_file

__all__ = [
    "SPEC_FILE",
    "TRAINING_FILE",
    "WEIGHTS_FILE",
    "Export",
    "Incoming",
    "copy_export",
    "copy_model",
    "export_model",
    "load_model",
]


@dataclass(frozen=True, kw_only=True)
class Export:
    """A model that was written."""

    spec: ModelSpec
    """Content of `model.json`."""
    digest: str
    """The model's; see `models.identity`."""
    bytes: int
    """Size of the weights."""


def export_model(model: Model, folder: str, *, training: Mapping[str, Any] | None = None) -> Export:
    """Write the model; a reader finds a whole one or none.

    Args:
        model: On any device.
        folder: A local folder, made where missing; an older export in it is replaced.
        training: Content of `training.json`, the record of the training run; None writes none.
    """
    return _write(model.spec, model.state_dict(), folder, training)


def copy_export(source: str, folder: str, *, training: Mapping[str, Any] | None = None) -> Export:
    """Write an export again, with another record, in little memory.

    Args:
        source: The folder of what `Incoming.export` or `export_model` wrote.
        folder: As for `export_model`.
        training: As for `export_model`.
    """
    spec_file, weights_file = (os.path.join(source, name) for name in (SPEC_FILE, WEIGHTS_FILE))
    with open(spec_file, "rb") as file:
        spec = ModelSpec.from_json(parse_json(file.read(), source=spec_file, what="model"))
    os.makedirs(folder, exist_ok=True)
    _remove_stale(folder)
    with temporary_beside(path := os.path.join(folder, WEIGHTS_FILE)) as (temporary, fd):
        shutil.copyfile(weights_file, temporary)
        publish(temporary, fd, path)
    return _write_rest(spec, folder, training, size=os.path.getsize(path))


class Incoming:
    """Weights that come in pieces, in any order, and become an export: in little memory.

    They are a checkpoint's `model/<key of Model.state_dict()>`, replaced by `ema/<key>` where the
    training run kept an exponential moving average.

    Args:
        folder: Of the export, as for `export_model`; until then the pieces lie there.
    """

    def __init__(self, folder: str):
        os.makedirs(folder, exist_ok=True)
        self._folder = folder
        self._pieces = tempfile.TemporaryFile(dir=folder)
        self._held: dict[str, _Held] = {}
        self._end = 0

    def begin(
        self, name: str, dtype: str, shape: Sequence[int], size: int
    ) -> Callable[[int, memoryview], None] | None:
        """Return what takes the content of a checkpoint's tensor, from any byte on; None: nothing.

        Args:
            name: With its prefix.
            dtype: What safetensors calls its type.
            shape: Its own.
            size: In bytes.
        """
        if not name.startswith(_PREFIXES):
            return None
        start, self._end = self._end, self._end + size
        self._held[name] = _Held(dtype, tuple(shape), start, size)
        return lambda offset, piece: self._put(start + offset, piece)

    def export(
        self, model_spec: Mapping[str, Any], *, training: Mapping[str, Any] | None = None
    ) -> Export:
        """Write the model, without building the network.

        Args:
            model_spec: What the checkpoint's `meta` holds under this name.
            training: As for `export_model`.

        Raises:
            CorruptData: There were no weights.
        """
        weights = {
            name.removeprefix(prefix): held
            for prefix in _PREFIXES
            for name, held in self._held.items()
            if name.startswith(prefix)
        }
        if not weights:
            raise CorruptData("checkpoint: no tensor named 'model/...'")
        # The order and the form of safetensors' own writer.
        ordered = sorted(weights.items(), key=lambda one: (_TYPES.index(one[1].dtype), one[0]))
        header, end = dict[str, Any](), 0
        for name, held in ordered:
            place = [end, end := end + held.size]
            header[name] = {"dtype": held.dtype, "shape": held.shape, "data_offsets": place}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        _remove_stale(self._folder)
        digest = hashlib.sha256()
        with temporary_beside(path := os.path.join(self._folder, WEIGHTS_FILE)) as (temporary, fd):
            for content in self._contents(text, [held for _, held in ordered]):
                digest.update(content)
                write_all(fd, content)
            publish(temporary, fd, path)
        self.close()
        spec = replace(ModelSpec.from_json(model_spec), digest=digest.hexdigest())
        return _write_rest(spec, self._folder, training, size=8 + len(text) + end)

    def close(self) -> None:
        """Let go of what came in."""
        self._pieces.close()

    def _contents(self, header: bytes, ordered: Iterable[_Held]) -> Iterator[bytes]:
        yield len(header).to_bytes(8, "little") + header
        for held in ordered:
            for start in range(0, held.size, _PIECE):
                size = min(_PIECE, held.size - start)
                yield os.pread(self._pieces.fileno(), size, held.start + start)

    def _put(self, place: int, piece: memoryview) -> None:
        while piece:
            done = os.pwrite(self._pieces.fileno(), piece, place)
            place, piece = place + done, piece[done:]


@dataclass(frozen=True)
class _Held:
    """Where a weight lies that came in."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


_PREFIXES = ("model/", "ema/")
_PIECE = 1 << 20
_TYPES = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
)
"""As safetensors orders them in a file."""


def copy_model(uri: str, folder: str) -> None:
    """Copy the files of a model into a local folder, in place of what is there.

    Args:
        uri: Its folder, local or in a store; what lies in folders below it is not the model's.
        folder: Where they go.
    """
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    store = open_store(uri)
    for entry in store.list():
        if "/" not in entry.key:
            store.download(entry.key, os.path.join(folder, entry.key))


def _write(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    folder: str,
    training: Mapping[str, Any] | None,
) -> Export:
    os.makedirs(folder, exist_ok=True)
    _remove_stale(folder)
    content = safetensors.torch.save(_own_memory(weights))
    spec = replace(spec, digest=weights_digest(content))
    write_file(os.path.join(folder, WEIGHTS_FILE), content)
    return _write_rest(spec, folder, training, size=len(content))


def _remove_stale(folder: str) -> None:
    for stale in (SPEC_FILE, TRAINING_FILE):
        if os.path.exists(os.path.join(folder, stale)):
            os.remove(os.path.join(folder, stale))


def _write_rest(
    spec: ModelSpec, folder: str, training: Mapping[str, Any] | None, *, size: int
) -> Export:
    """Write what belongs to weights that are there, `model.json` last."""
    if training is not None:
        write_file(os.path.join(folder, TRAINING_FILE), _json(training))
    form = _json(spec.to_json())
    write_file(os.path.join(folder, SPEC_FILE), form)
    return Export(spec=spec, digest=model_digest(form), bytes=size)


def _own_memory(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the weights to the host; tied ones, which safetensors refuses, become copies."""
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return own


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def load_model(
    uri: str,
    *,
    device: str = "cpu",
    trust: Iterable[str] = (),
    bands: bool = False,
    strict: bool = False,
) -> Predictor:
    """Load an exported model as something that is called on a DataFrame.

    Args:
        uri: The folder of the export: a local path or `gs://...`.
        device: Where it computes: "cpu", "cuda", "cuda:1", or "auto" for a GPU where there is one.
        trust: Packages whose networks, or teachers, the file may name, besides those of this
            package, those that are registered as entry points, and those of `KUBESTILL_TRUST`.
        bands: Also give error bands, which certify-surrogate wrote beside the model.
        strict: Refuse rows with values that training would have refused or never saw, such as
            labels that it does not know, in place of counting them (`Predictor.familiar`).

    Raises:
        InvalidInput: There is no such device here, no model there, its network is not vouched
            for or cannot be imported here, or it has no error bands.
        CorruptData: The files are damaged, do not belong together, or are of a later format.
        StoreError: The store did not answer.
    """
    place = choose_device(device)
    store = open_store(uri)
    try:
        text = store.get(SPEC_FILE)
        form = parse_json(text, source=f"{uri}/{SPEC_FILE}", what="model")
        packed = store.get(weights_file(form), most=None)
    except NotFound as error:
        remedy = f"no exported model here ({error}); give the folder that holds {SPEC_FILE}"
        raise InvalidInput([Problem("model", uri, remedy)]) from error
    if form.get("format") == FOREIGN and strict:
        remedy = "is a foreign model, and nothing is known of what it has seen; leave strict out"
        raise InvalidInput([Problem("model", uri, remedy)])
    if form.get("format") == FOREIGN:
        # Only here: it takes libraries that a model of our own does without.
        from kubestill.runtime.models.foreign.model import load_foreign

        return load_foreign(
            form,
            packed,
            digest=check_digest(text, packed, source=uri),
            trust=trust,
            device=str(place),
        )
    spec = ModelSpec.from_json(form)
    digest = check_digest(text, packed, source=uri)
    where = f"{uri}/{WEIGHTS_FILE}"
    try:
        weights = safetensors.torch.load(packed)
    except KeyError as error:
        raise CorruptData(f"{where} has numbers of a type that torch lacks: {error}") from error
    except (SafetensorError, RuntimeError) as error:
        raise CorruptData(f"{where}: {error}") from error
    try:
        model = Model.from_spec(spec, trust=trust, weights=weights)
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CorruptData(f"{where}: {error}") from error
    found = Predictor(model.to(place), digest=digest)
    found.familiar.strict = strict
    if bands:
        sizes = {"features": found.layout.width, "outputs": found.layout.outputs}
        found.bands = read_bands(store, model=digest, **sizes)
    return found
