"""The whole state of a training run, and how its tensors lie in a file.

The file format is safetensors (a JSON header, then the bytes of all tensors), which never executes
anything when it is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field

from kubestill.errors import CorruptData
from kubestill.runtime.base.values import Whole, parse_json, read_as
from kubestill.runtime.checkpoints.ledger import Json

RANK_PREFIX = "rank/"
"""Tensors named so belong to one rank; all others are equal on all ranks, and rank 0 saves them."""

_ALIGNMENT = 64
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass
class TrainingState:
    """What a training run needs to go on as if nothing had happened.

    Names of tensors are the engine's business, such as `model/<state_dict key>`,
    `optimizer/<parameter>/<slot>`, `ema/<key>`, `rng/torch`. With several processes, what differs
    between ranks (random generators) goes under `rank/...` in `tensors` and under the key `rank` in
    `meta`.
    """

    tensors: dict[str, torch.Tensor]
    """Any device, any shape. What `save` is given are the live tensors; it copies them."""
    meta: Json = field(default_factory=dict[str, Any])
    """Everything else, as JSON: counters, position in the data, schedule, history, `model_spec`."""

    @property
    def model_spec(self) -> Json:
        """How to build and feed the model; empty where the state holds none."""
        return self.meta.get("model_spec", {})

    def of_rank(self, rank: int) -> dict[str, torch.Tensor]:
        """Return the tensors that this rank saves: its own, and on rank 0 the shared ones."""
        if rank == 0:
            return self.tensors
        return {k: v for k, v in self.tensors.items() if k.startswith(RANK_PREFIX)}


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies in the data part of a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Byte offset; a multiple of the item size."""
    end: int

    @property
    def type_name(self) -> str:
        """What safetensors calls its type."""
        return _NAMES[self.dtype]


@dataclass(frozen=True)
class Layout:
    """Names, types, shapes and places of all tensors of one file."""

    slots: tuple[Slot, ...]
    header: bytes
    """The file's first bytes, padded so that the data starts aligned."""
    size: int
    """Bytes of the data part."""

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Layout:
        """Lay tensors out one after the other, widest items first, so that all lie aligned."""
        slots: list[Slot] = []
        start = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].element_size()):
            end = start + tensor.numel() * tensor.element_size()
            slots.append(Slot(name, tensor.dtype, tuple(tensor.shape), start, end))
            start = end
        header = {
            slot.name: {
                "dtype": _NAMES[slot.dtype],
                "shape": slot.shape,
                "data_offsets": (slot.start, slot.end),
            }
            for slot in slots
        }
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        return cls(tuple(slots), len(text).to_bytes(8, "little") + text, start)

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Say whether these tensors have this very layout."""
        return len(tensors) == len(self.slots) and all(
            (tensor := tensors.get(slot.name)) is not None
            and tensor.dtype is slot.dtype
            and tensor.shape == slot.shape
            for slot in self.slots
        )

    @classmethod
    def parse(cls, content: memoryview, *, source: str, total: int | None = None) -> Layout:
        """Read the header of a file.

        Args:
            content: The file, or its beginning.
            source: Where it comes from, for messages.
            total: Bytes of the file, where `content` is not all of it.

        Raises:
            CorruptData: It is no safetensors file, or one that lies about where its tensors are.
        """
        try:
            length, total = 8 + int.from_bytes(content[:8], "little"), total or len(content)
            if length > len(content):
                raise ValueError(f"a header of {length} bytes in a file of {total}")
            header = bytes(content[:length])
            parsed = parse_json(header[8:], source=source, what="safetensors file")
            slots = tuple(
                _slot(name, read_as(_Placed, value, source=source, what="safetensors file"))
                for name, value in parsed.items()
                if name != "__metadata__"
            )
        except (ValueError, KeyError) as error:
            raise CorruptData(f"{source} is not a safetensors file: {error}") from error
        size = total - length
        if any(not 0 <= slot.start <= slot.end <= size for slot in slots):
            raise CorruptData(f"{source} places tensors outside of itself")
        end = 0
        for slot in sorted(slots, key=lambda slot: (slot.start, slot.end)):
            # Each of many may be as large as the file: a reader has memory for all of them.
            if slot.start < end:
                raise CorruptData(f"{source} places {slot.name[:100]!r} where another tensor is")
            end = slot.end
        return cls(slots, header, size)

    def views(self, data: torch.Tensor) -> list[torch.Tensor]:
        """Return one view a slot into `data`: uint8 [>= size]."""
        return [
            data[slot.start : slot.end].view(slot.dtype).view(slot.shape) for slot in self.slots
        ]


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """A tensor as a safetensors header tells it."""

    dtype: str
    shape: Annotated[tuple[Whole, ...], Field(max_length=64)]
    data_offsets: tuple[Whole, Whole]


def _slot(name: str, value: _Placed) -> Slot:
    start, end = value.data_offsets
    dtype, shape = _DTYPES[value.dtype], value.shape
    # Strides are products of sizes, even where one of the others is 0.
    if math.prod(size or 1 for size in shape) > 1 << 60:
        raise ValueError(f"{name[:100]!r} has sizes that no memory holds")
    if math.prod(shape) * dtype.itemsize != end - start:
        raise ValueError(f"{name[:100]!r} of {shape} does not fill bytes {start} to {end}")
    return Slot(name, dtype, shape, start, end)
