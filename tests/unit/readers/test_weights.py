"""Weights that a stranger wrote: a network gets all of its numbers once, or none is believed."""

from __future__ import annotations

import json
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.models.weights import load_weights

Tensors = dict[str, Tensor]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))


WHOLE = {name: torch.full_like(tensor, 3) for name, tensor in network().state_dict().items()}
FILE = save(WHOLE)
BEGINS = {name: {"saved_offsets": [0] * tensor.dim()} for name, tensor in WHOLE.items()}
LENGTH = 8 + int.from_bytes(FILE[:8], "little")


def read(folder: Path, *files: bytes) -> Tensors:
    for number, content in enumerate(files):
        (folder / f"{number}.safetensors").write_bytes(content)
    made = network()
    load_weights(made, str(folder), "settings.initial_weights")
    return made.state_dict()


def changed(**tensors: Tensor | None) -> bytes:
    held = WHOLE | {name.replace("_", ".", 1): tensor for name, tensor in tensors.items()}
    return save({name: tensor for name, tensor in held.items() if tensor is not None})


def piece(tensors: Tensors, begins: Any) -> bytes:
    told = begins if isinstance(begins, str) else json.dumps(begins)
    return save(tensors, {"DCP_SHARDING_INFO": told})


def header(form: Any, data: int = 0, length: int | None = None) -> bytes:
    text = json.dumps(form).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def half(at: int) -> bytes:
    rows = {"0.weight": torch.ones(2, 2)}
    return piece(rows, {"0.weight": {"saved_offsets": [at, 0]}})


REST = save({name: tensor for name, tensor in WHOLE.items() if name != "0.weight"})
PLACED = {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]}
FLAWS: dict[str, tuple[str, list[bytes]]] = {
    "twice": ("is there twice", [FILE, changed()]),
    "one tensor twice": ("0.weight': is there twice", [FILE, save({"0.weight": torch.ones(4, 2)})]),
    "a half twice": ("0.weight': is there twice", [half(0), half(0), REST]),
    "halves that overlap": ("0.weight': is there twice", [half(0), half(1), REST]),
    "a half too far": ("has .2, 2. at .3, 0., and", [half(0), half(3), REST]),
    "a half": ("does not have all", [half(2), REST]),
    "missing": ("does not have all of the network's 0.bias", [changed(**{"0_bias": None})]),
    "turned": ("has .2, 4., and the network's .4, 2.", [changed(**{"0_weight": torch.ones(2, 4)})]),
    "no dimension": ("and the network's", [changed(**{"0_weight": torch.ones(())})]),
    "two networks": (
        "as many networks like it",
        [save({f"{net}.{name}": one.clone() for net in "ab" for name, one in WHOLE.items()})],
    ),
    "a float count": (
        "holds torch.float32",
        [changed(**{"1_num_batches_tracked": torch.ones(())})],
    ),
    "a long name": ("does not have all", [save({"q" * 10**6 + "0.weight": torch.ones(4, 2)})]),
    "a file cut": ("cannot be read", [FILE[:-1]]),
    "a header cut": ("cannot be read", [FILE[:50]]),
    "empty": ("cannot be read", [b""]),
    "a huge header": ("cannot be read", [header({}, length=1 << 62)]),
    "huge sizes": ("cannot be read", [header({"0.weight": PLACED | {"shape": [1 << 62, 2]}}, 32)]),
    "overlapping": ("cannot be read", [header({"0.weight": PLACED, "x": PLACED}, 32)]),
    "a pickle": ("cannot be read", [pickle.dumps(print)]),
}
FLAWS |= {
    f"weights of {dtype}": ("holds torch", [changed(**{"0_weight": torch.ones(4, 2, dtype=dtype)})])
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64)
}
FLAWS |= {
    f"weights of {value}": (
        "not finite",
        [changed(**{"0_weight": torch.full((4, 2), value, dtype=torch.float64)})],
    )
    for value in (float("nan"), float("inf"), 1e300)
}
FLAWS |= {
    f"begins at {value!r:.20}": (
        "table of pieces|begins at|and the network's",
        [piece(WHOLE, BEGINS | {"0.weight": {"saved_offsets": value}})],
    )
    for value in ([-1, 0], [0.5, 0], [True, 0], "ab", None, 5, [0], [0, 0, 0], {}, [[0], 0])
    + ([1 << 62, 0], [10**30, 0], [9, 0])
}
FLAWS |= {
    f"pieces {table!r:.20}": ("table of pieces", [piece(WHOLE, table)])
    for table in ("", "{", "[]", "{}", '{"0.weight": NaN}', "[" * 10**5)
    + (BEGINS | {"0.weight": []}, BEGINS | {"0.weight": None})
    + (json.dumps(BEGINS)[:-1] + ', "0.weight": {"saved_offsets": [0, 0]}}',)
}


@pytest.mark.parametrize("what", FLAWS)
def test_what_is_no_network_is_refused(tmp_path: Path, what: str) -> None:
    says, files = FLAWS[what]
    with pytest.raises((InvalidInput, CorruptData), match=says) as caught:
        read(tmp_path, *files)
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_and_names_of_other_files_are_no_flaw(tmp_path: Path, dtype: Any) -> None:
    places = {"0.weight": "../../x", "0.bias": "/etc/passwd", "1.bias": "s3://x/y"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    found = read(tmp_path, changed(**{"0_weight": WHOLE["0.weight"].to(dtype)}))
    assert all(torch.equal(found[name], tensor) for name, tensor in WHOLE.items())


def test_any_bit_may_turn(tmp_path: Path) -> None:
    """In the header, which is refused or means the same; numbers have no sum of their own."""
    draws, refused = random.Random(0), 0
    for bit in draws.sample(range(8 * LENGTH), 300):
        content = bytearray(FILE)
        content[bit // 8] ^= 1 << bit % 8
        try:
            assert read(tmp_path, bytes(content)).keys() == WHOLE.keys()
        except (InvalidInput, CorruptData):
            refused += 1
    assert refused > 200
